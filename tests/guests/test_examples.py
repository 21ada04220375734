"""The examples and the benchmark of generation, started as their first lines say, on a local artifact."""

import json
import math
import runpy
import sys
from pathlib import Path

import pytest
import torch
from model.artifact_folder import prose
from transformers import AutoModelForCausalLM, AutoTokenizer

ROOT = Path(__file__).resolve().parents[2]
TRUST = {"trust_remote_code": True}


@pytest.fixture
def start(monkeypatch, capsys):
    """Run a script in this process; returns what it prints."""

    def started(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(ROOT / name), run_name="__main__")
        return capsys.readouterr().out

    return started


def test_load_from_hub(start, eleven, tmp_path):
    printed = start("examples/load_from_hub.py", eleven, "--text", prose(9), "--save", tmp_path / "plain")
    model = AutoModelForCausalLM.from_pretrained(eleven, **TRUST)
    tokenizer = AutoTokenizer.from_pretrained(eleven, **TRUST)
    ids = tokenizer(prose(9), return_tensors="pt").input_ids
    nats = -model(ids[:, :-1]).logits.log_softmax(-1).gather(-1, ids[:, 1:, None]).sum().item()
    assert f"{sum(p.numel() for p in model.parameters()):,} parameters, 5 layers deep" in printed
    assert f"{nats / math.log(2) / len(prose(9)):.3f} bits per byte" in printed
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "plain", **TRUST)
    assert torch.equal(plain(ids).logits, model(ids).logits)
    assert AutoTokenizer.from_pretrained(tmp_path / "plain", **TRUST)(prose(9)).input_ids == ids[0].tolist()


def test_generate(start, eleven):
    model = AutoModelForCausalLM.from_pretrained(eleven, **TRUST)
    tokenizer = AutoTokenizer.from_pretrained(eleven, **TRUST)
    inputs = tokenizer(prose(5), return_tensors="pt")
    expected = model.generate(**inputs, max_new_tokens=6, do_sample=False, use_cache=False)[0]
    printed = start("examples/generate.py", eleven, prose(5), "--tokens", 6)
    assert printed.strip() == tokenizer.decode(expected, skip_special_tokens=True).strip()
    drawn = start("examples/generate.py", eleven, prose(5), "--tokens", 3, "--temperature", 0.9)
    assert drawn.startswith(prose(5))


def test_the_benchmark_of_generation(start, eleven, tmp_path):
    facts = json.loads(start("benchmarks/generation.py", "--artifact", eleven, "--out", tmp_path, "--tiny"))
    assert facts == json.loads((tmp_path / "generation.json").read_text())
    assert facts["loading"]["cold_seconds"] > 0 and facts["loading"]["warm_seconds"] > 0
    assert facts["loading"]["peak_resident_bytes"] >= facts["loading"]["before_loading"]["peak_resident_bytes"] > 0
    lines = facts["generation"]
    assert [(line["batch"], line["cache"]) for line in lines] == [(2, "dynamic"), (2, "static")]
    assert [line["compiled_graphs"] for line in lines] == [0, 1]
    for line in lines:
        assert line["graph_breaks"] == 0
        assert line["tokens_per_second"] == pytest.approx(line["batch"] * 4 / line["seconds"])
