"""The shuffled-sequence order: every process deals the windows of its own shards in random order.

Process ``r`` owns every ``processes``-th shard from the ``r``-th on and draws from a generator seeded by ``r``. A
shard is cut into windows of ``T`` tokens from a random phase on; a sequence comes from a shard chosen by how many
windows it has left, and is the last of that shard's shuffled list. When all are dealt, all shards are cut anew.

No process reads another's shards, so the order depends on the number of processes, and a state goes on only with as
many; a process without a shard cannot train.

``T`` sequence length. Source: PR 1394; SPEC-8192 3.2.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from modeling_pgolf.errors import TrainingError

from .batches import TrainTokens, calls_per_step, refuse_order, refuse_processes
from .config import TrainingConfig
from .coprime import draw_phase


class ShuffledBatches:
    """The share of one process in each step; its state is the number of steps, from which all draws are made again."""

    def __init__(self, tokens: TrainTokens, config: TrainingConfig, rank: int = 0, processes: int = 1) -> None:
        self.sequences = calls_per_step(config, processes) * config.span_sequences
        self.tokens, self.config = tokens, config
        self.rank, self.processes = rank, processes
        self._owned = list(range(rank, len(tokens.shards), processes))
        if not any(len(tokens.shards[shard]) > config.sequence_length for shard in self._owned):
            raise TrainingError(
                f"process {rank} of {processes} owns no shard of the {len(tokens.shards)} with a whole window of "
                f"{config.sequence_length} tokens; use fewer processes, or another training.order"
            )
        self._begin()

    def _begin(self) -> None:
        self.steps = 0
        self._random = np.random.default_rng(self.rank)
        self._shuffle()

    def _shuffle(self) -> None:
        """Cut every owned shard from a new phase on, and shuffle its windows."""
        length = self.config.sequence_length
        self._starts: list[NDArray[np.int64]] = []
        for tokens in (len(self.tokens.shards[shard]) for shard in self._owned):
            phase = draw_phase(self._random, tokens, length)
            self._starts.append(phase + length * self._random.permutation((tokens - 1 - phase) // length))
        self._left = np.array([len(starts) for starts in self._starts], dtype=np.float64)

    def next_step(self) -> tuple[Tensor, Tensor]:
        """Return inputs and targets of this process for one step, int64 (sequences, T)."""
        return self.tokens.windows(self.draw_step(), self.config.sequence_length)

    def draw_step(self) -> list[tuple[int, int]]:
        """Draw the (shard, start) of every window of this process for one step."""
        self.steps += 1
        return [self._draw() for _ in range(self.sequences)]

    def _draw(self) -> tuple[int, int]:
        if not self._left.any():
            self._shuffle()
        own = int(self._random.choice(len(self._left), p=self._left / self._left.sum()))
        self._left[own] -= 1
        return self._owned[own], int(self._starts[own][int(self._left[own])])

    def state_dict(self) -> dict[str, Any]:
        """Return the number of steps."""
        return {"order": "shuffled", "steps": self.steps, "processes": self.processes}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Draw again what was drawn; raises TrainingError for another number of processes."""
        refuse_order(state, "shuffled")
        refuse_processes(state, self.processes)
        self._begin()
        while self.steps < state["steps"]:
            self.draw_step()
