"""What the trainer is told. Defaults are the run of PR 414 on 8 GPUs; source of each: SPEC-11L 2."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class EmaConfig:
    """Exponential moving average of the weights.

    decay: 0.997 is PR 414's. warm_up: limit the decay of update ``t`` to ``(1 + t)/(10 + t)``, so that a short run is
    not dominated by its first weights (the published form, without it, keeps 22 % of them after 500 steps).
    """

    decay: float = 0.997
    warm_up: bool = True


@dataclass(frozen=True)
class QatConfig:
    """Late quantisation-aware training: round matrices in the forward pass once the learning rate is low.

    below_scale: starts at the first step whose learning-rate scale is under this. bits, scale_floor: the exporter's
    grid. more_elements_than: a matrix with no more elements is exported in float16 and left alone. lowest_code,
    half_scale: -31 and True are the exporter's; PR 414 trained on -32 and a float32 scale.
    """

    below_scale: float = 0.15
    bits: int = 6
    scale_floor: float = 1 / 31
    more_elements_than: int = 65_536
    lowest_code: int = -31
    half_scale: bool = True


@dataclass(frozen=True)
class ReplayConfig:
    """Late training replay (PR 445).

    below_scale: spans are remembered while the learning-rate scale is under this. spans: how many a process keeps;
    a replayed step takes one from each, so its outcome depends on the number of processes, as in the reference.
    epochs, lr_factor: passes over them, and the rate as a share of the peak. reserve_seconds: what the loop leaves of
    the clock; after_clock: the published form, which replays when the clock is over and is not rankable.
    """

    below_scale: float = 0.2
    spans: int = 100
    epochs: int = 2
    lr_factor: float = 0.1
    reserve_seconds: float = 20.0
    after_clock: bool = False


@dataclass(frozen=True)
class TrainingConfig:
    """Settings of one training run.

    iterations: optimiser steps at most. seconds: training clock, None for no limit.
    warmdown_steps: steps over which the learning rate falls to 0, by the clock where there is one.
    sequence_length, span_sequences, spans_per_step: a step reads ``spans_per_step`` runs of
    ``span_sequences · sequence_length + 1`` consecutive tokens. micro_batch_sequences: sequences of one pass.
    token_lr, matrix_lr, scalar_lr, head_lr: learning rates of tables, matrices, vectors, an untied head.
    table_projections: optimiser of the two small table projections (PR 414 muon, PR 549 adamw).
    momentum_warmup_steps: steps over which Muon's momentum rises from 0.92 to 0.99.
    validate_every, checkpoint_every: steps; 0 for never. keep_checkpoints: how many to keep.
    """

    iterations: int = 20_000
    seconds: float | None = 600.0
    seed: int = 1337
    sequence_length: int = 2048
    span_sequences: int = 48
    spans_per_step: int = 8
    micro_batch_sequences: int = 48
    warmdown_steps: int = 3500
    token_lr: float = 0.035
    matrix_lr: float = 0.025
    scalar_lr: float = 0.025
    head_lr: float = 0.008
    weight_decay: float = 0.04
    grad_clip: float = 0.3
    table_projections: Literal["muon", "adamw"] = "muon"
    momentum_warmup_steps: int = 1500
    ema: EmaConfig | None = EmaConfig()
    qat: QatConfig | None = None
    replay: ReplayConfig | None = None
    precision: Literal["bf16", "fp32"] = "bf16"
    compile: bool = True
    log_every: int = 10
    validate_every: int = 0
    checkpoint_every: int = 0
    keep_checkpoints: int = 2

    @property
    def loop_seconds(self) -> float | None:
        """Seconds of the clock that the loop may use: all but the replay's reserve."""
        if self.seconds is None or self.replay is None or self.replay.after_clock:
            return self.seconds
        return self.seconds - self.replay.reserve_seconds

    @property
    def step_tokens(self) -> int:
        """Targets of one optimiser step."""
        return self.spans_per_step * self.span_sequences * self.sequence_length
