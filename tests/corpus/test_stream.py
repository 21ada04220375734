"""Streams: every token once an epoch, lanes that share no document, and places that go on exactly."""

import json
import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tiny_web import TWIN, corpus_folder, pages, stream_of, write_web

from modeling_pgolf.errors import CorpusError
from pgolf.corpus.build import CorpusConfig, TrainBpe, build_corpus
from pgolf.corpus.fineweb import FineWebStream
from pgolf.corpus.stream import StreamConfig
from pgolf.corpus.tokenizer import Encoder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return corpus_folder(tmp_path_factory.mktemp("corpora"))


def take(stream, lane, tokens, count, place=None):
    reader = stream.spans(lane, tokens, place)
    return [next(reader) for _ in range(count)]


def documents_of(stream, folder, lane, epochs):
    """The texts of a lane's epochs, in order, from its blocks."""
    found = [[] for _ in range(epochs + 1)]
    for place, texts in stream._blocks(lane, None):
        if place["epoch"] == epochs:
            return found[:epochs]
        found[place["epoch"]] += texts


@settings(max_examples=15)
@example(counts=[4], lanes=3, shuffle=1, tokens=32)
@example(counts=[4], lanes=4, shuffle=1, tokens=60)
@given(
    counts=st.lists(st.integers(4, 30), min_size=1, max_size=5),
    lanes=st.integers(1, 4),
    shuffle=st.integers(1, 12),
    tokens=st.integers(2, 60),
)
def test_every_token_of_an_epoch_comes_once(folder, tmp_path_factory, counts, lanes, shuffle, tokens):
    """No document in two lanes, none lost, none cut, and an epoch's tail goes on with the head of the next."""
    source = write_web(tmp_path_factory.mktemp("web"), counts)
    stream = stream_of(source, folder, lanes=lanes, shuffle_documents=shuffle)
    encoder = Encoder.from_folder(folder / "tokenizer")
    seen = []
    for lane in range(lanes):
        first, second = documents_of(stream, folder, lane, 2)
        assert sorted(first) == sorted(second)
        seen += first
        expected = np.concatenate(encoder.encode(first + second))
        spans = take(stream, lane, tokens, (len(expected) - 1) // tokens)
        # None where both epochs of a lane are shorter than one span.
        assert [token for span, _ in spans for token in span] == expected[: len(spans) * tokens].tolist()
    assert sorted(seen) == sorted(text for number, count in enumerate(counts) for text in pages(number, count))


def test_documents_are_shuffled_within_the_buffer_and_anew_each_epoch(folder, tmp_path):
    source = write_web(tmp_path / "web", [60])
    original = pages(0, 60)
    first, second = documents_of(stream_of(source, folder, lanes=1, shuffle_documents=20), folder, 0, 2)
    assert first != second and first != original
    for start in (0, 20, 40):  # the validation document is the last row, so blocks are whole
        assert sorted(first[start : start + 20]) == sorted(original[start : start + 20])
    plain, _ = documents_of(stream_of(source, folder, lanes=1, shuffle_documents=1), folder, 0, 2)
    assert plain == original
    other, _ = documents_of(stream_of(source, folder, lanes=1, shuffle_documents=20, seed=1), folder, 0, 2)
    assert other != first and sorted(other) == sorted(first)


def test_lanes_share_no_part_where_there_are_enough(folder, tmp_path):
    """Else every lane would read the whole text."""
    stream = stream_of(write_web(tmp_path / "web", [7, 3, 9, 5, 8]), folder, lanes=2)
    for lane, parts in ((0, (0, 2, 4)), (1, (1, 3))):
        (epoch,) = documents_of(stream, folder, lane, 1)
        assert sorted(epoch) == sorted(text for part in parts for text in pages(part, [7, 3, 9, 5, 8][part]))


def test_validation_documents_are_left_out(folder, tmp_path):
    source = write_web(tmp_path / "web", [10])
    assert TWIN in [document["text"] for document in source.documents("train")]
    (epoch,) = documents_of(stream_of(source, folder, lanes=1), folder, 0, 1)
    assert len(epoch) == 10 and TWIN not in epoch


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "documents", "dataset"])
def test_every_place_goes_on_exactly(folder, tmp_path, kind):
    """Parts dealt whole, parts dealt by document, and a data set opened by the datasets library."""
    counts = [70] if kind == "documents" else [25, 30, 35]
    source = write_web(tmp_path / "web", counts, "parquet" if kind in ("parquet", "dataset") else "jsonl")
    if kind == "dataset":
        (tmp_path / "web" / "validation.jsonl").unlink()
        source = FineWebStream(str(tmp_path / "web"), None, validation_documents=1)
    stream = stream_of(source, folder, lanes=3, shuffle_documents=8)
    for lane in range(3):
        spans = take(stream, lane, 33, 60)
        assert spans[-1][1]["epoch"] >= 1
        for cut in random.Random(lane).sample(range(40), 8):
            place = spans[cut][1]
            for start in (cut + 1, cut + 8, cut + 15):  # resumed, and resumed from what was resumed
                again = take(stream, lane, 33, 7, json.loads(json.dumps(place)))
                for (expected, _), (found, _) in zip(spans[start : start + 7], again, strict=False):
                    assert np.array_equal(found, expected)
                place = again[-1][1]


def test_a_lane_without_a_document_is_named(folder, tmp_path):
    stream = stream_of(write_web(tmp_path / "web", [2]), folder, lanes=4)
    with pytest.raises(CorpusError, match=r"asked for lane \d of 4 of web; found no document"):
        [take(stream, lane, 5, 1) for lane in range(4)]


def test_a_streamed_corpus_holds_no_training_shards(tmp_path):
    source = write_web(tmp_path / "web", [20])
    config = CorpusConfig(source, TrainBpe(300), streaming=StreamConfig())
    corpus = build_corpus(config, tmp_path / "corpus")
    assert corpus.train == [] and len(corpus.validation) == 1 and len(corpus.tokenizer) == 300
    assert corpus.facts["train"]["tokens"] is None and corpus.facts["train_fingerprint"] is None
    assert corpus.facts["config"]["streaming"] == {
        "kind": "StreamConfig", "lanes": 16, "shuffle_documents": 2048, "seed": 0, "workers": None,
    }  # fmt: skip
    # The number of workers changes no token, so it is another run of the same corpus.
    more = replace(config, streaming=StreamConfig(workers=7))
    assert build_corpus(more, tmp_path / "corpus").facts == corpus.facts
    with pytest.raises(CorpusError, match="'streaming': None"):
        build_corpus(replace(config, streaming=None), tmp_path / "corpus")
