"""Streamed batches: text is read, tokenised and packed while the model trains, in an order that one number decides.

The stream is dealt to a fixed number of lanes, which never share a document and pack their tokens one by one into
spans of ``n + 1``. Span ``g`` of a run, counted over all steps and processes, is the next one of lane ``g mod lanes``;
process ``r`` takes every ``processes``-th span from the ``r``-th on, as in the sequential order. The number of lanes
is a multiple of the spans of a step, so every lane belongs to one process, and to one of its workers: the tokens of a
step are the same for any number of processes and workers.

With each span comes the place behind it, so the state of a run is one small place a lane, and what workers have read
ahead is never lost or read twice.

``n`` inputs of a span, ``T`` sequence length.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from typing import Any, Protocol, TypeAlias

import numpy as np
from accelerate.utils import gather_object
from numpy.typing import NDArray
from torch import Generator, Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from modeling_pgolf.errors import PGolfError, TrainingError

from .batches import calls_per_step, inputs_and_targets, refuse_order
from .config import TrainingConfig

# Spans that a worker keeps ready: it reads and tokenises in larger pieces than a span, and training must not wait.
SPANS_AHEAD = 8

Place: TypeAlias = dict[str, Any]


class TokenStream(Protocol):
    """Training tokens that are made while they are read, in lanes that share no document."""

    @property
    def lanes(self) -> int:
        """How many lanes there are."""
        ...

    @property
    def workers(self) -> int:
        """Processes that make tokens, for each process that trains; 0 makes them in that process itself."""
        ...

    def spans(self, lane: int, tokens: int, place: Place | None) -> Iterator[tuple[NDArray[np.uint16], Place]]:
        """Yield the spans of ``tokens`` tokens behind ``place`` without end, each with the place behind it.

        place: plain values; None for the beginning. Raises a PGolfError when the text breaks off.
        """
        ...

    def batches(self, config: TrainingConfig, rank: int, processes: int) -> StreamedBatches:
        """Return ``StreamedBatches`` of this stream: who trains on shards alone does without them."""
        ...


Item: TypeAlias = tuple[int, NDArray[np.uint16], Place]


class LaneReader(IterableDataset[Item | PGolfError]):
    """The spans of some lanes in turn; in a worker, those of the lanes that are its share.

    lanes: in the order of their turns. An error ends the spans and is the last thing that is yielded, because a
    DataLoader would bury its message in a traceback.
    """

    def __init__(self, stream: TokenStream, lanes: list[int], places: dict[int, Place | None], tokens: int) -> None:
        self.stream, self.lanes, self.places, self.tokens = stream, lanes, places, tokens

    def __iter__(self) -> Iterator[Item | PGolfError]:
        worker = get_worker_info()
        if worker:  # a scheduler asks a whole group of processes to stop; who trains still needs tokens for a step
            os.setpgrp()
        lanes = self.lanes[worker.id :: worker.num_workers] if worker else self.lanes
        readers = {lane: self.stream.spans(lane, self.tokens, self.places[lane]) for lane in lanes}
        try:
            for lane in itertools.cycle(lanes):
                span, place = next(readers[lane])
                yield lane, span, place
        except PGolfError as error:
            yield error


def refuse_lanes(lanes: int, config: TrainingConfig) -> None:
    """Raise TrainingError where so many lanes cannot be dealt to the spans of a step."""
    if lanes % config.spans_per_step:
        raise TrainingError(
            f"{lanes} lanes of text cannot be dealt to {config.spans_per_step} spans a step; choose a multiple of "
            "training.spans_per_step for corpus.streaming.lanes"
        )


def refuse_stored_order(config: TrainingConfig) -> None:
    """Raise TrainingError where an order of stored tokens is asked for."""
    if config.order != "sequential":
        raise TrainingError(
            f"asked for the {config.order} order of streamed text, which has an order of its own; leave training.order "
            "at 'sequential', or build the corpus into shards"
        )


def unchanged(item: Any) -> Any:
    """Return what a DataLoader would otherwise make tensors of."""
    return item


class StreamedBatches:
    """The share of one process in each step of a stream; its state is one place a lane."""

    def __init__(self, stream: TokenStream, config: TrainingConfig, rank: int = 0, processes: int = 1) -> None:
        self.calls = calls_per_step(config, processes)
        refuse_stored_order(config)
        refuse_lanes(stream.lanes, config)
        self.stream, self.config = stream, config
        self.rank, self.processes = rank, processes
        self.spans = 0  # of all processes
        self.places: dict[int, Place | None] = dict.fromkeys(range(rank, stream.lanes, processes))
        self._items: Iterator[Item | PGolfError] | None = None

    def next_step(self) -> tuple[Tensor, Tensor]:
        """Return inputs and targets of this process for one step, int64 (sequences, T).

        Raises the stream's own error when the text breaks off, and TrainingError when a worker dies.
        """
        spans = [self._take().astype(np.int64) for _ in range(self.calls)]
        self.spans += self.config.spans_per_step
        return inputs_and_targets(spans, self.config.sequence_length)

    def _take(self) -> NDArray[np.uint16]:
        if self._items is None:
            self._items = iter(self._loader())
        try:
            item = next(self._items)
        except RuntimeError as error:
            raise TrainingError(
                f"a worker that makes tokens of the stream ended without a word ({error}); it may have run out of "
                "memory: use fewer corpus.streaming.workers, and resume"
            ) from error
        if isinstance(item, PGolfError):
            raise item
        lane, span, self.places[lane] = item
        return span

    def _loader(self) -> DataLoader[Item | PGolfError]:
        """Describe the workers: as many of those asked for as share the lanes of this process evenly."""
        lanes = list(self.places)
        turn = self.spans // self.processes % len(lanes)
        workers = max((n for n in range(1, self.stream.workers + 1) if len(lanes) % n == 0), default=0)
        tokens = self.config.span_sequences * self.config.sequence_length + 1
        return DataLoader(
            LaneReader(self.stream, lanes[turn:] + lanes[:turn], dict(self.places), tokens),
            batch_size=None,
            num_workers=workers,
            collate_fn=unchanged,
            prefetch_factor=SPANS_AHEAD if workers else None,
            generator=Generator(),  # of its own: the run's generator must not depend on when a stream is opened
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the places of all lanes, gathered from all processes."""
        shares = gather_object([[lane, place] for lane, place in self.places.items()])
        return {"order": "streamed", "spans": self.spans, "places": sorted(shares, key=lambda share: int(share[0]))}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from the places of the lanes of this process, however many processes there are or were."""
        refuse_order(state, "streamed")
        if len(state["places"]) != self.stream.lanes:
            raise TrainingError(
                f"the stored state is a place in {len(state['places'])} lanes, this run has {self.stream.lanes}; use "
                "the recipe of that run, or remove the state to start afresh"
            )
        self.spans, self._items = state["spans"], None
        self.places = {lane: place for lane, place in state["places"] if lane in self.places}

    def close(self) -> None:
        """End the workers; left to the garbage collector, each would take five seconds."""
        self._items = None
