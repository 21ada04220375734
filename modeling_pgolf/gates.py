"""Gates on the residual stream: the smear gate.

``x_t ← (1 − s) x_t + s x_{t−1}`` with ``s = sigmoid(gate)`` per channel, read from the un-smeared neighbour.
Source: PR 65; SPEC-11L 1.4.
"""

import torch
from torch import Tensor, nn


class SmearGate(nn.Module):
    """Mix every position with the one before it, channel by channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor, previous: Tensor) -> Tensor:
        """Blend ``x`` (B, T, D) with ``previous`` (B, T, D), which is 0 where there is no predecessor."""
        share = torch.sigmoid(self.gate).to(x.dtype)
        return (1 - share) * x + share * previous
