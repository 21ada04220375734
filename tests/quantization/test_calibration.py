"""Calibration: second moments of the inputs, all visits and all processes counted, and text of the model's own."""

import multiprocessing
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from model.architectures import alive
from safetensors.torch import load_file, save_file

from modeling_pgolf.configuration_pgolf import PGolfConfig
from modeling_pgolf.errors import FormatError, RecipeError, TrainingError
from modeling_pgolf.linear import CastLinear
from modeling_pgolf.modeling_pgolf import PGolfForCausalLM
from pgolf.calibration_text import calibration_text, first_batches
from quantization.calibration import own_samples
from quantization.compress import quantize_state
from quantization.config import GptqConfig, QuantizationConfig, SelfGenerated, TrainBatches
from quantization.gptq import curvature, round_columns
from quantization.hessian import collect_hessians
from training.batches import TrainTokens
from training.config import TrainingConfig

PLAIN = GptqConfig(precision="fp32")


@pytest.fixture
def looped():
    """A model whose second block is visited three times, with gates on its skips."""
    torch.manual_seed(0)
    config = PGolfConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_blocks=3, num_attention_heads=4,
        num_key_value_heads=2, rotary_dims=4, rotary_length=24, xsa_layers=[1], value_embed_layers=[2],
        value_embed_dim=12, bigram_buckets=31, bigram_dim=12, skip_gates=True, loop_start=1, loop_end=1, loop_passes=2,
    )  # fmt: skip
    model = PGolfForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


@pytest.fixture
def text():
    return torch.randint(64, (3, 2, 24), generator=torch.Generator().manual_seed(0))


def test_moments_are_those_of_every_visit(looped, text):
    seen = {}
    hooks = [
        layer.register_forward_hook(lambda m, args, out, name=name: seen.setdefault(name, []).append(args[0].detach()))
        for name, layer in looped.named_modules()
        if isinstance(layer, CastLinear)
    ]
    hessians = collect_hessians(looped, text, PLAIN, lambda name: True)
    for hook in hooks:
        hook.remove()
    assert len(seen["model.layers.0.mlp.up_proj"]) == 3 and len(seen["model.layers.1.mlp.up_proj"]) == 9
    for name, inputs in seen.items():
        rows = torch.cat([x.flatten(0, -2) for x in inputs])
        assert torch.allclose(hessians[f"{name}.weight"], rows.T @ rows / 3, atol=1e-4, rtol=1e-4), name
    streams = torch.cat([looped.model(batch).last_hidden_state.detach().flatten(0, -2) for batch in text])
    assert torch.allclose(hessians["model.embed_tokens.weight"], streams.T @ streams / 3, atol=1e-4, rtol=1e-4)
    assert len(hessians) == len(seen) + 1


def test_what_a_model_computes_while_it_writes_is_no_calibration(looped, monkeypatch):
    quantization = QuantizationConfig(gptq=replace(PLAIN, calibration=SelfGenerated(sequences=3, tokens=12)))
    recipe = SimpleNamespace(quantization=quantization, training=SimpleNamespace(seed=5))
    written = torch.cat(list(own_samples(looped, quantization.gptq.calibration, seed=5)))
    text = calibration_text(looped, recipe, lambda: pytest.fail("training text was opened"))
    found = collect_hessians(looped, text, PLAIN, lambda name: True)
    expected = collect_hessians(looped, [written], PLAIN, lambda name: True)
    assert all(torch.equal(found[name], hessian) for name, hessian in expected.items())


@pytest.mark.parametrize("table", [True, False])
def test_the_projection_before_the_head_is_calibrated(looped, text, table):
    keys = {k: v for k, v in looped.config.to_dict().items() if k in PGolfConfig.__annotations__}
    model = alive(PGolfConfig(**{**keys, "embedding_size": 20}))
    seen = []
    handle = model.head_proj.register_forward_pre_hook(lambda m, inputs: seen.append(inputs[0].flatten(0, -2)))
    for batch in text:
        model(batch)
    handle.remove()
    rows = torch.cat(seen).detach()
    hessians = collect_hessians(model, text, PLAIN, lambda name: table or "embed_tokens" not in name)
    assert torch.allclose(hessians["head_proj.weight"], rows.T @ rows / len(text), atol=1e-4, rtol=1e-4)


def test_a_matrix_that_nothing_reaches_is_an_error(looped, text):
    looped.spare = CastLinear(4, 4)
    with pytest.raises(TrainingError, match=r"no input of \['spare.weight'\]"):
        collect_hessians(looped, text, PLAIN, lambda name: True)
    del looped.spare


