"""The mixed assignment: which tensor gets which grid.

Small tensors stay float16, matrices of the blocks go to int6, everything else (the token-indexed tables) to int8.
Source: SPEC-11L 4.1.
"""

from __future__ import annotations

from enum import Enum

from torch import Tensor

MATRIX_BITS, TABLE_BITS = 6, 8


class Kind(Enum):
    """How a tensor is stored."""

    MATRIX = "int6"
    TABLE = "int8"
    FLOAT16 = "float16"


def assign(name: str, tensor: Tensor, small_tensor_elements: int) -> Kind:
    """Choose the kind of one named tensor."""
    if tensor.numel() <= small_tensor_elements:
        return Kind.FLOAT16
    is_matrix = ".self_attn." in name or ".mlp." in name or name.endswith(".proj.weight")
    return Kind.MATRIX if is_matrix else Kind.TABLE


def group_of(name: str) -> str:
    """Name the group a tensor is counted under in the byte ledger."""
    for part, group in (
        (".self_attn.q_gain", "controls"),
        (".self_attn.", "attention"),
        (".mlp.", "feed-forward"),
        ("embed_tokens", "token table"),
        ("bigram.", "bigram"),
        ("value_embed.", "value embedding"),
        ("lm_head", "head"),
    ):
        if part in name:
            return group
    return "controls"
