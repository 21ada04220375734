"""GPTQ with SDClip, and the whole exports of PR 1394 and PR 1423: every code and every scale equal."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from modeling_pgolf.grid import GridTensor, encode
from modeling_pgolf.modeling_pgolf import PGolfForCausalLM
from pgolf.convert import load_exactly, model_state, translate
from pgolf.recipe import load_recipe
from pgolf.reference_systems import configuration
from pgolf.siblings import ROOT
from quantization.assign import Role
from quantization.clipping import row_width, scale_of
from quantization.compress import calibrate, compress, dequantized
from quantization.config import GptqConfig, QuantizationConfig, SdClip
from quantization.gptq import curvature, round_columns
from quantization.hessian import collect_hessians

BITS = {31: 6, 63: 7, 127: 8}
AS_PUBLISHED = GptqConfig(precision="fp32")
AS_SHIPPED = GptqConfig(precision="fp32", damp_twice=True, additive_skips=True)
# k of each grid is an argument of the reference's function, not of these settings.
GRID_ARGUMENTS = ("matrix_bits", "embed_bits", "matrix_clip_sigmas", "embed_clip_sigmas")


def golden_case(folder, case):
    return json.loads((folder / f"{case}.meta.json").read_text()), load_file(folder / f"{case}.safetensors")


def section(tensors, prefix):
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def test_sdclip(golden_8192):
    meta, golden = golden_case(golden_8192, "gptq_sdclip")
    assert len(meta["cases"]) == 6
    for case, facts in meta["cases"].items():
        bits, k = BITS[facts.get("clip_range", 31)], facts.get("clip_sigmas", 12.85)
        clip = SdClip(attention_sigmas=k, table_sigmas=k, table_bits=max(bits, 7))
        role = Role.ATTENTION if bits == 6 else Role.TABLE
        weight, hessian = golden[f"{case}/W"], golden[f"{case}/H"]
        scale = scale_of(row_width(weight, clip), role, clip)
        codes = round_columns(weight, scale, bits, curvature(hessian, 0.01))
        assert torch.equal(scale, golden[f"{case}/scale"]), case
        assert torch.equal(codes, golden[f"{case}/q"]), case
        floats = GridTensor(codes, scale, bits).decode()
        if case == "zero_row":
            assert not floats[2].any()
        else:
            assert torch.equal(floats, golden[f"{case}/dequant"]), case


def test_floor(golden_8192):
    meta, golden = golden_case(golden_8192, "gptq_1423_floor")
    clip = SdClip(unit_floor=True)
    for case, facts in meta["cases"].items():
        bits = BITS[facts["clip_range"]]
        weight = golden[f"{case}/W"]
        scale = scale_of(row_width(weight, clip), Role.ATTENTION if bits == 6 else Role.TABLE, clip)
        assert torch.equal(scale, golden[f"{case}/scale"]), case
        codes = round_columns(weight, scale, bits, curvature(golden[f"{case}/H"], 0.01))
        assert torch.equal(codes, golden[f"{case}/q"]), case
        assert torch.equal(encode(weight, scale, bits), golden[f"{case}/q_no_hessian"]), case


@pytest.mark.parametrize(
    ("case", "system", "clip", "gptq"),
    [
        ("export_1394", "1394", SdClip(), AS_PUBLISHED),
        ("export_1394_real_threshold", "1394", SdClip(), AS_PUBLISHED),
        ("export_1423_as_shipped", "1423", SdClip(unit_floor=True), AS_SHIPPED),
    ],
)
def test_export(golden_8192, case, system, clip, gptq):
    meta, golden = golden_case(golden_8192, case)
    settings = {name: value for name, value in meta["config"].items() if name not in GRID_ARGUMENTS}
    model = PGolfForCausalLM(configuration(system, settings))
    load_exactly(model, model_state(section(golden, "w/")))
    hessians = collect_hessians(model, golden["calib_inputs"], gptq, lambda name: True)
    expected = section(golden, "hessian/")
    assert expected
    for name, hessian in expected.items():
        assert torch.allclose(hessians[translate(name)], hessian, rtol=1e-4, atol=1e-6 * hessian.abs().max()), name
    config = QuantizationConfig(meta["passthrough_max_numel"], clip, gptq, codec_level=3)
    weights = compress(model, config, 10**9, calibrate(model, config, golden["calib_inputs"])).weights
    assert compare(weights, section(golden, "stored/")) > 2000
    floats = dequantized(weights)
    for name, tensor in model_state(section(golden, "dequant/")).items():
        assert torch.equal(floats[name], tensor), name
    if "roundtrip_input_ids" in golden:
        load_exactly(model, floats)
        logits = model(golden["roundtrip_input_ids"], use_cache=False).logits
        stored = golden["roundtrip_logits"]
        assert torch.allclose(logits[: len(stored), -stored.shape[1] :], stored, atol=2e-5, rtol=2e-5)


def compare(weights, stored):
    """Compare every stored tensor of the reference with ours; returns how many codes were compared."""
    compared = 0
    for name, tensor in stored.items():
        parameter, _, part = name.rpartition(".")
        if part not in ("q", "scale"):
            assert torch.equal(weights[translate(name)], tensor), name
            continue
        ours = weights[translate(parameter)]
        assert torch.equal(ours.codes if part == "q" else ours.scale, tensor), name
        compared += tensor.numel() if part == "q" else 0
    return compared


def test_the_recipe_as_shipped_is_the_fixtures():
    recipe = load_recipe(ROOT / "benchmarks" / "sp8192_as_shipped.py")
    assert replace(recipe.quantization.gptq, precision="fp32") == AS_SHIPPED
    assert recipe.quantization.clip == SdClip(unit_floor=True)
