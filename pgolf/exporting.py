"""The export stage: from ``checkpoint/`` to ``artifact/``, calibration text included where the recipe wants it.

The budget is the recipe's bytes less the code that travels; an artifact over it is refused, never written.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from itertools import islice

from accelerate import Accelerator

from modeling_pgolf.modeling_pgolf import PGolfForCausalLM
from modeling_pgolf.quantization_pgolf import with_track, write_frame_file
from quantization.budget import check_budget
from quantization.compress import Calibration, calibrate, compress
from quantization.rate import plan_text

from .artifact import OUTER_BYTES, WEIGHTS, code_bytes, write_loader
from .calibration_text import Tokens, calibration_text
from .corpus.splits import file_sha256
from .recipe import Recipe
from .track import check_track, checkpoint_track
from .workdir import RunFolder, building, check_outputs, write_manifest, write_text


def export_checkpoint(
    recipe: Recipe,
    run: RunFolder,
    accelerator: Accelerator,
    open_tokens: Callable[[], Tokens],
    script_bytes: int = 0,
) -> None:
    """Compress the checkpoint to ``artifact/``, its track in the weights' own file.

    All processes read calibration text, each its share; the main one rounds, packs and writes.
    Raises BudgetError where it is over the limit, LegalityError where the checkpoint is of another track.
    open_tokens: opens the training tokens; called only where the recipe calibrates on them.
    script_bytes: of a bundle, to be left free beside the weights where they are more than the artifact's own code.
    """
    check_outputs(run.checkpoint)
    check_track(recipe.track, run.checkpoint, checkpoint_track(run.checkpoint))
    started = time.perf_counter()
    model = PGolfForCausalLM.from_pretrained(run.checkpoint).to(accelerator.device)
    text = calibration_text(model, recipe, open_tokens)
    share = islice(text, accelerator.process_index, None, accelerator.num_processes)
    calibration = calibrate(model, recipe.quantization, share)
    if accelerator.is_main_process:
        write_compressed(recipe, run, model, calibration, script_bytes, started)
    accelerator.wait_for_everyone()


def write_compressed(
    recipe: Recipe,
    run: RunFolder,
    model: PGolfForCausalLM,
    calibration: Calibration,
    script_bytes: int,
    started: float,
) -> None:
    """Write ``artifact/``; ``started`` is when the stage began, by the process's clock."""
    with building(run.artifact) as folder:
        write_loader(folder, model, run.checkpoint)
        code = code_bytes(folder)
        free = recipe.budget.artifact_bytes - max(code, script_bytes) - OUTER_BYTES
        artifact = compress(model, recipe.quantization, free, calibration, print)
        artifact = replace(artifact, frame=with_track(artifact.frame, recipe.track))
        print(plan_text(artifact.plan, len(artifact.frame)))
        write_frame_file(folder / WEIGHTS, artifact.frame)
        total = check_budget((folder / WEIGHTS).stat().st_size, code, recipe.budget.artifact_bytes)
        sizes = {"total_bytes": total, "code_bytes": code, "clip": asdict(artifact.clip)}
        ledger = [asdict(line) for line in artifact.ledger]
        write_text(folder / "bytes.json", json.dumps({**sizes, "groups": ledger}, indent=2) + "\n")
        inputs = {"checkpoint/model.safetensors": file_sha256(run.checkpoint / "model.safetensors")}
        rest = time.perf_counter() - started - sum(artifact.seconds.values())
        write_manifest(folder, "quantization", recipe, inputs, {**artifact.seconds, "export": rest}, **sizes)
    print(f"artifact: {total:,} bytes of {recipe.budget.artifact_bytes:,} ({code:,} of them code)")
