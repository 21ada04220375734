"""Scoring speed and legal adaptation of a real-size artifact: tokens/s, seconds a chunk, BPB frozen and adapted.

    python benchmarks/scoring.py --frame model.safetensors --validation fineweb_val_000000.bin \
        --byte-table byte_table.safetensors --out FOLDER

Compilation is done first, on the first windows, and stated apart.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
import tyro
from accelerate import Accelerator
from safetensors.torch import save_file

from evaluation.adaptation.frozen import FrozenConfig
from evaluation.adaptation.score_first import ScoreFirst, ScoreFirstConfig
from evaluation.config import EvaluationConfig
from evaluation.ledger import Ledger
from evaluation.scorer import run_rule, score
from evaluation.windows import ValidationTokens
from modeling_pgolf.configuration_pgolf import PGolfConfig
from modeling_pgolf.modeling_pgolf import PGolfForCausalLM
from modeling_pgolf.quantization_pgolf import read_frame_file
from pgolf.convert import load_exactly
from pgolf.corpus.shards import open_shard
from pgolf.corpus.tokenizer import load_byte_table
from quantization.compress import dequantized

# Targets and processes of the challenge's full validation set (LEGALITY 3.4) and machine.
FULL_TARGETS, FULL_PROCESSES = 62_021_632, 8


@dataclass(frozen=True)
class Arguments:
    """frame, validation, byte_table: files. out: folder for results. targets: score the first ones only."""

    frame: Path
    validation: Path
    byte_table: Path
    out: Path
    targets: int | None = None
    window: int = 2048
    stride: int = 64
    chunk: int = 32_768
    batch_windows: int = 128
    compile: bool = True
    precision: str = "bf16"


def load_model(frame: Path, device: torch.device) -> PGolfForCausalLM:
    """Load the weights of an artifact of the default configuration."""
    model = PGolfForCausalLM(PGolfConfig())
    load_exactly(model, dequantized(read_frame_file(frame)))
    return model.to(device)


def warm(
    model: PGolfForCausalLM, tokens: ValidationTokens, config: EvaluationConfig, accelerator: Accelerator
) -> float:
    """Compile scoring and learning on the first chunks at a rate of 0; returns seconds."""
    started = time.perf_counter()
    short = ValidationTokens(tokens.ids[: 2 * config.adaptation.chunk_tokens + 1])
    still = replace(config, adaptation=replace(config.adaptation, lr=0.0))
    score(model, short, still, accelerator, "compile")
    return time.perf_counter() - started


def timed(ledger_of: Callable[[], Ledger]) -> tuple[Ledger, float]:
    """Run a scoring; returns its ledger and seconds."""
    started = time.perf_counter()
    ledger = ledger_of()
    return ledger, time.perf_counter() - started


def main() -> None:
    """Measure and write ``scoring.json``, the ledger and the nats."""
    a = tyro.cli(Arguments)
    a.out.mkdir(parents=True, exist_ok=True)
    accelerator = Accelerator()
    model, table = load_model(a.frame, accelerator.device), load_byte_table(a.byte_table)
    tokens = ValidationTokens(torch.from_numpy(open_shard(a.validation).astype("int64")[: a.targets and a.targets + 1]))
    rule = ScoreFirstConfig(chunk_tokens=a.chunk)
    config = EvaluationConfig(a.window, a.stride, rule, a.batch_windows, a.compile, a.precision)
    facts: dict[str, object] = {"device": str(torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu")}
    nats = {}

    def report(name: str, ledger: Ledger, seconds: float) -> None:
        result = ledger.score(table)
        facts[name] = {
            "bits_per_byte": result.bits_per_byte,
            "nats_per_token": result.nats_per_token,
            "seconds": seconds,
            "targets_per_second": result.targets / seconds,
            "full_validation_seconds_8_processes": FULL_TARGETS / FULL_PROCESSES * seconds / result.targets,
        }
        nats[name] = ledger.nats.float()
        print(json.dumps({name: facts[name]}), flush=True)
        (a.out / "scoring.json").write_text(json.dumps(facts, indent=2) + "\n")

    frozen = replace(config, adaptation=FrozenConfig())
    facts["compile_seconds"] = warm(model, tokens, config, accelerator)
    print("compiled", facts["compile_seconds"], flush=True)
    report("sliding", *timed(lambda: score(model, tokens, frozen, accelerator, "sliding")))
    plain = replace(frozen, stride=a.window, compile=False)
    report("plain", *timed(lambda: score(model, tokens, plain, accelerator, "plain")))
    learner = ScoreFirst(model, rule, a.window, accelerator, a.compile)
    adapted, seconds = timed(lambda: list(run_rule(model, learner, tokens, config, accelerator, "adapted"))[-1])
    facts["seconds_per_chunk"] = seconds / sum(event["event"] == "SCORE" for event in adapted.events)
    report("adapted", adapted, seconds)
    (a.out / "ledger.adapted.jsonl").write_text("".join(json.dumps(event) + "\n" for event in adapted.events))
    save_file({name: values.half() for name, values in nats.items() if name == "plain"}, a.out / "nats.safetensors")


if __name__ == "__main__":
    main()
