"""Overlap: validation documents among training tokens are found wherever they lie, and an export with many refused."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_text import train_sentencepiece

from modeling_pgolf.errors import CorpusError
from pgolf.corpus import published
from pgolf.corpus.fineweb import ChallengeShards
from pgolf.corpus.overlap import shared_documents
from pgolf.corpus.published import publish
from pgolf.corpus.shards import write_shard

DOCUMENTS = st.lists(st.lists(st.integers(2, 5), max_size=3), min_size=1, max_size=12)


def cut(documents, places):
    """The documents in a row, each behind its BOS, cut into shards at some places."""
    stream = np.array([token for ids in documents for token in [1, *ids]], dtype=np.uint16)
    return [shard for shard in np.split(stream, sorted({place % stream.size for place in places})) if shard.size]


@settings(max_examples=200)
@given(train=DOCUMENTS, validation=DOCUMENTS, places=st.lists(st.integers(0, 60), max_size=4))
def test_shared_documents_are_counted_wherever_shards_are_cut(train, validation, places):
    expected = sum(ids in validation for ids in train if ids)
    assert shared_documents(cut(train, places), cut(validation, places[:1])) == expected


@pytest.mark.parametrize(("planted", "refused"), [(0, False), (1, False), (2, True)])
def test_an_export_with_validation_documents_in_train_is_refused(tmp_path, monkeypatch, planted, refused):
    held_out = [[300 + n // 50, 350 + n % 50] for n in range(300)]  # one may be shared, not two: 0.5 % of 300 is 1.5
    model = train_sentencepiece(tmp_path / "tiny.model")

    def fetch(source, folder):
        write_shard(folder / "fineweb_val_000000.bin", cut(held_out, [])[0])
        train = [[7, 8], *held_out[10 : 10 + planted], [9]]
        write_shard(folder / "fineweb_train_000000.bin", cut(train, [])[0])
        return model

    monkeypatch.setattr(published, "fetch_challenge", fetch)
    (tmp_path / "c").mkdir()
    if refused:
        with pytest.raises(CorpusError, match="found 2 training documents that are among the 300 of validation"):
            publish(ChallengeShards(), tmp_path / "c", tmp_path / "c" / "tokenizer")
        return
    facts = publish(ChallengeShards(), tmp_path / "c", tmp_path / "c" / "tokenizer")
    assert facts["train_documents_shared_with_validation"] == planted
    assert (facts["train"]["documents"], facts["validation"]["documents"]) == (2 + planted, 300)
