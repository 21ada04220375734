"""Optimisers, schedules and averages: equal to their plain forms and to the reference's numbers."""

import json
import math

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from reference.muon import muon_step, newton_schulz
from safetensors.torch import load_file
from torch import nn

from modeling_pgolf.configuration_pgolf import PGolfConfig
from modeling_pgolf.errors import TrainingError
from modeling_pgolf.modeling_pgolf import PGolfForCausalLM
from training.averaging import Ema
from training.batches import TrainTokens
from training.config import EmaConfig, QatConfig, ReplayConfig, TrainingConfig
from training.optim.muon import Muon
from training.optim.orthogonal import orthogonalize
from training.parameters import build_optimizers, partition
from training.schedules import clock_scale, learning_rate_scale, muon_momentum, step_scale
from training.telemetry import Telemetry
from training.trainer import Trainer

# Largest entry of a difference, golden/11l/optim.meta.json "suggested_tolerance"; the rank-deficient case apart.
NEWTON_SCHULZ = {"fp64": 1e-9, "fp32": 1e-4, "bf16": 0.05}
RANK_DEFICIENT = {"fp64": 1e-9, "fp32": 5e-3}
SINGULAR_VALUES = 0.1
DTYPES = {"fp64": torch.float64, "fp32": torch.float32, "bf16": torch.bfloat16}
SCHEDULE = 1e-12  # relative; golden/11l/schedules.json
EMA = 1e-7


