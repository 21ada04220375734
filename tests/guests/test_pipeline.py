"""The ways transformers' own front ends generate: the text pipeline, the streamer, stopping at the end token."""

import pytest
import torch
from model.artifact_folder import prose
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, TextStreamer, pipeline

TRUST = {"trust_remote_code": True}
GREEDY = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}


@pytest.fixture(scope="module")
def model(artifact):
    return AutoModelForCausalLM.from_pretrained(artifact, **TRUST)


@pytest.fixture(scope="module")
def tokenizer(artifact):
    return AutoTokenizer.from_pretrained(artifact, **TRUST)


def continued(model, tokenizer, text):
    """What plain greedy generation without a cache makes of a text."""
    ids = tokenizer(text, return_tensors="pt").input_ids
    made = model.generate(ids, attention_mask=torch.ones_like(ids), use_cache=False, **GREEDY)
    return tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True)


def test_the_text_pipeline(artifact, model, tokenizer):
    generate = pipeline("text-generation", model=str(artifact), device="cpu", **TRUST)
    texts = [prose(6), prose(2, seed=1)]
    found = generate(texts, batch_size=2, return_full_text=False, generation_config=GenerationConfig(**GREEDY))
    assert [made[0]["generated_text"] for made in found] == [continued(model, tokenizer, text) for text in texts]


def test_the_streamer_prints_what_is_generated(model, tokenizer, capsys):
    inputs = tokenizer(prose(6), return_tensors="pt")
    streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    model.generate(**inputs, streamer=streamer, **GREEDY)
    assert capsys.readouterr().out.strip() == continued(model, tokenizer, prose(6)).strip()


def test_generation_stops_at_the_end_token(model, tokenizer):
    ids = tokenizer([prose(6)], return_tensors="pt").input_ids
    first = model.generate(ids, **GREEDY)[0, ids.shape[1]].item()
    stopped = model.generate(ids, max_new_tokens=5, do_sample=False, eos_token_id=first)
    assert stopped[0, ids.shape[1] :].tolist() == [first]
