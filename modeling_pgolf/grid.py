"""Integer grids: real numbers to integer codes and back.

A grid of ``bits`` has the symmetric codes ``-c … c`` with ``c = 2^(bits-1) - 1``; a matrix has one float16 scale for
each row, a vector one in all. ``decode(encode(W)) = code · scale`` is computed in float32 in one place, so exporter
and loader agree bit for bit.

Source: SPEC-11L 4.2.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class GridTensor(NamedTuple):
    """A tensor on a grid: codes int8 (rows, ...), scale float16 (rows,) or (), and the grid's bits."""

    codes: Tensor
    scale: Tensor
    bits: int

    def decode(self) -> Tensor:
        """Return ``code · scale`` in float32."""
        return self.codes.float().mul_(over_rows(self.scale, self.codes))


class FakeGrid(NamedTuple):
    """A grid that training rounds to: row scale ``max(|row|max / c, floor)``, codes ``lowest … c``.

    scale_type: type the scale is rounded to, as the exporter does (PR 414's training kept float32, and -c - 1).
    """

    bits: int
    scale_floor: float
    lowest: int
    scale_type: torch.dtype


def straight_through(weight: Tensor, grid: FakeGrid) -> Tensor:
    """Round a float32 matrix (rows, cols) to ``grid``; its gradient is that of the identity."""
    with torch.no_grad():
        c = largest_code(grid.bits)
        scale = (weight.abs().amax(-1, keepdim=True) / c).clamp_min(grid.scale_floor)
        scale = scale.to(grid.scale_type).to(weight.dtype)
        offset = (weight / scale).round().clamp(grid.lowest, c) * scale - weight
    return weight + offset


def largest_code(bits: int) -> int:
    """Return ``c``, the largest code of a grid: 31 for 6 bits, 127 for 8."""
    return (1 << (bits - 1)) - 1


def over_rows(scale: Tensor, like: Tensor) -> Tensor:
    """Widen ``scale`` to float32 and shape it to multiply ``like`` row by row."""
    return scale.float().reshape(scale.shape + (1,) * (like.ndim - scale.ndim))


def encode(weight: Tensor, scale: Tensor, bits: int) -> Tensor:
    """Round ``weight`` to int8 codes, ``clamp(round(w / scale), -c, c)``; ties go to the even code.

    A scale of 0 gives codes of 0.
    """
    c = largest_code(bits)
    step = over_rows(torch.where(scale > 0, scale, torch.inf), weight)
    return (weight.float() / step).round().clamp(-c, c).to(torch.int8)
