"""The sibling packages: ``training``, ``quantization``, ``evaluation`` and ``modeling_pgolf`` must be ours.

Their names are generic, and an installed distribution that ships one of them at top level would win over ours.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from modeling_pgolf.errors import EnvironmentMismatch

ROOT = Path(__file__).resolve().parents[1]
SIBLINGS = ("modeling_pgolf", "training", "quantization", "evaluation")


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
