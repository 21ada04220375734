"""Scores against their own sums, the recipe and the text: what each number must be where the others are true.

A score is Σ nats / (ln 2 · Σ bytes) over all targets of the validation split, by windows that the recipe names. So
every figure of it can be worked out from others, and a figure that was edited alone stands against them.
Source: LEGALITY C6 to C9, K15.
"""

from __future__ import annotations

import math
from typing import Any

from ..corpus.fineweb import ChallengeShards
from ..stages import passes
from .evidence import Evidence, close, is_amount
from .facts import Fact

# Tokens per byte of the challenge's validation splits, and how far a score may be off. Source: LEGALITY 3.4, K15.
TOKENS_PER_BYTE = {"SP1024": 0.410521, "SP4096": 0.301235, "SP8192": 0.268339, "CaseOps SP8192": 0.316741}
FINGERPRINT_TOLERANCE = 5e-5
COUNTED = ("nats", "targets", "bytes", "nats_per_token", "bits_per_byte")


def score_facts(evidence: Evidence) -> list[Fact]:
    """All facts of the scores."""
    return [
        *[ratio_fact(name, score) for name, score in evidence.scores.items()],
        sums_fact(evidence.scores),
        scorings_fact(evidence),
        targets_fact(evidence),
        *bytes_facts(evidence),
        *recount_facts(evidence),
    ]


def ratio_fact(name: str, score: dict[str, Any]) -> Fact:
    """Tokens per byte: the sums must be of one set of targets, and a known split has a known ratio (K15)."""
    title = f"sums of one set of targets, {name}"
    if not countable(score):
        return Fact("C7", title, False, "figures that no score has")
    ratio = score["bits_per_byte"] * math.log(2) / score["nats_per_token"]
    counted = score["targets"] / score["bytes"]
    known = [split for split, value in TOKENS_PER_BYTE.items() if abs(value - ratio) < FINGERPRINT_TOLERANCE]
    text = f"{ratio:.6f} tokens per byte, counted {counted:.6f}; " + (known[0] if known else "of no known split")
    return Fact("C7", title, abs(ratio - counted) < 1e-9, text, ratio)


def countable(score: dict[str, Any]) -> bool:
    """Say whether all figures of a score are finite and above 0."""
    return all(is_amount(score[key]) and score[key] > 0 for key in COUNTED)


def sums_fact(scores: dict[str, Any]) -> Fact:
    """Whether means follow from sums: nats per target, and bits per byte."""
    wrong = []
    for name, score in scores.items():
        if not countable(score):
            wrong.append(f"{name} has figures that no score has")
            continue
        means = {"nats_per_token": score["nats"] / score["targets"]}
        means["bits_per_byte"] = score["nats"] / math.log(2) / score["bytes"]
        wrong += [
            f"{key} of {name} is {score[key]}, its sums give {mean}"
            for key, mean in means.items()
            if not close(score[key], mean)
        ]
    return Fact("C7", "scores follow from their sums", not wrong, "; ".join(wrong) or "nats, targets and bytes")


def scorings_fact(evidence: Evidence) -> Fact:
    """Whether the scorings are those that the recipe makes, by its windows."""
    asked, scores = passes(evidence.recipe.evaluation), evidence.scores
    wrong = [] if list(scores) == list(asked) else [f"{_list(scores)}; the recipe makes {_list(asked)}"]
    for name, score in evidence.known.items():
        windows = (score["window"], score["stride"])
        if windows != (asked[name].window, asked[name].stride):
            wrong.append(f"{name} by window and stride {windows}, not {(asked[name].window, asked[name].stride)}")
    return Fact("C6", "scorings of the recipe", not wrong, "; ".join(wrong) or _list(asked))


def targets_fact(evidence: Evidence) -> Fact:
    """Whether as many targets are scored as the text has: every token but the first."""
    tokens = evidence.validation.get("tokens")
    if tokens is None:
        return Fact("C6", "targets of the text", None, "the corpus does not say how many tokens there are")
    other = [f"{name} scores {s['targets']:,}" for name, s in evidence.scores.items() if s["targets"] != tokens - 1]
    return Fact("C6", "targets of the text", not other, "; ".join([f"{tokens - 1:,} in the text", *other]))


def bytes_facts(evidence: Evidence) -> list[Fact]:
    """What scores divide by, beside the recounted corpus: its decoded text and, where there is one, its original."""
    validation = evidence.validation
    counted, original = validation.get("counted_bytes"), validation.get("utf8_bytes")
    if counted is None:
        return [Fact("C8", "bytes of the text", None, "the corpus was not recounted")]
    divisors = {name: score["bytes"] for name, score in evidence.scores.items()}
    other = [f"{name} divides by {divisor:,}" for name, divisor in divisors.items() if divisor != counted]
    found = "; ".join([f"{counted:,} in the decoded text", *other])
    facts = [Fact("C8", "bytes of the text", not other, found)]
    if original is None:
        return [*facts, Fact("C9", "reversible to the original", None, "only tokens were published, no original")]
    away, lost, gained = (validation[key] for key in ("normalisation_bytes", "lost_bytes", "gained_bytes"))
    changed, documents = validation["documents_changed"], validation["documents"]
    what = (
        f"{lost:,} replaced by {gained:,} in {changed:,} of {documents:,} documents" if changed else "comes back whole"
    )
    found = f"{original:,} in the original, {away:,} more than are counted; {what}"
    # Whether the changes are those of the stock pipeline alone is not in the record: only their size is.
    return [*facts, Fact("C9", "reversible to the original", None if changed else True, found, away)]


def recount_facts(evidence: Evidence) -> list[Fact]:
    """Whether the figures of the recount add up (``corpus.recount``): what only one of two texts has, and the rest.

    Nothing is said of the challenge's shards: no original was published with them.
    """
    if isinstance(evidence.recipe.corpus.source, ChallengeShards) and evidence.validation.get("utf8_bytes") is None:
        return []
    return [recount_fact(evidence.validation)]


def recount_fact(validation: dict[str, Any]) -> Fact:
    """Compare the counted bytes with the original's, less what the original alone has, and so on."""
    keys = ("utf8_bytes", "counted_bytes", "normalisation_bytes", "lost_bytes", "gained_bytes", "free_blanks")
    figures = [validation.get(key) for key in keys]
    if None in figures:
        return Fact("C8", "recount adds up", None, "the corpus was not recounted against an original")
    if not all(is_amount(figure) for figure in figures):
        return Fact("C8", "recount adds up", False, "figures that no text has")
    original, counted, away, lost, gained, blanks = (validation[key] for key in keys)
    holds = counted == original - away and away == lost - gained + blanks
    found = f"{original:,} in the original - {lost:,} lost + {gained:,} gained - {blanks:,} free = {counted:,} counted"
    return Fact("C8", "recount adds up", holds, found if holds else f"{found} does not hold")


def _list(names: Any) -> str:
    return ", ".join(names) or "none"
