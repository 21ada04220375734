"""Streams: every token once an epoch, one order for any number of processes and workers, places that go on exactly."""

import json
import random
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tiny_text import WORDS, train_sentencepiece

from modeling_pgolf.errors import CorpusError, TrainingError
from pgolf.corpus import stream as stream_module
from pgolf.corpus.build import CorpusConfig, SentencePieceModel, TrainBpe, build_corpus
from pgolf.corpus.embedded import EmbeddedProse
from pgolf.corpus.fineweb import ChallengeShards, FineWebStream
from pgolf.corpus.local import LocalFolder
from pgolf.corpus.stream import StreamConfig, TextStream
from pgolf.corpus.tokenizer import Encoder
from training.config import TrainingConfig
from training.orders import open_batches, step_batches, stream_facts
from training.streamed import StreamedBatches

# Workers for more cores than the machine has, to test any share of lanes.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")

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


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return train_sentencepiece(tmp_path_factory.mktemp("model") / "tiny.model")


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    """A corpus folder: what a stream takes from it depends on no training text."""
    home = tmp_path_factory.mktemp("corpora")
    config = CorpusConfig(write_web(home / "web", [3]), SentencePieceModel(str(model)), streaming=StreamConfig())
    return build_corpus(config, home / "corpus").folder


def stream_of(source, folder, **changes):
    return TextStream(source, folder, replace(StreamConfig(lanes=4, shuffle_documents=2, workers=0), **changes))


def shape(spans_per_step=4, span_sequences=3, sequence_length=16):
    return TrainingConfig(sequence_length=sequence_length, span_sequences=span_sequences, spans_per_step=spans_per_step)


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


def in_stream_order(stream, config, processes, steps, states=None):
    """Batches of all processes in the order of the stream, and their places behind the last step."""
    members = [StreamedBatches(stream, config, rank, processes) for rank in range(processes)]
    for member in members:
        if states is not None:
            member.load_state_dict(states)
    found = []
    for _ in range(steps):
        shares = [torch.stack(m.next_step()).unflatten(1, (-1, config.span_sequences)) for m in members]
        found.append(torch.stack(shares, dim=2).flatten(1, 3))
    places = sorted(pair for member in members for pair in member.state_dict()["places"])
    return torch.stack(found), {**members[0].state_dict(), "places": places}


@pytest.fixture(scope="module")
def alone(folder, tmp_path_factory):
    """Ten steps on one process without workers: the source, its batches, the state behind them."""
    source = write_web(tmp_path_factory.mktemp("ten") / "web", [40, 50, 30, 20, 20])
    batches, state = in_stream_order(stream_of(source, folder, lanes=12), shape(), 1, 10)
    assert len(state["places"]) == 12 and {place["block"] for _, place in state["places"]} >= {1, 2}
    return source, batches, state


@pytest.mark.parametrize(("processes", "workers"), [(2, 0), (4, 0), (1, 1), (1, 3), (2, 3), (4, 2)])
def test_the_order_depends_neither_on_processes_nor_on_workers(folder, alone, processes, workers):
    source, batches, state = alone
    stream = stream_of(source, folder, lanes=12, workers=workers)
    found, reached = in_stream_order(stream, shape(), processes, 10)
    assert torch.equal(found, batches)
    assert reached == state


def test_workers_are_as_many_as_share_the_lanes_evenly(folder, alone):
    def started(lanes, workers, processes=1):
        batches = StreamedBatches(stream_of(alone[0], folder, lanes=lanes, workers=workers), shape(), 0, processes)
        return batches._loader().num_workers

    assert [started(12, 5), started(12, 3), started(4, 3), started(12, 3, 4), started(4, 2, 4), started(4, 0)] == [
        4, 3, 2, 3, 1, 0,
    ]  # fmt: skip


@pytest.mark.parametrize(("before", "after", "workers"), [(1, 1, 3), (1, 4, 0), (4, 2, 0), (2, 1, 2)])
def test_a_state_goes_on_with_any_number_of_processes(folder, alone, before, after, workers):
    source, batches, _ = alone
    stream = stream_of(source, folder, lanes=12, workers=workers)
    for steps in (1, 4, 7):
        _, state = in_stream_order(stream, shape(), before, steps)
        found, _ = in_stream_order(stream, shape(), after, 10 - steps, json.loads(json.dumps(state)))
        assert torch.equal(found, batches[steps:])


