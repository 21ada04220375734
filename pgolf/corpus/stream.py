"""Streams: training text that is read, shuffled and tokenised while a model trains.

The parts of the source (files, row groups) are dealt to lanes, or, where there are fewer parts than lanes, its
documents are, so that no two lanes share a document. A lane reads blocks of ``shuffle_documents`` documents, brings
each into an order drawn from (seed, lane, epoch, block), tokenises it and goes on with the next; at its end it begins
again with another order. So a place is: epoch, block, the source's own place before that block, and the tokens of the
block behind it. Going on from there reads one block again and gives the same tokens, which the shuffle buffer of
``datasets`` does not promise.

``N`` tokens. Source: ``IterableDataset.state_dict`` in the documentation of ``datasets``; LEGALITY rule D2.
"""

from __future__ import annotations

import copy
import functools
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from modeling_pgolf.errors import CorpusError
from pgolf.corpus.documents import TextSource, document_key, unbroken
from pgolf.corpus.shards import as_ids
from pgolf.corpus.splits import read_keys
from pgolf.corpus.tokenizer import Encoder
from training.config import TrainingConfig
from training.streamed import StreamedBatches

# Names inside a corpus folder.
TOKENIZER_FOLDER = "tokenizer"

# Documents tokenised at a time: some 0.4 MB of web text, a span or two, in less than 0.1 s.
ENCODED_DOCUMENTS = 128

Ids: TypeAlias = NDArray[np.uint16]
Place: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class StreamConfig:
    """How training text is streamed.

    lanes: independent streams that the text is dealt to; a multiple of training.spans_per_step. A process that trains
    has no more workers than lanes; with fewer parts of the source than lanes, every lane reads the whole text.
    shuffle_documents: documents of one lane that are shuffled among themselves: the shuffle buffer.
    seed: of the shuffling. workers: processes that tokenise, for each process that trains, 0 for none of their own;
    they change no token.
    """

    lanes: int = 16
    shuffle_documents: int = 2048
    seed: int = 0
    workers: int = 2

    def __post_init__(self) -> None:
        if self.lanes < 1 or self.shuffle_documents < 1 or self.workers < 0:
            raise CorpusError(
                f"asked for {self.lanes} lanes, {self.shuffle_documents} documents to shuffle and {self.workers} "
                "workers; choose at least 1, 1 and 0"
            )


@dataclass(frozen=True)
class TextStream:
    """The training tokens of a source, as ``training.streamed.TokenStream`` wants them.

    folder: of the corpus, with the tokenizer and the keys of the validation documents, which are left out.
    """

    source: TextSource
    folder: Path
    config: StreamConfig

    @property
    def lanes(self) -> int:
        """How many lanes there are."""
        return self.config.lanes

    @property
    def workers(self) -> int:
        """Processes that tokenise, for each process that trains."""
        return self.config.workers

    def spans(self, lane: int, tokens: int, place: Place | None) -> Iterator[tuple[Ids, Place]]:
        """Yield the spans of ``tokens`` tokens behind ``place`` without end, each with the place behind it.

        Raises CorpusError when the source cannot be opened or breaks off, or a lane gets no document.
        """
        held: deque[tuple[Place, Ids]] = deque()
        count = 0
        for piece in self._pieces(lane, place):
            held.append(piece)
            count += piece[1].size
            while count > tokens:  # more: the token behind the span tells the place
                yield cut(held, tokens), held[0][0]
                count -= tokens

    def batches(self, config: TrainingConfig, rank: int, processes: int) -> StreamedBatches:
        """Return the share of one process in the steps of a run."""
        return StreamedBatches(self, config, rank, processes)

    def _pieces(self, lane: int, place: Place | None) -> Iterator[tuple[Place, Ids]]:
        """Yield the tokens behind ``place`` in pieces (N,), N > 0, each with the place before it."""
        encoder, skipped = _encoder(self.folder), place["offset"] if place else 0
        for block, texts in self._blocks(lane, place):
            offset = 0
            for start in range(0, len(texts), ENCODED_DOCUMENTS):
                ids = as_ids(np.concatenate(encoder.encode(texts[start : start + ENCODED_DOCUMENTS])))
                fresh = ids[max(skipped - offset, 0) :]
                if fresh.size:
                    yield {**block, "offset": offset + ids.size - fresh.size}, fresh
                offset += ids.size
            skipped = 0

    def _blocks(self, lane: int, place: Place | None) -> Iterator[tuple[Place, list[str]]]:
        """Yield the shuffled texts of each block from that of ``place`` on, with the place before it."""
        refused = _refused(self.folder)
        epoch, number, at = (place["epoch"], place["block"], place["source"]) if place else (0, 0, None)
        while True:
            documents = 0
            with unbroken(self.source.name):
                part = lane_of(_opened(self.source), lane, self.lanes)
                if at is not None:
                    part.load_state_dict(at)
                for rows in part.iter(batch_size=self.config.shuffle_documents):
                    texts = [text for text in rows["text"] if document_key(text) not in refused]
                    order = np.random.default_rng([self.config.seed, lane, epoch, number]).permutation(len(texts))
                    yield {"epoch": epoch, "block": number, "source": at}, [texts[i] for i in order]
                    documents += len(texts)
                    number, at = number + 1, part.state_dict()
            if not documents:
                raise CorpusError(
                    f"asked for lane {lane} of {self.lanes} of {self.source.name}; found no document for it; "
                    "use fewer lanes or more text"
                )
            epoch, number, at = epoch + 1, 0, None


def cut(held: deque[tuple[Place, Ids]], tokens: int) -> Ids:
    """Take the first ``tokens`` tokens off the pieces; what is left of a piece keeps its place."""
    taken, missing = [], tokens
    while missing:
        place, ids = held.popleft()
        taken.append(ids[:missing])
        if ids.size > missing:
            held.appendleft(({**place, "offset": place["offset"] + missing}, ids[missing:]))
        missing -= taken[-1].size
    return np.concatenate(taken)


def lane_of(stream: Any, lane: int, lanes: int) -> Any:
    """Return the share of one lane of a ``datasets.IterableDataset``: whole parts where every lane gets one."""
    from datasets.distributed import split_dataset_by_node

    strategy = "shards" if stream.num_shards >= lanes else "examples"
    # A copy: lanes that deal out documents would otherwise share one reader, and its place.
    return split_dataset_by_node(copy.deepcopy(stream), rank=lane, world_size=lanes, strategy=strategy)


@functools.lru_cache(maxsize=1)
def _opened(source: TextSource) -> Any:
    """Open a source once in a process, not once a lane and epoch: opening asks the Hub."""
    return source.stream()


@functools.lru_cache(maxsize=1)
def _encoder(folder: Path) -> Encoder:
    return Encoder.from_folder(folder / TOKENIZER_FOLDER, one_core=True)


@functools.lru_cache(maxsize=1)
def _refused(folder: Path) -> frozenset[str]:
    return read_keys(folder)
