"""Fine-tuning in the form that the texts describe: rates and freezing reach the matrices, and it ends in time."""

import copy
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from reference import fine_tune as reference

from modeling_pgolf.errors import RecipeError, TrainingError
from modeling_pgolf.modeling_pgolf import PGolfForCausalLM
from pgolf.fine_tune_text import fine_tune_text
from pgolf.readiness import check_trainable
from pgolf.recipe import load_recipe, with_overrides
from training.batches import TrainTokens
from training.config import FineTuneConfig, TrainingConfig
from training.fine_tune import fine_tune, parameter_groups, rows, steps_of_epoch
from training.loop import fit, room_until

ROOT = Path(__file__).resolve().parents[2]
LENGTH = 16
IDS = np.random.default_rng(0).integers(0, 320, 11 * LENGTH + 1).astype(np.uint16)
TOKENS = TrainTokens([IDS])
DESCRIBED = FineTuneConfig(epochs=2, lr=1e-3, rows=4, frozen_blocks=0, first_block_share=0.3)
FROZEN = FineTuneConfig(epochs=2, lr=1e-3, rows=4, frozen_blocks=2)
# AdamW divides by the size of a gradient, so the last bits of sums count where it is near 0. Measured 1.2e-7.
CLOSE = 2e-6


def settings(config, **fields):
    return TrainingConfig(sequence_length=LENGTH, precision="fp32", compile=False, fine_tune=config, **fields)


@pytest.fixture
def model(tiny_config):
    torch.manual_seed(0)
    return PGolfForCausalLM(tiny_config)


@pytest.mark.parametrize("config", [DESCRIBED, FROZEN])
def test_against_one_optimiser_a_parameter(model, config):
    plain = copy.deepcopy(model)
    windows = torch.from_numpy(IDS.astype(np.int64)).unfold(0, LENGTH + 1, LENGTH)
    reference.fine_tune(plain, windows, len(model.model.layers), config)
    epochs = fine_tune(model, TOKENS, settings(config), Accelerator(cpu=True))
    assert [(epoch.steps, epoch.planned) for epoch in epochs] == [(3, 3), (3, 3)]
    expected = dict(plain.named_parameters())
    for name, parameter in model.named_parameters():
        assert (parameter - expected[name]).abs().max() < CLOSE, name


@pytest.mark.parametrize(("reach", "reached"), [(True, True), (False, False)])
def test_rates_by_block_reach_the_matrices(model, reach, reached):
    config = FineTuneConfig(frozen_blocks=0, first_block_share=0.3, reach_matrices=reach)
    rates = {id(p): group["peak_lr"] for group in parameter_groups(model, config) for p in group["params"]}
    last = len(model.model.layers) - 1
    for i, block in enumerate(model.model.layers):
        share = 0.3 + 0.7 * i / last
        assert rates[id(block.attn_scale)] == pytest.approx(config.lr * share, rel=1e-12)
        for matrix in (block.self_attn.q_proj, block.self_attn.o_proj, block.mlp.up_proj, block.mlp.down_proj):
            assert rates[id(matrix.weight)] == pytest.approx(config.lr * (share if reached else 1.0), rel=1e-12)


def test_frozen_blocks_keep_every_bit(model):
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    fine_tune(model, TOKENS, settings(FROZEN), Accelerator(cpu=True))
    for name, parameter in model.named_parameters():
        frozen = ".layers.0." in name or ".layers.1." in name
        assert torch.equal(parameter, before[name]) == frozen, name
        assert parameter.requires_grad


def test_too_few_tokens_are_refused(model):
    with pytest.raises(TrainingError, match="at least 17 tokens, a row and its targets; found 16"):
        fine_tune(model, TrainTokens([IDS[:LENGTH]]), settings(DESCRIBED), Accelerator(cpu=True))


def test_a_loss_that_is_not_finite_ends_it(model):
    with torch.no_grad():
        model.model.embed_tokens.weight[int(IDS[0])] = math.nan
    with pytest.raises(TrainingError, match="in epoch 1 of fine-tuning; lower"):
        fine_tune(model, TOKENS, settings(DESCRIBED), Accelerator(cpu=True))


