"""Examine an installation: versions, where the sibling packages resolve, GPUs, the C++ compiler.

An installed distribution with a top-level ``training`` or ``evaluation`` would win over ours; ``pgolf`` refuses to
start then, and this table says who it is.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import shutil
from pathlib import Path

import torch

from modeling_pgolf.errors import EnvironmentMismatch

from .workdir import PACKAGES, ROOT

SIBLINGS = ("modeling_pgolf", "training", "quantization", "evaluation")


def examine() -> None:
    """Print the table; raises EnvironmentMismatch where a sibling package is not ours."""
    print(f"python       {platform.python_version()}")
    for name in PACKAGES:
        print(f"{name:<12} {importlib.metadata.version(name)}")
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    print(f"gpus         {', '.join(gpus) or 'none: set training.precision fp32 and training.compile False'}")
    print(f"compiler     {shutil.which('c++') or 'none: torch.compile needs one'}")
    for name in SIBLINGS:
        print(f"{name:<15} {package_folder(name)}")
    check_siblings()
    print("all sibling packages are ours")


def package_folder(name: str) -> Path | None:
    """Return the folder a top-level package resolves to."""
    spec = importlib.util.find_spec(name)
    return Path(spec.origin).resolve().parent if spec is not None and spec.origin else None


def check_siblings() -> None:
    """Raise EnvironmentMismatch where a sibling package resolves outside this checkout."""
    for name in SIBLINGS:
        found = package_folder(name)
        if found != ROOT / name:
            raise EnvironmentMismatch(
                f"the package '{name}' resolves to {found}, expected {ROOT / name}: another distribution installed a "
                "package of that name; uninstall it, or start a stage by its door (python training/train.py)"
            )
