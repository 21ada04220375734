"""The test that counts: a stranger loads an artifact with the code that it carries, and sees the exporter's bits.

The stranger is this very file, started as a script with ``python -P`` in a foreign directory, where an import hook
forbids our packages. That is why nothing of ours is imported at its head.
"""

import importlib.abc
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

OURS = ("modeling_pgolf", "training", "quantization", "evaluation", "pgolf")
TEXT = "A silver lantern, 1024 of them:\n\n  naïve 語 <s> is text, and so is <0x41>."


def test_a_stranger_sees_what_the_exporter_saw(tiny_config, tmp_path, transformers_path):
    write_everything(tiny_config, tmp_path)
    verdict = ask_stranger(tmp_path, transformers_path)
    home = Path(verdict.pop("transformers"))
    assert transformers_path is None or home.is_relative_to(transformers_path)
    assert verdict == {
        "our packages imported": [],
        "complaints of loading": [],
        "logits are the exporter's": True,
        "hidden states are the exporter's": True,
        "token ids are the tokenizer's": True,
        "generated tokens are the exporter's": True,
        "parameters without a gradient": [],
        "types of the saved weights": ["torch.float32"],
        "saved weights are the exporter's": True,
        "saved model has the same logits": True,
        "saved headless model has the same hidden states": True,
        "quantisation of the saved model": None,
    }


def write_everything(config, folder):
    """Write an artifact as the exporter does, and beside it what the exporter's own model says."""
    from modeling_pgolf.grid import GridTensor
    from modeling_pgolf.modeling_pgolf import PGolfForCausalLM
    from pgolf.artifact import write_artifact
    from pgolf.convert import load_exactly
    from quantization.compress import compress, dequantized
    from quantization.config import QuantizationConfig

    torch.manual_seed(0)
    model = PGolfForCausalLM(config)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))  # no weight is 0 and no gain 1, so every feature counts
    artifact = compress(model, QuantizationConfig(small_tensor_elements=64, codec_level=3), 10**9)
    assert {w.bits if isinstance(w, GridTensor) else w.dtype for w in artifact.weights.values()} == {
        6,
        8,
        torch.float16,
    }
    tokenizer = small_tokenizer()
    tokenizer.save_pretrained(folder / "tokenizer")
    (folder / "artifact").mkdir()
    write_artifact(folder / "artifact", model, artifact, folder / "tokenizer")
    exported = PGolfForCausalLM(config).eval()
    load_exactly(exported, dequantized(artifact.weights))
    tokens = torch.randint(3, config.vocab_size, (2, 40), generator=torch.Generator().manual_seed(1))
    says = {"tokens": tokens, "ids": torch.tensor(tokenizer(TEXT).input_ids), **answers(exported, tokens)}
    says["hidden"] = exported.model(tokens).last_hidden_state.detach()
    weights = {f"weight {name}": p.detach() for name, p in exported.named_parameters()}
    save_file({**says, **weights}, folder / "expected.safetensors")


def small_tokenizer():
    from pgolf.corpus.tokenizer import train_bpe

    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnop", k=draw.randint(2, 7))) for _ in range(60)]
    return train_bpe([" ".join(draw.choices(words, k=60)) for _ in range(20)], vocab_size=320)


def answers(model, tokens):
    """Logits, and what greedy generation makes of the first tokens."""
    with torch.no_grad():
        logits = model(tokens).logits
    generated = model.generate(tokens[:, :8], max_new_tokens=8, min_new_tokens=8, do_sample=False)
    return {"logits": logits, "generated": generated}


def ask_stranger(folder, transformers_path):
    """Let the stranger load the artifact; returns its verdict."""
    (folder / "elsewhere").mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "PYTHON"))}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "home"), "OMP_NUM_THREADS": "1"}
    if transformers_path is not None:
        environment["PYTHONPATH"] = str(transformers_path)
    command = [sys.executable, "-P", __file__, str(folder)]
    run = subprocess.run(command, cwd=folder / "elsewhere", env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads((folder / "verdict.json").read_text())


class Forbidden(importlib.abc.MetaPathFinder):
    """Refuses our packages under their own names; copies inside ``transformers_modules`` are not theirs."""

    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in OURS:
            raise ImportError(f"{name} is not to be had here")


def stranger(folder):
    """Load the artifact by the Auto classes alone and compare everything with what the exporter said."""
    import transformers
    from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

    said, artifact, trust = load_file(folder / "expected.safetensors"), folder / "artifact", {"trust_remote_code": True}
    tokens = said["tokens"]
    model, loading = AutoModelForCausalLM.from_pretrained(artifact, output_loading_info=True, **trust)
    base, loading_base = AutoModel.from_pretrained(artifact, output_loading_info=True, **trust)
    complaints = [f"{key}: {value}" for info in (loading, loading_base) for key, value in info.items() if value]
    ids = AutoTokenizer.from_pretrained(artifact, **trust)(TEXT).input_ids
    found = answers(model, tokens)
    model.train()
    model(tokens, labels=tokens, use_cache=False).loss.backward()
    return {
        "transformers": transformers.__file__,
        "our packages imported": [name for name in OURS if can_be_imported(name)],
        "complaints of loading": complaints,
        "logits are the exporter's": torch.equal(found["logits"], said["logits"]),
        "hidden states are the exporter's": torch.equal(base(tokens).last_hidden_state, said["hidden"]),
        "token ids are the tokenizer's": ids == said["ids"].tolist(),
        "generated tokens are the exporter's": torch.equal(found["generated"], said["generated"]),
        "parameters without a gradient": [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()],
        **saved_again(model, said, folder / "again"),
    }


def can_be_imported(name):
    try:
        __import__(name)
    except ImportError:
        return name in sys.modules
    return True


def saved_again(model, said, folder):
    """Save the loaded model as a player would, load it and compare."""
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

    model.eval().save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    weights = {name.removeprefix("weight "): tensor for name, tensor in said.items() if name.startswith("weight ")}
    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    again = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    base = AutoModel.from_pretrained(folder, trust_remote_code=True)
    return {
        "types of the saved weights": sorted({str(tensor.dtype) for tensor in tensors.values()}),
        "saved weights are the exporter's": tensors.keys() == weights.keys()
        and all(torch.equal(tensors[name], weights[name]) for name in weights),
        "saved model has the same logits": torch.equal(again(said["tokens"]).logits, said["logits"]),
        "saved headless model has the same hidden states": torch.equal(base(said["tokens"])[0], said["hidden"]),
        "quantisation of the saved model": config.to_dict().get("quantization_config"),
    }


if __name__ == "__main__":
    sys.meta_path.insert(0, Forbidden())
    home = Path(sys.argv[1])
    (home / "verdict.json").write_text(json.dumps(stranger(home)))
