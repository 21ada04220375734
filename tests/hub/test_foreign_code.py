"""Records that load something else than they count: code or settings from elsewhere, or a model that reads ahead."""

import random

import pytest
import torch
from altered_record import change_json, found

from evaluation.windows import ValidationTokens, sliding_windows
from pgolf import verify as verifying
from pgolf.causality import draw_probe
from pgolf.verify import verify


def renamed(record, name):
    """Code that was loaded in this process stays loaded under the name of its folder."""
    return record.rename(record.with_name(name))


EVIL = """
from pathlib import Path
Path(__file__).with_name("ran").touch()
raise ValueError("this code ran")
"""


@pytest.mark.parametrize("trusted", [False, True])
def test_code_from_elsewhere_is_not_run(trusted, own_record, asked, stranger_at_home, tmp_path, monkeypatch):
    """The record's own files are this pgolf's; its configuration sends loading to another folder."""
    own_record = renamed(own_record, f"elsewhere_{trusted}")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "modeling_evil.py").write_text(EVIL.replace("Path(__file__)", f"Path({str(elsewhere / 'x')!r})"))
    name = f"{elsewhere}--modeling_evil.Evil"
    change_json(own_record / "config.json", lambda config: config["auto_map"].update(AutoModelForCausalLM=name))
    findings = found(own_record, asked(trust_code=trusted))
    assert findings["loading"].verdict == "FAIL" and "auto_map" in findings["loading"].found
    assert not (elsewhere / "ran").exists() and "weights" not in findings, "nothing of it was loaded"
    monkeypatch.setattr(verifying, "loading_findings", lambda record: [])
    with pytest.raises(ValueError, match="this code ran"):
        verify(own_record, asked(trust_code=trusted))
    assert (elsewhere / "ran").exists(), "without that check it would have run"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("attn_implementation", "flex_attention"),
        ("is_causal", False),
        ("transformers_weights", "plots/loss.safetensors"),
    ],
)
def test_settings_that_load_something_else_are_refused(key, value, own_record, asked):
    change_json(own_record / "config.json", lambda config: config.update({key: value}))
    findings = found(own_record, asked())
    assert findings["loading"].verdict == "FAIL" and key in findings["loading"].found and "weights" not in findings


@pytest.mark.parametrize("name", ["adapter_config.json", "plots/palette.bin", "helper.py"])
def test_files_that_nobody_counts_are_refused(name, own_record, asked):
    (own_record / name).write_text("{}")
    findings = found(own_record, asked(trust_code=True))
    assert findings["loading"].verdict == "FAIL" and name in findings["loading"].found and "weights" not in findings


def test_a_model_that_reads_ahead_is_found(own_record, asked, stranger_at_home):
    """Its code is trusted and its scores are true: they are of the wrong model."""
    own_record = renamed(own_record, "reads_ahead")
    code = own_record / "attention.py"
    text = code.read_text()
    assert "self.is_causal = True" in text
    code.write_text(text.replace("self.is_causal = True", "self.is_causal = False"))
    change_json(own_record / "config.json", lambda config: config.update(attn_implementation="eager"))
    assert found(own_record, asked(trust_code=True))["loading"].verdict == "FAIL"
    change_json(own_record / "config.json", lambda config: config.pop("attn_implementation"))
    finding = found(own_record, asked(trust_code=True, seed=0))["causality"]
    assert finding.verdict == "FAIL" and "the model reads ahead" in finding.found


def test_a_probe_replaces_every_token_from_its_place_on():
    tokens = ValidationTokens(torch.arange(101) % 7)
    probe = draw_probe(tokens, list(sliding_windows(100, 16, 5)), 16, random.Random(0))
    as_is, changed = probe.inputs[::2], probe.inputs[1::2]
    assert len(probe.inputs) % 4 == 0, "whole batches: a row must not meet other kernels than its pair"
    for row, other, place in zip(as_is, changed, probe.places, strict=True):
        assert torch.equal(row[:place], other[:place]) and 1 <= place < 16
        assert (row != other)[place:].all() and other.max() < 7
    assert torch.equal(probe.targets[::2], probe.targets[1::2])
    nats = torch.ones(len(probe.inputs), 16, dtype=torch.float64)
    nats[1, probe.places[0]] = 9.0
    assert probe.finding(nats, "fp32").verdict == "PASS", "what is replaced may change its own nats"
    nats[1, probe.places[0] - 1] += 1e-4
    assert probe.finding(nats, "fp32").verdict == "FAIL" and probe.finding(nats, "bf16").verdict == "PASS"
    nats[1, probe.places[0] - 1] += 0.1
    assert probe.finding(nats, "bf16").verdict == "FAIL"
