"""Readiness: what a stage would refuse as it starts is refused before processes are started for it.

Its own functions are asked, and nothing is written. They ask again in every process of the stage, because doors
are started by hand too, and something may have changed since.
"""

from __future__ import annotations

import sys

import torch

from modeling_pgolf.modeling_pgolf import PGolfForCausalLM
from modeling_pgolf.quantization_pgolf import read_track
from training.batches import calls_per_step
from training.flops import training_flops
from training.qat import LateQat
from training.streamed import refuse_lanes

from .artifact import WEIGHTS
from .corpus.build import FACTS_FILE
from .fine_tune_text import check_fine_tune
from .job import Job, corpus_folder, open_job_corpus
from .occupied import check_free
from .recipe import Recipe
from .reuse import to_take
from .track import check_track, checkpoint_track
from .workdir import check_outputs, run_folder

# Operations of one step. Two cores do about 10**11 a second, so such a step takes them over a minute.
SLOW_STEP = 1e13


def check_ready(job: Job, stage: str, processes: int) -> None:
    """Raise what ``processes`` of this stage would raise before they do any work; print what would only disappoint.

    A corpus is opened where it is there, and not built: what is wrong with its source shows later.
    """
    run = run_folder(job.place.root, job.place.run, job.recipe)
    check_free(run.path)
    taken = to_take(job, run)
    if stage in taken:
        return
    if stage == "train":
        check_trainable(job.recipe, processes)
        if warning := slow_step(job.recipe, torch.cuda.device_count()):
            print(f"pgolf: {warning}", file=sys.stderr)
    elif stage == "export" and "train" not in taken:
        check_outputs(run.checkpoint)
        check_track(job.recipe.track, run.checkpoint, checkpoint_track(run.checkpoint))
    elif stage == "score" and "export" not in taken:
        check_outputs(run.artifact)
        check_track(job.recipe.track, run.artifact, read_track(run.artifact / WEIGHTS))
    if stage != "export" and (corpus_folder(job) / FACTS_FILE).is_file():
        open_job_corpus(job)


def check_trainable(recipe: Recipe, processes: int) -> None:
    """Raise what training would raise, or do silently, by the recipe alone.

    TrainingError where a step cannot be shared out, or where late QAT would round nothing; RecipeError where
    fine-tuning would freeze blocks that are not there, or where a ranked one has no seconds of the clock.
    """
    training, streaming = recipe.training, recipe.corpus.streaming
    calls_per_step(training, processes)
    if streaming is not None:
        refuse_lanes(streaming.lanes, training)
    check_fine_tune(recipe)
    if training.qat is not None:
        LateQat(weightless_model(recipe), training.qat)


def slow_step(recipe: Recipe, gpus: int) -> str:
    """Say that the recipe's steps are too much for a machine without a GPU; empty where they are not."""
    if gpus:
        return ""
    per_token = training_flops(weightless_model(recipe), recipe.training.sequence_length)
    operations = per_token * recipe.training.step_tokens
    if operations < SLOW_STEP:
        return ""
    return (
        f"no GPU is visible: a step of {recipe.training.step_tokens:,} tokens is {operations:.1e} operations, which "
        "takes CPU cores minutes to hours, and a signal is heard between steps; recipes/demo.py is made for CPUs"
    )


def weightless_model(recipe: Recipe) -> PGolfForCausalLM:
    """Build the recipe's model without memory for its weights."""
    with torch.device("meta"):
        return PGolfForCausalLM(recipe.model_config())
