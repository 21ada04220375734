"""Batches in the reference's order: consecutive spans of the token stream, none shared, none skipped.

Each call of the reference loader gives every process one span of ``n + 1`` tokens: the first ``n`` are inputs, the
last ``n`` targets, so one token in ``n + 1`` is only ever a target. The stream runs through the shards in order and
wraps. The order is the same for any number of processes that divides ``spans_per_step``.

``n`` inputs of a span, ``T`` sequence length. Source: SPEC-11L 3.2.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from modeling_pgolf.errors import TrainingError

from .config import TrainingConfig

Shard = NDArray[np.uint16]


class TrainTokens:
    """Training tokens as a list of memory-mapped uint16 shards, read as one endless stream."""

    def __init__(self, shards: Sequence[Shard]) -> None:
        self.shards = [shard for shard in shards if len(shard)]
        if not self.shards:
            raise TrainingError("there are no training tokens; build the corpus first")
        self._starts = np.cumsum([0, *(len(shard) for shard in self.shards)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def read(self, position: int, count: int) -> NDArray[np.int64]:
        """Return ``count`` tokens from stream position ``position`` on, wrapping after the last."""
        taken = np.empty(count, dtype=np.int64)
        filled = 0
        while filled < count:
            place = (position + filled) % len(self)
            shard = int(np.searchsorted(self._starts, place, side="right")) - 1
            piece = self.shards[shard][place - self._starts[shard] :][: count - filled]
            taken[filled : filled + len(piece)] = piece
            filled += len(piece)
        return taken


class SequentialBatches:
    """The share of one process in each step, in stream order; its state is one position."""

    def __init__(self, tokens: TrainTokens, config: TrainingConfig, rank: int = 0, processes: int = 1) -> None:
        if config.spans_per_step % processes:
            raise TrainingError(
                f"{processes} processes cannot share {config.spans_per_step} spans a step evenly; "
                "use a number of processes that divides training.spans_per_step"
            )
        self.tokens, self.config = tokens, config
        self.rank, self.processes = rank, processes
        self.position = 0

    def next_step(self) -> tuple[Tensor, Tensor]:
        """Return inputs and targets of this process for one step, int64 (sequences, T)."""
        span = self.config.span_sequences * self.config.sequence_length
        inputs, targets = [], []
        for call in range(self.config.spans_per_step // self.processes):
            place = self.position + (call * self.processes + self.rank) * (span + 1)
            read = torch.from_numpy(self.tokens.read(place, span + 1))
            inputs.append(read[:-1].view(-1, self.config.sequence_length))
            targets.append(read[1:].view(-1, self.config.sequence_length))
        self.position = (self.position + self.config.spans_per_step * (span + 1)) % len(self.tokens)
        return torch.cat(inputs), torch.cat(targets)

    def state_dict(self) -> dict[str, Any]:
        """Return the stream position."""
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the stream position."""
        self.position = state["position"]


# Steps whose tokens a stream's fingerprint covers: enough to tell orders apart, read again in milliseconds.
FINGERPRINT_STEPS = 4


def step_batches(tokens: TrainTokens, config: TrainingConfig, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    """List the inputs and targets of every step of a run, all processes together, from its recorded configuration."""
    batches = SequentialBatches(tokens, config)
    for _ in range(steps):
        yield batches.next_step()


def stream_facts(tokens: TrainTokens, config: TrainingConfig, steps: int) -> dict[str, Any]:
    """Describe the stream a run of ``steps`` steps has read, with a SHA-256 over its first batches."""
    digest = hashlib.sha256()
    for inputs, targets in step_batches(tokens, config, min(steps, FINGERPRINT_STEPS)):
        digest.update(inputs.numpy().tobytes() + targets.numpy().tobytes())
    return {
        "order": "sequential",
        "steps": steps,
        "tokens": steps * config.step_tokens,
        "corpus_tokens": len(tokens),
        "fingerprint": digest.hexdigest()[:16],
    }
