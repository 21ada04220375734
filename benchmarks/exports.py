"""What each choice of the exporter is worth: one checkpoint, exported in several ways and scored plainly.

    python benchmarks/exports.py RECIPE --run NAME --out FILE [--only NAME]... [--root DIR] [overrides]

The run must have been trained, by a recipe with SDClip. Every way gets the same bytes; a way without rate control takes
what it takes.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

sys.path[0] = str(Path(__file__).resolve().parents[1])

import tyro
from tyro.conf import UseAppendAction

from benchmarks.techniques import variant_jobs
from modeling_pgolf.modeling_pgolf import PGolfForCausalLM
from pgolf.calibration_text import calibration_text
from pgolf.convert import load_exactly
from pgolf.job import Job, open_job_corpus, parse_job, training_tokens, validation_tokens
from pgolf.processes import join_processes
from pgolf.run import plain_score
from pgolf.workdir import open_run
from quantization.compress import calibrate, compress, dequantized

# Left free for the code that travels with an artifact: all of the model package, rounded up.
CODE_BYTES = 110_000
VARIANTS = {
    "the recipe": "",
    "rounded to the nearest": "quantization.gptq:none",
    "GPTQ on its own text": "quantization.gptq:gptq-config quantization.gptq.calibration:self-generated",
    "percentile clip": "quantization.clip:percentile-clip",
    "table rounded to the nearest": "quantization.gptq:gptq-config --quantization.gptq.no-token-table",
    "a finer table": "--quantization.clip.table-sigmas 14",
    "a coarser table": "--quantization.clip.table-sigmas 28",
    "finer attention": "--quantization.clip.attention-sigmas 11",
    "coarser attention": "--quantization.clip.attention-sigmas 15",
    "zstd": "--quantization.codec zstd",
    "no rate control": "--quantization.no-fill-budget",
}


@dataclass(frozen=True)
class Arguments:
    """out: the JSON file to write. only: ways to export; all without it."""

    out: Path
    only: Annotated[tuple[str, ...], UseAppendAction] = ()


def measured(whole: Job, job: Job) -> dict[str, Any]:
    """Export the checkpoint of ``whole`` by the recipe of ``job`` and score it."""
    recipe, accelerator = job.recipe, join_processes()
    run = open_run(whole.place.root, whole.place.run, whole.recipe)
    corpus = open_job_corpus(whole)
    model = PGolfForCausalLM.from_pretrained(run.checkpoint).to(accelerator.device)
    text = calibration_text(model, recipe, lambda: training_tokens(whole, corpus))
    calibration = calibrate(model, recipe.quantization, text)
    artifact = compress(model, recipe.quantization, recipe.budget.artifact_bytes - CODE_BYTES, calibration)
    load_exactly(model, dequantized(artifact.weights))
    score = plain_score(model.to(accelerator.device), validation_tokens(corpus), corpus, recipe, accelerator)
    clip = {"clip": asdict(artifact.clip)}
    return {"int6": score["validation_bpb"], "frame_bytes": len(artifact.frame), "seconds": artifact.seconds} | clip


def main() -> None:
    """Export in every way and write the table as figures come in."""
    arguments, rest = tyro.cli(Arguments, args=sys.argv[2:], return_unknown_args=True, add_help=False)
    recipe, table = Path(sys.argv[1]), {}
    whole = parse_job(recipe, rest)
    for name, job in variant_jobs(recipe, rest, arguments.only, VARIANTS).items():
        table[name] = measured(whole, job)
        print(name, json.dumps(table[name]), flush=True)
        arguments.out.write_text(json.dumps({"recipe": whole.recipe.name, "variants": table}, indent=1) + "\n")


if __name__ == "__main__":
    main()
