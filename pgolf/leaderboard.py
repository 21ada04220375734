"""The leaderboard: records ranked by their own files, on one page that needs nothing else.

Records that differ in the seed alone are one system, ranked by its mean. A system with a record that is stamped or
that fails the audit stands apart, with the reason. Scores on different texts are on different boards: they do not
compare.
"""

from __future__ import annotations

import re
import statistics
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Annotated, Any

from huggingface_hub import HfApi, get_collection
from huggingface_hub.constants import ENDPOINT
from matplotlib import rc_context
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure
from pydantic import Field, TypeAdapter

from modeling_pgolf.errors import FormatError, RecipeError

from .artifact import WEIGHTS
from .audit.evidence import read_evidence
from .audit.figures import text_of
from .audit.policy import ORDER, overall
from .corpus.splits import file_sha256
from .hub import asking, pull
from .integrity import earned_stamp
from .plots import PALETTE, STYLE, WIDTH, save_figure
from .publication import judge_record
from .recipe import load_recipe, recipe_json
from .report import inline_svg, render
from .workdir import write_text

POLICY = "strict"
REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
# A collection's name ends in the 24 digits of its identifier, which no repository's does by chance.
COLLECTION = re.compile(r"[\w.-]+/[\w.-]+-[0-9a-f]{24}")
CHALLENGE_TEXT = "FineWeb, the challenge's validation split"

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
    date: date
    val_bpb: Amount
    bytes_total: int
    hardware: str
    pgolf: Details


@dataclass(frozen=True)
class Entry:
    """One record.

    seed, system: the recipe's, and the recipe without it. weights: SHA-256 of their file. text: the board. link: where
    the record is.
    """

    said: Submission
    seed: int
    system: str
    weights: str
    text: str
    link: str
    verdicts: Counter[str]
    overall: str
    against: str


@dataclass(frozen=True)
class System:
    """The records of one recipe, one a seed."""

    entries: list[Entry]

    @property
    def mean(self) -> float:
        """Mean BPB over the seeds."""
        return statistics.fmean(entry.said.val_bpb for entry in self.entries)

    @property
    def standard_error(self) -> float | None:
        """Standard error of the mean; None for one seed, which says nothing about the spread."""
        scores = [entry.said.val_bpb for entry in self.entries]
        return statistics.stdev(scores) / len(scores) ** 0.5 if len(scores) > 1 else None

    @property
    def date(self) -> date:
        """The day on which the last seed was scored."""
        return max(entry.said.date for entry in self.entries)

    @property
    def overall(self) -> str:
        """The worst verdict of its records."""
        return min((entry.overall for entry in self.entries), key=ORDER.index)

    @property
    def verdicts(self) -> list[tuple[str, int]]:
        """How many checks came to what, over all its records, worst first."""
        total = sum((entry.verdicts for entry in self.entries), Counter[str]())
        return [(verdict, total[verdict]) for verdict in ORDER if total[verdict]]

    @property
    def against(self) -> list[str]:
        """Why it is not ranked."""
        return sorted({entry.against for entry in self.entries if entry.against})

    @property
    def hardware(self) -> str:
        """The machines that it was trained on."""
        return "; ".join(sorted({entry.said.hardware for entry in self.entries}))


@dataclass(frozen=True)
class Board:
    """The systems that were scored on one text: ranked, best first, and apart."""

    text: str
    ranked: list[System]
    apart: list[System]


def write_page(names: Sequence[str], out: Path) -> str:
    """Write the page for record folders, repositories and collections of the Hub; says what is on it.

    A damaged record is left out, and that is said. Raises FormatError where all are, RecipeError where none is named, a
    seed of a system is there twice, or two seeds have the same weights.
    """
    if not names:
        raise RecipeError("asked for a leaderboard of no records; name record folders, repositories or a collection")
    entries, left_out = read_all(names)
    boards = arrange(entries)
    drawn = {
        board.text: inline_svg(svg_text(progress_figure(board.ranked)), f"board{number}")
        for number, board in enumerate(boards)
        if len(board.ranked) > 1
    }
    page = render("leaderboard.html.j2", boards=boards, drawn=drawn, palette=PALETTE, policy=POLICY)
    write_text(out, page)
    ranked, apart = sum(len(board.ranked) for board in boards), sum(len(board.apart) for board in boards)
    return "\n".join([f"{out}: {ranked} ranked, {apart} apart, on {len(boards)} text(s)", *left_out])


def read_all(names: Sequence[str]) -> tuple[list[Entry], list[str]]:
    """Read everything that is named; also says what was left out of it as damaged.

    Raises FormatError where nothing is left, so that a page never stands for records that nobody could read.
    """
    entries, left_out = [], []
    for place in [place for name in names for place in places(name)]:
        try:
            entries.append(read_place(place))
        except FormatError as error:
            left_out.append(f"left out: {error}")
    if not entries:
        raise FormatError("\n".join(left_out))
    return entries, left_out


