"""The leaderboard: records ranked by their own files, on one page that needs nothing else.

Records that differ in the seed alone are one system, ranked by its mean. A system with a record that is stamped or
that fails the audit stands apart, with the reason. Scores on different texts are on different boards: they do not
compare.
"""

from __future__ import annotations

import statistics
import tempfile
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure

from modeling_pgolf.errors import RecipeError

from .audit.policy import ORDER
from .entries import CHALLENGE_TEXT, POLICY, Entry, read_entries
from .plots import PALETTE, STYLE, new_figure, save_figure
from .report import inline_svg, render
from .workdir import write_text

# Left and right of the first and the last point of the progress plot at least: scores of one minute lie in its middle.
LEAST_MARGIN = timedelta(minutes=10)


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
    def scored(self) -> datetime:
        """When the last seed was scored, in UTC."""
        return max(entry.scored for entry in self.entries).astimezone(UTC)

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
    out.parent.mkdir(parents=True, exist_ok=True)
    entries, left_out = read_entries(names, out.parent)
    boards = arrange(entries)
    drawn = {
        board.text: inline_svg(svg_text(progress_figure(board.ranked)), f"board{number}")
        for number, board in enumerate(boards)
        if len(board.ranked) > 1
    }
    told = {"boards": boards, "drawn": drawn, "left_out": len(left_out), "palette": PALETTE, "policy": POLICY}
    write_text(out, render("leaderboard.html.j2", **told))
    ranked, apart = sum(len(board.ranked) for board in boards), sum(len(board.apart) for board in boards)
    return "\n".join([f"{out}: {ranked} ranked, {apart} apart, on {len(boards)} text(s)", *left_out])


def arrange(entries: Sequence[Entry]) -> list[Board]:
    """Group records to systems and systems to boards, the challenge's own text first."""
    systems: dict[tuple[str, str], list[Entry]] = defaultdict(list)
    for entry in entries:
        seeds = systems[entry.text, entry.system]
        for other in seeds:
            _check_distinct(other, entry)
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


def _check_distinct(one: Entry, other: Entry) -> None:
    """Raise RecipeError where two records of a system are not two runs of their own."""
    two = f"{one.source} and {other.source}"
    if one.seed == other.seed:
        raise RecipeError(f"seed {one.seed} of {one.said.name} is there twice: {two}; name each record once")
    if one.weights == other.weights:
        raise RecipeError(f"two seeds of {one.said.name} have the same weights: {two}; each seed is a run of its own")


def progress_figure(systems: Sequence[System]) -> Figure:
    """Draw BPB over the time of scoring: each ranked system, and the best so far."""
    by_time = sorted(systems, key=lambda system: (system.scored, system.mean))
    means = [system.mean for system in by_time]
    best = [min(means[: number + 1]) for number in range(len(means))]
    times: list[Any] = [system.scored for system in by_time]
    margin = max((times[-1] - times[0]) / 20, LEAST_MARGIN)
    leader = min(by_time, key=lambda system: system.mean)
    with rc_context(STYLE):
        figure = new_figure(3.2, f"Best so far: {leader.mean:.4f} BPB, {leader.entries[0].said.name}")
        axes = figure.subplots()
        edge: Any = times[-1] + margin
        axes.step([*times, edge], [*best, best[-1]], where="post", color=PALETTE["first"], linewidth=1.6)
        errors = [system.standard_error or 0.0 for system in by_time]
        axes.errorbar(times, means, errors, fmt="o", markersize=4, color=PALETTE["second"], elinewidth=1.2)
        locator = AutoDateLocator(minticks=2, maxticks=8)
        axes.xaxis.set_major_locator(locator)
        axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))
        axes.set_xlim(times[0] - margin, edge)
        axes.set_xlabel("scored (UTC)")
        axes.set_ylabel("bits per byte,\nmean over the seeds")
        axes.margins(y=0.15)
    return figure


def svg_text(figure: Figure) -> str:
    """Return a figure as the text of an SVG file."""
    with tempfile.TemporaryDirectory() as folder:
        save_figure(figure, Path(folder), "figure")
        return Path(folder, "figure.svg").read_text(encoding="utf-8")
