"""Splits: a stream of texts written as the shards of one split, and what is known about them afterwards.

Texts are encoded in batches, because an encoder spreads a batch over all cores, and written one by one, because a
split may end with the document in which it reaches its number of tokens.

Sources: the challenge's ``data/download_hf_docs_and_tokenize.py``; LEGALITY rules D2 (documents in both splits) and
K10 (shard fingerprints).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from modeling_pgolf.errors import CorpusError
from pgolf.corpus.documents import Split, TextSource, document_key, utf8
from pgolf.corpus.progress import keep_progress, read_progress, rest
from pgolf.corpus.shards import SHARD_TOKENS, Shard, ShardWriter, open_split, replace_file
from pgolf.corpus.tokenizer import Encoder

# Keys of the documents of validation in a corpus folder, one a line, sorted.
KEYS_FILE = "validation_keys.txt"

# Documents encoded at a time. Source: the challenge's ``MATCHED_FINEWEB_SP_BATCH_SIZE``; the bound in characters is
# ours, it keeps a batch of whole books below a few hundred MB.
BATCH_DOCUMENTS = 1024
BATCH_CHARACTERS = 8_000_000

# Tokens under a fingerprint: two corpora with the same one feed a run the same beginning. Our choice.
FINGERPRINT_TOKENS = 1_000_000


class TrainTexts:
    """The training texts without those that validation holds too, from the beginning each time it is iterated.

    validation: keys of the validation documents.
    ``dropped`` counts the training documents left out in the latest pass.
    """

    def __init__(self, source: TextSource, validation: set[str]) -> None:
        self.dropped = 0
        self._source = source
        self._validation = validation

    def __iter__(self) -> Iterator[str]:
        self.dropped = 0
        for document in self._source.documents("train"):
            if document_key(document["text"]) in self._validation:
                self.dropped += 1
            else:
                yield document["text"]


def write_keys(folder: Path, keys: set[str]) -> None:
    """Write the keys of the validation documents into a corpus folder."""
    replace_file(folder / KEYS_FILE, ["".join(f"{key}\n" for key in sorted(keys)).encode()])


def read_keys(folder: Path) -> frozenset[str]:
    """Read the keys of the validation documents of a corpus; raises CorpusError where the file is missing."""
    try:
        return frozenset((folder / KEYS_FILE).read_text(encoding="ascii").split())
    except (OSError, ValueError) as error:
        raise CorpusError(
            f"asked for the validation documents of the corpus {folder}; found no readable {KEYS_FILE} ({error}); "
            "build the corpus again"
        ) from error


def head(texts: Iterable[str], megabytes: float) -> Iterator[str]:
    """Yield whole texts until they hold that many 10**6 bytes of UTF-8."""
    held = 0
    for text in texts:
        yield text
        held += len(utf8(text))
        if held >= megabytes * 1e6:
            return


def write_split(
    texts: Iterable[str], split: Split, encoder: Encoder, folder: Path, limit: int | None = None
) -> dict[str, Any]:
    """Encode texts and write them as the shards of ``split``, behind those that an earlier build completed.

    texts: all documents, from the first. limit: the split ends with the document in which it reaches this many
    tokens; None takes all texts.
    Returns the split's facts: documents, UTF-8 bytes of their raw text, and those of ``shard_facts``.
    Raises CorpusError when there is no text, the disk refuses, or the texts are not those of the earlier build.
    """
    place = read_progress(folder, split)
    bar = tqdm(desc=split, unit="token", unit_scale=True, total=limit, initial=place.tokens, disable=None)
    with bar, ShardWriter(folder, split, SHARD_TOKENS, place.shards, place.tokens) as writer:
        for text, ids in _encoded(rest(texts, place), encoder):
            complete = len(writer.paths)
            writer.write(ids)
            if len(writer.paths) > complete:
                keep_progress(folder, split, replace(place, shards=len(writer.paths)))
            place = place.behind(text, len(ids))
            bar.update(len(ids))
            if limit is not None and place.tokens >= limit:
                break
    if not place.documents:
        raise CorpusError(f"asked for a {split} split; found no document for it in the source; give it more text")
    return {"documents": place.documents, "utf8_bytes": place.utf8_bytes, **shard_facts(folder, split)}


def _encoded(texts: Iterable[str], encoder: Encoder) -> Iterator[tuple[str, NDArray[np.int32]]]:
    """Yield (text, ids) in order; the next batch is encoded while one is written and another read."""
    with ThreadPoolExecutor(max_workers=1) as encoding:
        before: tuple[list[str], Future[list[NDArray[np.int32]]]] | None = None
        for batch in _batches(texts):
            now = (batch, encoding.submit(encoder.encode, batch))
            if before is not None:
                yield from zip(before[0], before[1].result(), strict=True)
            before = now
        if before is not None:
            yield from zip(before[0], before[1].result(), strict=True)


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    characters = 0
    for text in texts:
        batch.append(text)
        characters += len(text)
        if len(batch) == BATCH_DOCUMENTS or characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def shard_facts(folder: Path, split: Split) -> dict[str, Any]:
    """Count a split's tokens and hash its files: ``tokens`` and, per shard, its name, tokens and sha256."""
    shards = []
    for shard in open_split(folder, split):
        path = Path(str(shard.filename))
        shards.append({"name": path.name, "tokens": shard.size, "sha256": file_sha256(path)})
    return {"tokens": sum(shard["tokens"] for shard in shards), "shards": shards}


def file_sha256(path: Path) -> str:
    """Hash a file's bytes: 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(shards: Iterable[Shard]) -> str:
    """Identify a token stream by the sha256 of its first 1,000,000 ids as little-endian uint16: 16 hex digits."""
    digest, left = hashlib.sha256(), FINGERPRINT_TOKENS
    for shard in shards:
        digest.update(np.ascontiguousarray(shard[:left], dtype="<u2").tobytes())
        left -= min(left, shard.size)
    return digest.hexdigest()[:16]
