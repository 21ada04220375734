"""The evaluation clock: when the plan no longer fits, adapting stops and scoring goes on.

After each chunk the seconds that scoring takes for a target and learning for a chunk are known; learning is allowed
only while the rest of the scoring, with this chunk's learning before it, still ends inside the budget.
Source: LEGALITY B3; PR 691 took 617 of its 600 seconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable

# Share of the budget kept for what cannot be measured ahead: the last window, the gather, writing the ledger.
SAFETY = 0.97


class Deadline:
    """Measures its own pace; ``now`` gives seconds, the same on every process."""

    def __init__(self, budget_seconds: float, targets: int, now: Callable[[], float] = time.perf_counter) -> None:
        self._now, self._targets = now, targets
        self._end = now() + budget_seconds * SAFETY
        self._scoring = self._learning = 0.0

    def scored(self, seconds: float) -> None:
        """Take in the seconds of a chunk's scoring."""
        self._scoring += seconds

    def learned(self, seconds: float) -> None:
        """Take in the seconds of a chunk's learning."""
        self._learning = max(self._learning, seconds)

    def allows_learning(self, scored: int) -> bool:
        """Say whether one more round of learning still leaves time to score the rest, at the pace so far."""
        rest = (self._targets - scored) * self._scoring / max(scored, 1)
        return self._now() + self._learning + rest < self._end
