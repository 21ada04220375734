"""Throughput of the data path: shards in every order, and text that is streamed, tokenised and packed.

    python benchmarks/data_throughput.py --text FOLDER --model FILE.model --out FOLDER [--repeats 5]

Every figure is the best of several passes, because other work on a machine can only slow a pass down: tokens (and
bytes of text) per second of wall time, and per second of one core. A stream in one process uses one core; with
workers, the processor time of the workers counts.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import platform
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

import datasets
import sentencepiece
import torch
import tyro

from pgolf.corpus.build import Corpus, CorpusConfig, SentencePieceModel, build_corpus
from pgolf.corpus.local import LocalFolder
from pgolf.corpus.overlap import shared_documents
from pgolf.corpus.shards import WatchedShard
from pgolf.corpus.stream import TOKENIZER_FOLDER, StreamConfig, TextStream
from pgolf.corpus.tokenizer import Encoder
from training.batches import TrainTokens
from training.config import TrainingConfig
from training.orders import ORDERS, open_batches

# What 8 GPUs read at 786,432 tokens in 83.6 ms, the fastest published 11-layer step; and one H200 with this code.
EIGHT_GPUS, ONE_GPU = 9.4e6, 1.36e6
STEPS = 8

Timed = tuple[float, float]


@dataclass(frozen=True)
class Arguments:
    """text: folder of train* and validation* files. model: SentencePiece model. out: folder for results.

    repeats: passes of each measurement, of which the best counts. workers: of the measurement with workers.
    """

    text: Path
    model: Path
    out: Path
    repeats: int = 5
    workers: int = os.cpu_count() or 1


def processor_seconds() -> float:
    """Return the processor time of this process and of the children that it has waited for."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def best(repeats: int, work: Callable[[], None]) -> Timed:
    """Return the least wall seconds and the least processor seconds of several passes."""
    passes = []
    for _ in range(repeats):
        wall, processor = time.perf_counter(), processor_seconds()
        work()
        passes.append((time.perf_counter() - wall, processor_seconds() - processor))
    return min(p[0] for p in passes), min(p[1] for p in passes)


def rates(tokens: int, text_bytes: float | None, timed: Timed) -> dict[str, float]:
    """Return millions of tokens, and MB of text, a second of wall time and of one core."""
    wall, processor = timed
    found = {"mtokens_per_s": tokens / wall / 1e6, "mtokens_per_core_s": tokens / processor / 1e6}
    if text_bytes is not None:
        found |= {"mb_per_s": text_bytes / wall / 1e6, "mb_per_core_s": text_bytes / processor / 1e6}
    return {name: round(value, 2) for name, value in found.items()}


def measure_orders(corpus: Corpus, repeats: int) -> dict[str, dict[str, float]]:
    """Read batches of the real shape from memory-mapped shards, in every order."""
    shards = [WatchedShard(shard) for shard in corpus.train]
    tokens = TrainTokens(shards, [shard.name for shard in shards])
    found = {}
    for order in ORDERS:
        config = replace(TrainingConfig(), order=order)
        batches = open_batches(tokens, config)

        def read() -> None:
            for _ in range(STEPS):
                batches.next_step()  # noqa: B023 (called before the next order)

        found[order] = rates(STEPS * config.step_tokens, None, best(repeats, read))
    return found


def measure_stream(stream: TextStream, bytes_per_token: float, repeats: int) -> dict[str, float]:
    """Read one lane of a stream, span by span: read, shuffle, tokenise, pack."""
    spans, tokens = 100, 48 * 2048 + 1
    reader = stream.spans(0, tokens, None)
    next(reader)  # opens the source and the tokenizer

    def read() -> None:
        for _ in itertools.islice(reader, spans):
            pass

    return rates(spans * tokens, spans * tokens * bytes_per_token, best(repeats, read))


def measure_workers(stream: TextStream, bytes_per_token: float, repeats: int) -> dict[str, float]:
    """Read batches of the real shape that workers make; from the start of the workers on, as they read ahead."""
    config = TrainingConfig()

    def read() -> None:
        batches = open_batches(stream, config)
        for _ in range(4 * STEPS):
            batches.next_step()

    tokens = 4 * STEPS * config.step_tokens
    return rates(tokens, tokens * bytes_per_token, best(repeats, read))


def measure_parts(source: LocalFolder, folder: Path, repeats: int) -> dict[str, dict[str, float]]:
    """Read documents, and tokenise them on one core and on all."""
    texts = [document["text"] for document in itertools.islice(source.documents("train"), 4000)]
    size = sum(len(text.encode()) for text in texts)
    alone, all_cores = (Encoder.from_folder(folder / TOKENIZER_FOLDER, one_core) for one_core in (True, False))
    tokens = sum(ids.size for ids in all_cores.encode(texts))

    def read() -> None:
        for _ in itertools.islice(source.documents("train"), 4000):
            pass

    return {
        "read": rates(tokens, size, best(repeats, read)),
        "tokenise_one_core": rates(tokens, size, best(repeats, lambda: alone.encode(texts) and None)),
        "tokenise_all_cores": rates(tokens, size, best(repeats, lambda: all_cores.encode(texts) and None)),
    }


def measure(arguments: Arguments, home: Path) -> dict[str, object]:
    """Build a corpus of the text, and measure everything on it."""
    source, model = LocalFolder(str(arguments.text)), SentencePieceModel(str(arguments.model))
    timed = best(1, lambda: build_corpus(CorpusConfig(source, model), home / "corpus") and None)
    corpus = build_corpus(CorpusConfig(source, model), home / "corpus")
    facts = corpus.facts["train"]
    tokens, bytes_per_token = facts["tokens"], facts["utf8_bytes"] / facts["tokens"]
    stream = TextStream(source, corpus.folder, StreamConfig(lanes=8, workers=0))
    busy = replace(stream, config=StreamConfig(lanes=8, workers=arguments.workers))
    repeats = arguments.repeats
    one = measure_stream(stream, bytes_per_token, repeats)
    many = measure_workers(busy, bytes_per_token, repeats)
    return {
        "train_tokens": tokens,
        "bytes_per_token": round(bytes_per_token, 4),
        "build": rates(tokens, facts["utf8_bytes"], timed),
        "parts": measure_parts(source, corpus.folder, repeats),
        "stream_one_core": one,
        f"stream_{arguments.workers}_workers": many,
        "shards": measure_orders(corpus, repeats),
        "overlap_check": rates(
            tokens, None, best(repeats, lambda: shared_documents(corpus.train, corpus.validation) and None)
        ),
        "workers_for_9.4_mtokens_per_s": math.ceil(EIGHT_GPUS / 1e6 / many["mtokens_per_core_s"]),
        "workers_for_1.36_mtokens_per_s": math.ceil(ONE_GPU / 1e6 / many["mtokens_per_core_s"]),
    }


def main() -> None:
    """Measure and write the results."""
    arguments = tyro.cli(Arguments)
    arguments.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as home:
        found = measure(arguments, Path(home))
    found["machine"] = {"cores": os.cpu_count(), "kind": platform.machine(), "load": round(os.getloadavg()[1], 1)}
    found["versions"] = {"sentencepiece": sentencepiece.__version__, "datasets": datasets.__version__}
    found["tokenizer"], found["best_of"] = arguments.model.name, arguments.repeats
    (arguments.out / f"{arguments.model.stem}.json").write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