def test_it_stops_when_no_step_fits_any_more(model):
    answers = iter([True] * 4 + [False] + [True] * 9)  # asked again, it would say yes
    epochs = fine_tune(model, TOKENS, settings(DESCRIBED), Accelerator(cpu=True), lambda: next(answers))
    assert [(epoch.steps, epoch.planned) for epoch in epochs] == [(3, 3), (1, 3)]


def standing():
    """A run whose clock stands at 500 seconds, in an open phase that counts."""
    clock = SimpleNamespace(counted=500.0, synchronize=lambda: None)
    return SimpleNamespace(clock=clock, shared=float, any_process=lambda answer: answer, steps=7)


def test_room_is_that_of_another_mean_step():
    run = standing()
    another = room_until(run, 530.0)
    taken = 0
    while another():
        run.clock.counted += 7.0
        taken += 1
    assert taken == 4  # 28 of 30 seconds: a fifth step would end at 535
    assert not another(), "what was refused is no step: the mean stays"
    unlimited = room_until(standing(), None)
    assert unlimited() and unlimited()


def test_a_stop_is_heard_in_the_phases_behind_the_loop():
    with pytest.raises(TrainingError, match="stopped as asked behind step 7; start the same command again"):
        room_until(standing(), None, stop=lambda: True)()


def test_a_run_ends_its_fine_tuning_with_the_clock(model):
    """A reserve of a millionth of a second leaves room for no step; without a reserve all are taken."""
    taken = []
    for reserve in (1e-6, 0.0):
        config = FineTuneConfig(epochs=2, rows=4, frozen_blocks=0, reserve_seconds=reserve)
        training = settings(config, iterations=1, seconds=1e-6, span_sequences=2, spans_per_step=1, ema=None)
        events = []
        fit(model, TOKENS, training, Accelerator(cpu=True), log=events.append, fine_tune_tokens=TOKENS)
        taken.append([event["steps"] for event in events if event["event"] == "fine_tune"])
    assert taken == [[], [3, 3]]


@pytest.mark.parametrize("processes", [1, 2, 3, 4])
def test_every_row_is_read_by_some_process_in_equally_many_steps(processes):
    seen, steps = [], set()
    for rank in range(processes):
        place = SimpleNamespace(num_processes=processes, process_index=rank, device=torch.device("cpu"))
        batches = list(rows(TOKENS, DESCRIBED, LENGTH, place))
        assert len(batches) == steps_of_epoch(TOKENS, DESCRIBED, LENGTH, place)
        steps.add(len(batches))
        for inputs, targets in batches:
            assert torch.equal(inputs[:, 1:], targets[:, :-1])
            seen += [tuple(row) for row in inputs.tolist()]
    assert len(steps) == 1
    whole = torch.from_numpy(IDS[:-1].astype(np.int64)).view(-1, LENGTH).tolist()
    assert set(seen) == {tuple(row) for row in whole}
    assert len(seen) - len(whole) < processes  # a process of fewer rows repeats its last one


def test_what_a_recipe_may_not_ask_for():
    """Before processes are started, and again in every process, bundles included."""
    recipe = load_recipe(ROOT / "recipes" / "seed4_prequant_ranked.py")
    with pytest.raises(RecipeError, match="frozen_blocks is 12, and the model has 11 blocks"):
        check_trainable(with_overrides(recipe, ["--training.fine-tune.frozen-blocks", "12"]), 1)
    with pytest.raises(RecipeError, match="inside its clock"):
        check_trainable(with_overrides(recipe, ["--training.fine-tune.reserve-seconds", "0"]), 1)
    check_trainable(load_recipe(ROOT / "recipes" / "seed4_prequant.py"), 1)
    with pytest.raises(RecipeError, match="inside its clock"):
        fine_tune_text(with_overrides(recipe, ["--training.fine-tune.reserve-seconds", "0"]), None)
    with pytest.raises(RecipeError, match="a streamed corpus stores none"):
        fine_tune_text(recipe, SimpleNamespace(train=[]))
