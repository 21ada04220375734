"""Overlap: training documents that are validation documents, where only tokens are known.

Equal texts have equal ids, so a document is known by the hash of its ids between two BOS tokens. Documents without
text are not counted.

``N`` tokens. Source: LEGALITY rule D2, check K10.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from pgolf.corpus.recount import split_documents
from pgolf.corpus.shards import Shard

# Bytes of a document's hash: among 20 million training documents a false match with one of 50,000 has a chance of
# one in 20 million.
KEY_BYTES = 8


def shared_documents(train: Sequence[Shard], validation: Iterable[Shard]) -> int:
    """Count the training documents whose ids are those of a validation document."""
    known = set(_keys(validation))
    return sum(key in known for key in _keys(tqdm(train, "overlap", unit="shard", disable=None)))


def _keys(shards: Iterable[Shard]) -> Iterator[bytes]:
    """Yield the hash of every document that has text."""
    for ids in split_documents(shards):
        if ids.size > 1:
            yield document_ids_key(ids)


def document_ids_key(ids: NDArray[np.uint16]) -> bytes:
    """Hash the ids (N,) of one document."""
    return hashlib.sha256(ids.tobytes()).digest()[:KEY_BYTES]
