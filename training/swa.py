"""Tight stochastic weight averaging: the mean of a few late snapshots.

``mean ← mean + (w − mean) / n`` in float32, over snapshots taken while the learning rate is low. Beside a moving
average it averages that average's snapshots. Source: Izmailov et al., 2018; PR 374 collects such snapshots but never
uses them (SPEC-11L 2.6).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .config import SwaConfig


class TightSwa:
    """Mean of snapshots of ``source``, named tensors that change in place."""

    def __init__(self, source: dict[str, Tensor], config: SwaConfig) -> None:
        self.config, self.source = config, source
        self.snapshots = 0
        self.mean: dict[str, Tensor] = {}

    @torch.no_grad()
    def update(self, steps: int, scale: float) -> None:
        """Take a snapshot where one is due: ``steps`` are completed, the last one at the rate ``scale``."""
        if scale >= self.config.below_scale or steps % self.config.every:
            return
        if not self.mean:
            self.mean = {name: torch.zeros_like(tensor, dtype=torch.float32) for name, tensor in self.source.items()}
        self.snapshots += 1
        for name, tensor in self.source.items():
            self.mean[name].lerp_(tensor.float(), 1 / self.snapshots)

    def state_dict(self) -> dict[str, Any]:
        """Return the mean by name and the number of snapshots."""
        return {"snapshots": self.snapshots, "mean": self.mean}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self.snapshots = state["snapshots"]
        self.mean = {name: mean.to(self.source[name].device) for name, mean in state["mean"].items()}
