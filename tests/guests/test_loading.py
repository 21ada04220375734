"""Everyday loading of an artifact: Auto classes, types, device maps, and saving it as an ordinary float model."""

import json

import pytest
import torch
from model.architectures import ARCHITECTURES, VOCABULARY, alive
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

TRUST = {"trust_remote_code": True}
# Of the largest logit: 8 and 11 bits of mantissa through 11 to 17 blocks; measured 0.013 and 0.0017.
ROUNDING = {torch.bfloat16: 0.04, torch.float16: 0.005}


@pytest.fixture(scope="module")
def loaded(artifact):
    return AutoModelForCausalLM.from_pretrained(artifact, **TRUST)


def logits(model, tokens):
    with torch.no_grad():
        return model(tokens).logits


def test_it_is_an_ordinary_float_model(loaded, tokens):
    assert loaded.dtype == torch.float32 and not loaded.training
    assert loaded.config.to_dict().get("quantization_config") is None
    assert logits(loaded, tokens).isfinite().all()


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
def test_half_types(artifact, loaded, tokens, dtype):
    half = AutoModelForCausalLM.from_pretrained(artifact, dtype=dtype, **TRUST)
    assert {p.dtype for p in half.parameters()} == {dtype}
    found, expected = logits(half, tokens), logits(loaded, tokens)
    assert found.dtype == dtype
    assert (found - expected).abs().max() < ROUNDING[dtype] * expected.abs().max()
    generated = half.generate(tokens[:, :8], max_new_tokens=3, min_new_tokens=3, do_sample=False)
    assert generated.shape == (4, 11)


@pytest.mark.parametrize("device_map", ["cpu", "auto", {"": "cpu"}], ids=str)
def test_device_maps(artifact, loaded, tokens, device_map):
    placed = AutoModelForCausalLM.from_pretrained(artifact, device_map=device_map, **TRUST)
    assert torch.equal(logits(placed, tokens.to(placed.device)).cpu(), logits(loaded, tokens))


def test_every_weight_goes_where_the_device_map_says(artifact):
    """On the only other device that every machine has, where weights have no values."""
    placed = AutoModelForCausalLM.from_pretrained(artifact, device_map={"": "meta"}, **TRUST)
    assert {parameter.device.type for parameter in placed.parameters()} == {"meta"}


@pytest.mark.parametrize("system", ["414", "1394", "1477", "1285 routed"])
def test_every_part_can_lie_elsewhere(system, tmp_path):
    """On disk here, on another GPU elsewhere: the hooks that fetch weights are on each module's forward."""
    model = alive(ARCHITECTURES[system])
    model.save_pretrained(tmp_path / "model")
    text = torch.randint(3, VOCABULARY, (2, 12), generator=torch.Generator().manual_seed(0))
    parts = [f"model.{name}" for name, part in model.model.named_children() if any(True for _ in part.parameters())]
    for part in [part for part in parts if part not in ("model.embed_tokens", "model.layers")]:
        placed = dict.fromkeys([*parts, "model.value_embed_scales", "lm_head"], "cpu") | {part: "disk"}
        apart = type(model).from_pretrained(tmp_path / "model", device_map=placed, offload_folder=tmp_path / part)
        assert torch.equal(logits(apart, text), logits(model, text)), part


def test_the_headless_model(artifact, loaded, tokens):
    base, info = AutoModel.from_pretrained(artifact, output_loading_info=True, **TRUST)
    assert not any(info.values())
    assert torch.equal(base(tokens).last_hidden_state, loaded.model(tokens).last_hidden_state)


def test_the_tokenizer_comes_along(artifact):
    tokenizer = AutoTokenizer.from_pretrained(artifact, **TRUST)
    ids = tokenizer("a naïve word").input_ids
    assert ids[0] == tokenizer.bos_token_id == 1
    assert tokenizer.decode(ids, skip_special_tokens=True) == "a naïve word"
    batch = tokenizer(["a", "a longer text"], padding=True, return_tensors="pt")
    assert batch.attention_mask[0, 0] == 0, "padding is on the left, where generation needs it"


def test_generation_settings_are_in_the_folder(artifact, loaded):
    saved = json.loads((artifact / "generation_config.json").read_text())
    assert (saved["pad_token_id"], saved["bos_token_id"], saved["eos_token_id"]) == (0, 1, 2)
    read = GenerationConfig.from_pretrained(artifact)
    assert (read.pad_token_id, read.bos_token_id, read.eos_token_id) == (0, 1, 2)
    own = loaded.generation_config
    assert (own.pad_token_id, own.bos_token_id, own.eos_token_id) == (0, 1, 2)


def test_saved_again_it_is_a_plain_model(loaded, tokens, tmp_path):
    loaded.save_pretrained(tmp_path)
    assert {t.dtype for t in load_file(tmp_path / "model.safetensors").values()} == {torch.float32}
    assert "quantization_config" not in AutoConfig.from_pretrained(tmp_path, **TRUST).to_dict()
    again = AutoModelForCausalLM.from_pretrained(tmp_path, **TRUST)
    assert torch.equal(logits(again, tokens), logits(loaded, tokens))
    assert (tmp_path / "generation_config.json").is_file()
