"""Batches: what a step reads, and the reference's order of it, consecutive spans that are never shared or skipped.

Each call of the reference loader gives every process one span of ``n + 1`` tokens: the first ``n`` are inputs, the
last ``n`` targets, so one token in ``n + 1`` is only ever a target. The stream runs through the shards in order and
wraps. The order is the same for any number of processes that divides ``spans_per_step``.

``n`` inputs of a span, ``T`` sequence length. Source: SPEC-11L 3.2, SPEC-8192 3.4.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from modeling_pgolf.errors import TrainingError

from .config import TrainingConfig


class Shard(Protocol):
    """Token ids in a row: an array, or a file that is watched while it is read."""

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice, /) -> NDArray[np.uint16]: ...


class TrainTokens:
    """Training tokens as a list of memory-mapped uint16 shards, read as one endless stream.

    names: what the shards are called, which seeds the coprime-stride order; without them they are called by number.
    """

    def __init__(self, shards: Sequence[Shard], names: Sequence[str] | None = None) -> None:
        named = zip(names or map(str, range(len(shards))), shards, strict=True)
        kept = [(name, shard) for name, shard in named if len(shard)]
        if not kept:
            raise TrainingError("there are no training tokens; build the corpus first")
        self.names = [name for name, _ in kept]
        self.shards = [shard for _, shard in kept]
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
            start = int(place - self._starts[shard])
            piece = self.shards[shard][start : start + count - filled]
            taken[filled : filled + len(piece)] = piece
            filled += len(piece)
        return taken

    def windows(self, places: Sequence[tuple[int, int]], length: int) -> tuple[Tensor, Tensor]:
        """Read ``length + 1`` tokens from each (shard, start); returns inputs and targets, int64 (windows, length)."""
        rows = np.stack([self.shards[shard][start : start + length + 1] for shard, start in places])
        read = torch.from_numpy(rows.astype(np.int64))
        # One row counts as contiguous with the strides of its window, and would be compiled as a graph of its own.
        dense = torch.contiguous_format
        return read[:, :-1].clone(memory_format=dense), read[:, 1:].clone(memory_format=dense)


class Batches(Protocol):
    """The share of one process in each step."""

    processes: int

    def next_step(self) -> tuple[Tensor, Tensor]:
        """Return inputs and targets of this process for one step, int64 (sequences, T)."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return the place in the data, the same on every process; all of them must ask together."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from the place of ``state``; raises TrainingError where this order cannot."""
        ...


class SequentialBatches:
    """The share of one process in each step, in stream order; its state is one position."""

    def __init__(self, tokens: TrainTokens, config: TrainingConfig, rank: int = 0, processes: int = 1) -> None:
        self.calls = calls_per_step(config, processes)
        self.tokens, self.config = tokens, config
        self.rank, self.processes = rank, processes
        self.position = 0

    def next_step(self) -> tuple[Tensor, Tensor]:
        """Return inputs and targets of this process for one step, int64 (sequences, T)."""
        span = self.config.span_sequences * self.config.sequence_length
        spans = []
        for call in range(self.calls):
            place = self.position + (call * self.processes + self.rank) * (span + 1)
            spans.append(self.tokens.read(place, span + 1))
        self.position = (self.position + self.config.spans_per_step * (span + 1)) % len(self.tokens)
        return inputs_and_targets(spans, self.config.sequence_length)

    def state_dict(self) -> dict[str, Any]:
        """Return the stream position."""
        return {"order": "sequential", "position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the stream position, whatever the number of processes."""
        refuse_order(state, "sequential")
        self.position = state["position"]


def calls_per_step(config: TrainingConfig, processes: int) -> int:
    """Return the spans that each process reads in a step; raises TrainingError where they cannot be shared evenly."""
    if config.spans_per_step % processes:
        raise TrainingError(
            f"{processes} processes cannot share {config.spans_per_step} spans a step evenly; "
            "use a number of processes that divides training.spans_per_step"
        )
    return config.spans_per_step // processes


def inputs_and_targets(spans: Sequence[NDArray[np.int64]], sequence_length: int) -> tuple[Tensor, Tensor]:
    """Cut spans of ``n + 1`` tokens into rows: all but the last token, and all but the first, int64 (sequences, T)."""
    read = torch.from_numpy(np.stack(spans))
    inputs, targets = (part.reshape(-1, sequence_length).contiguous() for part in (read[:, :-1], read[:, 1:]))
    return inputs, targets


def refuse_order(state: dict[str, Any], order: str) -> None:
    """Raise TrainingError where ``state`` is the place of another order."""
    if state.get("order") != order:
        raise TrainingError(
            f"the stored state is a place in the {state.get('order')} order, this run reads the {order} one; "
            "use the recipe of that run, or remove the state to start afresh"
        )


def refuse_processes(state: dict[str, Any], processes: int) -> None:
    """Raise TrainingError where ``state`` is of another number of processes, on which its order depends."""
    if state["processes"] != processes:
        raise TrainingError(
            f"the {state['order']} order depends on the number of processes: the stored state is of "
            f"{state['processes']}, this run has {processes}; resume with {state['processes']}, or remove the state"
        )
