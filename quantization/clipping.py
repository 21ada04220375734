"""Row scales: how far a row may reach before it is clipped.

GPTQ-lite tries five clip percentiles for a matrix and keeps the one with the smallest squared error over the whole
matrix; a floor under the scale makes the grid absolute for small rows. Tables are clipped at one percentile.

Source: PR 374 and PR 414; SPEC-11L 4.2, 4.3.
"""

from __future__ import annotations

import torch
from torch import Tensor

from modeling_pgolf.errors import FormatError
from modeling_pgolf.grid import GridTensor, encode, largest_code, over_rows

# Clip percentiles of GPTQ-lite, PR 374; 1.0 is the row maximum.
CLIP_PERCENTILES = (0.999, 0.9995, 0.9999, 0.99999, 1.0)
# Clip percentile of the int8 tables, the challenge's baseline.
TABLE_PERCENTILE = 0.9999984


def row_reach(weight: Tensor, percentile: float) -> Tensor:
    """Return the percentile of ``|row|`` for each row of a float32 matrix (rows, cols); one number for a vector."""
    magnitude = weight.abs()
    if percentile == 1.0:
        return magnitude.amax(-1)
    return torch.quantile(magnitude, percentile, dim=-1)


def quantize_matrix(weight: Tensor, bits: int, scale_floor: float) -> GridTensor:
    """Search the clip percentile of a matrix; ties keep the earlier one. Raises FormatError on non-finite weights."""
    weight = finite(weight)
    if weight.ndim < 2:
        return quantize_vector(weight, bits)
    best: GridTensor | None = None
    least = float("inf")
    for percentile in CLIP_PERCENTILES:
        scale = (row_reach(weight, percentile) / largest_code(bits)).clamp_min(scale_floor).to(torch.float16)
        candidate = GridTensor(encode(weight, scale, bits), scale, bits)
        error = (weight - candidate.decode()).square().mean().item()
        if error < least:
            best, least = candidate, error
    if best is None:
        raise FormatError(f"no clip percentile gives a finite error: weights reach {weight.abs().max():.3g}")
    return best


def quantize_vector(weight: Tensor, bits: int) -> GridTensor:
    """Quantise a vector or scalar with one scale, its maximum over the largest code."""
    reach = weight.abs().max()
    scale = (reach / largest_code(bits) if reach > 0 else torch.ones_like(reach)).to(torch.float16)
    return GridTensor(encode(weight, scale, bits), scale, bits)


def quantize_table(weight: Tensor, bits: int, scale_floor: float) -> GridTensor:
    """Quantise a table (rows, cols): codes by the float32 scale, which is stored rounded to float16 (SPEC-11L 4.3)."""
    weight = finite(weight)
    reach = row_reach(weight, TABLE_PERCENTILE)
    scale = (reach / largest_code(bits)).clamp_min(scale_floor)
    limit = over_rows(reach, weight)
    codes = encode(torch.clamp(weight, -limit, limit), scale, bits)
    return GridTensor(codes, scale.to(torch.float16), bits)


def finite(weight: Tensor) -> Tensor:
    """Return ``weight`` in float32; raises FormatError where it has a NaN or an infinity."""
    weight = weight.detach().float()
    if not torch.isfinite(weight).all():
        raise FormatError("a weight to be exported is NaN or infinite; the run diverged")
    return weight
