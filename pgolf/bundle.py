"""The bundle: one ``train_gpt.py`` that trains, exports and scores a recipe, as the challenge asks for it.

It holds the stripped sources that this recipe needs, compressed, and unpacks them to a temporary folder when it is
started: an artifact carries its code as files, so they have to be files. Its bytes are the code that the challenge
counts. Source: the README of openai/parameter-golf; LEGALITY B1, E1.
"""

from __future__ import annotations

import base64
import bz2
import json
import re
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from modeling_pgolf.errors import PGolfError, RecipeError
from quantization.budget import check_budget

from .artifact import WEIGHTS
from .closure import sources
from .decisions import recipe_decisions
from .recipe import Recipe, load_recipe, parse_recipe
from .workdir import write_text

ENTRY, START = "pgolf.single_file", "main"
RECIPE = "recipe.json"

# Between files in the packed text; no source of ours has one.
SEPARATOR = "\f"

SCRIPT = '''\
"""{name}: train, export, score. By pgolf bundle: our stripped sources and the recipe, unpacked to a temporary folder.

torchrun --standalone --nproc_per_node=8 train_gpt.py
"""
import base64, bz2, sys, tempfile
from pathlib import Path

if __name__ == "__main__":
    packed = "{packed}"
    with tempfile.TemporaryDirectory() as home:
        for file in bz2.decompress(base64.b85decode(packed)).decode().split("{separator}"):
            name, _, text = file.partition("\\n")
            Path(home, name).parent.mkdir(parents=True, exist_ok=True)
            Path(home, name).write_text(text, "utf-8")
        sys.path.insert(0, home)
        from {entry} import {start}
        {start}(Path(home, "{recipe}").read_text(), __file__)
'''


def write_bundle(source: Path, out: Path) -> str:
    """Write the bundle of a record folder or of a recipe file; says what of the budget it takes.

    Raises BudgetError where script and weights of the record are over the recipe's limit; nothing is written then.
    """
    recipe, weight_bytes = read_source(source)
    script = bundle_script(recipe)
    limit = recipe.budget.artifact_bytes
    total = check_budget(weight_bytes, len(script.encode()), limit)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, script)
    told = f"{out}: {len(script.encode()):,} bytes of code"
    if weight_bytes:
        return f"{told}, with {weight_bytes:,} of weights {total:,} of {limit:,}"
    return f"{told}, which leaves {limit - total:,} of {limit:,} for weights"


def read_source(source: Path) -> tuple[Recipe, int]:
    """Return the recipe of a record folder or file, and the bytes of the record's weights, 0 without a record."""
    if not source.is_dir():
        return load_recipe(source), 0
    if not (source / RECIPE).is_file() or not (source / WEIGHTS).is_file():
        raise RecipeError(f"{source} is no record folder: it lacks {RECIPE} or {WEIGHTS}; name one, or a recipe file")
    return load_recipe(source / RECIPE), (source / WEIGHTS).stat().st_size


def bundle_script(recipe: Recipe) -> str:
    """Return the script of a recipe; equal recipes and sources give equal text."""
    files = sources(ENTRY, START, recipe_decisions(recipe)) | {RECIPE: compact_json(recipe)}
    text = SEPARATOR.join(f"{name}\n{content}" for name, content in files.items())
    return SCRIPT.format(
        name=re.sub(r"[^\w .-]", "", recipe.name),  # a record's name is anybody's text
        # 3 % smaller than lzma on sources, and base85 is what those who check submissions know how to unpack.
        packed=base64.b85encode(bz2.compress(text.encode(), 9)).decode(),
        separator=SEPARATOR.encode("unicode_escape").decode(),
        entry=ENTRY,
        start=START,
        recipe=RECIPE,
    )


def compact_json(recipe: Recipe) -> str:
    """Return a short JSON that the recipe is parsed from: parts without their defaults, where that leaves no doubt."""
    adapter = TypeAdapter(Recipe)
    kept = adapter.dump_python(recipe, mode="json")
    short = adapter.dump_python(recipe, mode="json", exclude_defaults=True)
    for part in list(kept):
        trial = {name: content for name, content in kept.items() if name != part}
        trial |= {part: short[part]} if part in short else {}
        kept = trial if _reads_as(trial, recipe) else kept
    return _compact(kept)


def _reads_as(data: dict[str, Any], recipe: Recipe) -> bool:
    try:
        return parse_recipe(_compact(data)) == recipe
    except PGolfError:  # without its defaults a part may read like one of another kind
        return False


def _compact(data: dict[str, Any]) -> str:
    return json.dumps(data, separators=(",", ":"))
