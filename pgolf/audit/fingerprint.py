"""What the published validation splits look like in numbers: targets, and tokens per byte.

A score and a loss of one set of targets give the tokens per byte of the text, which is a constant of each split: it
shows a wrong count of bytes, a part scored as the whole, and another tokenizer. Source: LEGALITY 3.4; K15, K21.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .challenge_log import LoggedScore, RunLog
from .facts import Fact
from .sums import FINGERPRINT_TOLERANCE, TOKENS_PER_BYTE

# Vocabulary of each split's tokenizer, and how many targets the whole of it has.
TARGETS = {
    "SP1024": (1024, 62_021_632),
    "SP4096": (4096, 45_508_608),
    "SP4096 of #1285": (4096, 45_514_752),
    "SP8192": (8192, 40_540_160),
    "CaseOps SP8192": (8192, 47_851_520),
}
# Exports that were official or shared once, whose scores are not those of today's text.
OLDER = {"an older export of SP1024": 0.409449, "another export of SP8192": 0.2684}
WRONG = {
    "the leading blank counted twice": 0.2280,
    "10,000 documents for 50,000": 0.3226,
    "transformed bytes counted": 0.2907,
    "folded case": 0.2402,
    "folded case, the other": 0.2405,
    "bytes per token taken as 3.5": 0.2857,
    "bytes per token taken as a constant": 0.3633,
}
# Targets of a validation split that its own training shards contain. Source: LEGALITY K10.
LEAKY_TARGETS = 9_662_464
# Settings that score a part of the text, and how their full values are spelled; empty where no value is known as full.
SUBSET_SETTINGS = {
    "VAL_DOC_FRACTION": frozenset({"1.0", "1"}),
    "TTT_EVAL_BATCHES": frozenset({""}),
    "PPM_SUBSET_TOKENS": frozenset[str](),
}


@dataclass(frozen=True)
class Ratio:
    """Tokens per byte of one printed score, and how far its rounding may have moved it."""

    value: float
    error: float


def ratio_of(score: LoggedScore) -> Ratio:
    """Return the tokens per byte of a score: bits per byte · ln 2 / nats per token."""
    value = float(score.bits) * math.log(2) / float(score.loss)
    parts = [0.5 * 10.0 ** int(printed.as_tuple().exponent) / float(printed) for printed in (score.bits, score.loss)]
    return Ratio(value, value * sum(parts))


def fingerprint_fact(scored: Sequence[LoggedScore], logs: list[RunLog]) -> Fact:
    """Compare the tokens per byte of the claimed scores with those of the known splits."""
    rule, name = "C8", "tokens per byte"
    if not scored:
        return Fact(rule, name, None, "no log has a score")
    ratios = [ratio_of(score) for score in scored]
    far = max(ratios, key=lambda ratio: min(abs(ratio.value - known) for known in TOKENS_PER_BYTE.values()))
    if far.error > FINGERPRINT_TOLERANCE:
        return Fact(rule, name, None, f"{far.value:.4f}, printed with too few decimals to compare", far.value)
    known, older, wrong = (names_of(far, table) for table in (TOKENS_PER_BYTE, OLDER, WRONG))
    published = {vocabulary for vocabulary, _ in TARGETS.values()} & {log.vocabulary for log in logs}
    if known:
        return Fact(rule, name, True, f"{far.value:.6f}, as {known}", far.value)
    if wrong or (published and not older):
        said = wrong or f"of no known split of {published.pop()} pieces"
        return Fact(rule, name, False, f"{far.value:.6f}: {said}", far.value)
    return Fact(rule, name, None, f"{far.value:.6f}: {older or 'a tokenizer of its own'}", far.value)


def names_of(ratio: Ratio, table: dict[str, float]) -> str:
    """Name the entries that a ratio may be; those printed with four decimals may be half of the last one off."""
    exact = table is TOKENS_PER_BYTE
    reach = FINGERPRINT_TOLERANCE if exact else 2 * FINGERPRINT_TOLERANCE
    return " or ".join(name for name, value in table.items() if abs(value - ratio.value) < reach)


def coverage_fact(logs: list[RunLog]) -> Fact:
    """Compare the logged number of targets with those of the whole splits; a last partial window may be missing."""
    counted = {(log.targets, log.vocabulary, log.sequence or 0) for log in logs if log.targets is not None}
    if not counted or len({targets for targets, *_ in counted}) > 1:
        return Fact("C6", "validation targets", None, "no log counts them, or logs count different ones")
    targets, vocabulary, sequence = counted.pop()
    whole = [name for name, (_, full) in TARGETS.items() if 0 <= full - targets < max(sequence, 1)]
    if whole:
        return Fact("C6", "validation targets", True, f"{targets:,}, all of {whole[0]}", targets)
    fewer = [full for size, full in TARGETS.values() if size == vocabulary and targets < full]
    part = (
        "of a leaky preparation" if targets == LEAKY_TARGETS else f"of {min(fewer):,}" if fewer else "of no known split"
    )
    return Fact("C6", "validation targets", False if fewer else None, f"{targets:,} {part}", targets)


def tail_fact(logs: list[RunLog]) -> list[Fact]:
    """Say how many targets are scored again where windows go on to the last target (LEGALITY V31)."""
    again = set()
    for log in logs:
        if log.windows and log.targets and log.sequence:
            windows, stride = log.windows
            exact = 1 + -(-max(log.targets - log.sequence, 0) // stride)
            again.add((windows - exact) * stride)
    surplus = max(again, default=0)
    return (
        [Fact("C6", "tail scored again", False, f"{surplus:,} targets, by the logged windows")] if surplus > 0 else []
    )
