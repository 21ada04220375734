"""Averages of the weights over the run: the exponential moving average.

``ema ← d · ema + (1 − d) · w`` in float32 after every step, from the initial weights.
Source: PR 287; SPEC-11L 2.6; the warm-up of the decay generalises TensorFlow's ``num_updates``, whose
constant is 9.
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
        if self.config.warm_up is not None:
            decay = min(decay, (1 + self.updates) / (1 + self.config.warm_up + self.updates))
        torch._foreach_mul_(self.average, decay)
        torch._foreach_add_(self.average, [p.float() for p in self.parameters], alpha=1.0 - decay)
        self.updates += 1

    @property
    def averages(self) -> dict[str, Tensor]:
        """The averages by parameter name; live tensors."""
        return dict(zip(self.names, self.average, strict=True))

    def state_dict(self) -> dict[str, Any]:
        """Return the averages by name and the number of updates."""
        return {"updates": self.updates, "averages": self.averages}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self.updates = state["updates"]
        for name, average in zip(self.names, self.average, strict=True):
            average.copy_(state["averages"][name])
