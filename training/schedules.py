"""Schedules: the learning-rate scale and Muon's momentum.

The scale is 1 until the warm-down, then falls linearly to 0 at the end of the steps or of the clock, whichever the
run is limited by. Source: PR 374 (warm-down by the clock); SPEC-11L 2.4.
"""

from __future__ import annotations

# Muon's momentum at the start and after its warm-up, PR 162.
MOMENTUM_START, MOMENTUM_END = 0.92, 0.99


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
