"""Tables read by token: the hashed bigram and the shared value embedding.

A hashed bigram adds a learnt vector for the pair (token, token before it); a value embedding adds a learnt vector
to the attention values of a few late blocks. Both are small tables with a projection and a gain.

``B`` batch, ``T`` time, ``D`` width. Source: bigram hash, PR 162; value embedding, PR 374; SPEC-11L 1.4, 1.7.
"""

import torch
from torch import Tensor, nn
from transformers import initialization as init

from .linear import CastLinear

# The two odd multipliers of PR 162's hash.
CURRENT_MULTIPLIER, PREVIOUS_MULTIPLIER = 36313, 27191
# Initial gains of PR 162 and PR 374.
BIGRAM_SCALE, VALUE_SCALE = 0.05, 0.1
# Standard deviation of the value table at initialisation, PR 374.
VALUE_TABLE_STD = 0.01


def bigram_ids(tokens: Tensor, previous: Tensor, follows: Tensor, buckets: int) -> Tensor:
    """Hash each token with the one before it.

    tokens, previous: int64 (B, T). follows: bool (B, T), False where a position has no predecessor.
    Returns int64 (B, T) below ``buckets``; the last bucket is kept for positions without a predecessor.
    """
    last = buckets - 1
    mixed = (CURRENT_MULTIPLIER * tokens) ^ (PREVIOUS_MULTIPLIER * previous)
    # The reference multiplies in signed 32-bit integers.
    wrapped = mixed.to(torch.int32).to(torch.int64)
    return torch.where(follows, wrapped % max(last, 1), last)


class Table(nn.Embedding):
    """An embedding that starts with normal rows of deviation ``std``, or with zeros, as soon as it is built.

    The published scripts draw a table before they build its projection, so the model's pass over all modules must
    leave it alone. On the meta device, where loading builds a model, nothing is drawn yet.
    """

    def __init__(self, rows: int, dim: int, std: float) -> None:
        super().__init__(rows, dim)
        self.std = std
        self.init_rows()
        self.weight._is_hf_initialized = not self.weight.is_meta  # type: ignore[attr-defined]

    def init_rows(self) -> None:
        """Draw the initial rows; zeros take nothing from the generator."""
        if self.std > 0:
            init.normal_(self.weight, std=self.std)
        else:
            init.zeros_(self.weight)


class ProjectedTable(nn.Module):
    """A learnt table (rows, dim), a projection to ``width`` where the widths differ, and a scalar gain."""

    def __init__(self, rows: int, dim: int, width: int, std: float, scale: float) -> None:
        super().__init__()
        self.initial_scale = scale
        self.embed = Table(rows, dim, std)
        self.proj = CastLinear(dim, width, "scaled") if dim != width else None
        self.scale = nn.Parameter(torch.empty(()))

    def forward(self, ids: Tensor, dtype: torch.dtype) -> Tensor:
        """Return ``scale · proj(table[ids])``, (B, T) to (B, T, width), computed in ``dtype``."""
        rows: Tensor = self.embed(ids).to(dtype)
        if self.proj is not None:
            rows = self.proj(rows)
        return rows * self.scale.to(dtype)
