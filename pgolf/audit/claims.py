"""What submission.json claims, and which lines of the logs its score is of.

Decimals are read as they are written, because a claim is right to its last digit and says no more than that.
Source: LEGALITY K16; the records of openai/parameter-golf.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

from modeling_pgolf.errors import FormatError

from .challenge_log import LoggedScore, RunLog

# Ways to choose one log a seed that are tried; three seeds with six logs each are fewer.
MOST_CHOICES = 256


@dataclass(frozen=True)
class Scored:
    """The lines of the logs that submission.json's val_bpb is of: one a seed, or one alone.

    matches: "mean" of the lines, "one" of them, or "none", where the lines are the last ones. choices: how many ways
    there are to take one line a seed.
    """

    lines: tuple[LoggedScore, ...]
    matches: Literal["mean", "one", "none"]
    choices: int = 1


def read_entry(folder: Path) -> dict[str, Any]:
    """Read submission.json with its decimals as they are written."""
    path = folder / "submission.json"
    try:
        entry = json.loads(path.read_text(encoding="utf-8"), parse_float=Decimal)
    except ValueError as error:
        raise FormatError(f"asked for the JSON object {path.name}; found {error}; take it as published") from error
    if not isinstance(entry, dict):
        raise FormatError(f"asked for a JSON object in {path.name}; found {type(entry).__name__}")
    return entry


def claimed(entry: dict[str, Any], key: str) -> Decimal | None:
    """Return a decimal of submission.json, alone or as the mean of seeds."""
    return next((entry[name] for name in (key, f"mean_{key}") if isinstance(entry.get(name), Decimal)), None)


def claimed_sizes(entry: dict[str, Any]) -> list[int]:
    """List every size of an artifact that submission.json claims, in bytes."""
    results = entry.get("seed_results")
    parts = [entry, *(results.values() if isinstance(results, dict) else ())]
    names = ("bytes_total", "artifact_bytes", "artifact_bytes_max")
    sizes = [part.get(name) for part in parts if isinstance(part, dict) for name in names]
    return [size for size in sizes if isinstance(size, int)]


def claimed_scoring(claim: Decimal | None, logs: list[RunLog]) -> Scored:
    """Find the lines that a claimed score is nearest to; with several logs of a seed, any choice of them will do."""
    lines = [s for log in logs for s in log.scores]
    found = [Scored((line,), "one") for line in lines]
    for name in dict.fromkeys(s.name for s in lines):
        by_seed: dict[int | None, list[LoggedScore]] = {}
        for log in logs:
            by_seed.setdefault(log.seed, []).extend(s for s in log.scores if s.name == name)
        choices = math.prod(len(lines) for lines in by_seed.values())
        if choices <= MOST_CHOICES:
            found += [Scored(lines, "mean", choices) for lines in itertools.product(*by_seed.values())]
    matching = [one for one in found if claim is not None and agrees(claim, [s.bits for s in one.lines])]
    if claim is None or not matching:
        return Scored(tuple(log.scores[-1] for log in logs if log.scores), "none")
    # The nearest, because lines are printed twice, with four and with eight decimals; of two as near, the mean.
    return min(matching, key=lambda one: (abs(claim - mean([s.bits for s in one.lines])), one.matches == "one"))


def agrees(claim: Decimal, printed: Sequence[Decimal]) -> bool:
    """Say whether a claim is the mean of printed numbers, to its own last decimal or to theirs."""
    places = max(int(number.as_tuple().exponent) for number in (claim, *printed))
    return abs(claim - mean(printed)) <= Decimal(1).scaleb(places)


def mean(values: Sequence[Decimal]) -> Decimal:
    """Return the mean of printed numbers."""
    return sum(values, Decimal(0)) / len(values)
