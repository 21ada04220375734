"""The byte recount: tables that count wrongly are refused, and what normalisation changes has figures of its own."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_text import prose, train_sentencepiece

from evaluation.bytecount import ByteTable
from modeling_pgolf.errors import CorpusError
from pgolf.corpus import recount as module
from pgolf.corpus.recount import check_counted, damaged_bytes, recount, split_documents
from pgolf.corpus.tokenizer import Encoder, byte_table, read_sentencepiece, train_bpe

TEXTS = [
    "The river, 17 ways.",
    " an indent",
    "",
    "Zoë paid 5 € for thé \U0001f30a",
    "two\n\n  lines",
    "U+2581 is \u2581",
]


@pytest.fixture(scope="module")
def bpe():
    return train_bpe(prose(), 400)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return train_sentencepiece(tmp_path_factory.mktemp("model") / "tiny.model")


def stream(tokenizer, texts, model=None):
    ids = Encoder(tokenizer, model).encode(texts)
    return np.concatenate([np.array(document, dtype=np.uint16) for document in ids])


def utf8_bytes(texts):
    return sum(len(text.encode()) for text in texts)


def test_a_lossless_tokenizer(bpe):
    found = recount([stream(bpe, TEXTS)], bpe, byte_table(bpe), TEXTS)
    # What is not counted: the blank before "an", and two of the three bytes of the mark that comes back as a blank.
    assert found["free_blanks"] == 1 and (found["lost_bytes"], found["gained_bytes"]) == (3, 1)
    assert found["normalisation_bytes"] == 3 and found["documents_changed"] == 1
    assert found["counted_bytes"] + found["normalisation_bytes"] == utf8_bytes(TEXTS)


def test_what_sentencepiece_normalises_is_a_figure(model):
    tokenizer = read_sentencepiece(model)
    texts = ["the water", "the\nwater\n", "the  ﬁrst   night ", "½ of it"]
    found = recount([stream(tokenizer, texts, model)], tokenizer, byte_table(tokenizer), texts)
    # Line breaks become blanks, runs and ends of blanks go, the ligature loses a byte, the fraction gains three.
    assert found["documents_changed"] == 3
    assert found["counted_bytes"] == utf8_bytes(["the water", "the water", "the first night", "1⁄2 of it"])
    assert found["normalisation_bytes"] == utf8_bytes(texts) - found["counted_bytes"]
    assert found["lost_bytes"] - found["gained_bytes"] == found["normalisation_bytes"]
    assert found["lost_bytes"] == len("\n\n") + 1 + 2 + 1 + len("ﬁ½".encode()), "a replaced character is not hidden"


def test_published_tokens_have_no_original(bpe):
    found = recount([stream(bpe, TEXTS)], bpe, byte_table(bpe), None)
    assert found["counted_bytes"] == utf8_bytes(TEXTS) - 3
    assert found["normalisation_bytes"] is found["lost_bytes"] is found["documents_changed"] is None


def wrong_tables(table):
    """LEGALITY P17: the three wrong counts that were published."""
    places = torch.arange(len(table.base_bytes))
    blanks, is_byte = table.has_leading_space.to(torch.int16), (places >= 4) & (places < 260)
    return {
        "leading blank twice": replace(table, base_bytes=table.base_bytes + blanks),
        "byte token as three": replace(table, base_bytes=torch.where(is_byte, 3, table.base_bytes).to(torch.int16)),
        "no boundaries": replace(table, is_boundary=torch.zeros_like(table.is_boundary)),
    }


@pytest.mark.parametrize(
    ("name", "document"), [("leading blank twice", 0), ("byte token as three", 3), ("no boundaries", 1)]
)
def test_p17_wrong_tables_are_refused(bpe, name, document):
    with pytest.raises(CorpusError, match=rf"document {document} .* decodes to [\d,]+ bytes .* counts\s+[\d,]+"):
        recount([stream(bpe, TEXTS)], bpe, wrong_tables(byte_table(bpe))[name], TEXTS)


def test_every_piece_is_checked(bpe):
    """A table that is off by one byte for a single piece is refused as soon as that piece occurs."""
    table, ids = byte_table(bpe), stream(bpe, TEXTS)
    table.base_bytes[int(ids[5])] += 1
    with pytest.raises(CorpusError, match="document 0"):
        recount([ids], bpe, table, None)


@settings(max_examples=200)
@given(st.lists(st.integers(0, 399) | st.integers(2, 30) | st.integers(130, 260), max_size=30))
def test_any_ids_are_counted_exactly(bpe, ids):
    """Control pieces, broken UTF-8, BOS anywhere: the right table never disagrees with the decoded text."""
    recount([np.array([1, *ids], dtype=np.uint16)], bpe, byte_table(bpe), None)


@pytest.mark.parametrize(
    ("pieces", "damaged"),
    [(b"\xe2\x82\xac", 0), (b"\xe2\x82", 2), (b"\xff", 1), (b"a\xff", 2)],
    ids=["euro", "cut", "none", "a run goes whole"],
)
def test_damaged_bytes(bpe, pieces, damaged):
    ids = np.array([1, *(byte + 4 for byte in pieces)], dtype=np.uint16)
    assert damaged_bytes(ids) == damaged
    assert recount([ids], bpe, byte_table(bpe), None)["counted_bytes"] == len(pieces)


def test_a_control_piece_does_not_end_a_run(bpe):
    """The decoder drops controls first, so bytes around one form a character; the table counts them all the same."""
    ids = np.array([1, 0xE2 + 4, 3, 0x82 + 4, 0xAC + 4], dtype=np.uint16)
    assert damaged_bytes(ids) == 0
    assert recount([ids], bpe, byte_table(bpe), None)["counted_bytes"] == 3


def test_documents_straddle_shards_and_batches(bpe, monkeypatch):
    ids = stream(bpe, TEXTS)
    whole = recount([ids], bpe, byte_table(bpe), TEXTS)
    monkeypatch.setattr(module, "BATCH_TOKENS", 7)
    for cut in range(1, len(ids)):
        assert recount([ids[:cut], ids[cut:]], bpe, byte_table(bpe), TEXTS) == whole
    assert [len(part) for part in split_documents([ids])] == [len(stream(bpe, [text])) for text in TEXTS]


def test_streams_and_sources_that_do_not_fit(bpe):
    ids = stream(bpe, TEXTS)
    with pytest.raises(CorpusError, match="begins with"):
        recount([ids[1:]], bpe, byte_table(bpe), None)
    with pytest.raises(CorpusError, match="original of document 3; the source ended"):
        recount([ids], bpe, byte_table(bpe), TEXTS[:3])
    assert recount([ids], bpe, byte_table(bpe), [*TEXTS, "not taken"])["documents_changed"] == 1


def test_a_score_must_divide_by_the_counted_bytes():
    facts = {"validation": {"counted_bytes": 100}}
    check_counted(100, facts)
    with pytest.raises(CorpusError, match=r"divides by 101 bytes.*stands for 100"):
        check_counted(101, facts)


def test_bytes_of_targets_leave_out_the_first_token():
    none = torch.zeros(4, dtype=torch.bool)
    table = ByteTable(torch.tensor([0, 0, 5, 7], dtype=torch.int16), none, none)
    assert table.of_targets(torch.tensor([3, 2, 3])).tolist() == [5, 7]
