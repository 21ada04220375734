"""One training run as an object: state, one optimiser step, one replayed step.

Accelerate places the model and averages gradients over processes. Source: SPEC-11L 2.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor
from transformers import PreTrainedModel

from modeling_pgolf.errors import TrainingError

from .averaging import Ema
from .batches import TrainTokens
from .clock import Clock
from .config import TrainingConfig
from .flops import peak_flops, training_flops
from .gradients import CLIPS
from .next_token_loss import NextTokenLoss
from .orders import open_batches
from .parameters import build_optimizers
from .precision import round_like_published
from .qat import LateQat
from .read_ahead import ReadAhead
from .recurrence import LateLoop
from .replay import ReplayBuffer
from .schedules import learning_rate_scale, muon_momentum, progress
from .streamed import StreamedBatches, TokenStream
from .swa import TightSwa
from .telemetry import StepFacts, Telemetry


class Trainer:
    """One run. ``fit`` is the way in."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokens: TrainTokens | TokenStream,
        config: TrainingConfig,
        accelerator: Accelerator,
        telemetry: Telemetry,
    ) -> None:
        self.config, self.accelerator, self.telemetry = config, accelerator, telemetry
        self.model = model.to(accelerator.device)
        self.vocab_size = model.config.vocab_size
        if config.table_dtype == "bf16":
            round_like_published(self.model)
        loss = NextTokenLoss(self.model)
        graph = torch.compile(loss, dynamic=False) if config.compile else loss
        self.forward = accelerator.prepare_model(graph)
        self.optimizers = [accelerator.prepare_optimizer(o) for o in build_optimizers(self.model, config)]
        share = (config, accelerator.process_index, accelerator.num_processes)
        self.ahead: ReadAhead | None = None
        self.batches: ReadAhead | StreamedBatches
        if isinstance(tokens, TrainTokens):
            self.ahead = ReadAhead(open_batches(tokens, *share), accelerator.device.type == "cuda")
            self.batches = self.ahead
        else:  # reads ahead in processes of its own
            self.batches = tokens.batches(*share)
        self.clock = Clock(self._synchronize)
        self.clip = CLIPS[config.clip]
        self.peak = peak_flops(accelerator.device, accelerator.num_processes)
        self.ema = Ema(self.model, config.ema) if config.ema else None
        averaged = self.ema.averages if self.ema else dict(self.model.named_parameters())
        self.swa = TightSwa(averaged, config.swa) if config.swa else None
        self.qat = LateQat(self.model, config.qat) if config.qat else None
        self.replay = ReplayBuffer(config.replay) if config.replay else None
        late = config.loop_from > 0 and model.config.loop_passes > 0
        self.loop = LateLoop(self.model.model, config.loop_from) if late else None
        self.steps, self.replayed = 0, 0
        self.lap = (0, 0.0)  # the step and the counted seconds since which all steps are alike
        self.last_loss = math.nan
        self.reported = (0, 0.0)  # the step and the seconds of the last report

    def warm_up(self) -> None:
        """Compile forward and backward on random tokens; no weight, generator or data position changes."""
        sequences = {self.config.micro_batch_sequences} | ({self.config.span_sequences} if self.replay else set())
        # Every graph, so that switching the rounding or the loop on costs the clock nothing.
        for looped in [False, True] if self.loop else [True]:
            for rounded in [False, True] if self.qat else [False]:
                self.switch(looped, rounded)
                for count in sorted(sequences):
                    self._warm_pass(min(count, self.config.micro_batch_sequences))
        self.switch(False, False)
        for parameter in self.model.parameters():
            parameter.grad = None

    def switch(self, looped: bool, rounded: bool) -> None:
        """Turn the loop and the rounding of late QAT on or off, where the run has them."""
        if self.loop:
            self.loop.switch(looped)
        if self.qat:
            self.qat.switch(rounded)

    def _warm_pass(self, sequences: int) -> None:
        generator = torch.Generator().manual_seed(0)
        shape = (sequences, self.config.sequence_length)
        tokens = torch.randint(0, self.vocab_size, shape, generator=generator).to(self.accelerator.device)
        # A clone: one tensor in both places would be compiled as a graph of its own.
        self._backward(tokens, tokens.clone(), 1.0, synchronize=True)

    def elapsed(self) -> float | None:
        """Return the counted seconds, the same on every process; None where no clock limits the run."""
        return None if self.config.loop_seconds is None else self.shared(self.clock.counted)

    def finished(self) -> bool:
        """Say whether the run is over; by the clock once another mean step would not fit.

        With its loop on a model's steps are longer: the mean is that of the steps since it was switched on.
        """
        if self.steps >= self.config.iterations:
            return True
        elapsed, limit = self.elapsed(), self.config.loop_seconds
        if elapsed is None or limit is None or self.steps == 0:
            return False
        step, since = self.lap
        return elapsed + (elapsed - since) / (self.steps - step) > limit

    def step(self) -> None:
        """Take one optimiser step and report it."""
        elapsed = self.elapsed()
        scale = learning_rate_scale(self.config, self.steps, elapsed)
        momentum = muon_momentum(self.steps, self.config.momentum_warmup_steps)
        if self.qat:  # off again where a slow first step had made the clock's warm-down look near
            self.qat.switch(scale < self.qat.config.below_scale)
        if self.loop and not self.loop.on and progress(self.config, self.steps, elapsed) >= self.loop.from_share:
            self.loop.switch(True)
            self.lap = (self.steps, elapsed or 0.0)
        inputs, targets = self._next_batch()
        if self.replay:
            if scale >= self.replay.config.below_scale:
                self.replay.spans.clear()
            else:
                self.replay.remember(inputs, targets, len(inputs) // self.config.span_sequences)
        loss = self._gradients(inputs, targets, share=1.0)
        norm = self._update(scale, momentum)
        self.steps += 1
        if self.swa:
            self.swa.update(self.steps, scale)
        if self.ahead and self.steps < self.config.iterations:
            self.ahead.start()  # now, because the step's work is queued and reporting waits for it
        self._report(loss, scale, momentum, norm)

    def wait_for_reader(self) -> None:
        """Wait for what is read ahead: reading training data counts, and the next phase may not."""
        since = time.perf_counter()
        if self.ahead:
            self.ahead.wait()
        self.clock.attribute("data", time.perf_counter() - since)

    def _next_batch(self) -> tuple[Tensor, Tensor]:
        since = time.perf_counter()
        batch = self.batches.next_step()
        self.clock.attribute("data", time.perf_counter() - since)
        return batch

    def replay_step(self, inputs: Tensor, targets: Tensor) -> float:
        """Take one optimiser step on a remembered span; returns its loss in nats per token."""
        assert self.replay is not None
        # The reference weighs a replayed span as one of the micro-batches of a step.
        share = self.batches.processes / self.config.spans_per_step
        loss = self._gradients(inputs.long(), targets.long(), share)
        momentum = muon_momentum(self.steps - 1, self.config.momentum_warmup_steps)
        norm = self._update(self.replay.config.lr_factor, momentum)
        self.replayed += 1
        if self.swa:
            self.swa.update(self.steps + self.replayed, self.replay.config.lr_factor)
        return self._finite(loss, norm)[0] / share

    def _gradients(self, inputs: Tensor, targets: Tensor, share: float) -> Tensor:
        """Accumulate the gradients of ``share`` times the mean loss over micro-batches; returns that loss."""
        device = self.accelerator.device
        passes = max(1, len(inputs) // self.config.micro_batch_sequences)
        micro = list(zip(inputs.chunk(passes), targets.chunk(passes), strict=True))
        losses = []
        for i, (x, y) in enumerate(micro):
            x, y = x.to(device, non_blocking=True), y.to(device, non_blocking=True)
            averaged = i == passes - 1 and self.config.clip == "global"
            losses.append(self._backward(x, y, share / passes, synchronize=averaged))
        return torch.stack(losses).sum()

    def _update(self, scale: float, momentum: float) -> Tensor:
        """Clip, step every optimiser at ``scale`` times its peak rate, average; returns the norm before the clip."""
        norm = self.clip(self.accelerator, list(self.model.parameters()), self.config.grad_clip)
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

    @property
    def published(self) -> dict[str, Tensor]:
        """The averages that are published instead of the weights, by name; empty without an average."""
        if self.swa and self.swa.snapshots:
            return self.swa.mean
        return self.ema.averages if self.ema else {}

    @contextmanager
    def as_published(self) -> Iterator[None]:
        """Put the averages in place of the weights while the context lasts, without the rounding of late QAT."""
        own = {name: p.detach().clone() for name, p in self.model.named_parameters() if name in self.published}
        parameters = dict(self.model.named_parameters())
        with self.true_weights(), torch.no_grad():
            for name, average in self.published.items():
                parameters[name].copy_(average)
            yield
            for name, weights in own.items():
                parameters[name].copy_(weights)

    @torch.no_grad()
    def finish(self) -> None:
        """Leave the model as it is published: averaged, unrounded, looped, in float32."""
        self.switch(looped=True, rounded=False)
        averages = self.published
        for name, parameter in self.model.named_parameters():
            if name in averages:
                parameter.copy_(averages[name])
            # An average is published in the type that its weights were trained in, as in the reference.
            parameter.data = parameter.float()

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

    def _finite(self, loss: Tensor, norm: Tensor) -> tuple[float, float]:
        """Return the mean over processes of a step's loss and norm; raises TrainingError where one is not finite."""
        # Reading them waits for the device, which keeps the host clock and the schedule honest at every step.
        means: list[float] = self.accelerator.reduce(torch.stack([loss, norm]), reduction="mean").tolist()
        if not all(map(math.isfinite, means)):
            raise TrainingError(
                f"loss {means[0]}, norm of the gradient {means[1]} in step {self.steps + self.replayed}; the last "
                "checkpoint is kept: lower the learning rates and resume"
            )
        return means[0], means[1]

    def _report(self, loss: Tensor, scale: float, momentum: float, norm: Tensor) -> None:
        self.last_loss, mean_norm = self._finite(loss, norm)
        if self.steps % self.config.log_every == 0 or self.steps in (1, self.config.iterations):
            self.telemetry.step(self._facts(scale, momentum, mean_norm))

    def _facts(self, scale: float, momentum: float, norm: float) -> StepFacts:
        seconds, limit = self.clock.counted, self.config.loop_seconds
        left = (self.config.iterations - self.steps) * seconds / self.steps
        if limit is not None:
            left = min(left, max(limit - seconds, 0.0))
        mfu, (before, since) = None, self.reported
        self.reported = (self.steps, seconds)
        if self.peak and self.steps > before:
            flops = training_flops(self.model, self.config.sequence_length) * self.config.step_tokens
            mfu = flops * (self.steps - before) / max(seconds - since, 1e-9) / self.peak
        return StepFacts(self.steps, self.last_loss, scale, momentum, norm, seconds, left, mfu)

    def shared(self, value: float) -> float:
        """Return the main process's value on every process."""
        if self.accelerator.num_processes == 1:
            return value
        return float(broadcast(torch.tensor(value, dtype=torch.float64, device=self.accelerator.device)))

    def any_process(self, answer: bool) -> bool:
        """Say on every process whether one of them says yes."""
        if self.accelerator.num_processes == 1:
            return answer
        return float(self.accelerator.reduce(torch.tensor(float(answer), device=self.accelerator.device))) > 0

    def _synchronize(self) -> None:
        if self.accelerator.device.type == "cuda":
            torch.cuda.synchronize(self.accelerator.device)
