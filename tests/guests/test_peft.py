"""PEFT: LoRA adapters on the attention and feed-forward matrices train, are saved, and load onto a fresh artifact."""

import pytest
import torch
from transformers import AutoModelForCausalLM

peft = pytest.importorskip("peft", reason="PEFT is an optional guest: pip install peft")

MATRICES = ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj"]


def fresh(artifact):
    return AutoModelForCausalLM.from_pretrained(artifact, trust_remote_code=True)


def logits(model, tokens):
    model.eval()
    with torch.no_grad():
        return model(tokens).logits


def train(model, tokens, steps):
    """The losses of a few steps on one batch."""
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    losses = []
    for _ in range(steps):
        loss = model(input_ids=tokens, labels=tokens, use_cache=False).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_adapters_train_and_load_onto_a_fresh_artifact(artifact, tokens, tmp_path):
    torch.manual_seed(0)
    base = fresh(artifact)
    before = logits(base, tokens)
    adapted = peft.get_peft_model(base, peft.LoraConfig(r=4, target_modules=MATRICES, task_type="CAUSAL_LM"))
    matrices = len(base.model.layers) * len(MATRICES)
    assert sum("lora_A" in name for name, _ in adapted.named_parameters()) == matrices
    assert torch.equal(logits(adapted, tokens), before), "an adapter starts as nothing"

    losses = train(adapted, tokens, steps=4)
    assert losses[-1] < losses[0] - 0.1
    gradients = [p.grad for name, p in adapted.named_parameters() if "lora_" in name]
    assert all(g is not None and g.abs().max() > 0 for g in gradients)
    after = logits(adapted, tokens)
    assert not torch.allclose(after, before, atol=0.01)

    adapted.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(fresh(artifact), tmp_path)
    assert torch.equal(logits(loaded, tokens), after)
    assert torch.equal(logits(fresh(artifact), tokens), before), "the artifact itself is unchanged"
    with loaded.disable_adapter():
        assert torch.equal(logits(loaded, tokens), before)

    by_name = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=True)
    assert torch.equal(logits(by_name, tokens), after)
    # W + BA in one product rounds otherwise than Wx + BAx.
    assert torch.allclose(logits(loaded.merge_and_unload(), tokens), after, atol=1e-4)


def test_an_adapted_model_generates_with_a_cache(artifact, tokens):
    torch.manual_seed(0)
    config = peft.LoraConfig(r=4, target_modules=MATRICES, task_type="CAUSAL_LM", init_lora_weights=False)
    adapted = peft.get_peft_model(fresh(artifact), config).eval()
    fixed = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    found = adapted.generate(input_ids=tokens, use_cache=True, **fixed)
    assert torch.equal(found, adapted.generate(input_ids=tokens, use_cache=False, **fixed))


@pytest.mark.parametrize("module", ["lm_head", "embed_tokens", "table"])
def test_adapters_elsewhere_count_too(eleven, tokens, module):
    """The head, the token table and the value table are called as modules, so that an adapter on them is not lost."""
    targets = {"table": r"model\.value_embed\.embed"}.get(module, [module])
    torch.manual_seed(0)
    config = peft.LoraConfig(r=2, target_modules=targets, init_lora_weights=False)
    adapted = peft.get_peft_model(fresh(eleven), config)
    with adapted.disable_adapter():
        before = logits(adapted, tokens)
    assert not torch.allclose(logits(adapted, tokens), before, atol=1e-3)
