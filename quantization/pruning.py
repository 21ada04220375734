"""The last resort when a file is too large: codes of ±1 become 0, the cheapest first.

A code of ±1 that is dropped costs the square of its row's scale. Where all rows have one scale the order is that of
the file, so a whole layer goes before the next: prefer a coarser grid. Source: PR 609, PR 1019; SPEC-11L 4.7.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from modeling_pgolf.grid import GridTensor, over_rows
from modeling_pgolf.quantization_pgolf import Weights

from .assign import MATRIX_BITS

# The search for the smallest number of dropped codes stops at this share of all that could be dropped.
RESOLUTION = 1 / 1024


def count_ones(weights: Weights) -> int:
    """Count the codes of ±1 of all matrices."""
    return sum(int((w.codes.abs() == 1).sum()) for w in _matrices(weights).values())


def zero_cheapest(weights: Weights, count: int) -> Weights:
    """Return the weights with the ``count`` cheapest codes of ±1 set to 0; ties go in the order of ``weights``."""
    matrices = _matrices(weights)
    ones = {name: torch.nonzero((w.codes.abs() == 1).flatten()).flatten() for name, w in matrices.items()}
    costs = [_costs(matrices[name]).flatten()[places] for name, places in ones.items()]
    chosen = torch.zeros(sum(map(len, costs)), dtype=torch.bool)
    if costs:
        chosen[torch.argsort(torch.cat(costs), stable=True)[:count]] = True
    pruned = dict(weights)
    for (name, places), drop in zip(ones.items(), torch.split(chosen, [len(cost) for cost in costs]), strict=True):
        codes = matrices[name].codes.flatten().clone()
        codes[places[drop]] = 0
        pruned[name] = matrices[name]._replace(codes=codes.view_as(matrices[name].codes))
    return pruned


def smallest_pruning(weights: Weights, fits: Callable[[Weights], bool]) -> Weights | None:
    """Return the weights with few enough codes dropped to fit, to a thousandth of all; None where none fit."""
    every = count_ones(weights)
    low, high = 0, every
    best = zero_cheapest(weights, every)
    if not fits(best):
        return None
    while high - low > max(every * RESOLUTION, 1):
        middle = (low + high) // 2
        pruned = zero_cheapest(weights, middle)
        if fits(pruned):
            best, high = pruned, middle
        else:
            low = middle
    return best


def _costs(matrix: GridTensor) -> Tensor:
    return over_rows(matrix.scale, matrix.codes).square().expand_as(matrix.codes)


def _matrices(weights: Weights) -> dict[str, GridTensor]:
    return {name: w for name, w in weights.items() if isinstance(w, GridTensor) and w.bits == MATRIX_BITS}
