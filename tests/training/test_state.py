"""The state of a run: what it holds, and that a run goes on from its own alone."""

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from modeling_pgolf.configuration_pgolf import PGolfConfig
from modeling_pgolf.errors import TrainingError
from modeling_pgolf.modeling_pgolf import PGolfForCausalLM
from training.batches import TrainTokens
from training.config import SwaConfig, TrainingConfig
from training.state import PARTS, restore_run, run_state
from training.telemetry import Telemetry
from training.trainer import Trainer

TOKENS = TrainTokens([np.random.default_rng(0).integers(0, 320, 900).astype(np.uint16)])


def trainer(model_config, **fields):
    config = TrainingConfig(
        iterations=8,
        seconds=None,
        sequence_length=16,
        span_sequences=2,
        spans_per_step=2,
        micro_batch_sequences=2,
        precision="fp32",
        compile=False,
        **fields,
    )
    quiet = Telemetry(lambda event: None, config.iterations, config.step_tokens, visible=False)
    return Trainer(PGolfForCausalLM(model_config), TOKENS, config, Accelerator(cpu=True), quiet)


def wider(config):
    keys = {k: v for k, v in config.to_dict().items() if k in PGolfConfig.__annotations__}
    return PGolfConfig(**{**keys, "intermediate_size": config.intermediate_size + 8})


def refused(run, state, reason):
    before = {name: p.clone() for name, p in run.model.named_parameters()}
    with pytest.raises(TrainingError, match=reason):
        restore_run(run, state)
    assert run.steps == 0
    assert all(torch.equal(p, before[name]) for name, p in run.model.named_parameters())


def test_a_state_holds_what_is_looked_for(tiny_config):
    assert run_state(trainer(tiny_config)).keys() == PARTS


@pytest.mark.parametrize("part", sorted(PARTS))
def test_a_state_of_another_version_is_refused_before_anything_changes(tiny_config, part):
    state = run_state(trainer(tiny_config))
    less = {name: value for name, value in state.items() if name != part}
    refused(trainer(tiny_config), less, rf"another version of pgolf: it lacks \['{part}'\] and has \[\] beside")
    refused(trainer(tiny_config), state | {"tempo": 1}, r"it lacks \[\] and has \['tempo'\] beside .* start afresh")


def test_a_state_of_another_run_is_refused_before_anything_changes(tiny_config):
    state = run_state(trainer(tiny_config))
    refused(trainer(wider(tiny_config)), state, r"of another run: parameters differ in \['model.layers.0.mlp")
    refused(trainer(tiny_config, swa=SwaConfig()), state, r"it has .*'swa': False.*, this run .*'swa': True")
    refused(trainer(tiny_config, order="shuffled"), state, "the sequential order, this run reads the shuffled one")
