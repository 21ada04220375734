"""Experiment trackers through Accelerate: the numbers of the log, live in a tool of the player's choice.

A tracker sees what ``log.jsonl`` sees, never more; a run without one is complete.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from modeling_pgolf.errors import EnvironmentMismatch

from .place import Tracker
from .recipe import Recipe, flat

Log = Callable[[dict[str, Any]], None]


def require_trackers(trackers: Sequence[Tracker]) -> None:
    """Raise EnvironmentMismatch where an asked tracker is not installed: Accelerate would leave it out in silence."""
    missing = [name for name in trackers if importlib.util.find_spec(name) is None]
    if missing:
        raise EnvironmentMismatch(
            f"asked to report to {', '.join(missing)}, which is not installed here; pip install {' '.join(missing)}, "
            "or leave --trackers out"
        )


def start_trackers(accelerator: Accelerator, recipe: Recipe, folder: Path) -> Log:
    """Start the accelerator's trackers with the recipe as their configuration; returns where events go."""
    plain = {name: value for name, value in flat(asdict(recipe)).items() if isinstance(value, bool | int | float | str)}
    accelerator.init_trackers(recipe.name, config=plain, init_kwargs={"wandb": {"dir": str(folder)}})

    def log(event: dict[str, Any]) -> None:
        values = {
            name: value
            for name, value in event.items()
            if isinstance(value, int | float) and name not in ("time", "step")
        }
        if values and "step" in event:
            accelerator.log(values, step=event["step"])

    return log
