"""Row scales: how far a row may reach before it is clipped.

Two rules. GPTQ-lite tries five clip percentiles for a matrix and keeps the one with the smallest squared error; a
floor under the scale makes the grid absolute for small rows. SDClip lets a row reach ``k`` of its own standard
deviations, which fixes the bits of its codes whatever the row's size.

Source: PR 374 and PR 414, SPEC-11L 4.2, 4.3; PR 1394, SPEC-8192 4.3.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from modeling_pgolf.errors import FormatError
from modeling_pgolf.grid import GridTensor, encode, largest_code, over_rows

from .assign import MATRIX_BITS, TABLE_BITS, Role
from .config import PercentileClip, SdClip

# Clip percentiles of GPTQ-lite, PR 374; 1.0 is the row maximum.
CLIP_PERCENTILES = (0.999, 0.9995, 0.9999, 0.99999, 1.0)
# Clip percentile of the int8 tables, the challenge's baseline.
TABLE_PERCENTILE = 0.9999984


def bits_of(role: Role, clip: PercentileClip | SdClip) -> int:
    """Return the bits of a role's grid."""
    if role.is_matrix:
        return MATRIX_BITS
    return clip.table_bits if isinstance(clip, SdClip) else TABLE_BITS


def row_width(weight: Tensor, clip: PercentileClip | SdClip) -> Tensor:
    """Measure each row of a float32 matrix (rows, cols) by what its scale is proportional to."""
    return weight.std(-1) if isinstance(clip, SdClip) else weight.abs().amax(-1)


def scale_of(width: Tensor, role: Role, clip: PercentileClip | SdClip) -> Tensor:
    """Return the float16 scales of rows of these widths; for the percentile rule that of its last percentile."""
    c = largest_code(bits_of(role, clip))
    if isinstance(clip, PercentileClip):
        floor = clip.matrix_scale_floor if role.is_matrix else clip.table_scale_floor
        return (width / c).clamp_min(floor).to(torch.float16)
    sigmas = {
        Role.ATTENTION: clip.attention_sigmas,
        Role.FEED_FORWARD: clip.feed_forward_sigmas,
        Role.TABLE: clip.table_sigmas,
    }[role]
    return (sigmas * width / c).clamp_min(1 / c if clip.unit_floor else 0.0).to(torch.float16)


def percentile_scales(weight: Tensor, bits: int, scale_floor: float) -> list[Tensor]:
    """Return the five candidate scales, float16 (rows,), of a float32 matrix."""
    reaches = [row_reach(weight, percentile) for percentile in CLIP_PERCENTILES]
    return [(reach / largest_code(bits)).clamp_min(scale_floor).to(torch.float16) for reach in reaches]


def row_reach(weight: Tensor, percentile: float) -> Tensor:
    """Return the percentile of ``|row|`` for each row of a float32 matrix (rows, cols); one number for a vector."""
    magnitude = weight.abs()
    if percentile == 1.0:
        return magnitude.amax(-1)
    return torch.quantile(magnitude, percentile, dim=-1)


def least_error(weight: Tensor, scales: list[Tensor], bits: int, round_codes: Callable[[Tensor], Tensor]) -> GridTensor:
    """Round on each of the candidate scales, keep the least squared error; ties keep the earlier one.

    Raises FormatError where no candidate has a finite error.
    """
    best: GridTensor | None = None
    least = float("inf")
    for scale in scales:
        candidate = GridTensor(round_codes(scale), scale, bits)
        error = (weight - candidate.decode()).square().mean().item()
        if error < least:
            best, least = candidate, error
    if best is None:
        raise FormatError(f"no scale gives a finite error: weights reach {weight.abs().max():.3g}")
    return best


def quantize_matrix(weight: Tensor, bits: int, scale_floor: float) -> GridTensor:
    """Search the clip percentile of a matrix, codes to the nearest. Raises FormatError on non-finite weights."""
    weight = finite(weight)
    if weight.ndim < 2:
        return quantize_vector(weight, bits)
    scales = percentile_scales(weight, bits, scale_floor)
    return least_error(weight, scales, bits, lambda scale: encode(weight, scale, bits))


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
