"""Entries: one record each, as the leaderboard reads it, from a folder here or from the Hub.

What a record says of itself is taken as it says it, and beside it stands what an audit of its files comes to. An entry
knows where it is from, so that two runs of one name can be told apart and looked at.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

from huggingface_hub import HfApi, get_collection
from huggingface_hub.constants import ENDPOINT
from pydantic import AwareDatetime, Field, TypeAdapter

from modeling_pgolf.errors import FormatError, RecipeError

from .artifact import WEIGHTS
from .audit.evidence import read_evidence
from .audit.figures import text_of
from .audit.policy import overall
from .corpus.splits import file_sha256
from .hub import asking, pull
from .integrity import earned_stamp
from .publication import judge_record
from .recipe import load_recipe, recipe_json

POLICY = "strict"
REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
# A collection's name ends in the 24 digits of its identifier, which no repository's does by chance.
COLLECTION = re.compile(r"[\w.-]+/[\w.-]+-[0-9a-f]{24}")
CHALLENGE_TEXT = "FineWeb, the challenge's validation split"
# Digits by which the Hub's own pages name a commit.
COMMIT_DIGITS = 7
# Moments that a plot's axis can hold with a margin on either side: datetime ends with the year 9999.
EARLIEST, LATEST = datetime(1970, 1, 1, tzinfo=UTC), datetime(9000, 1, 1, tzinfo=UTC)

Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]


@dataclass(frozen=True)
class Details:
    """What ``submission.json`` says under "pgolf", as far as the board shows it."""

    training_seconds: Amount
    evaluation_seconds: Amount


@dataclass(frozen=True)
class Submission:
    """What ``submission.json`` says, as far as the board shows it. Source: ``record.submission``."""

    author: str
    name: str
    val_bpb: Amount
    bytes_total: int
    hardware: str
    pgolf: Details


@dataclass(frozen=True)
class Scoring:
    """What the manifest of evaluation says, as far as the board shows it."""

    finished: Annotated[AwareDatetime, Field(ge=EARLIEST, le=LATEST)]


@dataclass(frozen=True)
class Entry:
    """One record.

    source: its folder, as seen from the page, or its repository and commit; no two records share one. link: where a
    person reads on, its report or its card. scored: when scoring ended. seed, system: the recipe's, and the recipe
    without it. weights: SHA-256 of their file. text: the board. against: why it is not ranked.
    """

    source: str
    link: str
    said: Submission
    scored: datetime
    seed: int
    system: str
    weights: str
    text: str
    verdicts: Counter[str]
    overall: str
    against: str


def read_entries(names: Sequence[str], page: Path) -> tuple[list[Entry], list[str]]:
    """Read every record that is named, for a page in the folder ``page``; says also what was left out as damaged.

    Raises FormatError where nothing is left, so that a page never stands for records that nobody could read, and
    RecipeError where a name is neither a folder, a repository nor a collection.
    """
    entries, left_out = [], []
    for place in [place for name in names for place in places(name)]:
        try:
            entries.append(read_place(place, page))
        except FormatError as error:
            left_out.append(f"left out: {place}: {error}")
    if not entries:
        raise FormatError("\n".join(left_out))
    return entries, left_out


def places(name: str) -> list[str]:
    """List the folders and repositories that a name stands for."""
    if Path(name).is_dir():
        return [name]
    if not REPOSITORY.fullmatch(name):
        raise RecipeError(f"{name} is neither a folder here nor USER/NAME on the Hub; check the name")
    return members(name) if COLLECTION.fullmatch(name) else [name]


def members(collection: str) -> list[str]:
    """List the models of a collection of the Hub."""
    with asking(f"for the collection {collection}", "nothing was written; ask again"):
        return [item.item_id for item in get_collection(collection).items if item.item_type == "model"]


def read_place(place: str, page: Path) -> Entry:
    """Read a record folder, or fetch and read a repository."""
    if Path(place).is_dir():
        # Seen from the page, so that it says nothing of the machine above and its links work where both are moved.
        seen = Path(os.path.relpath(place, page)).as_posix()
        return read_entry(Path(place), seen, f"{quote(seen)}/report.html")
    with tempfile.TemporaryDirectory() as scratch:
        found = pull(place, Path(scratch, "record"), HfApi())
        source = f"{found.repository}@{found.commit[:COMMIT_DIGITS]}"
        return read_entry(Path(scratch, "record"), source, f"{ENDPOINT}/{found.repository}/tree/{found.commit}")


def read_entry(record: Path, source: str, link: str) -> Entry:
    """Read what a record says of itself, and judge it by its files; raises FormatError where it is none."""
    try:
        said = TypeAdapter(Submission).validate_json((record / "submission.json").read_bytes())
        scoring = TypeAdapter(Scoring).validate_json((record / "manifests" / "evaluation.json").read_bytes())
        judgement, recipe = judge_record(record, POLICY), load_recipe(record / "recipe.json")
    except (OSError, ValueError, FormatError) as error:
        raise FormatError(f"it cannot be ranked: {error}; name a folder that pgolf record wrote") from error
    seed = recipe.training.seed
    failing = f"seed {seed} fails {', '.join(judgement.failing)}" if judgement.failing else ""
    return Entry(
        source=source,
        link=link,
        said=said,
        scored=scoring.finished,
        seed=seed,
        system=recipe_json(replace(recipe, training=replace(recipe.training, seed=0))),
        weights=file_sha256(record / WEIGHTS),
        text=board_of(text_of(read_evidence(record))),
        verdicts=Counter(verdict.verdict for verdict in judgement.verdicts),
        overall=overall(judgement.verdicts),
        against=earned_stamp(record) or failing,
    )


def board_of(text: dict[str, Any]) -> str:
    """Name the text of a score so that equal names mean comparable scores."""
    if text["comparable"]:
        return CHALLENGE_TEXT
    size = f"{text['utf8_bytes']:,} bytes" if text["utf8_bytes"] else "size unknown"
    return f"{text['name']}, {text['documents']} documents, {size}"