@pytest.fixture(autouse=True)
def one_thread():
    """At these sizes a second thread only waits for the first, seconds when another process holds its core."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def optim(golden_11l):
    meta = json.loads((golden_11l / "optim.meta.json").read_text())
    return meta["config"], load_file(golden_11l / meta["file"])


@pytest.fixture(scope="module")
def schedules(golden_11l):
    return json.loads((golden_11l / "schedules.json").read_text())


@pytest.mark.parametrize("dtype", DTYPES)
def test_newton_schulz(optim, dtype):
    golden = optim[1]
    cases = sorted(name.removesuffix(f".out_{dtype}") for name in golden if name.endswith(f".out_{dtype}"))
    assert len(cases) >= 9
    for case in cases:
        result, expected = orthogonalize(golden[f"{case}.G"], DTYPES[dtype]), golden[f"{case}.out_{dtype}"]
        assert result.dtype == expected.dtype
        tolerance = (RANK_DEFICIENT if case.endswith("rank2") else NEWTON_SCHULZ).get(dtype, math.inf)
        assert (result - expected).abs().max() <= tolerance, case
        if dtype == "bf16" and not case.endswith("rank2"):
            ours, theirs = torch.linalg.svdvals(result.float()), torch.linalg.svdvals(expected.float())
            assert (ours - theirs).abs().max() <= SINGULAR_VALUES, case


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_muon_takes_the_references_steps(optim, dtype):
    config, golden = optim
    matrices = [nn.Parameter(golden[f"muon414.p{i}.init"].clone()) for i in range(5)]
    muon = Muon(matrices, config["lr"], config["wd"], DTYPES[dtype])
    for t, momentum in enumerate(config["mom"]):
        muon.param_groups[0].update(lr=config["lr"] * (1 - 0.1 * t), momentum=momentum)
        for i, matrix in enumerate(matrices):
            matrix.grad = golden[f"muon414.p{i}.grad{t}"].clone()
        muon.step()
        for i, matrix in enumerate(matrices):
            tolerance = muon_tolerance(dtype, matrix, moved=config["lr"] * (t + 1))
            torch.testing.assert_close(matrix.data, golden[f"muon414.p{i}.after{t}.ns_{dtype}"], **tolerance)
    for i, matrix in enumerate(matrices):
        # The gradients are given, so the type of the products does not reach the momentum: a float32 sum of three.
        expected = golden[f"muon414.p{i}.momentum_buffer.ns_{dtype}"]
        torch.testing.assert_close(muon.state[matrix]["momentum"], expected, rtol=1e-6, atol=1e-6)


def muon_tolerance(dtype, matrix, moved):
    """The suggested tolerance; in bfloat16 each step adds its own 0.05 of an entry, times the factor of the shape."""
    if dtype == "fp32":
        return {"rtol": 1e-4, "atol": 1e-6}
    rows, cols = matrix.shape
    return {"rtol": 0, "atol": moved * NEWTON_SCHULZ["bf16"] * max(1, rows / cols) ** 0.5}


def test_a_matrix_without_a_gradient_decays_only(optim):
    golden = optim[1]
    matrix = nn.Parameter(golden["muon414_nograd.init"].clone())
    Muon([matrix], lr=0.1, weight_decay=0.5, dtype=torch.float32).step()
    assert torch.equal(matrix.data, golden["muon414_nograd.after"])


@pytest.mark.parametrize("shape", [(512, 512), (512, 1536)])
def test_a_product_is_rounded_with_its_sum(shape):
    """The plain form in bfloat16 is 5.6 % off the exact one on a random matrix, this one 2.7 %."""
    G = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    exact = newton_schulz(G, torch.float64)
    ours, plain = (
        ((form(G, torch.bfloat16).double() - exact).norm() / exact.norm()).item()
        for form in (orthogonalize, newton_schulz)
    )
    assert ours < 0.6 * plain


def test_stacked_muon_equals_the_plain_form():
    torch.manual_seed(0)
    # Two shapes that share a stack by transposition, one with two members, one alone, and one without a gradient.
    matrices = [nn.Parameter(torch.randn(s)) for s in [(32, 96), (96, 32), (32, 32), (32, 32), (16, 32), (8, 8)]]
    plain = [(p.detach().clone(), torch.zeros_like(p)) for p in matrices]
    muon = Muon(matrices, lr=0.02, weight_decay=0.04, dtype=torch.float32)
    for step in range(4):
        momentum = 0.9 + 0.02 * step
        muon.param_groups[0]["momentum"] = momentum
        for p in matrices[:-1]:
            p.grad = torch.randn_like(p)
        muon.step()
        for p, (W, m) in zip(matrices, plain, strict=True):
            muon_step(W, p.grad, m, lr=0.02, momentum=momentum, weight_decay=0.04, dtype=torch.float32)
    for p, (W, _) in zip(matrices, plain, strict=True):
        # Over eight seeds 4.8e-7 at most, two units in the last place of a weight of 3: stacks sum in another order.
        assert (p - W).abs().max() < 2e-6, tuple(p.shape)


def test_newton_schulz_levels_singular_values():
    torch.manual_seed(0)
    G = torch.randn(48, 16)
    values = torch.linalg.svdvals(orthogonalize(G, torch.float32))
    # Jordan's quintic does not converge to 1: it ends between 0.68 and 1.13 (Muon, 2024).
    assert values.min() > 0.6 and values.max() < 1.2
    torch.testing.assert_close(orthogonalize(G, torch.float64), newton_schulz(G, torch.float64))


def test_muon_takes_matrices_only():
    with pytest.raises(ValueError, match="takes matrices"):
        Muon([nn.Parameter(torch.zeros(3))], lr=0.1, weight_decay=0.0, dtype=torch.float32)


def test_adamw_of_the_tables(optim):
    golden = optim[1]
    table = nn.Module()
    table.embed_tokens = nn.Embedding(7, 5)
    table.embed_tokens.weight.data.copy_(golden["adamw_fp32.init"])
    (adamw,) = build_optimizers(table, TrainingConfig(token_lr=0.035, token_decay=0.04))
    (group,) = adamw.param_groups
    for t in range(4):
        group["lr"] = group["peak_lr"] * (1 - 0.2 * t)
        table.embed_tokens.weight.grad = golden[f"adamw_fp32.grad{t}"].clone()
        adamw.step()
        # The same formula in float32; torch may fuse a multiplication and an addition that the reference did not.
        torch.testing.assert_close(table.embed_tokens.weight.data, golden[f"adamw_fp32.after{t}"], rtol=1e-6, atol=1e-7)


def test_step_schedule(schedules):
    assert len(schedules["step_based"]) == 4
    for case in schedules["step_based"]:
        ours = [step_scale(step, case["iterations"], case["warmdown_iters"]) for step in range(len(case["scale"]))]
        assert ours == pytest.approx(case["scale"], rel=SCHEDULE)


def test_clock_schedule(schedules):
    assert len(schedules["wallclock_based"]) == 3
    for case in schedules["wallclock_based"]:
        budget, warmdown = case["cap_ms"] / 1000, case["warmdown_iters"]
        ours = [
            clock_scale(s, t / 1000, budget, warmdown) for s, t in zip(case["step"], case["elapsed_ms"], strict=True)
        ]
        assert ours == pytest.approx(case["scale"], rel=SCHEDULE)
        assert min(ours) < 0.01 and max(ours) == 1.0


def test_momentum_schedule(schedules):
    case = schedules["muon_momentum"]
    ours = [muon_momentum(step, case["steps"]) for step in case["step"]]
    assert ours == pytest.approx(case["momentum"], rel=SCHEDULE)


def toy_average(values, config):
    toy = nn.Module()
    toy.weight = nn.Parameter(torch.tensor(values[0]))
    ema = Ema(toy, config)
    for value in values[1:]:
        toy.weight.data.copy_(torch.tensor(value))
        ema.update()
        yield ema.average[0]


def test_moving_average(schedules):
    case = schedules["ema"]
    ours = toy_average(case["values"], EmaConfig(case["decay"], warm_up=None))
    for average, expected in zip(ours, case["ema_after_each_update"], strict=True):
        torch.testing.assert_close(average, torch.tensor(expected), rtol=EMA, atol=EMA)


def test_moving_average_with_a_warm_decay():
    expected, values = 1.0, [1.0, 3.0, -2.0, 5.0]
    for t, average in enumerate(toy_average(values, EmaConfig(decay=0.15, warm_up=9.0))):
        decay = min(0.15, (1 + t) / (10 + t))  # 0.1, then the cap
        expected = decay * expected + (1 - decay) * values[t + 1]
        assert average.item() == pytest.approx(expected, rel=1e-6)


def test_late_phases_start_at_the_references_steps(schedules, tiny_config):
    case = schedules["triggers"]
    config = TrainingConfig(
        iterations=case["iterations"],
        seconds=None,
        sequence_length=4,
        span_sequences=1,
        spans_per_step=1,
        micro_batch_sequences=1,
        warmdown_steps=case["warmdown_iters"],
        qat=QatConfig(more_elements_than=0),
        replay=ReplayConfig(),
        precision="fp32",
        compile=False,
    )
    tokens = TrainTokens([np.arange(400, dtype=np.uint16) % 320])
    quiet = Telemetry(lambda event: None, config.iterations, config.step_tokens, visible=False)
    trainer = Trainer(PGolfForCausalLM(tiny_config), tokens, config, Accelerator(cpu=True), quiet)
    scales, rounded, remembered = [], [], []
    for step in range(config.iterations):
        scales.append(learning_rate_scale(config, trainer.steps, trainer.elapsed()))
        held = len(trainer.replay.spans)
        trainer.step()
        rounded += [step] if trainer.qat.on else []
        remembered += [step] if len(trainer.replay.spans) > held else []
    assert scales == pytest.approx(case["scale"], rel=SCHEDULE)
    assert rounded == list(range(case["first_qat_step_index(scale<0.15)"], config.iterations))
    assert remembered == case["replay_buffered_steps(scale<0.2)"]


def groups_by_name(model, config):
    """The optimiser group of each parameter; fails where one has two groups or none."""
    found = {}
    for optimizer in build_optimizers(model, config):
        for group in optimizer.param_groups:
            for p in group["params"]:
                assert id(p) not in found, "a parameter is in two groups"
                found[id(p)] = (type(optimizer).__name__, group)
    named = dict(model.named_parameters())
    assert found.keys() == {id(p) for p in model.parameters()}
    return {name: found[id(p)] for name, p in named.items()}


@pytest.mark.parametrize(("projections", "owner"), [("muon", "Muon"), ("adamw", "AdamW")])
def test_every_parameter_has_one_optimizer(tiny_config, projections, owner):
    rates = {"token_lr": 0.1, "matrix_lr": 0.2, "scalar_lr": 0.3}
    decays = {"token_decay": 0.01, "matrix_decay": 0.02, "scalar_decay": 0.03}
    config = TrainingConfig(**rates, **decays, table_projections=projections)
    groups = groups_by_name(PGolfForCausalLM(tiny_config), config)
    assert "lm_head.weight" not in groups  # tied: the token table itself
    for name, (kind, group) in groups.items():
        if name.endswith(("embed_tokens.weight", "embed.weight")):
            expected = ("AdamW", 0.1)
        elif "_proj.weight" in name:
            expected = ("Muon", 0.2)
        elif name.endswith(".proj.weight"):
            expected = (owner, 0.2 if owner == "Muon" else 0.3)
        else:
            expected = ("AdamW", 0.3)
        assert (kind, group["peak_lr"], group["weight_decay"]) == (*expected, pytest.approx(expected[1] / 10)), name


def test_an_untied_head_has_its_own_group_without_decay(tiny_config):
    model = PGolfForCausalLM(PGolfConfig(**{**tiny_config.to_dict(), "tie_word_embeddings": False}))
    groups = groups_by_name(model, TrainingConfig(head_lr=0.007))
    kind, group = groups["lm_head.weight"]
    assert (kind, group["peak_lr"], group["weight_decay"], len(group["params"])) == ("AdamW", 0.007, 0.0, 1)
    assert group is not groups["model.embed_tokens.weight"][1]


def test_a_frozen_parameter_has_no_optimizer(tiny_config):
    model = PGolfForCausalLM(tiny_config)
    model.model.embed_tokens.weight.requires_grad_(False)
    owned = [p for o in build_optimizers(model, TrainingConfig()) for g in o.param_groups for p in g["params"]]
    assert all(p.requires_grad for p in owned) and len(owned) == len(list(model.parameters())) - 1


def test_a_parameter_under_two_names_is_refused():
    shared = nn.Parameter(torch.zeros(2, 2))
    with pytest.raises(TrainingError, match="shared under two names"):
        partition([("a.self_attn.q_proj.weight", shared), ("b.mlp.up_proj.weight", shared)], "muon")
