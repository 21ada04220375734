"""What the trainer is told. Defaults are the run of PR 414 on 8 GPUs; source of each: SPEC-11L 2."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class EmaConfig:
    """Exponential moving average of the weights.

    decay: 0.997 is PR 414's. warm_up: limits the decay of update ``t`` to ``(1 + t) / (1 + warm_up + t)``, so that the
    average reaches back over a ``warm_up``-th of the run so far and a short run is not dominated by its first weights.
    20 is our choice: PR 414's 0.997 reaches back over a 21st of its 7,000 steps, and from 6,700 steps on the two are
    the same. None is the published form, which keeps 22 % of the initial weights after 500 steps.
    """

    decay: float = 0.997
    warm_up: float | None = 20.0


@dataclass(frozen=True)
class SwaConfig:
    """Tight stochastic weight averaging: the mean of late snapshots, of the moving average where there is one.

    below_scale, every: snapshots after steps that are a multiple of ``every``, while the learning-rate scale is under
    ``below_scale``; both are PR 374's, whose script collects the snapshots and never uses them.
    """

    below_scale: float = 0.2
    every: int = 50


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
class FineTuneConfig:
    """AdamW epochs over a fixed stretch of tokens behind the average; defaults are PR 1423's.

    epochs, lr, rows, grad_clip: passes, peak rate, sequences of one step of a process, norm of the gradient.
    frozen_blocks: first blocks that stand still. first_block_share: the rate of the first block that moves as a share
    of ``lr``, rising to ``lr`` at the last. reach_matrices: frozen blocks and rates by block hold for the matrices, as
    the texts say; in the scripts they reach gains and scales alone (SPEC-11L 5.5).
    tokens: how much training text a ranked run takes, from the head of the stream. reserve_seconds: what the loop
    leaves of the clock for it, in which it ends; with 0 it comes when the clock is over, the published form.
    """

    epochs: int = 6
    lr: float = 5e-4
    rows: int = 32
    grad_clip: float = 1.0
    frozen_blocks: int = 2
    first_block_share: float = 1.0
    reach_matrices: bool = True
    tokens: int = 4_000_000
    reserve_seconds: float = 30.0


@dataclass(frozen=True)
class TrainingConfig:
    """Settings of one training run.

    iterations: optimiser steps at most. seconds: training clock, None for no limit. calibration_seconds: what training
    leaves of the clock for the exporter's calibration.
    warmdown_steps: steps over which the learning rate falls to 0, by the clock where there is one. warmdown_fraction:
    the share of the run (of the clock where there is one) instead, PR 1394.
    loop_from: share of the run from which a looped model runs its loop, PR 1394.
    sequence_length, span_sequences, spans_per_step: a step reads ``spans_per_step`` runs of
    ``span_sequences · sequence_length + 1`` consecutive tokens. micro_batch_sequences: sequences of one pass.
    order: in which shards are read (PR 1184 coprime, PR 1394 shuffled); these two depend on the number of processes.
    token_lr, matrix_lr, scalar_lr, head_lr: learning rates of tables, matrices, vectors, an untied head.
    token_decay, matrix_decay, scalar_decay: decoupled weight decay of the first three.
    table_dtype: bf16 is the published form: tables, their gradients and Adam's moments in bfloat16, and all weights
    starting from values rounded to it (SPEC-11L 1.3, trap 11).
    clip: the norm of the gradient that all processes share, or of each process's own before they are averaged, as
    PR 549 and later did, which makes the step depend on their number (SPEC-11L 2.2).
    row_normalized_muon: MuonEq-R, PR 1217.
    table_projections: optimiser of the two small table projections (PR 414 muon, PR 549 adamw).
    momentum_warmup_steps: steps over which Muon's momentum rises from 0.92 to 0.99.
    validate_every, checkpoint_every: steps; 0 for never. keep_checkpoints: how many to keep. Neither uses up the clock,
    and 1,000 steps are 85 s of a record's run.
    """

    iterations: int = 20_000
    seconds: float | None = 600.0
    seed: int = 1337
    sequence_length: int = 2048
    span_sequences: int = 48
    spans_per_step: int = 8
    micro_batch_sequences: int = 48
    order: Literal["sequential", "coprime", "shuffled"] = "sequential"
    calibration_seconds: float = 0.0
    warmdown_steps: int = 3500
    warmdown_fraction: float | None = None
    loop_from: float = 0.0
    token_lr: float = 0.035
    matrix_lr: float = 0.025
    scalar_lr: float = 0.025
    head_lr: float = 0.008
    token_decay: float = 0.04
    matrix_decay: float = 0.04
    scalar_decay: float = 0.04
    table_dtype: Literal["fp32", "bf16"] = "fp32"
    grad_clip: float = 0.3
    clip: Literal["global", "per_rank"] = "global"
    row_normalized_muon: bool = False
    table_projections: Literal["muon", "adamw"] = "muon"
    momentum_warmup_steps: int = 1500
    ema: EmaConfig | None = EmaConfig()
    swa: SwaConfig | None = None
    qat: QatConfig | None = None
    replay: ReplayConfig | None = None
    fine_tune: FineTuneConfig | None = None
    precision: Literal["bf16", "fp32"] = "bf16"
    compile: bool = True
    log_every: int = 10
    validate_every: int = 0
    checkpoint_every: int = 1000
    keep_checkpoints: int = 2

    @property
    def replay_end(self) -> float | None:
        """Seconds of the clock by which a ranked replay ends: all but the reserves of what comes behind it."""
        if self.seconds is None:
            return None
        return self.seconds - self.calibration_seconds - (self.fine_tune.reserve_seconds if self.fine_tune else 0.0)

    @property
    def fine_tune_end(self) -> float | None:
        """Seconds of the clock by which fine-tuning inside it ends: all but what the exporter's calibration needs."""
        if self.seconds is None or self.fine_tune is None or self.fine_tune.reserve_seconds == 0:
            return None
        return self.seconds - self.calibration_seconds

    @property
    def loop_seconds(self) -> float | None:
        """Seconds of the clock that the loop may use: what a ranked replay leaves of them."""
        if self.replay_end is None:
            return None
        if self.replay is None or self.replay.after_clock:
            return self.replay_end
        return self.replay_end - self.replay.reserve_seconds

    @property
    def step_tokens(self) -> int:
        """Targets of one optimiser step."""
        return self.spans_per_step * self.span_sequences * self.sequence_length
