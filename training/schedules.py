"""Schedules: the learning-rate scale and Muon's momentum.

The scale is 1 until the warm-down, then falls linearly to 0 at the end of the steps or of the clock, whichever the
run is limited by. Sources: PR 374 (by the clock), PR 1394 (as a share of the run); SPEC-11L 2.4, SPEC-8192 2.5.
"""

from __future__ import annotations

from .config import TrainingConfig

# Muon's momentum at the start and after its warm-up, PR 162.
MOMENTUM_START, MOMENTUM_END = 0.92, 0.99


def progress(config: TrainingConfig, step: int, elapsed: float | None) -> float:
    """Return the share of the run that is over before step ``step``: of the clock where ``elapsed`` seconds count."""
    if elapsed is not None and config.loop_seconds is not None:
        return elapsed / config.loop_seconds
    return step / config.iterations


def learning_rate_scale(config: TrainingConfig, step: int, elapsed: float | None) -> float:
    """Return the scale of step ``step`` (from 0), after ``elapsed`` counted seconds (None without a clock)."""
    if config.warmdown_fraction is not None:
        return fraction_scale(progress(config, step, elapsed), config.warmdown_fraction)
    scale = step_scale(step, config.iterations, config.warmdown_steps)
    if elapsed is None or config.loop_seconds is None:
        return scale
    return min(scale, clock_scale(step, elapsed, config.loop_seconds, config.warmdown_steps))


def fraction_scale(done: float, warmdown: float) -> float:
    """Return the scale when the share ``done`` of the run is over, with a warm-down over the share ``warmdown``."""
    if warmdown <= 0 or done < 1 - warmdown:
        return 1.0
    return max((1 - done) / warmdown, 0.0)


def step_scale(step: int, iterations: int, warmdown_steps: int) -> float:
    """Return the learning-rate scale before step ``step`` (from 0) of a run limited by ``iterations``."""
    if warmdown_steps <= 0 or not max(iterations - warmdown_steps, 0) <= step < iterations:
        return 1.0
    return max((iterations - step) / warmdown_steps, 0.0)


def clock_scale(step: int, elapsed: float, budget: float, warmdown_steps: int) -> float:
    """Return the scale before step ``step`` of a run limited by a clock.

    elapsed, budget: training seconds spent and in all. The warm-down is ``warmdown_steps`` of the mean step so far.
    """
    if warmdown_steps <= 0:
        return 1.0
    warmdown = warmdown_steps * elapsed / max(step, 1)
    remaining = max(budget - elapsed, 0.0)
    return remaining / max(warmdown, 1e-9) if remaining <= warmdown else 1.0


def muon_momentum(step: int, warmup_steps: int) -> float:
    """Return Muon's momentum at step ``step``: linear over ``warmup_steps``."""
    share = min(step / warmup_steps, 1.0) if warmup_steps > 0 else 1.0
    return (1 - share) * MOMENTUM_START + share * MOMENTUM_END
