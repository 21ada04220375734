"""Training techniques one by one: tight averaging, late recurrence, published number formats, arithmetic counted."""

import copy

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import nn

from modeling_pgolf.configuration_pgolf import PGolfConfig
from modeling_pgolf.errors import TrainingError
from modeling_pgolf.modeling_pgolf import PGolfForCausalLM
from training.batches import TrainTokens
from training.config import EmaConfig, QatConfig, ReplayConfig, SwaConfig, TrainingConfig
from training.flops import training_flops
from training.loop import fit, run_replay, run_steps
from training.state import run_state
from training.swa import TightSwa
from training.telemetry import Telemetry
from training.trainer import Trainer

CONFIG = TrainingConfig(
    iterations=8,
    seconds=None,
    sequence_length=16,
    span_sequences=2,
    spans_per_step=2,
    micro_batch_sequences=2,
    warmdown_steps=4,
    ema=None,
    precision="fp32",
    compile=False,
)
TOKENS = TrainTokens([np.random.default_rng(0).integers(0, 320, 900).astype(np.uint16)])


def changed(**fields):
    return TrainingConfig(**{**vars(CONFIG), **fields})


def looped(tiny_config):
    keys = {k: v for k, v in tiny_config.to_dict().items() if k in PGolfConfig.__annotations__}
    return PGolfConfig(**{**keys, "loop_start": 1, "loop_end": 2, "loop_passes": 1, "skip_gates": True})


def trainer(model_config, config):
    torch.manual_seed(0)
    quiet = Telemetry(lambda event: None, config.iterations, config.step_tokens, visible=False)
    return Trainer(PGolfForCausalLM(model_config), TOKENS, config, Accelerator(cpu=True), quiet)


def test_a_tight_average_goes_on_through_the_replay(tiny_config):
    config = changed(
        iterations=4,
        warmdown_steps=4,
        ema=None,
        swa=SwaConfig(below_scale=0.9, every=1),
        replay=ReplayConfig(below_scale=0.9, spans=3, epochs=1),
    )
    run = trainer(tiny_config, config)
    run_steps(run, None, None)
    before, snapshots = {name: t.clone() for name, t in run.published.items()}, run.swa.snapshots
    run_replay(run)
    assert run.swa.snapshots == snapshots + 3
    assert any(not torch.equal(before[name], t) for name, t in run.published.items())


def test_tight_average_is_the_mean_of_late_snapshots():
    weight = nn.Parameter(torch.zeros(3))
    swa = TightSwa({"weight": weight}, SwaConfig(below_scale=0.5, every=2))
    taken = []
    for step, scale in enumerate([1.0, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1], start=1):
        weight.data = torch.full((3,), float(step**2))
        swa.update(step, scale)
        taken += [step**2] if step in (4, 6) else []
    assert swa.snapshots == len(taken) == 2
    assert torch.equal(swa.mean["weight"], torch.full((3,), sum(taken) / 2.0))


@pytest.mark.parametrize("ema", [None, EmaConfig(decay=0.5)])
def test_the_published_weights_are_the_tight_average(tiny_config, ema):
    run = trainer(tiny_config, changed(ema=ema, swa=SwaConfig(below_scale=0.6, every=1)))
    snapshots = []
    while not run.finished():
        run.step()
        source = run.ema.averages if ema else dict(run.model.named_parameters())
        snapshots += [copy.deepcopy(source)] if run.steps > 6 else []
    run.finish()
    assert len(snapshots) == run.swa.snapshots == 2
    for name, parameter in run.model.named_parameters():
        mean = torch.stack([snapshot[name].detach() for snapshot in snapshots]).mean(0)
        torch.testing.assert_close(parameter.data, mean, rtol=1e-5, atol=1e-7)


def test_the_loop_is_switched_on_at_its_share_of_the_run(tiny_config):
    config = looped(tiny_config)
    run = trainer(config, changed(loop_from=0.5))
    visits = []
    while not run.finished():
        run.step()
        visits.append([visit.block for visit in run.model.model.program])
    # Progress before step 4 of 8 is one half.
    assert visits == [[0, 1, 2, 3]] * 4 + [[0, 1, 2, 1, 2, 3]] * 4
    assert run_state(run)["loop"] is True


def test_a_short_run_still_publishes_the_looped_model(tiny_config):
    model = PGolfForCausalLM(looped(tiny_config))
    fit(model, TOKENS, changed(iterations=2, loop_from=0.9), Accelerator(cpu=True))
    assert [visit.block for visit in model.model.program] == [0, 1, 2, 1, 2, 3]


def test_switching_the_loop_on_compiles_nothing(tiny_config, monkeypatch):
    compilations = []

    def backend(module, inputs):
        compilations.append(module)
        return module.forward

    compiler = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **options: compiler(f, backend=backend, **options))
    torch._dynamo.reset()
    run = trainer(looped(tiny_config), changed(loop_from=0.5, compile=True))
    before = {name: tensor.clone() for name, tensor in run.model.named_parameters()}
    random = torch.get_rng_state()
    run.warm_up()
    assert len(compilations) == 2, "one graph without the loop, one with it"
    assert torch.equal(random, torch.get_rng_state()) and run.batches.state_dict()["position"] == 0
    assert all(torch.equal(before[name], tensor) for name, tensor in run.model.named_parameters())
    assert not any(optimizer.state for optimizer in run.optimizers)
    while not run.finished():
        run.step()
    assert run.loop.on and len(compilations) == 2


def test_published_formats_keep_tables_in_bfloat16(tiny_config):
    run = trainer(tiny_config, changed(table_dtype="bf16", ema=EmaConfig()))
    tables = {"model.embed_tokens.weight", "model.bigram.embed.weight", "model.value_embed.embed.weight"}
    for name, parameter in run.model.named_parameters():
        assert parameter.dtype == (torch.bfloat16 if name in tables else torch.float32), name
        assert torch.equal(parameter.float(), parameter.to(torch.bfloat16).float()), f"{name} starts rounded"
    run.step()
    moments = {m.dtype for s in run.optimizers[0].state.values() for k, m in s.items() if k != "step"}
    assert moments == {torch.bfloat16, torch.float32}
    run.finish()
    assert {parameter.dtype for parameter in run.model.parameters()} == {torch.float32}
    table = dict(run.model.named_parameters())["model.embed_tokens.weight"]
    assert torch.equal(table, run.ema.averages["model.embed_tokens.weight"].to(torch.bfloat16).float())


def test_late_qat_that_would_act_on_nothing_is_refused(tiny_config):
    with pytest.raises(TrainingError, match="no matrix has more than 65,536"):
        trainer(tiny_config, changed(qat=QatConfig()))


def test_arithmetic_of_the_reference_model():
    # FRONTIER 3.1: the 11-layer system takes 159 MFLOP a token in matrices and 69 in attention at 2,048 tokens.
    with torch.device("meta"):
        model = PGolfForCausalLM(PGolfConfig())
    assert training_flops(model, 2048) == pytest.approx(228e6, rel=0.01)
    with torch.device("meta"):
        looped_model = PGolfForCausalLM(PGolfConfig(loop_start=3, loop_end=5, loop_passes=2))
    extra = training_flops(looped_model, 2048) - training_flops(model, 2048)
    assert extra == 6 * 6 * (2_361_352 - 2_056 + 2048 * 512)
