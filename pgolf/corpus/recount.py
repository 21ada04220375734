"""The byte recount: what the byte table counts, checked against the decoded text and against the original.

A score divides by the bytes that a table says the tokens stand for, so every document of the validation split is
decoded, and the bytes of its text must be those that the table counts. What the tokenizer changed on the way in
(characters that normalise to shorter ones, runs of blanks, line breaks) is missing from both; only the original text
shows it, so it is a figure of its own.

``N`` tokens. Sources: LEGALITY rules C8 and C9, check K5; the challenge's ``build_sentencepiece_luts``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, groupby, repeat
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from evaluation.bytecount import ByteTable
from modeling_pgolf.errors import CorpusError
from pgolf.corpus.documents import utf8
from pgolf.corpus.sentencepiece_model import BLANK, CONTROL_PIECES, FIXED_PIECES
from pgolf.corpus.shards import Shard
from pgolf.corpus.tokenizer import BOS

# Tokens decoded at a time: the decoder spreads a batch over all cores, and its texts stay below 100 MB.
BATCH_TOKENS = 1_000_000

# Facts that need the original documents.
OF_ORIGINALS = ("normalisation_bytes", "lost_bytes", "gained_bytes", "documents_changed")

Ids = NDArray[np.uint16]


@dataclass(frozen=True)
class Counted:
    """One document: the bytes that its tokens count for, blanks behind a boundary that count for none, its text."""

    bytes: int
    free_blanks: int
    text: str


def recount(
    shards: Iterable[Shard], tokenizer: PreTrainedTokenizerFast, table: ByteTable, texts: Iterable[str] | None
) -> dict[str, int | None]:
    """Recount a split, document by document.

    texts: the documents that the split was made of, in order; None where only tokens were published.
    Returns facts: ``counted_bytes`` of all tokens by ``table``; ``free_blanks``, bytes of the decoded text that count
    for none because they follow a boundary; and, None without texts, ``normalisation_bytes``, which the original has
    over the counted ones; ``lost_bytes`` and ``gained_bytes``, of characters that only the original or only the
    decoded text has (a line break that became a blank is one of each); ``documents_changed``, how many have any. So
    ``normalisation_bytes = lost_bytes - gained_bytes + free_blanks``.
    Raises CorpusError where a document's decoded text has other bytes than the table counts, and where the texts are
    fewer than the documents.
    """
    totals = Counter({"counted_bytes": 0, "free_blanks": 0} | dict.fromkeys(OF_ORIGINALS, 0))
    originals = chain(texts or (), repeat(None))
    documents = tqdm(count_documents(shards, tokenizer, table), "recount", unit="document", disable=None)
    for number, (document, original) in enumerate(zip(documents, originals, strict=False)):
        totals.update(counted_bytes=document.bytes, free_blanks=document.free_blanks)
        if original is not None:
            totals.update(differences(original, document.text))
        elif texts is not None:
            raise CorpusError(f"asked for the original of document {number}; the source ended; build the corpus again")
    away = totals["lost_bytes"] - totals["gained_bytes"] + totals["free_blanks"]
    facts: dict[str, int | None] = {**totals, "normalisation_bytes": away}
    return {**facts, **dict.fromkeys(OF_ORIGINALS)} if texts is None else facts


def differences(original: str, decoded: str) -> dict[str, int]:
    """Count the UTF-8 bytes of the characters that only one of two texts has, wherever they stand."""
    if original == decoded:
        return {}
    here, there = Counter(original), Counter(decoded)
    lost, gained = ("".join((one - other).elements()) for one, other in ((here, there), (there, here)))
    return {"lost_bytes": len(utf8(lost)), "gained_bytes": len(utf8(gained)), "documents_changed": 1}


def check_counted(found: int, facts: dict[str, Any]) -> None:
    """Raise CorpusError unless a score divides by the bytes that were recounted; ``facts`` are the corpus's."""
    counted = facts["validation"]["counted_bytes"]
    if found != counted:
        raise CorpusError(
            f"the score divides by {found:,} bytes, the validation split stands for {counted:,}; the byte table or the "
            "tokens are not those of the corpus; build it again"
        )


def count_documents(shards: Iterable[Shard], tokenizer: PreTrainedTokenizerFast, table: ByteTable) -> Iterator[Counted]:
    """Count every document of a split; raises CorpusError where table and decoded text disagree."""
    # From the pieces, not from the table: what is checked must not be the judge.
    begins = np.array(
        [piece.startswith(BLANK) for piece in tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))]
    )
    number = 0
    for batch in batches(split_documents(shards)):
        decoded = tokenizer.backend_tokenizer.decode_batch([ids.tolist() for ids in batch], skip_special_tokens=True)
        for ids, text, counted in zip(batch, decoded, table_bytes(batch, table), strict=True):
            blanks = int(np.count_nonzero(begins[ids[1:]] & (ids[:-1] < len(CONTROL_PIECES))))
            spelled = len(text.encode("utf-8")) - blanks
            if "\ufffd" in text:
                spelled -= 2 * damaged_bytes(ids)  # each of them is one byte, and decodes to the three of U+FFFD
            if spelled != counted:
                raise CorpusError(
                    f"document {number} of the split decodes to {spelled:,} bytes that count; the byte table counts "
                    f"{counted:,}; tokenizer and byte table are not of one kind, or the table is wrong"
                )
            yield Counted(counted, blanks, text)
            number += 1


def split_documents(shards: Iterable[Shard]) -> Iterator[Ids]:
    """Cut the stream at its BOS tokens; a document may straddle shards.

    Raises CorpusError where the stream does not begin with a document.
    """
    open_document: list[Ids] = []
    for shard in shards:
        starts = np.flatnonzero(np.asarray(shard) == BOS)
        if not open_document and (not len(starts) or starts[0] != 0):
            raise CorpusError(f"asked for documents; found a stream that begins with {shard[0]}, not with BOS ({BOS})")
        head, *whole = np.split(np.asarray(shard), starts)
        open_document.append(head)
        for document in whole:
            if sum(map(len, open_document)):
                yield np.concatenate(open_document)
            open_document = [document]
    yield np.concatenate(open_document)


def batches(documents: Iterable[Ids]) -> Iterator[list[Ids]]:
    """Group documents until they hold the tokens of a batch."""
    batch: list[Ids] = []
    held = 0
    for document in documents:
        batch.append(document)
        held += len(document)
        if held >= BATCH_TOKENS:
            yield batch
            batch, held = [], 0
    if batch:
        yield batch


def table_bytes(batch: list[Ids], table: ByteTable) -> list[int]:
    """Sum the bytes that the table counts for each document."""
    ids = torch.from_numpy(np.concatenate(batch).astype(np.int64))
    # The first of all is a BOS, which stands for nothing whatever comes before it.
    counted = table.count(torch.roll(ids, 1), ids).numpy()
    sums: list[int] = np.add.reduceat(counted, np.cumsum([0, *map(len, batch[:-1])])).tolist()
    return sums


def damaged_bytes(ids: Ids) -> int:
    """Count the byte pieces of a document in runs that are no UTF-8, as the decoder sees runs: without controls."""
    first, end = len(CONTROL_PIECES), len(FIXED_PIECES)
    damaged = 0
    for is_byte, run in groupby(ids[ids >= first].tolist(), key=lambda token: token < end):
        if is_byte:
            spelled = bytes(token - first for token in run)
            try:
                spelled.decode("utf-8")
            except UnicodeDecodeError:
                damaged += len(spelled)
    return damaged
