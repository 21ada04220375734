"""Run folders: atomic directories with a manifest each, chained by hashes.

A stage's folder appears under its name only when it is complete, with a ``manifest.json`` of what went in, what came
out, by which recipe, code, versions and hardware, in how many seconds. Records refuse folders that do not chain.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from modeling_pgolf.errors import FormatError, RecipeError

from .corpus.splits import file_sha256
from .recipe import Recipe, parse_recipe, recipe_hash, recipe_json
from .siblings import ROOT

MANIFEST, RECIPE = "manifest.json", "recipe.json"
# The verb that writes a stage's folder.
VERBS = {"checkpoint": "train", "artifact": "export", "scores": "score", "record": "record"}
# Packages whose version can change a number.
PACKAGES = ("torch", "transformers", "accelerate", "tokenizers", "safetensors", "zstandard", "numpy")


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run; stages read and write below it."""

    path: Path

    @property
    def checkpoint(self) -> Path:
        """The trained float model."""
        return self.path / "checkpoint"

    @property
    def states(self) -> Path:
        """Training states to resume from."""
        return self.path / "states"

    @property
    def log(self) -> Path:
        """The training log, one JSON object a line."""
        return self.path / "log.jsonl"

    @property
    def artifact(self) -> Path:
        """The compressed model as it is shipped."""
        return self.path / "artifact"

    @property
    def scores(self) -> Path:
        """Scores and nats."""
        return self.path / "scores"

    @property
    def record(self) -> Path:
        """What is published."""
        return self.path / "record"


def open_run(root: Path, run: str | None, recipe: Recipe) -> RunFolder:
    """Open the folder of a run, or start it; raises RecipeError like ``run_folder``, and where it cannot be made."""
    home = run_folder(root, run, recipe)
    kept = home.path / RECIPE
    if not kept.exists():
        with reachable(home.path):
            home.path.mkdir(parents=True, exist_ok=True)
        write_text(kept, recipe_json(recipe))
    return home


def run_folder(root: Path, run: str | None, recipe: Recipe) -> RunFolder:
    """Name the folder of a run, started or not; raises RecipeError where another recipe lives there."""
    folder = root / "runs" / (run or recipe.name)
    kept = folder / RECIPE
    with reachable(folder):
        if kept.exists() and parse_recipe(kept.read_text()) != recipe:
            raise RecipeError(
                f"{folder} holds a run of another recipe or other overrides; give this one its own --run NAME, "
                "or remove that folder"
            )
    return RunFolder(folder)


@contextmanager
def reachable(folder: Path) -> Iterator[None]:
    """Raise RecipeError where the operating system gives no access to ``folder``."""
    try:
        yield
    except OSError as error:
        raise RecipeError(
            f"asked for the run folder {folder}; found: {error.strerror or error}; choose a --root whose files you may "
            "read and write"
        ) from error


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    with open(partial, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


@contextmanager
def building(folder: Path) -> Iterator[Path]:
    """Give a scratch folder that becomes ``folder`` when the block ends well and vanishes when it does not."""
    scratch = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        yield scratch
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(scratch, folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def write_manifest(
    folder: Path, stage: str, recipe: Recipe, inputs: dict[str, str], seconds: dict[str, float], **facts: Any
) -> None:
    """Write ``manifest.json`` over the files of ``folder``.

    inputs: name to SHA-256 of what the stage read. seconds: by phase. facts: anything else worth keeping.
    """
    manifest = {
        "stage": stage,
        "track": recipe.track,
        "recipe_sha256": recipe_hash(recipe),
        "seed": recipe.training.seed,
        "inputs": inputs,
        "outputs": file_hashes(folder),
        "seconds": seconds,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES}
        | {"python": platform.python_version()},
        "hardware": hardware(),
        **facts,
    }
    write_text(folder / MANIFEST, json.dumps(manifest, indent=2, sort_keys=True) + "\n")


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read the manifest of a stage's folder; raises RecipeError where the stage has not run."""
    path = folder / MANIFEST
    if not path.exists():
        raise RecipeError(f"{folder} has no {MANIFEST}: its stage has not run, or not to its end; {maker(folder)}")
    manifest: dict[str, Any] = json.loads(path.read_text())
    return manifest


def maker(folder: Path) -> str:
    """Say which verb makes the folder of a stage."""
    return f"pgolf {VERBS.get(folder.name, 'run')} RECIPE makes it"


def check_outputs(folder: Path) -> dict[str, Any]:
    """Return the manifest of ``folder``; raises FormatError where a file is not the one that was written."""
    manifest = read_manifest(folder)
    found = file_hashes(folder)
    for name, sha in manifest["outputs"].items():
        if found.get(name) != sha:
            raise FormatError(f"{folder}/{name} was changed or lost after its stage ran; {maker(folder)}")
    return manifest


def file_hashes(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file below ``folder``, its own manifest left out."""
    files = sorted(
        p for p in folder.rglob("*") if p.is_file() and p != folder / MANIFEST and "__pycache__" not in p.parts
    )
    return {str(p.relative_to(folder)): file_sha256(p) for p in files}


def commit() -> str | None:
    """Return the commit of the checkout, ``-dirty`` behind it where files differ; None outside a checkout."""
    try:
        run = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--match="],
            cwd=ROOT, capture_output=True, text=True, check=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return None
    return run.stdout.strip()


def hardware() -> dict[str, Any]:
    """Describe the machine: processor, cores and GPUs."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {"machine": platform.machine(), "cores": os.cpu_count(), "gpus": gpus}
