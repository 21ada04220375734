"""U-Net skips: the outputs of early visits, blended into the inputs of late ones.

A kept output, weighted by channel, is added to the stream; with gates the stream is interpolated towards it instead:
``x ← σ(γ) x + (1 − σ(γ)) w · skip``. Source: skips, the challenge's baseline; gates, PR 1394; SPEC-8192 1.3.
"""

import torch
from torch import Tensor, nn


class Skips(nn.Module):
    """The weights, and gates, of every row of skips."""

    def __init__(self, rows: int, width: int, gated: bool) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.empty(rows, width))
        self.gates = nn.Parameter(torch.empty(rows, width)) if gated else None

    def forward(self, x: Tensor, skip: Tensor, row: int) -> Tensor:
        """Blend ``skip`` into ``x``, both (..., B, T, D), by the weights of ``row``."""
        weighted = self.weights[row].to(x.dtype) * skip
        if self.gates is None:
            return x + weighted
        gate = torch.sigmoid(self.gates[row]).to(x.dtype)
        return gate * x + (1 - gate) * weighted
