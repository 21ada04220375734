"""The smear gate on the residual stream, and the position before that it reads.

``x_t ← (1 − s) x_t + s x_{t−1}`` with ``s = sigmoid(gate)`` per channel, read from the un-smeared neighbour.
Source: PR 65; SPEC-11L 1.4.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.cache_utils import Cache


class SmearGate(nn.Module):
    """Mix every position with the one before it, channel by channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor, previous: Tensor) -> Tensor:
        """Blend ``x`` (B, T, D) with ``previous`` (B, T, D), which is 0 where there is no predecessor."""
        share = torch.sigmoid(self.gate).to(x.dtype)
        return (1 - share) * x + share * previous


def previous(x: Tensor, cache: Cache | None, state: int) -> Tensor:
    """Shift ``x`` (B, T, C) one position to the right, the first position coming from the cache (0 without one)."""
    T, full = x.shape[1], x.transpose(1, 2)
    if cache is not None:
        full = cache.update_conv_state(full, 0, state_idx=state, conv_kernel_size=1)
    if full.shape[-1] == T:
        full = F.pad(full, (1, 0))
    return full[..., -T - 1 : -1].transpose(1, 2)
