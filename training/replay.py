"""Late training replay: the last training batches once more, at a low learning rate.

While the learning-rate scale is low, the spans of each step are remembered. When the loop is over, each is one
optimiser step of its own, oldest first, for a few epochs, with the averages going on.

The published form replays after the 600 s are over; the ranked form keeps a reserve of the clock for it and stops
with the clock. Source: PR 445; SPEC-11L 2.7.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import torch
from accelerate import Accelerator
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

    def state_dict(self, accelerator: Accelerator) -> dict[str, Any]:
        """Return the remembered spans of all processes, int32 (processes · spans, 2, sequences, T), oldest first."""
        if not self.spans:
            return {"spans": None, "processes": accelerator.num_processes}
        own = torch.stack([torch.stack(span) for span in self.spans]).to(accelerator.device)
        return {"spans": accelerator.gather(own).cpu(), "processes": accelerator.num_processes}

    def load_state_dict(self, state: dict[str, Any], accelerator: Accelerator) -> None:
        """Restore this process's spans; another number of processes than before deals them out anew.

        All get equally many, or their steps would wait for each other: what does not come out even is the oldest.
        """
        self.spans.clear()
        if state["spans"] is None:
            return
        dealt = torch.stack(state["spans"].chunk(state["processes"]), dim=1).flatten(0, 1)
        even = dealt[len(dealt) % accelerator.num_processes :]
        mine = even[accelerator.process_index :: accelerator.num_processes]
        self.spans.extend((x, y) for x, y in mine)