def test_lanes_that_share_parts_keep_places_of_their_own(folder, tmp_path):
    """A data set whose stages wrap one another: a shallow copy would share the reader below."""
    write_web(tmp_path / "web", [60, 60], "parquet", row_group_size=40)
    (tmp_path / "web" / "validation.jsonl").unlink()
    stream = stream_of(FineWebStream(str(tmp_path / "web"), None, 1), folder, lanes=8)
    batches, _ = in_stream_order(stream, shape(), 1, 30)
    for steps in (3, 8, 13, 21):
        _, state = in_stream_order(stream, shape(), 1, steps)
        found, _ = in_stream_order(stream, shape(), 1, 30 - steps, state)
        assert torch.equal(found, batches[steps:])


def test_opening_a_stream_leaves_the_runs_random_numbers_alone(folder, alone):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    StreamedBatches(stream_of(alone[0], folder, workers=1), shape()).next_step()
    assert torch.equal(torch.get_rng_state(), before)


def test_the_listed_stream_is_the_one_that_was_read(folder, alone):
    source, batches, _ = alone
    stream = stream_of(source, folder, lanes=12)
    listed = torch.stack([torch.stack(step).flatten(1) for step in step_batches(stream, shape(), 10, processes=2)])
    assert torch.equal(listed.flatten(2), batches.flatten(2))
    facts = stream_facts(stream, shape())
    assert facts == stream_facts(stream, shape(), 4) | {"processes": 1}
    assert facts["order"] == "streamed"
    assert (
        facts["fingerprint"]
        != stream_facts(replace(stream, config=replace(stream.config, seed=9)), shape())["fingerprint"]
    )


def test_what_does_not_fit_is_refused(folder, alone):
    source = alone[0]
    with pytest.raises(TrainingError, match="6 lanes of text cannot be dealt to 4 spans"):
        StreamedBatches(stream_of(source, folder, lanes=6), shape())
    with pytest.raises(TrainingError, match="3 processes cannot share 4 spans"):
        StreamedBatches(stream_of(source, folder, lanes=4), shape(), 0, 3)
    with pytest.raises(TrainingError, match="coprime order of streamed text"):
        open_batches(stream_of(source, folder), replace(shape(), order="coprime"))
    with pytest.raises(TrainingError, match="a place in 12 lanes, this run has 4"):
        StreamedBatches(stream_of(source, folder), shape()).load_state_dict(alone[2])
    with pytest.raises(CorpusError, match="choose at least 1, 1 and 0"):
        StreamConfig(lanes=0)
    with pytest.raises(CorpusError, match="a stream is of text"):
        CorpusConfig(ChallengeShards(), streaming=StreamConfig())
    with pytest.raises(CorpusError, match="has no end"):
        CorpusConfig(EmbeddedProse(), TrainBpe(300), train_tokens=5, streaming=StreamConfig())


def test_a_lane_without_a_document_is_named(folder, tmp_path):
    stream = stream_of(write_web(tmp_path / "web", [2]), folder, lanes=4)
    with pytest.raises(CorpusError, match=r"asked for lane \d of 4 of web; found no document"):
        [take(stream, lane, 5, 1) for lane in range(4)]


def test_a_streamed_corpus_holds_no_training_shards(model, tmp_path):
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


def break_at(patch, number):
    """Let the reader of local files fail at its document of that number."""
    genuine = stream_module.lane_of

    class Breaking:
        def __init__(self, part):
            self.part = part

        def iter(self, batch_size):
            for block, rows in enumerate(self.part.iter(batch_size)):
                if block == number:
                    raise ConnectionError("the line is dead")
                yield rows

        def __getattr__(self, name):
            return getattr(self.part, name)

    patch.setattr(stream_module, "lane_of", lambda *arguments: Breaking(genuine(*arguments)))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_that_breaks_off_is_a_corpus_error(folder, alone, monkeypatch, workers):
    source, batches, _ = alone
    break_at(monkeypatch, 1)
    reader = StreamedBatches(stream_of(source, folder, lanes=12, workers=workers), shape())
    steps = 0
    with pytest.raises(CorpusError, match=r"^asked for web as a stream; found: the line is dead; check the name"):
        while True:
            assert torch.equal(torch.stack(reader.next_step()).flatten(), batches[steps].flatten())
            steps += 1
    state = reader.state_dict()
    assert 0 < steps < 10 and state["spans"] == 4 * steps
    monkeypatch.undo()
    found, _ = in_stream_order(stream_of(source, folder, lanes=12), shape(), 1, 10 - steps, state)
    assert torch.equal(found, batches[steps:])
