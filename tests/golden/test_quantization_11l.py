"""GPTQ-lite and the mixed export of the reference: every code and every scale equal."""

import json

import torch
from safetensors.torch import load_file

from modeling_pgolf.grid import GridTensor
from pgolf.convert import model_state, translate
from quantization.clipping import quantize_matrix, quantize_table
from quantization.compress import dequantized, quantize_state
from quantization.config import QuantizationConfig


def test_matrices(golden_11l):
    golden = load_file(golden_11l / "quant_matrices.safetensors")
    cases = [name.removesuffix(".w") for name in golden if name.endswith(".w")]
    assert len(cases) >= 15
    for case in cases:
        six = quantize_matrix(golden[case + ".w"], 6, 1 / 31)
        assert torch.equal(six.codes, golden[case + ".int6.q"]), case
        assert torch.equal(six.scale, golden[case + ".int6.scale"]), case
        assert torch.equal(six.decode(), golden[case + ".int6.dequant"]), case
        if golden[case + ".w"].ndim == 2:
            eight = quantize_table(golden[case + ".w"], 8, 1 / 127)
            assert torch.equal(eight.codes, golden[case + ".int8.q"]), case
            assert torch.equal(eight.scale, golden[case + ".int8.scale"]), case
            assert torch.equal(eight.decode(), golden[case + ".int8.dequant"]), case


def test_mixed_export(golden_11l):
    golden = load_file(golden_11l / "mixed_export_414.safetensors")
    kinds = json.loads((golden_11l / "quant.meta.json").read_text())["mixed_export"]["kinds"]
    state = model_state({n[6:]: t for n, t in golden.items() if n.startswith("state.")})
    weights = quantize_state(state, QuantizationConfig(small_tensor_elements=600))
    floats = dequantized(weights)
    compared = 0
    for name, kind in kinds.items():
        if name.startswith("ve_layer_scales"):
            continue
        ours = weights[translate(name)]
        if kind == "passthrough":
            assert torch.equal(ours, golden[f"export.{name}"]), name
        else:
            assert isinstance(ours, GridTensor) and f"int{ours.bits}" == kind
            assert torch.equal(ours.codes, golden[f"export.{name}.q"]), name
            assert torch.equal(ours.scale, golden[f"export.{name}.scale"]), name
        # The reference casts dequantised bf16 tables back to bf16 when it loads them.
        expected = golden[f"dequant.{name}"]
        assert torch.equal(floats[translate(name)].to(expected.dtype), expected), name
        compared += 1
    scales = torch.stack([golden[f"export.ve_layer_scales.{j}"][0] for j in range(2)])
    assert torch.equal(weights["model.value_embed_scales"], scales)
    assert compared == len(kinds) - 2
