"""Late training replay: the last training batches once more, at a low learning rate.

While the learning-rate scale is low, the spans of each step are remembered. When the loop is over, each is one
optimiser step of its own, oldest first, for a few epochs, with the averages going on.

The published form replays after the 600 s are over; the ranked form keeps a reserve of the clock for it and stops
with the clock. Source: PR 445; SPEC-11L 2.7.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from torch import Tensor

from .config import ReplayConfig


class ReplayBuffer:
    """The last ``spans`` spans of this process, inputs and targets int32 (sequences, T) each."""

    def __init__(self, config: ReplayConfig) -> None:
        self.config = config
        self.spans: deque[tuple[Tensor, Tensor]] = deque(maxlen=config.spans)

    def remember(self, inputs: Tensor, targets: Tensor, spans: int) -> None:
        """Keep the ``spans`` spans that make up the inputs and targets (sequences, T) of one step."""
        for x, y in zip(inputs.int().chunk(spans), targets.int().chunk(spans), strict=True):
            self.spans.append((x.clone(), y.clone()))

    def state_dict(self) -> dict[str, Any]:
        """Return the remembered spans, oldest first."""
        return {"inputs": [x for x, _ in self.spans], "targets": [y for _, y in self.spans]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the remembered spans."""
        self.spans.clear()
        self.spans.extend(zip(state["inputs"], state["targets"], strict=True))