def read_named(name: str) -> Iterator[Entry]:
    """Read a record folder, a repository, or all models of a collection."""
    return map(read_place, places(name))


def places(name: str) -> list[str]:
    """List the folders and repositories that a name stands for."""
    if Path(name).is_dir():
        return [name]
    if not REPOSITORY.fullmatch(name):
        raise RecipeError(f"{name} is neither a folder here nor USER/NAME on the Hub; check the name")
    return members(name) if COLLECTION.fullmatch(name) else [name]


def read_place(place: str) -> Entry:
    """Read a record folder, or fetch and read a repository."""
    if Path(place).is_dir():
        return read_entry(Path(place), link="")
    with tempfile.TemporaryDirectory() as scratch:
        found = pull(place, Path(scratch, "record"), HfApi())
        return read_entry(Path(scratch, "record"), link=f"{ENDPOINT}/{found.repository}/tree/{found.commit}")


def members(collection: str) -> list[str]:
    """List the models of a collection of the Hub."""
    with asking(f"for the collection {collection}", "nothing was written; ask again"):
        return [item.item_id for item in get_collection(collection).items if item.item_type == "model"]


def read_entry(record: Path, link: str) -> Entry:
    """Read what a record says of itself, and judge it by its files; raises FormatError where it is none."""
    try:
        said = TypeAdapter(Submission).validate_json((record / "submission.json").read_bytes())
        judgement, recipe = judge_record(record, POLICY), load_recipe(record / "recipe.json")
    except (OSError, ValueError, FormatError) as error:
        raise FormatError(f"{record} cannot be ranked: {error}; name a folder that pgolf record wrote") from error
    seed = recipe.training.seed
    failing = f"seed {seed} fails {', '.join(judgement.failing)}" if judgement.failing else ""
    return Entry(
        said=said,
        seed=seed,
        system=recipe_json(replace(recipe, training=replace(recipe.training, seed=0))),
        weights=file_sha256(record / WEIGHTS),
        text=board_of(text_of(read_evidence(record))),
        link=link,
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


def arrange(entries: Sequence[Entry]) -> list[Board]:
    """Group records to systems and systems to boards, the challenge's own text first."""
    systems: dict[tuple[str, str], list[Entry]] = defaultdict(list)
    for entry in entries:
        seeds = systems[entry.text, entry.system]
        if entry.seed in [other.seed for other in seeds]:
            raise RecipeError(f"seed {entry.seed} of {entry.said.name} is there twice; name each record once")
        if entry.weights in [other.weights for other in seeds]:
            raise RecipeError(f"two seeds of {entry.said.name} have the same weights; each seed is a run of its own")
        seeds.append(entry)
    boards = []
    for text in sorted({text for text, _ in systems}, key=lambda text: (text != CHALLENGE_TEXT, text)):
        grouped = [
            System(sorted(found, key=lambda e: e.seed)) for (where, _), found in systems.items() if where == text
        ]
        grouped.sort(key=lambda system: system.mean)
        apart = [system for system in grouped if system.against]
        boards.append(Board(text, [system for system in grouped if not system.against], apart))
    return boards


def progress_figure(systems: Sequence[System]) -> Figure:
    """Draw BPB over days: each ranked system, and the best so far."""
    by_day = sorted(systems, key=lambda system: (system.date, system.mean))
    best = [min(system.mean for system in by_day[: number + 1]) for number in range(len(by_day))]
    days: Any = [system.date for system in by_day]
    leader = min(by_day, key=lambda system: system.mean)
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.2), layout="constrained")
        figure.suptitle(f"Best so far: {leader.mean:.4f} BPB, {leader.entries[0].said.name}", x=0, ha="left")
        axes = figure.subplots()
        axes.step(days, best, where="post", color=PALETTE["first"], linewidth=1.6)
        errors = [system.standard_error or 0.0 for system in by_day]
        means = [system.mean for system in by_day]
        axes.errorbar(days, means, errors, fmt="o", markersize=4, color=PALETTE["second"], elinewidth=1.2)
        locator = AutoDateLocator(minticks=2, maxticks=8)
        axes.xaxis.set_major_locator(locator)
        axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))
        axes.set_ylabel("bits per byte,\nmean over the seeds")
        axes.margins(x=0.05, y=0.15)
    return figure


def svg_text(figure: Figure) -> str:
    """Return a figure as the text of an SVG file."""
    with tempfile.TemporaryDirectory() as folder:
        save_figure(figure, Path(folder), "figure")
        return Path(folder, "figure.svg").read_text(encoding="utf-8")
