"""One training run as an object: state, one optimiser step, one replayed step.

Accelerate places the model and averages gradients over processes. ``state_dict`` holds every piece of state that a
resumed run needs; where it is kept is the shell's business. Source: SPEC-11L 2.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor, nn
from transformers import PreTrainedModel

from modeling_pgolf.errors import TrainingError

from .averaging import Ema
from .batches import SequentialBatches, TrainTokens
from .clock import Clock
from .config import TrainingConfig
from .parameters import build_optimizers
from .qat import LateQat
from .replay import ReplayBuffer
from .schedules import clock_scale, muon_momentum, step_scale
from .telemetry import Telemetry


class NextTokenLoss(nn.Module):
    """The training graph: tokens in, mean loss out, logits never leave it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss, in nats per token, of int64 inputs and targets (B, T)."""
        loss: Tensor = self.model(input_ids=inputs, shift_labels=targets, use_cache=False).loss
        return loss


class Trainer:
    """One run. ``fit`` is the way in."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokens: TrainTokens,
        config: TrainingConfig,
        accelerator: Accelerator,
        telemetry: Telemetry,
    ) -> None:
        self.config, self.accelerator, self.telemetry = config, accelerator, telemetry
        self.model = model.to(accelerator.device)
        self.vocab_size = model.config.vocab_size
        loss = NextTokenLoss(self.model)
        graph = torch.compile(loss, dynamic=False) if config.compile else loss
        self.forward = accelerator.prepare_model(graph)
        self.optimizers = [accelerator.prepare_optimizer(o) for o in build_optimizers(self.model, config)]
        self.batches = SequentialBatches(tokens, config, accelerator.process_index, accelerator.num_processes)
        self.clock = Clock(self._synchronize)
        self.ema = Ema(self.model, config.ema) if config.ema else None
        self.qat = LateQat(self.model, config.qat) if config.qat else None
        self.replay = ReplayBuffer(config.replay) if config.replay else None
        self.steps = 0
        self.last_loss = math.nan

    def warm_up(self) -> None:
        """Compile forward and backward on random tokens; no weight, generator or data position changes."""
        modes = [False, True] if self.qat else [False]
        sequences = {self.config.micro_batch_sequences} | ({self.config.span_sequences} if self.replay else set())
        for on in modes:  # both graphs, so that switching the rounding on costs the clock nothing
            if self.qat:
                self.qat.switch(on)
            for count in sorted(sequences):
                self._warm_pass(min(count, self.config.micro_batch_sequences))
        if self.qat:
            self.qat.switch(False)
        for parameter in self.model.parameters():
            parameter.grad = None

    def _warm_pass(self, sequences: int) -> None:
        generator = torch.Generator().manual_seed(0)
        shape = (sequences, self.config.sequence_length)
        tokens = torch.randint(0, self.vocab_size, shape, generator=generator).to(self.accelerator.device)
        # A clone: one tensor in both places would be compiled as a graph of its own.
        self._backward(tokens, tokens.clone(), 1.0, synchronize=True)

    def scale(self) -> float:
        """Return the learning-rate scale of the next step, the same on every process."""
        config = self.config
        scale = step_scale(self.steps, config.iterations, config.warmdown_steps)
        if config.loop_seconds is not None:
            elapsed = self.shared(self.clock.counted)
            scale = min(scale, clock_scale(self.steps, elapsed, config.loop_seconds, config.warmdown_steps))
        return scale

    def finished(self) -> bool:
        """Say whether the run is over; by the clock once another mean step would not fit."""
        if self.steps >= self.config.iterations:
            return True
        if self.config.loop_seconds is None or self.steps == 0:
            return False
        elapsed = self.shared(self.clock.counted)
        return elapsed + elapsed / self.steps > self.config.loop_seconds

    def step(self) -> None:
        """Take one optimiser step and report it."""
        scale, momentum = self.scale(), muon_momentum(self.steps, self.config.momentum_warmup_steps)
        if self.qat and scale < self.qat.config.below_scale:
            self.qat.switch(True)
        inputs, targets = self.batches.next_step()
        if self.replay and scale < self.replay.config.below_scale:
            self.replay.remember(inputs, targets, len(inputs) // self.config.span_sequences)
        loss = self._gradients(inputs, targets, share=1.0)
        norm = self._update(scale, momentum)
        self.steps += 1
        self._report(loss, scale, momentum, norm)

    def replay_step(self, inputs: Tensor, targets: Tensor) -> float:
        """Take one optimiser step on a remembered span; returns its loss in nats per token."""
        assert self.replay is not None
        # The reference weighs a replayed span as one of the micro-batches of a step.
        share = self.batches.processes / self.config.spans_per_step
        loss = self._gradients(inputs.long(), targets.long(), share)
        momentum = muon_momentum(self.steps - 1, self.config.momentum_warmup_steps)
        self._update(self.replay.config.lr_factor, momentum)
        return float(loss) / share

    def _gradients(self, inputs: Tensor, targets: Tensor, share: float) -> Tensor:
        """Accumulate the gradients of ``share`` times the mean loss over micro-batches; returns that loss."""
        device = self.accelerator.device
        passes = max(1, len(inputs) // self.config.micro_batch_sequences)
        micro = list(zip(inputs.chunk(passes), targets.chunk(passes), strict=True))
        losses = []
        for i, (x, y) in enumerate(micro):
            x, y = x.to(device, non_blocking=True), y.to(device, non_blocking=True)
            losses.append(self._backward(x, y, share / passes, synchronize=i == passes - 1))
        return torch.stack(losses).sum()

    def _update(self, scale: float, momentum: float) -> Tensor:
        """Clip, step every optimiser at ``scale`` times its peak rate, average; returns the norm before the clip."""
        norm: Tensor = self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.grad_clip)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * scale
                if "momentum" in group:
                    group["momentum"] = momentum
            optimizer.step()
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        if self.ema:
            self.ema.update()
        return norm

    @contextmanager
    def true_weights(self) -> Iterator[None]:
        """Switch the rounding of late QAT off while the context lasts: a score is that of the weights themselves."""
        on = self.qat is not None and self.qat.on
        if self.qat:
            self.qat.switch(False)
        yield
        if self.qat:
            self.qat.switch(on)

    def _backward(self, x: Tensor, y: Tensor, weight: float, synchronize: bool) -> Tensor:
        waiting = nullcontext() if synchronize else self.accelerator.no_sync(self.forward)
        kind = self.accelerator.device.type
        with waiting:
            with torch.autocast(kind, dtype=torch.bfloat16, enabled=self.config.precision == "bf16"):
                loss: Tensor = self.forward(x, y) * weight
            self.accelerator.backward(loss)
        return loss.detach()

    def _report(self, loss: Tensor, scale: float, momentum: float, norm: Tensor) -> None:
        # Reading the loss waits for the device, which keeps the host clock and the schedule honest at every step.
        self.last_loss = float(self.accelerator.reduce(loss, reduction="mean"))
        if not math.isfinite(self.last_loss):
            raise TrainingError(
                f"the loss is {self.last_loss} after step {self.steps}; the last checkpoint is kept: "
                "lower the learning rates and resume"
            )
        if self.steps % self.config.log_every == 0 or self.steps in (1, self.config.iterations):
            self.telemetry.step(self.steps, self.last_loss, scale, momentum, float(norm), self.clock.counted)

    def shared(self, value: float) -> float:
        """Return the main process's value on every process."""
        if self.accelerator.num_processes == 1:
            return value
        return float(broadcast(torch.tensor(value, dtype=torch.float64, device=self.accelerator.device)))

    def _synchronize(self) -> None:
        if self.accelerator.device.type == "cuda":
            torch.cuda.synchronize(self.accelerator.device)

    def state_dict(self) -> dict[str, Any]:
        """Return everything a resumed run needs; tensors are live, not copies."""
        cuda = self.accelerator.device.type == "cuda"
        return {
            "steps": self.steps,
            "last_loss": self.last_loss,
            "model": dict(self.model.named_parameters()),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "ema": self.ema.state_dict() if self.ema else None,
            "qat": self.qat.on if self.qat else None,
            "replay": self.replay.state_dict() if self.replay else None,
            "batches": self.batches.state_dict(),
            "clock": self.clock.state_dict(),
            "random": torch.cuda.get_rng_state() if cuda else torch.get_rng_state(),
        }

    def _refuse_foreign(self, state: dict[str, Any]) -> None:
        found = {name: tuple(tensor.shape) for name, tensor in state["model"].items()}
        wanted = {name: tuple(parameter.shape) for name, parameter in self.model.named_parameters()}
        parts = {part: state[part] is not None for part in ("ema", "qat", "replay")}
        here = {"ema": self.ema is not None, "qat": self.qat is not None, "replay": self.replay is not None}
        if found != wanted or parts != here:
            differing = sorted(name for name in {*found, *wanted} if found.get(name) != wanted.get(name))
            raise TrainingError(
                f"the stored state is of another run: parameters differ in {differing[:3]}, it has {parts}, this run "
                f"{here}; remove the state to start afresh"
            )

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned; raises TrainingError where it is the state of another run."""
        self._refuse_foreign(state)
        self.steps, self.last_loss = state["steps"], state["last_loss"]
        for name, parameter in self.model.named_parameters():
            parameter.copy_(state["model"][name])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        if self.ema:
            self.ema.load_state_dict(state["ema"])
        if self.qat:
            self.qat.switch(state["qat"])
        if self.replay:
            self.replay.load_state_dict(state["replay"])
        self.batches.load_state_dict(state["batches"])
        self.clock.load_state_dict(state["clock"])
        cuda = self.accelerator.device.type == "cuda"
        (torch.cuda.set_rng_state if cuda else torch.set_rng_state)(state["random"])