def test_the_model_is_left_as_it_was(looped, text):
    gates = looped.model.skips.gates

    def broken():
        yield text[0]
        raise RuntimeError("the disk is gone")

    looped.train()
    with pytest.raises(IndexError):  # in the middle of reading
        collect_hessians(looped, [text[0], text[0] + 64], replace(PLAIN, additive_skips=True), lambda name: True)
    assert looped.training and looped.model.skips.gates is gates
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in looped.modules())
    with pytest.raises(RuntimeError, match="disk"):
        collect_hessians(looped, broken(), GptqConfig(precision="fp32", additive_skips=True), lambda name: True)
    assert looped.model.skips.gates is gates
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in looped.modules())
    collect_hessians(looped, text, PLAIN, lambda name: True)
    assert looped.training


def collect_share(model, text, folder, rank):
    """One of two processes: three batches, so the second process has fewer."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    save_file(collect_hessians(model, text[rank::2], PLAIN, lambda name: True), folder / f"{rank}.safetensors")
    dist.destroy_process_group()


def test_processes_add_up(looped, text, tmp_path):
    fork = multiprocessing.get_context("fork")
    members = [fork.Process(target=collect_share, args=(looped, text, tmp_path, rank)) for rank in range(2)]
    for member in members:
        member.start()
    for member in members:
        member.join(60)
        assert member.exitcode == 0
    single = collect_hessians(looped, text, PLAIN, lambda name: True)
    for rank in range(2):
        both = load_file(tmp_path / f"{rank}.safetensors")
        assert single.keys() == both.keys()
        assert all(torch.allclose(both[name], hessian, rtol=1e-4, atol=1e-4) for name, hessian in single.items())


def test_no_text_is_an_error(looped):
    with pytest.raises(TrainingError, match="no text"):
        collect_hessians(looped, [], PLAIN, lambda name: True)


def test_own_samples_are_drawn_from_the_whole_prefix(looped):
    """Through the cache as without it: a second model of the same tokens, by recomputing every prefix."""
    asked = SelfGenerated(sequences=5, tokens=24, temperature=0.8)
    found = torch.cat(list(own_samples(looped, asked, seed=3, batch_sequences=4)))
    assert found.shape == (5, 23)
    generator, rows = torch.Generator().manual_seed(3), []
    looped.eval()
    for count in (4, 1):
        tokens = torch.randint(64, (count, 1), generator=generator)
        for _ in range(23):
            odds = (looped(tokens, use_cache=False).logits[:, -1] / 0.8).softmax(-1)
            tokens = torch.cat([tokens, torch.multinomial(odds, 1, generator=generator)], dim=1)
        rows.append(tokens[:, :-1])
    assert torch.equal(found, torch.cat(rows))
    assert not torch.equal(found, torch.cat(list(own_samples(looped, asked, seed=4, batch_sequences=4))))


def test_train_text_comes_in_the_order_of_the_run():
    config = TrainingConfig(sequence_length=4, span_sequences=3, spans_per_step=2)
    tokens = TrainTokens([np.arange(500, dtype=np.uint16)])
    batches = list(first_batches(tokens, config, TrainBatches(batches=4, batch_sequences=2)))
    assert [tuple(batch.shape) for batch in batches] == [(2, 4)] * 4
    # Spans of 12 inputs and one more target: 0 to 11, 13 to 24, 26 to 37.
    assert torch.cat(batches).flatten().tolist() == [*range(12), *range(13, 25), *range(26, 34)]


def test_a_matrix_without_moments_is_refused(looped):
    state = {name: p.detach() for name, p in looped.named_parameters()}
    with pytest.raises(RecipeError, match="no second moments for"):
        quantize_state(state, QuantizationConfig(small_tensor_elements=64, gptq=PLAIN))


def test_useless_moments_are_refused():
    with pytest.raises(FormatError, match="diverged"):
        curvature(torch.full((3, 3), float("nan")), 0.01)
    with pytest.raises(FormatError, match="positive definite"):
        curvature(torch.tensor([[1.0, 2.0], [2.0, 1.0]]), 0.0)


def test_blocks_change_no_code(monkeypatch):
    """The split into blocks only batches the passing on of errors."""
    generator = torch.Generator().manual_seed(0)
    weight, inputs = torch.randn(20, 50, generator=generator), torch.randn(200, 50, generator=generator)
    curve = curvature(inputs.double().T @ inputs.double(), 0.01)
    scale = (weight.std(-1) * 12.85 / 31).half()
    found = []
    for block in (1, 7, 128):
        monkeypatch.setattr("quantization.gptq.BLOCK", block)
        found.append(round_columns(weight.double(), scale, 6, curve))
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
