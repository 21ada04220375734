"""The training clock: seconds by named phase, and what of them counts.

Only the phases in ``COUNTED`` use up the budget of the game; compile warm-up and validation are measured beside it.
Source: LEGALITY B2 (everything that reads training data or steps an optimiser counts); SPEC-11L 2.4.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

COUNTED = ("step", "data", "replay", "fine_tune")


class Clock:
    """Accumulates seconds by phase; a restored clock goes on where it stopped.

    synchronize: waits for the device, called at both ends of a phase.
    """

    def __init__(self, synchronize: Callable[[], None]) -> None:
        self.seconds: dict[str, float] = {}
        self.synchronize = synchronize
        self._open: tuple[str, float] | None = None

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Measure a phase; phases do not nest."""
        assert self._open is None, f"phase {name} opened inside {self._open}"
        self.synchronize()
        self._open = (name, time.perf_counter())
        try:
            yield
        finally:
            self.synchronize()
            self._close()

    def attribute(self, name: str, seconds: float) -> None:
        """Book ``seconds`` of the open phase, if one is, under ``name`` instead."""
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds
        if self._open is not None:
            self._open = (self._open[0], self._open[1] + seconds)

    def _close(self) -> None:
        assert self._open is not None
        name, since = self._open
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - since
        self._open = None

    @property
    def counted(self) -> float:
        """Seconds used of the training budget, an open phase included."""
        total = sum(self.seconds.get(name, 0.0) for name in COUNTED)
        if self._open is not None and self._open[0] in COUNTED:
            total += time.perf_counter() - self._open[1]
        return total

    def state_dict(self) -> dict[str, Any]:
        """Return the seconds by phase, an open counted phase included."""
        seconds = dict(self.seconds)
        if self._open is not None:
            name, since = self._open
            seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - since
        return {"seconds": seconds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from the seconds of ``state``."""
        self.seconds = dict(state["seconds"])
