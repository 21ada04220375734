"""Reuse: a run takes finished stages from another run whose recipe says the same about them.

Another codec needs no new training, another stride no new export. What is taken over is checked against its manifest,
copied whole, and says where it is from; everything behind it is made anew.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from modeling_pgolf.errors import FormatError, RecipeError

from .corpus.splits import file_sha256
from .job import Job
from .processes import join_processes
from .recipe import differences, load_recipe, recipe_hash
from .workdir import MANIFEST, RECIPE, RunFolder, building, check_outputs, read_manifest, write_text

# What the outcome of a stage follows from, by part of the recipe; scoring reads all of it.
READ_BY = {
    "train": {"corpus", "model", "training", "track"},
    "export": {"corpus", "model", "training", "track", "quantization", "budget"},
}


def reused(job: Job, run: RunFolder, stage: str) -> bool:
    """Take over what ``--reuse`` allows, up to ``stage``; says whether that stage itself needs no running.

    What the run has made itself stays, and a stage of it that is asked for again runs again.
    Raises like ``to_take``. All processes of a stage call it; the main one copies.
    """
    if job.place.reuse is None:
        return False
    taken = to_take(job, run)
    accelerator = join_processes()
    accelerator.wait_for_everyone()  # all have looked before the first writes
    with accelerator.main_process_first():
        if accelerator.is_main_process:
            if "train" in taken:
                write_text(run.log, read_log(taken["train"]))
                take_over(taken["train"].checkpoint, run.checkpoint, job)
            if "export" in taken and stage != "train":
                take_over(taken["export"].artifact, run.artifact, job)
    return stage in taken


def to_take(job: Job, run: RunFolder) -> dict[str, RunFolder]:
    """Return the stages that ``--reuse`` lets this run take over, and the run that has them; none without it.

    Raises RecipeError where the other run does not exist or was not trained like this one, FormatError where its
    files were changed.
    """
    if job.place.reuse is None:
        return {}
    other = RunFolder(run.path.parent / job.place.reuse)
    changed = changed_parts(other, run, job)
    taken = {}
    if not run.checkpoint.exists():
        read_log(other)
        check_outputs(other.checkpoint)
        taken["train"] = other
    if other.artifact.exists() and not run.artifact.exists() and not changed & READ_BY["export"]:
        check_outputs(other.artifact)
        taken["export"] = other
    return taken


def read_log(run: RunFolder) -> str:
    """Read the training log of a run; raises FormatError where it is gone."""
    if not run.log.exists():
        raise FormatError(f"{run.log} is missing, and a checkpoint without its log cannot be recorded; train again")
    return run.log.read_text(encoding="utf-8")


def changed_parts(other: RunFolder, run: RunFolder, job: Job) -> set[str]:
    """Return the parts in which the recipes differ; raises RecipeError where training is one of them."""
    kept = other.path / RECIPE
    if other.path.resolve() == run.path.resolve() or not kept.exists():
        raise RecipeError(f"--reuse {other.path.name} names no other run; {other.path.parent} holds the runs there are")
    changed = [field for field, *_ in differences(load_recipe(kept), job.recipe)]
    trained = [field for field in changed if field.partition(".")[0] in READ_BY["train"]]
    if trained:
        raise RecipeError(
            f"the run {other.path.name} has another {', '.join(trained[:3])}: nothing of it can be reused; "
            "leave --reuse out and train"
        )
    for folder in (other.checkpoint, other.artifact):
        if folder.exists() and read_manifest(folder)["recipe_sha256"] != file_sha256(kept):
            raise FormatError(f"{folder} was not made by {kept}, which was changed since; nothing of it can be reused")
    return {field.partition(".")[0] for field in changed}


def take_over(source: Path, target: Path, job: Job) -> None:
    """Copy a finished stage that was checked; the manifest names the run that it is from."""
    manifest = read_manifest(source)
    origin = {"run": job.place.reuse, "recipe_sha256": manifest["recipe_sha256"]}
    origin = manifest.get("reused_from", origin)  # the run that made it, not one that took it over too
    with building(target) as folder:
        shutil.copytree(source, folder, dirs_exist_ok=True)
        told = {**manifest, "recipe_sha256": recipe_hash(job.recipe), "reused_from": origin}
        write_text(folder / MANIFEST, json.dumps(told, indent=2, sort_keys=True) + "\n")
    print(f"reused {source}")
