"""A bias-free linear map whose float32 master weight is cast to the type of its input.

Training keeps masters in float32 and multiplies in bfloat16; the cast happens here, at use, so that the optimiser,
the quantiser and a Hub user all see one ordinary ``weight``. While a fake grid is set, the product uses the weight
rounded to that grid, and gradients pass straight through the rounding.

Source: straight-through estimator, Bengio et al. 2013; late QAT, PR 414; SPEC-11L 2.5.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .grid import FakeGrid, straight_through

Start = Literal["orthogonal", "scaled", "zero"]


class CastLinear(nn.Linear):
    """``x`` (..., in) to ``x Wᵀ`` (..., out) with ``W`` (out, in) cast to the type of ``x``.

    start: initial weights; "scaled" is orthogonal with the configuration's ``table_proj_init_gain``.
    """

    def __init__(self, in_features: int, out_features: int, start: Start = "orthogonal") -> None:
        super().__init__(in_features, out_features, bias=False)
        self.start = start
        self.fake_grid: FakeGrid | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x Wᵀ`` in the type of ``x``."""
        weight = self.weight if self.fake_grid is None else straight_through(self.weight, self.fake_grid)
        return F.linear(x, weight.to(x.dtype))


def compute_dtype(weight: Tensor) -> torch.dtype:
    """Return the type the stream runs in: autocast's where it is on, else the weights'."""
    kind = weight.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
