"""The SP8192 line's operations one by one: rotary, XSA, attention, norm, activation and the gated skip."""

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from modeling_pgolf.attention import eager_attention, exclude_own_value
from modeling_pgolf.feedforward import FeedForward
from modeling_pgolf.modeling_pgolf import PGolfForCausalLM
from modeling_pgolf.norms import rms_norm
from modeling_pgolf.rotary import rotary_tables, rotate, stretched_base
from pgolf.convert import load_exactly, model_state
from pgolf.reference_systems import configuration

# unit_ops.meta.json, "tolerance"; an angle of thousands of radians has that few bits left in float32.
VALUES, FAR_ANGLES = {"atol": 1e-6, "rtol": 1e-5}, {"atol": 2e-4, "rtol": 0.0}
# PR 1394 at the fixture's width of 8: one head, four blocks, so that visit 3 takes the skip of visit 0.
TINY = {"vocab_size": 16, "num_layers": 4, "model_dim": 8, "num_heads": 1, "num_kv_heads": 1, "mlp_mult": 1.0}


@pytest.fixture(scope="module")
def golden(golden_8192):
    meta = json.loads((golden_8192 / "unit_ops.meta.json").read_text())
    return meta, load_file(golden_8192 / "unit_ops.safetensors")


@pytest.fixture(scope="module")
def tiny():
    return configuration("1394", TINY | {"rope_dims": 4, "num_loops": 0, "xsa_last_n": 0})


@pytest.mark.parametrize("case", ["noscale", "ntk", "full"])
def test_rotary(golden, case):
    meta, tensors = golden
    s = meta["rope_cases"][case]
    dims = s["rope_dims"] or s["dim"]
    base = stretched_base(s["base"], s["seq_len"], s["train_seq_len"], dims)
    assert (base == s["base"]) == (case == "noscale")
    cos, sin = rotary_tables(torch.arange(s["seq_len"])[None], base, dims)
    assert torch.allclose(cos[:, :, None], tensors[f"rope_{case}/cos"], **VALUES)
    assert torch.allclose(sin[:, :, None], tensors[f"rope_{case}/sin"], **VALUES)
    assert torch.allclose(rotate(tensors[f"rope_{case}/x"], cos, sin), tensors[f"rope_{case}/y"], **VALUES)


def test_rotary_of_1423(golden):
    meta, tensors = golden
    s = meta["rope_1423"]
    base = stretched_base(s["base"], s["seq_len"], s["train_seq_len"], s["rope_dims"])
    cos, sin = rotary_tables(tensors["rope_1423/rows"][None], base, s["rope_dims"])
    assert torch.allclose(cos[0], tensors["rope_1423/cos"], **FAR_ANGLES)
    assert torch.allclose(sin[0], tensors["rope_1423/sin"], **FAR_ANGLES)


@pytest.mark.parametrize("case", ["xsa", "xsa_gqa"])
def test_exclusive_self_attention(golden, case):
    _, tensors = golden
    values = tensors[f"{case}/v"]
    assert (values.norm(dim=-1) == 0).any() == (case == "xsa_gqa")
    assert torch.allclose(exclude_own_value(tensors[f"{case}/y"], values), tensors[f"{case}/out"], **VALUES)


@pytest.mark.parametrize("back_end", ["eager", "sdpa"])
def test_attention(golden, back_end):
    q, k, v, expected = (golden[1][f"attn/{name}"] for name in ("q", "k", "v", "out"))
    module = SimpleNamespace(is_causal=True, num_key_value_groups=q.shape[2] // k.shape[2])
    attend = ALL_ATTENTION_FUNCTIONS.get_interface(back_end, eager_attention)
    query, key, value = (t.transpose(1, 2) for t in (q, k, v))
    found, _ = attend(module, query, key, value, None, scaling=q.shape[-1] ** -0.5, dropout=0.0)
    assert torch.allclose(found, expected, **VALUES)


def test_norm(golden, tiny):
    _, tensors = golden
    assert torch.allclose(rms_norm(tensors["rmsnorm/x"], tiny.rms_norm_eps), tensors["rmsnorm/y"], **VALUES)


def test_activation(golden, tiny):
    _, tensors = golden
    branch = FeedForward(tiny)
    with torch.no_grad():
        for projection in (branch.up_proj, branch.down_proj):
            projection.weight.copy_(torch.eye(8))
        assert torch.allclose(branch(tensors["act/x"]), tensors["act/y"], **VALUES)


def test_gated_skip(golden, tiny):
    """Visit 0 is made to return the fixture's skip and visit 2 its stream; what reaches visit 3 is the blend."""
    _, tensors = golden
    model, seen = PGolfForCausalLM(tiny), []
    rows = {f"skip_{name}s": tensors[f"skip/{name}"].expand(2, -1) for name in ("weight", "gate")}
    load_exactly(model, dict(model.named_parameters()) | model_state(rows))
    layers = model.model.layers
    layers[0].register_forward_hook(lambda m, args, out: tensors["skip/skip"])
    layers[2].register_forward_hook(lambda m, args, out: tensors["skip/x"])
    layers[3].register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    model(torch.zeros(2, 4, dtype=torch.int64), use_cache=False)
    assert len(seen) == 1
    assert torch.allclose(seen[0], tensors["skip/out"], **VALUES)
