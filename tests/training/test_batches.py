"""Batches: every order of shards, from any place on, and the reference's sequential one for any number of processes."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from modeling_pgolf.errors import TrainingError
from modeling_pgolf.modeling_pgolf import PGolfForCausalLM
from pgolf.corpus.shards import open_split
from training.batches import SequentialBatches, TrainTokens
from training.config import TrainingConfig
from training.orders import ORDERS, open_batches, step_batches, stream_facts

# (processes, accumulation) of the reference's runs; their product is the spans of a step.
SHARES = [(1, 8), (2, 4), (4, 2), (8, 1)]


def shards(*lengths):
    """Shards whose tokens count on from one to the next."""
    starts = np.cumsum([0, *lengths])
    return [np.arange(a, b, dtype=np.uint16) for a, b in itertools.pairwise(starts)]


def shape(span_sequences, sequence_length=16, spans_per_step=8):
    return TrainingConfig(sequence_length=sequence_length, span_sequences=span_sequences, spans_per_step=spans_per_step)


def test_a_span_of_one_sequence_trains(tiny_config):
    """Its targets are a cut of its tokens, not a copy, and the loss looks at them as one row."""
    model = PGolfForCausalLM(tiny_config)
    inputs, targets = SequentialBatches(TrainTokens(shards(200)), shape(1)).next_step()
    assert inputs.is_contiguous() and targets.is_contiguous()
    model(input_ids=inputs, shift_labels=targets, use_cache=False).loss.backward()


@pytest.mark.parametrize("order", ORDERS)
def test_a_step_of_one_sequence_has_the_strides_of_its_shape(order):
    """With those of its window the compiled graph would be compiled again, inside the clock."""
    config = replace(shape(1, spans_per_step=1), order=order)
    for part in open_batches(TrainTokens(shards(200)), config).next_step():
        assert part.shape == (1, 16) and part.stride() == (16, 1)


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
@settings(max_examples=300)
def test_reading_is_that_of_one_endless_array(lengths, position, count):
    tokens = TrainTokens(shards(*lengths))
    endless = np.tile(np.arange(sum(lengths)), 121)
    read = tokens.read(position, count)
    assert read.dtype == np.int64
    assert np.array_equal(read, endless[position : position + count])


def ordered(order, span_sequences=3, sequence_length=8, spans_per_step=4):
    return TrainingConfig(
        sequence_length=sequence_length, span_sequences=span_sequences, spans_per_step=spans_per_step, order=order
    )


MANY = TrainTokens(shards(150, 60, 9, 210, 33, 75, 120, 90), list("abcdefgh"))


def equal(steps, others):
    return all(
        torch.equal(x, y) for one, other in zip(steps, others, strict=True) for x, y in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("processes", [1, 2])
def test_every_order_goes_on_from_its_state(order, processes):
    """Fifteen steps of 96 tokens go round the 747 tokens twice."""
    for rank in range(processes):
        straight, states = open_batches(MANY, ordered(order), rank, processes), []
        steps = []
        for _ in range(15):
            states.append(json.dumps(straight.state_dict()))
            steps.append(straight.next_step())
        assert len(states[-1]) < 100
        for place in (1, 4, 11, 14):
            resumed = open_batches(MANY, ordered(order), rank, processes)
            resumed.next_step()
            resumed.load_state_dict(json.loads(states[place]))
            assert equal([resumed.next_step() for _ in range(15 - place)], steps[place:])


@pytest.mark.parametrize("order", ORDERS)
def test_targets_follow_their_inputs_in_one_shard_or_the_stream(order):
    for inputs, targets in step_batches(MANY, ordered(order), 6):
        assert inputs.shape == targets.shape == (12, 8) and inputs.dtype == targets.dtype == torch.int64
        assert inputs.is_contiguous() and targets.is_contiguous()  # other strides would be compiled anew
        assert torch.equal(inputs[:, 1:], targets[:, :-1])
        if order != "sequential":
            for row, last in zip(inputs, targets[:, -1], strict=True):
                assert any(
                    torch.from_numpy(s.astype("int64")).unfold(0, 9, 1).eq(torch.cat([row, last[None]])).all(1).any()
                    for s in MANY.shards
                )


def test_the_orders_differ_and_those_of_many_shards_depend_on_the_processes():
    prints = {
        (order, processes): stream_facts(MANY, ordered(order), processes)["fingerprint"]
        for order in ORDERS
        for processes in (1, 2, 4)
    }
    assert len(set(prints.values())) == 7
    assert len({prints["sequential", processes] for processes in (1, 2, 4)}) == 1
    facts = stream_facts(MANY, ordered("coprime"), 2)
    assert (facts["order"], facts["processes"], facts["corpus_tokens"]) == ("coprime", 2, 747)


@pytest.mark.parametrize("order", ["coprime", "shuffled"])
def test_another_number_of_processes_cannot_go_on(order):
    batches = open_batches(MANY, ordered(order), 0, 2)
    batches.next_step()
    with pytest.raises(
        TrainingError, match=f"the {order} order depends .* state is of 2, this run has 4; resume with 2"
    ):
        open_batches(MANY, ordered(order), 0, 4).load_state_dict(batches.state_dict())


@pytest.mark.parametrize(("found", "asked"), list(itertools.permutations(ORDERS, 2)))
def test_a_place_in_another_order_is_refused(found, asked):
    state = open_batches(MANY, ordered(found)).state_dict()
    with pytest.raises(TrainingError, match=f"a place in the {found} order, this run reads the {asked} one"):
        open_batches(MANY, ordered(asked)).load_state_dict(state)


def test_shuffled_deals_every_window_once_before_any_comes_again():
    tokens = TrainTokens(shards(81, 41, 161))
    batches = open_batches(tokens, ordered("shuffled", span_sequences=1, spans_per_step=1))
    windows = sum(len(starts) for starts in batches._starts)
    first = [tuple(batches.next_step()[0].flatten().tolist()) for _ in range(windows)]
    assert len(set(first)) == windows >= 32
    seen = [token for row in first for token in row]
    assert len(set(seen)) == len(seen)


def test_coprime_visits_every_window_of_a_shard_once_a_round():
    tokens = TrainTokens(shards(8 * 30 + 5))
    batches = open_batches(tokens, ordered("coprime", span_sequences=1, spans_per_step=1))
    first = [batches.next_step()[0][0, 0].item() for _ in range(len(tokens) // 8 - 1)]
    assert len(set(first)) == len(first) and len({start % 8 for start in first}) == 1


def test_a_process_without_a_window_is_refused():
    with pytest.raises(TrainingError, match="process 1 of 2 owns no shard of the 2 with a whole window of 8 tokens"):
        open_batches(TrainTokens(shards(100, 8)), ordered("shuffled"), 1, 2)


def test_every_shard_has_one_name():
    with pytest.raises(ValueError, match="longer"):
        TrainTokens(shards(5, 5), ["a"])
    assert TrainTokens([*shards(5), np.zeros(0, np.uint16), *shards(5)], ["a", "b", "c"]).names == ["a", "c"]


@pytest.mark.parametrize("order", ["coprime", "shuffled"])
def test_shards_without_a_whole_window_are_refused(order):
    short = TrainTokens([np.arange(3, dtype=np.uint16)])
    with pytest.raises(TrainingError, match=r"whole window of .* tokens; use"):
        open_batches(short, ordered(order), 0, 1)
