"""A bias-free linear map whose float32 master weight is cast to the type of its input.

Training keeps masters in float32 and multiplies in bfloat16; the cast happens here, at use, so that the optimiser,
the quantiser and a Hub user all see one ordinary ``weight``. While a fake grid is set, the product uses the weight
rounded to that grid, and gradients pass straight through the rounding.

Source: straight-through estimator, Bengio et al. 2013; late QAT, PR 414; SPEC-11L 2.5.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from .grid import FakeGrid, straight_through


class CastLinear(nn.Linear):
    """``x`` (..., in) to ``x Wᵀ`` (..., out) with ``W`` (out, in) cast to the type of ``x``."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)
        self.fake_grid: FakeGrid | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x Wᵀ`` in the type of ``x``."""
        weight = self.weight if self.fake_grid is None else straight_through(self.weight, self.fake_grid)
        return F.linear(x, weight.to(x.dtype))
