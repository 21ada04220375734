"""The mixed assignment: which tensor gets which grid, and whose clip it shares.

Small tensors stay float16, matrices of the blocks go to int6, everything else (the token-indexed tables) to int8.
Source: SPEC-11L 4.1.
"""

from __future__ import annotations

from enum import Enum

from torch import Tensor

MATRIX_BITS, TABLE_BITS = 6, 8


class Role(Enum):
    """What a stored tensor is. Roles with a grid share their clip; FLOAT16 has none."""

    ATTENTION = "attention"
    FEED_FORWARD = "feed-forward"
    TABLE = "table"
    FLOAT16 = "float16"

    @property
    def is_matrix(self) -> bool:
        """Whether tensors of this role multiply a stream, and go to the grid of matrices."""
        return self in (Role.ATTENTION, Role.FEED_FORWARD)


def assign(name: str, tensor: Tensor, small_tensor_elements: int) -> Role:
    """Choose the role of one named tensor; a table's projection counts as attention."""
    if tensor.numel() <= small_tensor_elements:
        return Role.FLOAT16
    if ".mlp." in name:
        return Role.FEED_FORWARD
    return Role.ATTENTION if name.endswith("proj.weight") else Role.TABLE


def group_of(name: str) -> str:
    """Name the group a tensor is counted under in the byte ledger."""
    for part, group in (
        (".self_attn.q_gain", "controls"),
        (".self_attn.", "attention"),
        (".mlp.", "feed-forward"),
        ("embed_tokens", "token table"),
        ("embed_proj", "token table"),
        ("bigram.", "bigram"),
        ("value_embed.", "value embedding"),
        ("lm_head", "head"),
        ("head_proj", "head"),
    ):
        if part in name:
            return group
    return "controls"
