"""GPTQ: round the columns of a matrix one after another, each making up for the errors of those before it.

With ``H`` the second moments of a layer's inputs, an error ``e`` in column ``j`` costs least when the columns still
to come move by ``-e U[j, >j] / U[j, j]``, where ``U`` is upper triangular and ``H⁻¹ = Uᵀ U``. Columns that matter
most go first, while all others can still make up for them.

``R`` rows, ``C`` columns. Source: Frantar et al. 2022; PR 1019, SPEC-11L 4.4; PR 1394, SPEC-8192 4.3.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from modeling_pgolf.errors import FormatError
from modeling_pgolf.grid import largest_code

# Columns whose errors are passed on to the rest together: a choice of speed, not of mathematics (PR 1394: 128).
BLOCK = 128


class Curvature(NamedTuple):
    """What the rounding of one matrix needs to know of its inputs.

    order: columns by falling second moment (C,). factor: U (C, C) in that order. dead: columns that no input uses.
    """

    order: Tensor
    factor: Tensor
    dead: Tensor

    def alive(self, weight: Tensor) -> Tensor:
        """Return ``weight`` (R, C) with its dead columns set to 0."""
        return weight.masked_fill(self.dead, 0.0)


def curvature(hessian: Tensor, damping: float) -> Curvature:
    """Factor the second moments ``hessian`` (C, C), ``damping`` times their mean diagonal added to the diagonal.

    Raises FormatError where they are not finite or not positive definite all the same.
    """
    if not torch.isfinite(hessian).all():
        raise FormatError("second moments of a layer's inputs are NaN or infinite; the run diverged")
    damped = hessian.clone()
    diagonal = damped.diagonal()
    dead = diagonal == 0
    diagonal.masked_fill_(dead, 1.0)
    diagonal.add_(damping * diagonal.mean())
    order = torch.argsort(diagonal, descending=True, stable=True)
    # H = R Rᵀ with R upper triangular is a Cholesky factor read backwards, and then U is simply R⁻¹.
    backwards = damped[order][:, order].flip(0, 1)
    lower, failed = torch.linalg.cholesky_ex(backwards)
    if failed:
        raise FormatError(f"second moments are not positive definite at a damping of {damping}; raise gptq.damping")
    unit = torch.eye(len(order), dtype=lower.dtype, device=lower.device)
    return Curvature(order, torch.linalg.solve_triangular(lower.flip(0, 1), unit, upper=True), dead)


def round_columns(weight: Tensor, scale: Tensor, bits: int, curvature: Curvature) -> Tensor:
    """Return the int8 codes (R, C) of a float32 matrix on a grid of row scales (R,); rows of scale 0 get codes 0."""
    c, factor = largest_code(bits), curvature.factor
    size, step = scale.float(), torch.where(scale > 0, scale, torch.inf).float()
    # Turned, so that the columns that are worked on one by one lie in one piece.
    left = curvature.alive(weight).T[curvature.order]
    codes = torch.empty_like(left, dtype=torch.int8)
    for begin in range(0, len(left), BLOCK):
        end = min(begin + BLOCK, len(left))
        errors = torch.empty_like(left[begin:end])
        for place in range(begin, end):
            code = (left[place] / step).round().clamp(-c, c)
            error = (left[place] - code * size) / factor[place, place]
            left[place:end] -= factor[place, place:end, None] * error
            codes[place], errors[place - begin] = code.to(torch.int8), error
        left[end:] -= factor[begin:end, end:].T @ errors
    return codes[torch.argsort(curvature.order)].T.contiguous()
