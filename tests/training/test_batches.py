"""Batches: the reference loader's order for every number of processes, and reading across shards and the end."""

import itertools
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from modeling_pgolf.errors import TrainingError
from pgolf.corpus.shards import open_split
from training.batches import SequentialBatches, TrainTokens
from training.config import TrainingConfig

# (processes, accumulation) of the reference's runs; their product is the spans of a step.
SHARES = [(1, 8), (2, 4), (4, 2), (8, 1)]


def shards(*lengths):
    """Shards whose tokens count on from one to the next."""
    starts = np.cumsum([0, *lengths])
    return [np.arange(a, b, dtype=np.uint16) for a, b in itertools.pairwise(starts)]


def shape(span_sequences, sequence_length=16, spans_per_step=8):
    return TrainingConfig(sequence_length=sequence_length, span_sequences=span_sequences, spans_per_step=spans_per_step)


@pytest.mark.parametrize(("processes", "accumulation"), SHARES)
def test_batches_are_the_references(golden_11l, processes, accumulation):
    meta = json.loads((golden_11l / "bytes_and_data.meta.json").read_text())["loader_sequential"]
    (run,) = [r for r in meta["runs"] if (r["world"], r["grad_accum"]) == (processes, accumulation)]
    golden = load_file(golden_11l / meta["file"])
    span_sequences = run["global_tokens"] // (processes * accumulation * run["seq_len"])
    tokens = TrainTokens(open_split(golden_11l / "shards", "train"))
    for rank in range(processes):
        batches = SequentialBatches(tokens, shape(span_sequences, run["seq_len"]), rank, processes)
        steps = [batches.next_step() for _ in range(-(-run["calls"] // accumulation))]
        for name, part in (("x", 0), ("y", 1)):
            # A step of ours is ``accumulation`` calls of the reference's; its last step may be cut short.
            spans = torch.cat([step[part] for step in steps]).view(-1, span_sequences, run["seq_len"])
            expected = golden[f"w{processes}_ga{accumulation}.rank{rank}.{name}"]
            assert torch.equal(spans[: run["calls"]].int(), expected), f"rank {rank}, {name}"


def spans_in_stream_order(tokens, config, processes, steps):
    """Inputs and targets of all processes, put back into the order of the stream."""
    members = [SequentialBatches(tokens, config, rank, processes) for rank in range(processes)]
    stream = []
    for _ in range(steps):
        parts = [torch.stack(member.next_step()).unflatten(1, (-1, config.span_sequences)) for member in members]
        stream.append(torch.stack(parts, dim=2).flatten(1, 2))
    return torch.cat(stream, dim=1)


@pytest.mark.parametrize("processes", [2, 4, 8])
def test_the_order_does_not_depend_on_the_processes(processes):
    # Five steps of 8 spans of 33 tokens go round the 700 tokens almost twice.
    tokens = TrainTokens(shards(211, 300, 189))
    alone = spans_in_stream_order(tokens, shape(2), 1, 5)
    assert torch.equal(spans_in_stream_order(tokens, shape(2), processes, 5), alone)


def test_the_stream_wraps_and_spans_share_nothing():
    tokens, config = TrainTokens(shards(30, 40)), shape(1, sequence_length=8, spans_per_step=2)
    batches = SequentialBatches(tokens, config)
    seen = []
    for _ in range(9):
        inputs, targets = batches.next_step()
        assert inputs.shape == targets.shape == (2, 8) and inputs.dtype == torch.int64
        for row, shifted in zip(inputs, targets, strict=True):
            seen.extend([*row.tolist(), shifted[-1].item()])
            assert torch.equal(row[1:], shifted[:-1])
    assert seen == [place % 70 for place in range(9 * 2 * 9)]


def test_a_restored_position_goes_on():
    tokens, config = TrainTokens(shards(100, 101)), shape(1)
    straight, resumed = SequentialBatches(tokens, config), SequentialBatches(tokens, config)
    for _ in range(3):
        straight.next_step()
    resumed.load_state_dict(json.loads(json.dumps(straight.state_dict())))
    for ours, theirs in zip(resumed.next_step(), straight.next_step(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("processes", [3, 5, 6, 7, 16])
def test_uneven_processes_are_refused(processes):
    with pytest.raises(TrainingError, match=f"{processes} processes cannot share 8 spans"):
        SequentialBatches(TrainTokens(shards(100)), shape(1), 0, processes)


@pytest.mark.parametrize("nothing", [[], [np.zeros(0, dtype=np.uint16)]])
def test_no_tokens_are_refused(nothing):
    with pytest.raises(TrainingError, match="no training tokens"):
        TrainTokens(nothing)


@given(
    lengths=st.lists(st.integers(0, 7), min_size=1, max_size=5).filter(any),
    position=st.integers(0, 60),
    count=st.integers(0, 60),
)
@settings(max_examples=300, deadline=None, database=None)
def test_reading_is_that_of_one_endless_array(lengths, position, count):
    tokens = TrainTokens(shards(*lengths))
    endless = np.tile(np.arange(sum(lengths)), 121)
    read = tokens.read(position, count)
    assert read.dtype == np.int64
    assert np.array_equal(read, endless[position : position + count])
