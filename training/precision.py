"""The published number formats of the weights: tables in bfloat16, everything starting from bfloat16 values.

The reference scripts cast the whole model down and most of it up again, so the three token tables, their gradients
and Adam's moments are bfloat16, and the float32 weights start rounded. It loses small updates; it is here for parity.
Source: SPEC-11L 1.3 and trap 11; SPEC-8192 1.6.
"""

from __future__ import annotations

import torch
from torch import nn

from .parameters import role_of


@torch.no_grad()
def round_like_published(model: nn.Module) -> None:
    """Round every weight to bfloat16 and keep the token tables in it."""
    for name, parameter in model.named_parameters():
        rounded = parameter.to(torch.bfloat16)
        parameter.data = rounded if role_of(name, parameter, "muon") == "token" else rounded.float()
