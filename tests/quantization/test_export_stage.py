"""The export stage on a checkpoint: calibration is measured, the budget holds with code, nothing too large stays."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from shell.finished_run import tiny_recipe, write_checkpoint
from transformers import AutoModelForCausalLM

from modeling_pgolf.errors import BudgetError
from pgolf import exporting
from pgolf.calibration_text import first_batches
from pgolf.exporting import export_checkpoint
from pgolf.recipe import BudgetConfig
from pgolf.workdir import open_run, read_manifest
from quantization.config import GptqConfig, QuantizationConfig, SdClip, SelfGenerated, TrainBatches
from training.batches import TrainTokens

GPTQ = QuantizationConfig(64, SdClip(), GptqConfig(TrainBatches(3, 4), precision="fp32"), codec="ans", codec_level=3)


def train_tokens():
    return TrainTokens([np.random.default_rng(0).integers(0, 64, 9000).astype(np.uint16)])


def untouched():
    raise AssertionError("training text was opened")


@pytest.fixture
def exported(tmp_path):
    def export(quantization, open_tokens, budget=16_000_000):
        recipe = tiny_recipe(quantization=quantization, budget=BudgetConfig(artifact_bytes=budget))
        recipe = replace(recipe, training=replace(recipe.training, span_sequences=3, spans_per_step=2))
        run = open_run(tmp_path, f"{budget}", recipe)
        write_checkpoint(recipe, run, {})
        export_checkpoint(recipe, run, Accelerator(cpu=True), open_tokens)
        return run, json.loads((run.artifact / "bytes.json").read_text()), read_manifest(run.artifact)["seconds"]

    return export


def test_train_text_is_measured_as_calibration(exported, capsys):
    run, sizes, seconds = exported(GPTQ, train_tokens)
    assert set(seconds) == {"calibration", "round", "pack", "export"} and min(seconds.values()) > 0
    assert sizes["clip"]["attention_sigmas"] == 12.85
    shown = capsys.readouterr().out
    assert "attention" in shown and "k = 12.850" in shown and f"artifact: {sizes['total_bytes']:,} bytes" in shown
    AutoModelForCausalLM.from_pretrained(run.artifact, trust_remote_code=True)


def test_own_text_reads_no_training_text(exported):
    own = replace(GPTQ, gptq=GptqConfig(SelfGenerated(sequences=4, tokens=16), precision="fp32"))
    _, _, seconds = exported(own, untouched)
    assert set(seconds) == {"self_calibration", "round", "pack", "export"}


def test_a_budget_of_file_and_code(exported):
    """The code outweighs so small a model, so its file is held to the bytes that the code leaves."""
    _, sizes, seconds = exported(replace(GPTQ, gptq=None), untouched)
    assert "calibration" not in seconds
    budget = sizes["total_bytes"] - 1500
    _, filled, _ = exported(replace(GPTQ, gptq=None, fill_budget=True), untouched, budget)
    assert budget - 600 < filled["total_bytes"] <= budget


def test_nothing_too_large_is_written(exported, tmp_path):
    with pytest.raises(BudgetError, match="over the limit of 50,000"):
        exported(GPTQ, train_tokens, 50_000)
    assert not (tmp_path / "runs" / "50000" / "artifact").exists()
    assert torch.get_float32_matmul_precision() == "highest"


def test_processes_share_the_text_and_one_writes(tmp_path, monkeypatch):
    recipe = tiny_recipe(quantization=GPTQ)
    recipe = replace(recipe, training=replace(recipe.training, span_sequences=3, spans_per_step=2))
    run, shares = open_run(tmp_path, None, recipe), []
    write_checkpoint(recipe, run, {})
    monkeypatch.setattr(exporting, "calibrate", lambda model, config, batches: shares.append(list(batches)))
    monkeypatch.setattr(exporting, "write_compressed", lambda *rest: pytest.fail("not the main process"))
    for rank in range(2):
        process = SimpleNamespace(process_index=rank, num_processes=2, is_main_process=False)
        process.device, process.wait_for_everyone = torch.device("cpu"), lambda: None
        export_checkpoint(recipe, run, process, train_tokens)
    whole = list(first_batches(train_tokens(), recipe.training, GPTQ.gptq.calibration))
    assert [len(share) for share in shares] == [2, 1]
    assert all(torch.equal(a, b) for a, b in zip(whole, [shares[0][0], shares[1][0], shares[0][1]], strict=True))
