"""Reading ahead changes when a batch is read, and nothing else."""

import json
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from modeling_pgolf.errors import CorpusError
from modeling_pgolf.modeling_pgolf import PGolfForCausalLM
from training.batches import SequentialBatches, TrainTokens
from training.config import TrainingConfig
from training.loop import fit
from training.orders import ORDERS, open_batches
from training.read_ahead import ReadAhead
from training.state import run_state
from training.telemetry import Telemetry
from training.trainer import Trainer

CONFIG = TrainingConfig(
    iterations=3,
    seconds=None,
    sequence_length=8,
    span_sequences=2,
    spans_per_step=2,
    micro_batch_sequences=4,
    compile=False,
    precision="fp32",
)


class Shard:
    """Tokens that count on; while it is closed, reading waits; once it is gone, reading fails."""

    def __init__(self, length):
        self.ids, self.open, self.gone = np.arange(length, dtype=np.uint16), threading.Event(), False
        self.open.set()

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, part):
        assert self.open.wait(60), "nobody opened the shard again"
        if self.gone:
            raise CorpusError("the shard is gone")
        return self.ids[part]


def open_ahead(order="sequential", length=400):
    shard = Shard(length)
    config = replace(CONFIG, order=order)
    return ReadAhead(open_batches(TrainTokens([shard]), config), pinned=False), shard


def equal(one, other):
    return all(map(torch.equal, one, other))


@pytest.mark.parametrize("order", ORDERS)
def test_batches_and_places_are_those_of_reading_at_once(order):
    """Twenty steps of 32 tokens go round the 400 more than once."""
    (ahead, _), plain = open_ahead(order), open_ahead(order)[0].batches
    for step in range(20):
        assert json.dumps(ahead.state_dict()) == json.dumps(plain.state_dict())
        assert equal(ahead.next_step(), plain.next_step())
        if step % 3:
            ahead.start()
            ahead.start()
    ahead.close()


@pytest.mark.parametrize("order", ORDERS)
def test_a_place_saved_while_reading_is_gone_on_from(order):
    ahead, _ = open_ahead(order)
    ahead.next_step()
    ahead.start()
    state = json.loads(json.dumps(ahead.state_dict()))
    steps = [ahead.next_step() for _ in range(3)]
    ahead.start()
    ahead.load_state_dict(state)
    assert all(map(equal, steps, [ahead.next_step() for _ in range(3)]))
    ahead.close()


def test_nobody_waits_for_what_is_read_ahead():
    ahead, shard = open_ahead()
    ahead.next_step()
    shard.open.clear()
    ahead.start()  # would wait for ever
    place = ahead.state_dict()
    shard.open.set()
    ahead.next_step()
    assert place["position"] == CONFIG.step_tokens + CONFIG.spans_per_step
    ahead.close()


def test_a_place_is_set_only_when_nobody_reads_any_more():
    ahead, shard = open_ahead()
    first = ahead.state_dict()
    batch = ahead.next_step()
    shard.open.clear()
    ahead.start()
    threading.Timer(0.2, shard.open.set).start()
    ahead.load_state_dict(first)
    assert equal(ahead.next_step(), batch)
    ahead.close()


def test_what_reading_raises_is_raised_when_the_batch_is_asked_for():
    ahead, shard = open_ahead()
    ahead.next_step()
    shard.gone = True
    ahead.start()
    place = ahead.state_dict()
    with pytest.raises(CorpusError, match="the shard is gone"):
        ahead.next_step()
    shard.gone = False
    ahead.load_state_dict(place)
    assert equal(ahead.next_step(), batches_from(place).next_step())
    ahead.close()


def batches_from(place):
    batches = SequentialBatches(TrainTokens([Shard(400)]), CONFIG)
    batches.load_state_dict(place)
    return batches


def test_a_step_reads_the_next_batch_ahead_and_the_state_does_not_know(tiny_config):
    tokens = TrainTokens([Shard(200)])
    telemetry = Telemetry(lambda event: None, CONFIG.iterations, CONFIG.step_tokens, visible=False)
    trainer = Trainer(PGolfForCausalLM(tiny_config), tokens, CONFIG, Accelerator(cpu=True), telemetry)
    with trainer.clock.phase("step"):
        trainer.step()
        trainer.wait_for_reader()
    tokens.shards[0].gone = True  # the next batch is here
    assert run_state(trainer)["batches"]["position"] == CONFIG.step_tokens + CONFIG.spans_per_step
    with trainer.clock.phase("step"):
        trainer.step()
        with pytest.raises(CorpusError, match="the shard is gone"):
            trainer.step()
    assert trainer.steps == 2
    trainer.batches.close()


class SlowShard(Shard):
    """Tokens that take their time, and count how often they are read."""

    reads = 0

    def __getitem__(self, part):
        self.reads += 1
        time.sleep(0.2)
        return super().__getitem__(part)


def test_all_reading_counts_and_none_is_for_nothing(tiny_config):
    """A validation behind each step leaves time to read beside it, which the clock would not see."""
    shard, config = SlowShard(400), replace(CONFIG, validate_every=1)

    def validate(model):
        time.sleep(0.5)
        return {}

    model = PGolfForCausalLM(tiny_config)
    trained = fit(model, TrainTokens([shard]), config, Accelerator(cpu=True), validate=validate)
    assert shard.reads == config.iterations * config.spans_per_step
    assert trained.seconds["data"] + trained.seconds["step"] > 0.2 * shard.reads
