"""Late quantisation-aware training: near the end of the run, products see the weights the exporter will store.

The rounding is a mode of the linear layers, switched for the whole model; both modes are compiled before the clock
starts. It is off whenever a model is scored, exported or adapted. Source: PR 414; SPEC-11L 2.5.
"""

from __future__ import annotations

import torch
from torch import nn

from modeling_pgolf.errors import TrainingError
from modeling_pgolf.grid import FakeGrid
from modeling_pgolf.linear import CastLinear

from .config import QatConfig


class LateQat:
    """Switches the rounding of every matrix that will be quantised."""

    def __init__(self, model: nn.Module, config: QatConfig) -> None:
        self.config = config
        scale_type = torch.float16 if config.half_scale else torch.float32
        self.grid = FakeGrid(config.bits, config.scale_floor, config.lowest_code, scale_type)
        self.layers = [
            module
            for module in model.modules()
            if isinstance(module, CastLinear) and module.weight.numel() > config.more_elements_than
        ]
        if not self.layers:
            raise TrainingError(
                f"late QAT was asked for, but no matrix has more than {config.more_elements_than:,} elements; lower "
                "training.qat.more_elements_than, or train without it"
            )
        self.on = False

    def switch(self, on: bool) -> None:
        """Turn the rounding on or off."""
        self.on = on
        for layer in self.layers:
            layer.fake_grid = self.grid if on else None
