"""The whole road inside one launch: what a bundle runs.

Train, export and score follow one another in the processes that were started; export is the main process's. Folders
and manifests are those of separate stages, so ``pgolf record`` can collect the run afterwards. The counted code is
the script: its bytes and those of the weights must fit the budget together.
"""

from __future__ import annotations

from pathlib import Path

from transformers.utils import logging as transformers_logging

from quantization.budget import check_budget

from .artifact import WEIGHTS
from .job import Job
from .place import Place
from .processes import join_processes, leave_process_group
from .recipe import parse_recipe
from .run import export, score_artifact, train
from .workdir import RunFolder, open_run


def main(recipe: str, script: str) -> None:
    """Run a recorded recipe in the working directory.

    script: the file that the challenge counts as code. Errors are left to Python: a bundle has no texts for them.
    """
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    job = Job(parse_recipe(recipe), Place())
    run_stages(job, open_run(job.place.root, job.place.run, job.recipe), Path(script).stat().st_size)
    leave_process_group()


def run_stages(job: Job, run: RunFolder, script_bytes: int) -> None:
    """Train, export and score; raises BudgetError where script and weights are over the limit."""
    train(job, run)
    export(job, run, script_bytes)
    if join_processes().is_main_process:
        limit = job.recipe.budget.artifact_bytes
        total = check_budget((run.artifact / WEIGHTS).stat().st_size, script_bytes, limit)
        print(f"submission: {total:,} bytes of {limit:,} ({script_bytes:,} of them this script)")
    score_artifact(job, run)
