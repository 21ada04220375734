"""Which window scores which target: every target exactly once, with as much context as the stride leaves it.

Windows start at 0, S, 2S, …; the first scores all its targets, each later one only those that no window before it
reached, and the first window that reaches the end is the last. (The reference goes on and counts the tail again:
SPEC-11L 5.3, LEGALITY V31.)

``N`` targets, ``T`` window, ``S`` stride.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from modeling_pgolf.errors import LegalityError


@dataclass(frozen=True)
class ValidationTokens:
    """The validation stream, int64 (N + 1,): target ``i`` is token ``i + 1``. Training has no type that holds one."""

    ids: Tensor

    @property
    def targets(self) -> int:
        """How many targets the stream has."""
        return len(self.ids) - 1


class Window(NamedTuple):
    """Inputs ``start … start + length - 1``; scored are the targets of inputs ``start + first …`` to its end."""

    start: int
    length: int
    first: int

    @property
    def scored(self) -> range:
        """The targets that this window scores."""
        return range(self.start + self.first, self.start + self.length)


def sliding_windows(targets: int, window: int, stride: int) -> Iterator[Window]:
    """Cover ``targets`` targets by windows in stream order; raises LegalityError where targets would be skipped."""
    if not 1 <= stride <= window:
        raise LegalityError(f"stride {stride} must be between 1 and the window {window}, or targets would be skipped")
    covered = start = 0
    while covered < targets:
        length = min(window, targets - start)
        yield Window(start, length, covered - start)
        covered = start + length
        start += stride


def window_batch(tokens: ValidationTokens, windows: list[Window], size: int) -> tuple[Tensor, Tensor]:
    """Stack windows to inputs and targets, int64 (len(windows), size), short windows padded by zeros on the right."""
    inputs = torch.zeros(len(windows), size, dtype=torch.int64)
    targets = torch.zeros(len(windows), size, dtype=torch.int64)
    for row, (start, length, _) in enumerate(windows):
        inputs[row, :length] = tokens.ids[start : start + length]
        targets[row, :length] = tokens.ids[start + 1 : start + length + 1]
    return inputs, targets
