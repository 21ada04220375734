"""Published shards as a corpus: fetched, checked against their tokenizer, and for documents that both splits share.

What only the text could tell stays None. A leaky export shares four fifths of its validation documents with train;
an honest one may hold a few pages that were crawled twice, so a small share is recorded and a larger one refused.

Sources: LEGALITY rule D2, checks K10 and V20.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from modeling_pgolf.errors import CorpusError
from pgolf.corpus.documents import Split
from pgolf.corpus.fineweb import ChallengeShards, fetch_challenge
from pgolf.corpus.overlap import shared_documents
from pgolf.corpus.shards import open_split
from pgolf.corpus.splits import shard_facts
from pgolf.corpus.tokenizer import BOS, read_sentencepiece, save_tokenizer

# Training documents that may be validation documents, as a share of the latter. Our choice, between the natural twins
# of a crawl (an estimate: one in a thousand) and the planted hundredth that LEGALITY P20 wants found.
SHARED_SHARE = 0.005


def publish(source: ChallengeShards, folder: Path, tokenizer_folder: Path) -> dict[str, Any]:
    """Fetch published shards into ``folder`` and return the facts about both splits.

    Raises CorpusError where shards and tokenizer are not of one export, or train holds validation documents.
    """
    model = fetch_challenge(source, folder)
    tokenizer = read_sentencepiece(model)
    save_tokenizer(tokenizer, tokenizer_folder, model)
    splits: tuple[Split, Split] = ("validation", "train")
    facts: dict[str, Any] = {split: _split_facts(source, folder, split, len(tokenizer)) for split in splits}
    shared = shared_documents(open_split(folder, "train"), open_split(folder, "validation"))
    if shared > SHARED_SHARE * facts["validation"]["documents"]:
        raise CorpusError(
            f"asked for {source.name} without validation text in train; found {shared:,} training documents that are "
            f"among the {facts['validation']['documents']:,} of validation; use an export with disjoint splits"
        )
    return {
        **facts,
        "train_documents_dropped_as_validation_duplicates": None,
        "train_documents_shared_with_validation": shared,
    }


def _split_facts(source: ChallengeShards, folder: Path, split: Split, vocabulary: int) -> dict[str, Any]:
    documents = 0
    for shard in open_split(folder, split):
        documents += int(np.count_nonzero(shard == BOS))
        if int(shard.max()) >= vocabulary:
            raise CorpusError(
                f"asked for ids below {vocabulary}; found {shard.max()} in {Path(str(shard.filename)).name} of "
                f"{source.name}; shards and tokenizer are not of one export"
            )
    return {"documents": documents, "utf8_bytes": None, **shard_facts(folder, split)}
