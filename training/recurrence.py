"""Late recurrence: a looped model runs without its loop until a share of the run is over.

The loop is a mode of the layer program; skip rows are those of the looped list throughout, so the first ones are
used before the switch. Both programs are compiled before the clock starts. Source: PR 1394; SPEC-8192 1.4.
"""

from __future__ import annotations

from typing import Any


class LateLoop:
    """Switches the loop of a model; it is off from the start until ``from_share`` of the run is over."""

    def __init__(self, stack: Any, from_share: float) -> None:
        self.stack, self.from_share = stack, from_share
        config = stack.config
        self.programs = {False: config.program_of(list(range(config.num_blocks))), True: config.program}
        self.switch(False)

    def switch(self, on: bool) -> None:
        """Turn the loop on or off."""
        self.on = on
        self.stack.program = self.programs[on]
