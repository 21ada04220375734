"""Batches of a stream: one order for any number of processes and workers, and states that go on exactly."""

import json
from dataclasses import replace

import pytest
import torch
from tiny_web import corpus_folder, stream_of, write_web

from modeling_pgolf.errors import CorpusError, TrainingError
from pgolf.corpus import stream as stream_module
from pgolf.corpus.build import CorpusConfig, TrainBpe
from pgolf.corpus.embedded import EmbeddedProse
from pgolf.corpus.fineweb import ChallengeShards, FineWebStream
from pgolf.corpus.stream import StreamConfig
from training.config import TrainingConfig
from training.orders import open_batches, step_batches, stream_facts
from training.streamed import StreamedBatches

# Workers for more cores than the machine has, to test any share of lanes.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return corpus_folder(tmp_path_factory.mktemp("corpora"))


def shape(spans_per_step=4, span_sequences=3, sequence_length=16):
    return TrainingConfig(sequence_length=sequence_length, span_sequences=span_sequences, spans_per_step=spans_per_step)


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
