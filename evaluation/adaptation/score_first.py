"""Score-first adaptation: after a chunk is scored, learn from exactly its targets by SGD.

Rows of the window's length inside the chunk, a few epochs in order, momentum carried over chunks, the rate a cosine
over chunks, the gradient clipped. Rounding of late QAT is off: the loss is that of the weights that are scored.

Source: PR 461, PR 549 and PR 691; SPEC-11L 5.4.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import PreTrainedModel

from modeling_pgolf.errors import LegalityError
from modeling_pgolf.linear import CastLinear

from ..ledger import Posted


@dataclass(frozen=True)
class ScoreFirstConfig:
    """Settings of score-first SGD; defaults are PR 691's.

    chunk_tokens: targets between two rounds of learning. rows: windows of one optimiser step at most.
    frozen_blocks: the first blocks that stand still. freeze_matrices: freeze their matrices too; PR 549 stored
    matrices outside its blocks, so its freezing reached only gains and scales.
    """

    chunk_tokens: int = 32_768
    epochs: int = 3
    lr: float = 0.002
    momentum: float = 0.9
    grad_clip: float = 1.0
    rows: int = 32
    frozen_blocks: int = 0
    freeze_matrices: bool = True

    def build(self, model: PreTrainedModel, window: int, accelerator: Accelerator, compiled: bool) -> ScoreFirst:
        """Build the rule for a model that is scored by windows of ``window`` tokens."""
        return ScoreFirst(model, self, window, accelerator, compiled)


class ScoreFirst:
    """SGD on scored text; the state that is carried over chunks is the momentum."""

    def __init__(
        self, model: PreTrainedModel, config: ScoreFirstConfig, window: int, accelerator: Accelerator, compiled: bool
    ) -> None:
        self.config, self.window, self.accelerator = config, window, accelerator
        self.chunk_tokens: int | None = config.chunk_tokens
        refuse_rounding(model)
        self.model = model
        self.forward = torch.compile(model, dynamic=False) if compiled else model
        self.parameters = [p for name, p in model.named_parameters() if learns(name, p, config)]
        self.optimizer = torch.optim.SGD(self.parameters, lr=config.lr, momentum=config.momentum)

    def learn(self, posted: Posted, progress: float) -> None:
        """Learn from scored text; ``progress`` runs from 0 at the first chunk to 1 at the last."""
        count = (len(posted.ids) - 1) // self.window
        inputs = posted.ids[: count * self.window].view(count, self.window)
        targets = posted.ids[1 : count * self.window + 1].view(count, self.window)
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.lr * 0.5 * (1 + math.cos(math.pi * progress))
        self.model.train()
        for _ in range(self.config.epochs):
            for x, y in zip(torch.split(inputs, self.config.rows), torch.split(targets, self.config.rows), strict=True):
                self._step(x, y)
        self.model.eval()

    def _step(self, inputs: Tensor, targets: Tensor) -> None:
        """One optimiser step on rows (R, T), shared over the processes; the same for any number of them."""
        share = -(-len(inputs) // self.accelerator.num_processes)
        own = slice(self.accelerator.process_index * share, (self.accelerator.process_index + 1) * share)
        self.optimizer.zero_grad(set_to_none=True)
        x, y = (t[own].to(self.accelerator.device) for t in (inputs, targets))
        if len(x):
            loss = self.forward(input_ids=x, shift_labels=y, use_cache=False).loss
            (loss * (len(x) / len(inputs))).backward()
        for parameter in self.parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        if self.accelerator.num_processes > 1:
            gradients = [p.grad for p in self.parameters if p.grad is not None]
            for parameter, total in zip(self.parameters, self.accelerator.reduce(gradients, "sum"), strict=True):
                parameter.grad = total
        nn.utils.clip_grad_norm_(self.parameters, self.config.grad_clip)
        self.optimizer.step()


def learns(name: str, parameter: nn.Parameter, config: ScoreFirstConfig) -> bool:
    """Say whether a parameter is trained: all but those of the frozen blocks."""
    frozen = any(f".layers.{block}." in f".{name}" for block in range(config.frozen_blocks))
    return not frozen or (parameter.ndim == 2 and not name.endswith("resid_mix") and not config.freeze_matrices)


def refuse_rounding(model: nn.Module) -> None:
    """Raise LegalityError where late QAT's rounding is still on: it cost PR 691 about 0.008 BPB (SPEC-11L 5.4)."""
    if any(isinstance(module, CastLinear) and module.fake_grid is not None for module in model.modules()):
        raise LegalityError("late QAT is still on; switch it off before the model is adapted")
