"""The feed-forward half of a block: up, a squared (leaky) ReLU, down.

``φ(u) = (max(u, 0) + s · min(u, 0))²``: ``s = 0`` is relu² (Primer), ``s = 0.5`` the leaky form of PR 493.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from .configuration_pgolf import PGolfConfig
from .linear import CastLinear


class FeedForward(nn.Module):
    """``x`` (B, T, D) to ``φ(x Upᵀ) Downᵀ`` (B, T, D)."""

    def __init__(self, config: PGolfConfig) -> None:
        super().__init__()
        self.negative_slope = config.mlp_negative_slope
        self.up_proj = CastLinear(config.hidden_size, config.intermediate_size)
        self.down_proj = CastLinear(config.intermediate_size, config.hidden_size, "zero")

    def forward(self, x: Tensor) -> Tensor:
        """Return the branch output, before its gain."""
        hidden = F.leaky_relu(self.up_proj(x), self.negative_slope)
        out: Tensor = self.down_proj(hidden * hidden)
        return out
