"""Partial rotary position embedding with a length-dependent base.

The first ``R`` of the ``h`` dimensions of a head turn by the angle ``position * base^(-2j/R)``, dimension ``j``
paired with ``j + R/2``; the others pass. Above ``trained_length`` positions the base is stretched to
``base * (length / trained_length)^(R/(R-2))`` for *all* positions, so the angles depend on the length of the call.
A configuration that fixes ``rotary_length`` has one base for every call, which is what a key/value cache needs.

``B`` batch, ``T`` time, ``H`` heads, ``R`` rotated dimensions.
Source: partial RoPE, PR 315; length-dependent base (NTK), PR 414; SPEC-11L 1.7.
"""

import math

import torch
from torch import Tensor

from .errors import ConfigError


def stretched_base(base: float, length: int | Tensor, trained_length: int, dims: int) -> float | Tensor:
    """Return the base in use for a call of ``length`` positions.

    A static cache knows its length as a tensor only; the base is one too then, so that nothing waits for the device.
    """
    if not isinstance(length, Tensor) and length <= trained_length:
        return base
    if dims == 2:
        raise ConfigError(
            f"rotary_dims=2 has no stretched base, and {length} positions were asked for with "
            f"rotary_trained_length={trained_length}; use rotary_dims of at least 4 or a longer trained length"
        )
    power = dims / (dims - 2)
    if isinstance(length, Tensor):
        return base * (length.double() / trained_length).clamp(min=1.0) ** power
    return base * math.pow(length / trained_length, power)


def rotary_tables(position_ids: Tensor, base: float | Tensor, dims: int) -> tuple[Tensor, Tensor]:
    """Return cos and sin, float32 (B, T, R/2), of the angles at ``position_ids`` (B, T)."""
    exponents = torch.arange(0, dims, 2, dtype=torch.float32, device=position_ids.device) / dims
    frequencies = 1.0 / (base**exponents)
    angles = position_ids[..., None].float() * frequencies
    return _stored(angles.cos()), _stored(angles.sin())


def _stored(table: Tensor) -> Tensor:
    """Make a compiler keep ``table`` in memory: fused into its readers, cosines would be taken again for every head."""
    return torch.as_strided(table, table.shape, table.stride())


def rotate(x_BTHD: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the first ``R`` dimensions of ``x`` (B, T, H, h) by the angles of ``cos`` and ``sin`` (B, T, R/2)."""
    half = cos.shape[-1]
    cos, sin = cos[:, :, None].to(x_BTHD.dtype), sin[:, :, None].to(x_BTHD.dtype)
    first, second, rest = x_BTHD[..., :half], x_BTHD[..., half : 2 * half], x_BTHD[..., 2 * half :]
    return torch.cat((first * cos + second * sin, second * cos - first * sin, rest), dim=-1)
