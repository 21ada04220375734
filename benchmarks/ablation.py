"""One trunk of training, and what each technique at its end is worth: averages and replay switched one at a time.

    python benchmarks/ablation.py RECIPE --out FILE [--root DIR] [overrides]

Every variant is scored plainly, in float and after export. Late QAT needs a trunk of its own: run again with
``training.qat:None``.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
import tyro
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor

from modeling_pgolf.attention import fastest_attention
from modeling_pgolf.modeling_pgolf import PGolfForCausalLM
from pgolf.convert import load_exactly
from pgolf.job import Job, open_job_corpus, parse_job, validation_tokens
from pgolf.run import plain_score
from quantization.compress import compress, dequantized
from training.batches import TrainTokens
from training.loop import run_replay, run_steps
from training.telemetry import Telemetry
from training.trainer import Trainer

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Arguments:
    """out: the JSON file to write."""

    out: Path


def variants(trainer: Trainer) -> dict[str, Weights]:
    """Copy the weights a run could publish as it stands: its own, and each average."""
    found = {"own weights": dict(trainer.model.named_parameters())}
    if trainer.ema:
        found["moving average"] = trainer.ema.averages
    if trainer.swa and trainer.swa.snapshots:
        found["tight average of the moving average"] = trainer.swa.mean
    return {name: {key: t.detach().float().cpu().clone() for key, t in w.items()} for name, w in found.items()}


def measured(
    job: Job, model: PGolfForCausalLM, weights: Weights, plain: Callable[[PGolfForCausalLM], dict[str, float]]
) -> dict[str, Any]:
    """Score weights in float and as exported, plainly."""
    load_exactly(model, weights)
    facts: dict[str, Any] = {"float": plain(model)["validation_bpb"]}
    recipe = job.recipe
    artifact = compress(model.cpu(), recipe.quantization, recipe.budget.artifact_bytes)
    load_exactly(model, dequantized(artifact.weights))
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    return facts | {"int6": plain(model)["validation_bpb"], "frame_bytes": len(artifact.frame)}


def main() -> None:
    """Train the trunk, replay, and write what every variant scores."""
    arguments, rest = tyro.cli(Arguments, args=sys.argv[2:], return_unknown_args=True, add_help=False)
    job = parse_job(Path(sys.argv[1]), rest)
    recipe, accelerator = job.recipe, Accelerator(cpu=not torch.cuda.is_available())
    corpus = open_job_corpus(job)
    set_seed(recipe.training.seed)
    model, scored = PGolfForCausalLM(recipe.model_config()), PGolfForCausalLM(recipe.model_config())
    tokens, events = validation_tokens(corpus), []

    def plain(current: PGolfForCausalLM) -> dict[str, float]:
        return plain_score(current.to(accelerator.device), tokens, corpus, recipe, accelerator)

    def log(event: dict[str, Any]) -> None:
        events.append({"time": time.time(), **event})
        if event["event"] != "step":
            print(json.dumps(event), flush=True)

    telemetry = Telemetry(log, recipe.training.iterations, recipe.training.step_tokens, False)
    trainer = Trainer(model, TrainTokens(corpus.train), recipe.training, accelerator, telemetry)
    with fastest_attention():
        with trainer.clock.phase("compile"):
            if recipe.training.compile:
                trainer.warm_up()
        run_steps(trainer, plain, None)
        found = {f"{name}, no replay": weights for name, weights in variants(trainer).items()}
        if trainer.replay:
            run_replay(trainer, trainer.replay)
            found |= {f"{name}, replayed": weights for name, weights in variants(trainer).items()}
    table = {}
    for name, weights in found.items():
        table[name] = measured(job, scored, weights, plain)
        print(name, json.dumps(table[name]), flush=True)
        result = {"recipe": recipe.name, "seed": recipe.training.seed, "qat": recipe.training.qat is not None}
        arguments.out.write_text(json.dumps({**result, "variants": table, "events": events}) + "\n")


if __name__ == "__main__":
    main()
