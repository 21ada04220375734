"""Splits: a stream of texts written as the shards of one split, and what is known about them afterwards.

Texts are encoded in batches, because an encoder spreads a batch over all cores, and written one by one, because a
split may end with the document in which it reaches its number of tokens.

Sources: the challenge's ``data/download_hf_docs_and_tokenize.py``; LEGALITY rules D2 (documents in both splits) and
K10 (shard fingerprints).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from modeling_pgolf.errors import CorpusError
from pgolf.corpus.documents import Split, TextSource, document_hash, utf8
from pgolf.corpus.shards import Shard, ShardWriter, open_split
from pgolf.corpus.tokenizer import Encoder

# Documents encoded at a time. Source: the challenge's ``MATCHED_FINEWEB_SP_BATCH_SIZE``; the bound in characters is
# ours, it keeps a batch of whole books below a few hundred MB of Python integers.
BATCH_DOCUMENTS = 1024
BATCH_CHARACTERS = 8_000_000

# Tokens under a fingerprint: two corpora with the same one feed a run the same beginning. Our choice.
FINGERPRINT_TOKENS = 1_000_000


class TrainTexts:
    """The training texts without those that validation holds too, from the beginning each time it is iterated.

    validation: hashes of the validation documents.
    ``dropped`` counts the training documents left out in the latest pass.
    """

    def __init__(self, source: TextSource, validation: set[str]) -> None:
        self.dropped = 0
        self._source = source
        self._validation = validation

    def __iter__(self) -> Iterator[str]:
        self.dropped = 0
        for document in self._source.documents("train"):
            if document_hash(document["text"]) in self._validation:
                self.dropped += 1
            else:
                yield document["text"]


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
    """Encode texts and write them as the shards of ``split``.

    limit: the split ends with the document in which it reaches this many tokens; None takes all texts.
    Returns the split's facts: documents, UTF-8 bytes of their raw text, and those of ``shard_facts``.
    Raises CorpusError when there is no text, or the disk refuses.
    """
    documents = utf8_bytes = 0
    bar = tqdm(desc=split, unit="token", unit_scale=True, total=limit, disable=None)
    with bar, ShardWriter(folder, split) as writer:
        for text, ids in _encoded(texts, encoder):
            writer.write(ids)
            documents += 1
            utf8_bytes += len(utf8(text))
            bar.update(len(ids))
            if limit is not None and writer.tokens >= limit:
                break
    if not documents:
        raise CorpusError(f"asked for a {split} split; found no document for it in the source; give it more text")
    return {"documents": documents, "utf8_bytes": utf8_bytes, **shard_facts(folder, split)}


def _encoded(texts: Iterable[str], encoder: Encoder) -> Iterator[tuple[str, list[int]]]:
    """Yield (text, ids) in order."""
    batch: list[str] = []
    characters = 0
    for text in texts:
        batch.append(text)
        characters += len(text)
        if len(batch) == BATCH_DOCUMENTS or characters >= BATCH_CHARACTERS:
            yield from zip(batch, encoder.encode(batch), strict=True)
            batch, characters = [], 0
    yield from zip(batch, encoder.encode(batch), strict=True)


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
