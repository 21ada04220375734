"""The evidence of a record, read once for all of its facts.

Everything here is what the record says. Nothing of it is believed: facts compare one file with another.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..recipe import Recipe, load_recipe
from ..stages import Facts, passes
from .facts import STAGES, read_json


@dataclass(frozen=True)
class Evidence:
    """What a record's files say. manifests: by stage. scores: by scoring. seconds: of each scoring, as scored."""

    record: Path
    recipe: Recipe
    manifests: dict[str, Any]
    scores: dict[str, Any]
    seconds: dict[str, Any]

    @property
    def training(self) -> dict[str, Any]:
        """The manifest of training, empty where there is none."""
        found: dict[str, Any] = self.manifests.get("training", {})
        return found

    @property
    def validation(self) -> dict[str, Any]:
        """What the corpus says of its validation split, empty where it says nothing."""
        found: dict[str, Any] = self.training.get("corpus", {}).get("validation", {})
        return found

    @property
    def known(self) -> dict[str, Any]:
        """The scores whose names are those of scorings that the recipe makes."""
        return {name: self.scores[name] for name in passes(self.recipe.evaluation) if name in self.scores}

    def stage_facts(self, steps: int | None, losses: dict[str, Any]) -> Facts:
        """Return what the stages wrote; ``losses`` of the float model and ``steps`` are in no file that is hashed."""
        metrics, sizes = {"steps": steps, **losses}, read_json(self.record / "bytes.json")
        return Facts(self.manifests, metrics, sizes, self.scores, self.seconds)


def read_evidence(record: Path) -> Evidence:
    """Read a record; raises FormatError where a file is missing or damaged, RecipeError where the recipe is none."""
    outcome = read_json(record / "scores.json")
    paths = [record / "manifests" / f"{stage}.json" for stage in STAGES]
    manifests = {path.stem: read_json(path) for path in paths if path.is_file()}
    recipe = load_recipe(record / "recipe.json")
    return Evidence(record, recipe, manifests, outcome["scores"], outcome.get("seconds", {}))


def is_amount(value: object) -> bool:
    """Say whether a value is a number that something can have: finite, and not negative."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0


def close(one: object, other: object) -> bool:
    """Say whether two values are the same amount, to 1e-9 of it: float64 sums in another order."""
    if not (is_amount(one) and is_amount(other)):
        return one is None and other is None
    return math.isclose(float(str(one)), float(str(other)), rel_tol=1e-9, abs_tol=1e-12)
