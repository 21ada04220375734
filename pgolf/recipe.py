"""A recipe: one frozen typed value that describes a whole run.

Authored in Python (a file that binds ``recipe``), recorded as JSON, changed on the command line by overrides. Unknown
keys are errors that name the nearest field.
"""

from __future__ import annotations

import difflib
import hashlib
import re
import runpy
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, make_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro
from pydantic import TypeAdapter, ValidationError

from evaluation.config import EvaluationConfig
from modeling_pgolf.configuration_pgolf import PGolfConfig
from modeling_pgolf.errors import RecipeError
from quantization.config import QuantizationConfig
from training.config import TrainingConfig

from .corpus.build import CorpusConfig
from .kinds import choose, kinds_of

# Names become folders and headings: none leaves its folder, hides itself, or holds markup.
NAME = re.compile(r"\w([\w .-]*[\w.-])?", re.ASCII)

if TYPE_CHECKING:
    ModelConfig = Any
else:
    # The fields that PGolfConfig itself declares: stated once, in the package that travels with a model.
    ModelConfig = make_dataclass(
        "ModelConfig",
        [
            (f.name, f.type, field(default=f.default, default_factory=f.default_factory))
            if f.default_factory is not f.default
            else (f.name, f.type, f.default)
            for f in fields(PGolfConfig)
            if f.name in PGolfConfig.__annotations__
        ],
        frozen=True,
        kw_only=True,
        namespace={"__doc__": PGolfConfig.__doc__},
    )


@dataclass(frozen=True)
class BudgetConfig:
    """The limits of the game: bytes of code and weights, seconds of training and evaluation. Source: LEGALITY B1-B3."""

    artifact_bytes: int = 16_000_000
    training_seconds: float = 600.0
    evaluation_seconds: float = 600.0


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the outcome of a run.

    name: of the run's folder and of its record, as ``check_name`` allows.
    track: "historical" marks systems that adapt on validation text before scoring; their records are not rankable.
    """

    name: str
    corpus: CorpusConfig
    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    quantization: QuantizationConfig = field(default_factory=QuantizationConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    track: Literal["ranked", "historical"] = "ranked"

    def model_config(self) -> PGolfConfig:
        """Build the model configuration; raises ConfigError where it contradicts itself."""
        return PGolfConfig(**asdict(self.model))


def load_recipe(path: Path) -> Recipe:
    """Load a recipe from a Python file that binds ``recipe``, or from its recorded JSON; raises RecipeError."""
    if not path.is_file():
        raise RecipeError(f"there is no recipe file {path}; recipes/ holds those that come with pgolf")
    found = parse_recipe(path.read_text()) if path.suffix == ".json" else run_recipe(path)
    if not isinstance(found, Recipe):
        raise RecipeError(f"{path} must bind the name 'recipe' to a pgolf.recipe.Recipe, found {type(found).__name__}")
    check_name(found.name)
    return found


def run_recipe(path: Path) -> Any:
    """Return what a Python file binds to ``recipe``; raises RecipeError where the file cannot be run."""
    try:
        return runpy.run_path(str(path)).get("recipe")
    except (SyntaxError, ImportError, NameError, AttributeError, TypeError, ValueError, OSError) as error:
        raise RecipeError(f"{path} cannot be run as a recipe: {type(error).__name__}: {error}") from error


def check_name(name: str) -> None:
    """Raise RecipeError unless a recipe or a run may be called so."""
    if not NAME.fullmatch(name):
        raise RecipeError(
            f"asked for the name {name!r}; it becomes a folder and a heading: give one of the letters a to z, digits "
            "and _ . - with blanks inside, and begin it with a letter, a digit or _"
        )


def parse_recipe(text: str) -> Recipe:
    """Parse recorded JSON; raises RecipeError on wrong types and on unknown keys, with the nearest name."""
    try:
        data = TypeAdapter(dict[str, Any]).validate_json(text)
        recipe = TypeAdapter(Recipe).validate_python(data)
    except ValidationError as error:
        raise RecipeError(f"the recipe cannot be used: {error}") from error
    refuse_unknown(data, asdict(recipe), "recipe")
    return recipe


def refuse_unknown(data: dict[str, Any], known: dict[str, Any], where: str) -> None:
    """Raise RecipeError on the first key of ``data`` that the parsed value does not have."""
    for key, value in data.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            raise RecipeError(f"unknown key {key!r} in {where}" + (f"; did you mean {near[0]!r}?" if near else ""))
        if isinstance(value, dict) and isinstance(known[key], dict):
            refuse_unknown(value, known[key], f"{where}.{key}")


def with_overrides(recipe: Recipe, overrides: Sequence[str]) -> Recipe:
    """Return the recipe with command-line overrides, in any order; exits with help on bad ones.

    ``--training.iterations 100`` changes a field. ``training.qat:qat-config`` or ``corpus.source:local-folder`` choose
    another kind of a part, whose fields can be changed like all others.
    """
    chosen, rest = choose(recipe, overrides)
    parts = "\n".join(f"    {part.replace('_', '-')}:  {'  '.join(kinds)}" for part, kinds in kinds_of(Recipe))
    changed: Recipe = tyro.cli(
        Recipe,
        default=chosen,
        args=rest,
        prog="pgolf VERB RECIPE",
        description=(
            f"Overrides of the recipe '{recipe.name}'; pgolf VERB --help shows where a run lives.\n\nParts of several "
            f"kinds, of which PART:KIND chooses one, anywhere among the overrides:\n\n{parts}"
        ),
        config=(tyro.conf.AvoidSubcommands,),
    )
    return changed


def recipe_json(recipe: Recipe) -> str:
    """Serialise a recipe; equal recipes give equal text."""
    return TypeAdapter(Recipe).dump_json(recipe, indent=2).decode() + "\n"


def recipe_hash(recipe: Recipe) -> str:
    """Return the SHA-256 of the recorded form."""
    return hashlib.sha256(recipe_json(recipe).encode()).hexdigest()


def differences(one: Recipe, other: Recipe) -> list[tuple[str, Any, Any]]:
    """List the fields in which two recipes differ, as (dotted name, value of one, value of other)."""
    left, right = flat(asdict(one)), flat(asdict(other))
    names = sorted(set(left) | set(right))
    return [(n, left.get(n), right.get(n)) for n in names if left.get(n) != right.get(n)]


def flat(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten a nested dictionary: dotted name to value."""
    fields: dict[str, Any] = {}
    for key, inner in value.items():
        if isinstance(inner, dict):
            fields |= flat(inner, f"{prefix}{key}.")
        else:
            fields[prefix + key] = inner
    return fields
