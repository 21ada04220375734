"""A bias-free linear map whose float32 master weight is cast to the type of its input.

Training keeps masters in float32 and multiplies in bfloat16; the cast happens here, at use, so that the optimiser,
the quantiser and a Hub user all see one ordinary ``weight``.
"""

import torch.nn.functional as F
from torch import Tensor, nn


class CastLinear(nn.Linear):
    """``x`` (..., in) to ``x Wᵀ`` (..., out) with ``W`` (out, in) cast to the type of ``x``."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x Wᵀ`` in the type of ``x``."""
        return F.linear(x, self.weight.to(x.dtype))
