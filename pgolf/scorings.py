"""Scorings: whether a record's scores are those that its recipe makes, of this text, and the one that it is shown by.

Which scorings there are, their windows, and the targets and bytes that they divide by follow from the recipe and from
the verifier's own text. Of the record are the sums of nats alone, and those are scored again by ``rescore``.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from evaluation.ledger import Score
from modeling_pgolf.errors import FormatError

from .audit.evidence import close
from .audit.facts import read_json
from .audit.figures import TITLE
from .block_nats import BLOCK_NATS, BlockNats, read_block_nats
from .integrity import Finding
from .recipe import Recipe
from .run import describe_score
from .stages import headline, passes

Scores = dict[str, dict[str, Any]]


def read_scores(record: Path, recipe: Recipe) -> Scores:
    """Read ``scores.json``; raises FormatError unless it has the recipe's scorings, in their order, each with its nats.

    The order counts: the last one is published.
    """
    scores, made = read_json(record / "scores.json").get("scores"), list(passes(recipe.evaluation))
    if not isinstance(scores, dict) or list(scores) != made:
        named = ", ".join(scores) if isinstance(scores, dict) else "none"
        raise FormatError(f"asked for the scorings that the recipe makes, {', '.join(made)}; scores.json has {named}")
    for name, score in scores.items():
        nats = score.get("nats") if isinstance(score, dict) else None
        if not isinstance(nats, float) or not math.isfinite(nats) or nats < 0:
            raise FormatError(f"asked for the nats of '{name}' in scores.json; found {nats!r}, no sum of nats")
    return scores


def read_sums(record: Path, recipe: Recipe, scores: Scores) -> BlockNats:
    """Read the sums by block; raises FormatError where they are no such sums, or of blocks other than one window."""
    recorded = read_block_nats(record / BLOCK_NATS, scores)
    if recorded.size != recipe.evaluation.window:
        raise FormatError(
            f"asked for blocks of one window, {recipe.evaluation.window} targets; {BLOCK_NATS} has {recorded.size}"
        )
    return recorded


def check_scores(scores: Scores, recipe: Recipe, targets: int, counted: int) -> None:
    """Raise FormatError unless each score is what its nats make of those targets and bytes, by the recipe's windows.

    targets, counted: of the verifier's own text.
    """
    for name, config in passes(recipe.evaluation).items():
        made = describe_score(Score(targets, scores[name]["nats"], counted), config)
        said = {key: scores[name].get(key) for key in made}
        if wrong := {key: value for key, value in said.items() if not close(value, made[key])}:
            due = {key: made[key] for key in wrong}
            raise FormatError(f"scores.json has {wrong} for '{name}'; the text, the recipe and the nats make it {due}")


def headline_finding(record: Path, scores: Scores) -> Finding:
    """Compare the figure on the card's title and in ``submission.json`` with the score that is published."""
    name = headline(scores)
    score = scores[name]["bits_per_byte"]
    shown = [figure for _, figure in TITLE.findall((record / "README.md").read_text(encoding="utf-8"))]
    said = read_json(record / "submission.json").get("val_bpb")
    told = f"{score:.4f} bits per byte, {name}"
    if shown != [f"{score:.4f}"] or said != score:
        found = f"the score is {told}; the card's title has {', '.join(shown) or 'none'}, submission.json {said}"
        return Finding("headline", "FAIL", found)
    return Finding("headline", "PASS", f"{told}, on the card and in submission.json")
