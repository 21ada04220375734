"""Reuse: a run takes finished stages from another run whose recipe says the same about them.

Another codec needs no new training, another stride no new export. What is taken over is checked against its manifest,
copied whole, and says where it is from; everything behind it is made anew.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from accelerate import Accelerator

from modeling_pgolf.errors import RecipeError

from .job import Job
from .recipe import differences, load_recipe, recipe_hash
from .workdir import MANIFEST, RunFolder, building, check_outputs, write_text

# What the outcome of a stage follows from, by part of the recipe; scoring reads all of it.
READ_BY = {
    "train": {"corpus", "model", "training", "track"},
    "export": {"corpus", "model", "training", "track", "quantization", "budget"},
}


def reused(job: Job, run: RunFolder, stage: str) -> bool:
    """Take over what ``--reuse`` allows, up to ``stage``; says whether that stage itself needs no running.

    Raises RecipeError where the other run does not exist or was not trained like this one, FormatError where its
    files were changed. All processes of a stage call it; the main one copies.
    """
    if job.place.reuse is None:
        return False
    other = RunFolder(run.path.parent / job.place.reuse)
    changed = changed_parts(other, run, job)
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    with accelerator.main_process_first():
        if accelerator.is_main_process:
            take_over(other.checkpoint, run.checkpoint, job)
            shutil.copyfile(other.log, run.log)
            if stage != "train" and not changed & READ_BY["export"]:
                take_over(other.artifact, run.artifact, job)
    return stage in READ_BY and not changed & READ_BY[stage]


def changed_parts(other: RunFolder, run: RunFolder, job: Job) -> set[str]:
    """Return the parts in which the recipes differ; raises RecipeError where training is one of them."""
    kept = other.path / "recipe.json"
    if other.path == run.path or not kept.exists():
        raise RecipeError(f"--reuse {other.path.name} names no other run; {other.path.parent} holds the runs there are")
    changed = [field for field, *_ in differences(load_recipe(kept), job.recipe)]
    trained = [field for field in changed if field.partition(".")[0] in READ_BY["train"]]
    if trained:
        raise RecipeError(
            f"the run {other.path.name} has another {', '.join(trained[:3])}: nothing of it can be reused; "
            "leave --reuse out and train"
        )
    return {field.partition(".")[0] for field in changed}


def take_over(source: Path, target: Path, job: Job) -> None:
    """Copy a finished stage, unless the run has its own; the manifest names the run that it is from."""
    if target.exists():
        return
    manifest = check_outputs(source)
    origin = {"run": job.place.reuse, "recipe_sha256": manifest["recipe_sha256"]}
    with building(target) as folder:
        shutil.copytree(source, folder, dirs_exist_ok=True)
        told = {**manifest, "recipe_sha256": recipe_hash(job.recipe), "reused_from": origin}
        write_text(folder / MANIFEST, json.dumps(told, indent=2, sort_keys=True) + "\n")
    print(f"reused {source}")
