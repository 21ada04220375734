"""What each technique of a recipe is worth: the recipe, and the recipe without it, for equal steps on equal data.

    python benchmarks/techniques.py RECIPE --out FILE [--only NAME]... [--root DIR] [overrides]

Every variant is a run of its own from its seed, scored plainly as float weights at the end: the last ones, and what
the run would publish. The overrides come first, then those of a variant. The recipe itself runs with a second seed
too, which tells the noise.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
import tyro
from accelerate.utils import set_seed
from tyro.conf import UseAppendAction

from modeling_pgolf.errors import RecipeError
from modeling_pgolf.modeling_pgolf import PGolfForCausalLM
from pgolf.job import Job, open_job_corpus, parse_job, validation_tokens
from pgolf.processes import join_processes
from pgolf.run import plain_score
from training.batches import TrainTokens
from training.config import TrainingConfig
from training.loop import fit

# Of the SP8192 line (PR 1394, PR 1493); a variant that a recipe does not differ in is left out.
VARIANTS = {
    "the recipe": "",
    "another seed": "--training.seed 42",
    "no loop": "--model.loop-start 0 --model.loop-end -1 --model.loop-passes 0 --training.loop-from 0",
    "loop from the first step": "--training.loop-from 0",
    "no parallel branches": "--model.parallel-from 1000000",
    "additive skips, no gates": "--model.no-skip-gates",
    "no MuonEq-R": "--training.no-row-normalized-muon",
    "query gain 1.5": "--model.q-gain-init 1.5",
    "XSA in the last 4 blocks": "--model.xsa-layers 7 8 9 10",
    "squared ReLU": "--model.mlp-negative-slope 0",
    "sequential order": "--training.order sequential",
    "no layer-wise scale": "--model.no-ln-scale",
}


@dataclass(frozen=True)
class Arguments:
    """out: the JSON file to write. only: variants to run; all without it."""

    out: Path
    only: Annotated[tuple[str, ...], UseAppendAction] = ()


def variant_jobs(recipe: Path, overrides: list[str], only: tuple[str, ...], variants: dict[str, str]) -> dict[str, Job]:
    """Return the jobs to run, by name, without those that come to the recipe itself.

    Raises RecipeError for a name in ``only`` that no such variant has.
    """
    whole = parse_job(recipe, overrides)
    jobs = {"the recipe": whole}
    for name, words in variants.items():
        job = parse_job(recipe, [*overrides, *words.split()])
        if job.recipe != whole.recipe:
            jobs[name] = job
    if unknown := set(only) - set(jobs):
        raise RecipeError(f"asked for {sorted(unknown)}; this recipe's variants are {list(jobs)}")
    return {name: job for name, job in jobs.items() if not only or name in only}


def measured(job: Job) -> dict[str, Any]:
    """Train one variant; returns its scores, seconds and step time."""
    recipe, accelerator, events = job.recipe, join_processes(), list[dict[str, Any]]()
    corpus = open_job_corpus(job)
    tokens = validation_tokens(corpus)
    torch._dynamo.reset()  # or graphs of other variants would count towards the limit of recompilations
    set_seed(recipe.training.seed)
    model = PGolfForCausalLM(recipe.model_config())

    def plain(current: PGolfForCausalLM) -> dict[str, float]:
        return plain_score(current, tokens, corpus, recipe, accelerator)

    config: TrainingConfig = replace(recipe.training, validate_every=recipe.training.iterations)
    trained = fit(model, TrainTokens(corpus.train), config, accelerator, validate=plain, log=events.append)
    (last,) = (event["validation_bpb"] for event in events if event["event"] == "validation")
    return {
        "last weights": last,
        "published": plain(model)["validation_bpb"],
        "train_loss": trained.train_loss,
        "parameters": sum(p.numel() for p in model.parameters()),
        "seconds": trained.seconds,
        "step_ms": 1000 * (trained.seconds["step"] + trained.seconds["data"]) / trained.steps,
    }


def main() -> None:
    """Run every variant and write the table as figures come in."""
    arguments, rest = tyro.cli(Arguments, args=sys.argv[2:], return_unknown_args=True, add_help=False)
    table = {}
    for name, job in variant_jobs(Path(sys.argv[1]), rest, arguments.only, VARIANTS).items():
        started = time.perf_counter()
        table[name] = measured(job) | {"all_seconds": time.perf_counter() - started}
        print(name, json.dumps(table[name]), flush=True)
        facts = {"recipe": job.recipe.name, "steps": job.recipe.training.iterations, "variants": table}
        arguments.out.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
