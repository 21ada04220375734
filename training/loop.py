"""The training loop: micro-batches, clip, schedules, optimisers, average, and the events between steps.

Accelerate places the model, averages gradients over processes and stores checkpoints; the loop owns order and time.
Every piece of state that a resumed run needs is registered with the accelerator, so ``save_state`` is complete.

Source: SPEC-11L 2.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor, nn

from modeling_pgolf.attention import fastest_attention
from modeling_pgolf.errors import TrainingError

from .averaging import Ema
from .batches import SequentialBatches, TrainTokens
from .clock import Clock
from .config import TrainingConfig
from .parameters import build_optimizers
from .schedules import clock_scale, muon_momentum, step_scale
from .telemetry import Log, Telemetry

Validate = Callable[[nn.Module], dict[str, float]]


class Checkpoints(Protocol):
    """Where the shell keeps checkpoints: a folder in a run, nothing in a test."""

    def save(self, step: int) -> None:
        """Store the accelerator's whole state as that of ``step``."""

    def restore(self) -> bool:
        """Load the newest stored state; False where there is none."""


@dataclass(frozen=True)
class Trained:
    """The outcome of a run: steps taken, last training loss in nats per token, seconds by phase."""

    steps: int
    train_loss: float
    seconds: dict[str, float]


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
        self, model: nn.Module, tokens: TrainTokens, config: TrainingConfig, accelerator: Accelerator, telemetry: Telemetry
    ) -> None:
        self.config, self.accelerator, self.telemetry = config, accelerator, telemetry
        self.model = model.to(accelerator.device)
        loss = NextTokenLoss(self.model)
        graph = torch.compile(loss, dynamic=False) if config.compile else loss
        self.forward = accelerator.prepare_model(graph)
        self.optimizers = [accelerator.prepare_optimizer(o) for o in build_optimizers(self.model, config)]
        self.batches = SequentialBatches(tokens, config, accelerator.process_index, accelerator.num_processes)
        self.clock = Clock(self._synchronize)
        self.ema = Ema(self.model, config.ema) if config.ema else None
        self.steps = 0
        self.last_loss = math.nan
        registered = [self, self.batches, self.clock] + ([self.ema] if self.ema else [])
        accelerator.register_for_checkpointing(*registered)

    def warm_up(self) -> None:
        """Compile forward and backward on random tokens; no weight, generator or data position changes."""
        generator = torch.Generator().manual_seed(0)
        shape = (self.config.micro_batch_sequences, self.config.sequence_length)
        tokens = torch.randint(0, self.model.config.vocab_size, shape, generator=generator).to(self.accelerator.device)
        self._backward(tokens, tokens, 1, synchronize=True)
        for parameter in self.model.parameters():
            parameter.grad = None

    def scale(self) -> float:
        """Return the learning-rate scale of the next step, the same on every process."""
        config = self.config
        scale = step_scale(self.steps, config.iterations, config.warmdown_steps)
        if config.seconds is not None:
            elapsed = self._shared(self.clock.counted)
            scale = min(scale, clock_scale(self.steps, elapsed, config.seconds, config.warmdown_steps))
        return scale

    def finished(self) -> bool:
        """Say whether the run is over; by the clock once another mean step would not fit."""
        if self.steps >= self.config.iterations:
            return True
        if self.config.seconds is None or self.steps == 0:
            return False
        elapsed = self._shared(self.clock.counted)
        return elapsed + elapsed / self.steps > self.config.seconds

    def step(self) -> None:
        """Take one optimiser step and report it."""
        scale, momentum = self.scale(), muon_momentum(self.steps, self.config.momentum_warmup_steps)
        inputs, targets = (t.to(self.accelerator.device, non_blocking=True) for t in self.batches.next_step())
        passes = len(inputs) // self.config.micro_batch_sequences
        micro = zip(inputs.chunk(passes), targets.chunk(passes), strict=True)
        losses = [self._backward(x, y, passes, synchronize=i == passes - 1) for i, (x, y) in enumerate(micro)]
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.grad_clip)
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
        self.steps += 1
        self._report(torch.stack(losses).sum(), scale, momentum, norm)

    def _backward(self, x: Tensor, y: Tensor, passes: int, synchronize: bool) -> Tensor:
        waiting = nullcontext() if synchronize else self.accelerator.no_sync(self.forward)
        kind = self.accelerator.device.type
        with waiting:
            with torch.autocast(kind, dtype=torch.bfloat16, enabled=self.config.precision == "bf16"):
                loss: Tensor = self.forward(x, y) / passes
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

    def _shared(self, value: float) -> float:
        """Return the main process's value on every process."""
        if self.accelerator.num_processes == 1:
            return value
        return float(broadcast(torch.tensor(value, dtype=torch.float64, device=self.accelerator.device)))

    def _synchronize(self) -> None:
        if self.accelerator.device.type == "cuda":
            torch.cuda.synchronize(self.accelerator.device)

    def state_dict(self) -> dict[str, Any]:
        """Return the loop's own counters."""
        return {"steps": self.steps, "last_loss": self.last_loss}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the loop's own counters."""
        self.steps, self.last_loss = state["steps"], state["last_loss"]


def fit(
    model: nn.Module,
    tokens: TrainTokens,
    config: TrainingConfig,
    accelerator: Accelerator,
    *,
    validate: Validate | None = None,
    checkpoints: Checkpoints | None = None,
    log: Log = lambda event: None,
) -> Trained:
    """Train ``model`` in place and return what happened.

    validate: called with the model as it stands, every ``validate_every`` steps; its result is logged.
    checkpoints: asked to restore at the start and to save every ``checkpoint_every`` steps.
    Raises TrainingError on a non-finite loss or an uneven number of processes.
    """
    telemetry = Telemetry(log, config.iterations, config.step_tokens, accelerator.is_main_process)
    trainer = Trainer(model, tokens, config, accelerator, telemetry)
    with fastest_attention():
        if config.compile:
            with trainer.clock.phase("compile"):
                trainer.warm_up()
        if checkpoints is not None and checkpoints.restore():
            telemetry.event("resumed", step=trainer.steps, seconds=trainer.clock.counted)
        run_steps(trainer, validate, checkpoints)
    if trainer.ema:
        trainer.ema.apply()
    telemetry.event("finished", step=trainer.steps, seconds=trainer.clock.seconds)
    telemetry.close()
    return Trained(trainer.steps, trainer.last_loss, dict(trainer.clock.seconds))


def run_steps(trainer: Trainer, validate: Validate | None, checkpoints: Checkpoints | None) -> None:
    """Step until the run is over, with validations and checkpoints between steps, outside the counted phase."""
    config, clock = trainer.config, trainer.clock
    while not trainer.finished():
        with clock.phase("step"):
            while not trainer.finished():
                trainer.step()
                if _due(trainer.steps, config.validate_every) or _due(trainer.steps, config.checkpoint_every):
                    break
        if validate and _due(trainer.steps, config.validate_every):
            with clock.phase("validate"):
                facts = validate(trainer.model)
            trainer.telemetry.event("validation", step=trainer.steps, **facts)
            trainer.model.train()
        if checkpoints and _due(trainer.steps, config.checkpoint_every):
            with clock.phase("checkpoint"):
                checkpoints.save(trainer.steps)


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
