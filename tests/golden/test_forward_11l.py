"""The reference forward passes of golden/11l: logits, loss, block outputs and every gradient.

They enter by the door a player uses, `pgolf convert`, and are loaded from the folder it writes.
"""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from modeling_pgolf.modeling_pgolf import PGolfForCausalLM
from pgolf.convert import convert, model_state
from training.config import QatConfig
from training.qat import LateQat

CASES = [
    "forward_414",
    "forward_414_noproj",
    "forward_414_fullrope",
    "forward_414_untied",
    "forward_414_plain",
    "forward_414_oneLayer",
    "forward_414_long",
    "forward_1019",
]
WITH_GRADIENTS = ("forward_414", "forward_1019")
# golden/11l/README.md, "Tolerances": the reference's own spread between float32 and float64 is 9e-6.
LOGITS, LOSS, GRADIENT = 5e-5, 2e-5, 1e-4


def converted(golden, case, tmp_path):
    meta = json.loads((golden / "forward.meta.json").read_text())
    entry = next(c for c in meta["cases"] if c["file"] == f"{case}.safetensors")
    tensors = load_file(golden / entry["file"])
    save_file({n[2:]: t for n, t in tensors.items() if n.startswith("w.")}, tmp_path / "reference.safetensors")
    convert(tmp_path / "reference.safetensors", entry["reference_pr"], entry["gpt_constructor"], tmp_path / "hf")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", trust_remote_code=True, attn_implementation="eager")
    return entry, tensors, model


def activations(model):
    """Record the outputs of the modules that the fixtures name."""
    seen = {}
    base = model.model
    for i, block in enumerate(base.layers):
        block.register_forward_hook(lambda m, a, out, i=i: seen.__setitem__(f"act.block.{i}", out))
        block.self_attn.register_forward_hook(lambda m, a, out, i=i: seen.__setitem__(f"act.attn.{i}", out[0]))
        block.mlp.register_forward_hook(lambda m, a, out, i=i: seen.__setitem__(f"act.mlp.{i}", out))
    if base.bigram is not None:
        base.bigram.register_forward_hook(lambda m, a, out: seen.__setitem__("act.bigram", out))
    if base.value_embed is not None:
        base.value_embed.register_forward_hook(lambda m, a, out: seen.__setitem__("act.ve_shared", out))
    base.smear.register_forward_hook(lambda m, a, out: seen.__setitem__("act.x0", out))
    base.register_forward_hook(lambda m, a, out: seen.__setitem__("act.final_norm", out.last_hidden_state))
    return seen


@pytest.mark.parametrize("case", CASES)
def test_forward_equals_the_reference(golden_11l, case, tmp_path):
    entry, tensors, model = converted(golden_11l, case, tmp_path)
    seen = activations(model)
    out = model(tensors["input_ids"], shift_labels=tensors["target_ids"], use_cache=False)
    out.loss.backward()

    logits = out.logits if "logits" in tensors else out.logits[:, tensors["positions"]]
    expected_logits = tensors["logits"] if "logits" in tensors else tensors["logits_at_positions"]
    assert torch.allclose(logits, expected_logits, atol=LOGITS, rtol=1e-4)
    assert abs(out.loss.item() - entry["loss"]) < LOSS
    expected = {name for name in tensors if name.startswith("act.")}
    assert expected <= set(seen)
    for name in expected:
        assert torch.allclose(seen[name], tensors[name], atol=LOGITS, rtol=1e-4), name
    # The one-feature cases come without gradients.
    compare_gradients(model, tensors, set(dict(model.named_parameters())) if case in WITH_GRADIENTS else set())


def compare_gradients(model, tensors, expected):
    gradients = model_state({n[2:]: t for n, t in tensors.items() if n.startswith("g.")})
    named = dict(model.named_parameters())
    assert set(gradients) == expected
    for name, gradient in gradients.items():
        assert (named[name].grad - gradient).abs().max() <= GRADIENT * gradient.abs().max() + 1e-9, name


def test_forward_with_late_qat_equals_the_reference(golden_11l, tmp_path):
    """On the reference's own training grid: -32..31 with float32 row scales."""
    entry, tensors, _ = converted(golden_11l, "forward_414_qat", tmp_path)
    model = PGolfForCausalLM.from_pretrained(tmp_path / "hf", attn_implementation="eager")
    plain = model(tensors["input_ids"], use_cache=False).logits
    LateQat(model, QatConfig(more_elements_than=0, lowest_code=-32, half_scale=False)).switch(True)
    out = model(tensors["input_ids"], shift_labels=tensors["target_ids"], use_cache=False)
    out.loss.backward()
    assert (out.logits - plain).abs().max() > 0.01, "the rounding must matter"
    assert torch.allclose(out.logits, tensors["logits"], atol=LOGITS, rtol=1e-4)
    assert abs(out.loss.item() - entry["loss"]) < LOSS
    compare_gradients(model, tensors, set(dict(model.named_parameters())))
