"""A run is not interrupted by a walk over everything that imports and compilation left behind."""

import gc

import numpy as np
import pytest
from accelerate import Accelerator

from modeling_pgolf.errors import TrainingError
from modeling_pgolf.modeling_pgolf import PGolfForCausalLM
from training.batches import TrainTokens
from training.config import TrainingConfig
from training.garbage import collected_once
from training.loop import fit


class Cycle:
    """Something that reference counting never frees."""

    def __init__(self):
        self.self = self


def watched_cycles():
    return sum(type(thing) is Cycle for thing in gc.get_objects())


def test_a_full_collection_inside_sees_nothing_from_before():
    old = [Cycle() for _ in range(100)]
    with collected_once():
        assert watched_cycles() == 0
        assert len(gc.get_objects()) < 10_000 < gc.get_freeze_count()  # torch and transformers alone make 300,000
    assert watched_cycles() == len(old)
    assert gc.get_freeze_count() == 0


def test_what_becomes_garbage_inside_is_collected_inside():
    with collected_once():
        Cycle()
        assert watched_cycles() == 1
        gc.collect()
        assert watched_cycles() == 0


def test_nothing_stays_frozen_behind_an_error():
    with pytest.raises(ValueError), collected_once():
        raise ValueError
    assert gc.get_freeze_count() == 0


def test_every_step_of_a_run_is_taken_inside(tiny_config):
    config = TrainingConfig(
        iterations=3,
        seconds=None,
        sequence_length=8,
        span_sequences=2,
        spans_per_step=2,
        micro_batch_sequences=4,
        compile=False,
        precision="fp32",
    )
    frozen = []

    def stop():
        frozen.append(gc.get_freeze_count())
        return len(frozen) == 2

    tokens = TrainTokens([np.arange(400, dtype=np.uint16) % 64])
    with pytest.raises(TrainingError, match="after step 2"):
        fit(PGolfForCausalLM(tiny_config), tokens, config, Accelerator(cpu=True), stop=stop)
    assert len(frozen) == 2 and min(frozen) > 10_000
    assert gc.get_freeze_count() == 0
