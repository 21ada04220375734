"""Averages of the weights over the run: the exponential moving average.

``ema ← d · ema + (1 − d) · w`` in float32 after every step, from the initial weights.
Source: PR 287; SPEC-11L 2.6; the warm-up of the decay is TensorFlow's ``num_updates`` form.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .config import EmaConfig


class Ema:
    """Moving average of all parameters of a model."""

    def __init__(self, model: nn.Module, config: EmaConfig) -> None:
        self.config = config
        self.updates = 0
        self.names = [name for name, _ in model.named_parameters()]
        self.parameters = [p for _, p in model.named_parameters()]
        self.average = [p.detach().float().clone() for p in self.parameters]

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights as they stand."""
        decay = self.config.decay
        if self.config.warm_up:
            decay = min(decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_mul_(self.average, decay)
        torch._foreach_add_(self.average, [p.float() for p in self.parameters], alpha=1.0 - decay)
        self.updates += 1

    @torch.no_grad()
    def apply(self) -> None:
        """Replace the weights by their average."""
        for parameter, average in zip(self.parameters, self.average, strict=True):
            parameter.copy_(average)

    def state_dict(self) -> dict[str, Any]:
        """Return the averages by name and the number of updates."""
        averages: dict[str, Tensor] = dict(zip(self.names, self.average, strict=True))
        return {"updates": self.updates, "averages": averages}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self.updates = state["updates"]
        for name, average in zip(self.names, self.average, strict=True):
            average.copy_(state["averages"][name])
