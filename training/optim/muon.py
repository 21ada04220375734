"""Muon: momentum, orthogonalised by Newton-Schulz, with decoupled weight decay.

``m ← μm + g``; ``U = NS(g + μm) · sqrt(max(1, rows/cols))``; ``W ← W(1 − ηλ) − ηU``. Matrices of one shape, up to
transposition, are orthogonalised as one stack, shared out over the processes; momentum is kept whole on each, so a
checkpoint fits any number of them. The plain form, matrix by matrix, is ``tests/reference/muon.py``.

MuonEq-R divides each row of ``g + μm`` by its length first.

Source: Keller Jordan, Muon (2024); weight decay, PR 162; rows, PR 1217; SPEC-11L 2.3, SPEC-8192 2.2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from .orthogonal import orthogonalize_shared

# Keeps a row without gradient at zero, PR 1217.
ROW_EPS = 1e-7


class Muon(torch.optim.Optimizer):
    """Muon over matrices; ``momentum`` of a group is set by the schedule before each step.

    lr: η, scaled by the schedule. weight_decay: λ. dtype: type of the Newton-Schulz products. normalize_rows: MuonEq-R.
    """

    def __init__(
        self, params: Iterable[Tensor], lr: float, weight_decay: float, dtype: torch.dtype, normalize_rows: bool = False
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": 0.0})
        self.dtype, self.normalize_rows = dtype, normalize_rows
        for group in self.param_groups:
            for p in group["params"]:
                if p.ndim != 2:
                    raise ValueError(f"Muon takes matrices, found a parameter of shape {tuple(p.shape)}")

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Take one step; a matrix without a gradient is decayed only."""
        for group in self.param_groups:
            params, lr = group["params"], group["lr"]
            moved = [p for p in params if p.grad is not None]
            updates = self._updates(moved, group["momentum"])
            torch._foreach_mul_(params, 1 - lr * group["weight_decay"])
            if moved:
                torch._foreach_add_(moved, updates, alpha=-lr)

    def _updates(self, params: list[Tensor], momentum: float) -> list[Tensor]:
        """Advance the momentum of ``params`` and return their orthogonalised updates, in float32."""
        if not params:
            return []
        gradients = [p.grad for p in params if p.grad is not None]
        buffers = [self._buffer(p) for p in params]
        torch._foreach_mul_(buffers, momentum)
        torch._foreach_add_(buffers, gradients)
        nesterov = list(torch._foreach_add(gradients, buffers, alpha=momentum))
        if self.normalize_rows:
            nesterov = [n / n.norm(dim=-1, keepdim=True).clamp_min(ROW_EPS) for n in nesterov]
        updates: list[Any] = [None] * len(params)
        groups = by_shape(params)
        stacks = [torch.stack([_wide(nesterov[i]) for i in places]) for places in groups]
        for places, stack in zip(groups, orthogonalize_shared(stacks, self.dtype), strict=True):
            for i, update in zip(places, stack, strict=True):
                rows, cols = params[i].shape
                turned = update.mT if rows > cols else update
                updates[i] = (turned * max(1.0, rows / cols) ** 0.5).to(params[i].dtype)
        return updates

    def _buffer(self, p: Tensor) -> Tensor:
        state = self.state[p]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(p)
        buffer: Tensor = state["momentum"]
        return buffer


def by_shape(params: list[Tensor]) -> list[list[int]]:
    """Group places of matrices that are of one shape up to transposition."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, p in enumerate(params):
        groups.setdefault(tuple(sorted(p.shape)), []).append(i)
    return list(groups.values())


def _wide(matrix: Tensor) -> Tensor:
    return matrix.mT if matrix.shape[0] > matrix.shape[1] else matrix
