"""The place of a run: where its files lie, what it may take over, and who watches it.

None of it is part of the recipe: a run comes to the same in any folder. Help shows these options, so this file imports
nothing that takes seconds; their texts stand behind the fields, where tyro reads them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import UseAppendAction

Tracker = Literal["tensorboard", "trackio", "wandb"]


@dataclass(frozen=True)
class Place:
    """Where a run lives, ``ROOT/runs/RUN`` and ``ROOT/corpora``, and which trackers may watch it."""

    root: Path = Path()
    """the folder that holds runs/ and corpora/"""
    run: str | None = None
    """the name of the run's folder below ROOT/runs; the recipe's name without it"""
    reuse: str | None = None
    """another run below ROOT/runs: its stages that this recipe would not change are copied, not made again"""
    # One name an option, or it would take the recipe behind it for another name.
    trackers: Annotated[tuple[Tracker, ...], UseAppendAction] = ()
    """where the training log is shown live too, an option for each; it has to be installed"""
