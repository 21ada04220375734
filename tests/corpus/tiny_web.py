"""A tiny web: files of made-up pages as a source, a corpus folder for them, and streams of them."""

import json
import random
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as parquet
from tiny_text import WORDS, train_sentencepiece

from pgolf.corpus.build import CorpusConfig, SentencePieceModel, build_corpus
from pgolf.corpus.local import LocalFolder
from pgolf.corpus.stream import StreamConfig, TextStream

TWIN = "This page is in both splits."


def pages(seed, count):
    draw = random.Random(seed)
    return [f"{seed}-{number} {' '.join(draw.choices(WORDS, k=draw.randrange(40)))}\n" for number in range(count)]


def write_web(folder, counts, suffix="jsonl", row_group_size=7):
    """A folder with one training file a count, a validation document among the first file's."""
    folder.mkdir(exist_ok=True)
    for number, count in enumerate(counts):
        rows = [*pages(number, count), *([TWIN] if number == 0 else [])]
        if suffix == "parquet":
            parquet.write_table(
                pa.table({"text": rows}), folder / f"train-{number}.parquet", row_group_size=row_group_size
            )
        else:
            (folder / f"train-{number}.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    (folder / "validation.jsonl").write_text(json.dumps({"text": TWIN}) + "\n")
    return LocalFolder(str(folder))


def corpus_folder(home):
    """Write a corpus folder below ``home``: what a stream takes from it depends on no training text."""
    model = train_sentencepiece(home / "tiny.model")
    config = CorpusConfig(write_web(home / "web", [3]), SentencePieceModel(str(model)), streaming=StreamConfig())
    return build_corpus(config, home / "corpus").folder


def stream_of(source, folder, **changes):
    return TextStream(source, folder, replace(StreamConfig(lanes=4, shuffle_documents=2, workers=0), **changes))
