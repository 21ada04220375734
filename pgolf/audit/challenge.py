"""Facts of a record of the challenge itself: submission.json, README.md, train_gpt.py and its logs.

Such a folder has no hashes and no ledger, so its facts are what its files say and whether they agree. What no line
says is unknown, and so is what only a run could show. The letters are those of LEGALITY 1.

Source: LEGALITY 3.3 (K10, K12, K14 to K18, K21, K22) and 3.4; the records of openai/parameter-golf.
"""

from __future__ import annotations

import re
import statistics
from collections import Counter
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

from ..stages import JUDGE_GPU, JUDGE_GPUS
from .challenge_log import RunLog, read_logs
from .claims import Scored, agrees, claimed, claimed_scoring, claimed_sizes, mean, read_entry
from .facts import Fact
from .fingerprint import SUBSET_SETTINGS, coverage_fact, fingerprint_fact, tail_fact
from .shipped_code import ShippedCode, read_code

JUDGED = f"{JUDGE_GPUS} × {JUDGE_GPU}"
CLAIMED_GPUS = re.compile(r"\b8 ?[x×] ?(?:NVIDIA )?H100", re.I)
# Sizes near the cap as a README writes them, and the caps that it may name.
SIZE = re.compile(r"(?<![\d,.])(1\d[,_ ]?\d{3}[,_ ]?\d{3})(?![\d,])")
CAPS = {16_000_000, 16_777_216}
# Runs of one configuration that a record needs. Source: LEGALITY E4.
SEEDS = 3
# Shards of a local preparation that keeps 10,000 documents for validation and trains on the other 40,000.
# Source: LEGALITY K10, V20.
LEAKY_SHARDS = 1499
UNSEEN = (
    ("B2", "training data after the clock", "log lines do not say what was read when (K9)"),
    ("C1", "causality", "needs the scoring run again (K1, K3)"),
    ("C2", "normalised probabilities", "needs the scoring run again (K2)"),
    ("C3", "learning after scoring", "a script's own lines are no ledger (K4)"),
    ("C4", "one pass", "a script's own lines are no ledger (K4)"),
    ("D3", "training data in evaluation", "needs the run watched (K8, K9)"),
    ("D4", "self-contained evaluation", "needs the counted files alone on another machine (K11)"),
    ("D5", "calibration data", "invisible outside an isolated run (K8)"),
)


def read_challenge(folder: Path) -> tuple[list[Fact], str]:
    """Read every fact of a challenge record, and its hardware: what the logs print, else what its files claim.

    Raises FormatError where submission.json is no JSON object.
    """
    entry, logs, code = read_entry(folder), read_logs(folder), read_code(folder)
    path = folder / "README.md"
    card = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    scored = claimed_scoring(claimed(entry, "val_bpb"), logs)
    facts = [
        *byte_facts(entry, logs, code),
        *clock_facts(logs),
        hardware_fact(logs, entry, card),
        *score_facts(entry, scored),
        *card_facts(entry, logs, card),
        seeds_fact(logs),
        code_size_fact(logs, code),
        fingerprint_fact(scored.lines, logs),
        coverage_fact(logs),
        *tail_fact(logs),
        subset_fact(logs, code),
        *split_facts(logs),
        *[Fact(rule, name, None, reason) for rule, name, reason in UNSEEN],
    ]
    claim = CLAIMED_GPUS.search(f"{entry.get('hardware', '')} {card}")
    return facts, printed_gpus(logs) or (JUDGED if claim else "unknown hardware")


def byte_facts(entry: dict[str, Any], logs: list[RunLog], code: ShippedCode) -> list[Fact]:
    """The three sizes of LEGALITY K12: as shipped, as logged, as claimed; the largest of all logs."""
    models = [log.model_bytes for log in logs if log.model_bytes is not None]
    totals = [log.total_bytes for log in logs if log.total_bytes is not None]
    claims = claimed_sizes(entry)
    missing = f"; {', '.join(code.unread)} hides source, so files may be missing" if code.unread else ""
    files = ", ".join(f"{name} {size:,}" for name, size in code.files.items())
    shipped = max(models) + code.bytes if models else None
    found = f"{shipped:,} with {files}{missing}" if shipped else f"no log gives the model's bytes; code: {files}"
    known = True if models and not code.unread else None
    # A claim may be the mean of the logs, rounded either way.
    known_sizes = {*totals, *((sum(totals) // len(totals) + up for up in (0, 1)) if totals else ())}
    agree = set(claims) <= known_sizes if claims and totals else None
    listed = f"claimed {_list(claims)}; logged {_list(totals)}"
    return [
        Fact("B1", "bytes as shipped", known, found, shipped),
        Fact("B1", "bytes as logged", bool(totals) or None, _list(totals), max(totals, default=None)),
        Fact("B1", "bytes as claimed", bool(claims) or None, _list(claims), max(claims, default=None)),
        Fact("E2", "bytes of submission and logs", agree, listed),
    ]


def clock_facts(logs: list[RunLog]) -> list[Fact]:
    """The longest training and the longest single evaluation; unknown where a log lacks them."""
    training = [log.train_seconds for log in logs if log.train_seconds is not None]
    longest = [max(log.eval_seconds) for log in logs if log.eval_seconds]
    together = [sum(log.eval_seconds) for log in logs if log.eval_seconds]
    trained = f"{max(training):.3f} s at most, in {len(training)} of {len(logs)} logs" if training else "no log says"
    scored = f"{max(longest):.1f} s at most, all of one log {max(together):.1f} s" if longest else "no log says"
    in_all = [True if found and len(found) == len(logs) else None for found in (training, longest)]
    return [
        Fact("B2", "training clock", in_all[0], trained, max(training, default=None)),
        Fact("B3", "evaluation clock", in_all[1], scored, max(longest, default=None)),
    ]


def printed_gpus(logs: list[RunLog]) -> str:
    """Name the GPUs that the logs print; empty where they print none or different ones."""
    kinds = {tuple(log.gpus) for log in logs if log.gpus}
    if len(kinds) != 1:
        return ""
    return " + ".join(f"{count} × {name}" for name, count in Counter(kinds.pop()).items())


def hardware_fact(logs: list[RunLog], entry: dict[str, Any], card: str) -> Fact:
    """The machine, by the logs; a claim alone is no evidence."""
    printed = printed_gpus(logs)
    if printed:
        return Fact("B4", "hardware", printed == JUDGED, printed)
    match = CLAIMED_GPUS.search(card)
    claim = entry.get("hardware") or (match[0] if match else "nothing")
    return Fact("B4", "hardware", None, f"claimed: {claim}; the logs print no GPUs, or different ones")


def score_facts(entry: dict[str, Any], scored: Scored) -> list[Fact]:
    """Whether score and loss are in the logs, and whether the score is the mean of the seeds."""
    bits, loss = claimed(entry, "val_bpb"), claimed(entry, "val_loss")
    if bits is None or not scored.lines:
        reason = "the logs have none, or submission.json has none"
        names = (("E2", f"{key} of submission and logs") for key in ("val_bpb", "val_loss"))
        return [Fact(rule, name, None, reason) for rule, name in (*names, ("E4", "score is the mean of the seeds"))]
    how = "one log's" if scored.matches == "one" else f"mean of {len(scored.lines)} logs"
    found = f"claimed {bits}, {how} {mean([s.bits for s in scored.lines]):.6f}"
    facts = [Fact("E2", "val_bpb of submission and logs", scored.matches != "none", found)]
    if loss is not None:
        losses = [s.loss for s in scored.lines]
        holds = any(agrees(loss, printed) for printed in (losses, *([one] for one in losses)))
        facts += [Fact("E2", "val_loss of submission and logs", holds, f"claimed {loss}, {how} {mean(losses):.6f}")]
    whole = scored.matches == "mean" if scored.choices == 1 else None
    found += f", one of {scored.choices} choices of a log a seed" if whole is None else ""
    return [*facts, Fact("E4", "score is the mean of the seeds", whole, found)]


def card_facts(entry: dict[str, Any], logs: list[RunLog], card: str) -> list[Fact]:
    """Whether the README shows the claimed score, to four decimals or more, and a size that is logged or claimed."""
    claim, shown = claimed(entry, "val_bpb"), None
    if card and claim is not None:
        digits = -int(claim.as_tuple().exponent)
        spelled = {f"{claim:.{places}f}" for places in range(min(4, digits), digits + 1)}
        shown = any(re.search(rf"(?<![\d.]){re.escape(text)}", card) for text in spelled)
    sizes = sorted({int(re.sub(r"\D", "", size)) for size in SIZE.findall(card)} - CAPS)
    known = {*claimed_sizes(entry), *[log.total_bytes for log in logs]}
    said = {True: "is there", False: "is in no line of it", None: "cannot be compared"}[shown]
    return [
        Fact("E2", "score of README", shown, f"{claim} {said}"),
        Fact("E2", "bytes of README", any(size in known for size in sizes) if sizes else None, _list(sizes)),
    ]


def seeds_fact(logs: list[RunLog]) -> Fact:
    """How many seeds there are, and how far their last scores spread."""
    seeds = sorted({log.seed for log in logs if log.seed is not None})
    if not seeds:
        return Fact("E4", "seeds", None, "no log gives a seed")
    finals = [float(log.scores[-1].bits) for log in logs if log.scores]
    spread = f", mean {statistics.mean(finals):.5f} BPB" if finals else ""
    spread += f", sd {statistics.stdev(finals):.5f}" if len(finals) > 1 else ""
    return Fact("E4", "seeds", len(seeds) >= SEEDS, f"{_list(seeds, '')} in {len(logs)} logs{spread}", len(seeds))


def code_size_fact(logs: list[RunLog], code: ShippedCode) -> Fact:
    """Whether the logs were written by a script of the shipped size (LEGALITY K17)."""
    script, printed = next(iter(code.files.values())), [log for log in logs if log.code_bytes]
    other = [log for log in printed if not {script, code.bytes} & set(log.code_bytes)]
    found = f"{script:,} shipped" + "".join(f"; {log.name} {_list(log.code_bytes)}" for log in other)
    return Fact("E3", "code size of the logs", not other if printed else None, found if printed else "no log says")


def subset_fact(logs: list[RunLog], code: ShippedCode) -> Fact:
    """Whether settings that score a part of the text are at their full value in the logs (LEGALITY K21)."""
    read = [name for name in SUBSET_SETTINGS if name in code.names]
    if code.unread or not read:
        found = f"{', '.join(code.unread)} hides source" if code.unread else "the code has none"
        return Fact("C6", "settings that score a part", None if code.unread else True, found)
    values = {
        name: set(re.findall(rf"^ *{name.lower()}: ?(.*)$", "\n".join(log.text for log in logs), re.M)) for name in read
    }
    part = {name: found - SUBSET_SETTINGS[name] for name, found in values.items() if SUBSET_SETTINGS[name]}
    known = all(values[name] and SUBSET_SETTINGS[name] for name in read)
    said = "; ".join(f"{name} {', '.join(map(repr, sorted(found))) or 'unsaid'}" for name, found in values.items())
    return Fact("C6", "settings that score a part", False if any(part.values()) else known or None, said)


def split_facts(logs: list[RunLog]) -> list[Fact]:
    """Signs of leaks before the model is serialised: shards of a known leaky preparation, a loss that falls."""
    leaky = [log.name for log in logs if log.train_shards == LEAKY_SHARDS]
    shards = f"{LEAKY_SHARDS} train shards in {', '.join(leaky)}" if leaky else "needs the shards themselves (K10)"
    falls = [
        (before.loss - after.loss, f"{before.name} {before.loss} to {after.name} {after.loss} in {log.name}")
        for log in logs
        for before, after in zip(log.before, log.before[1:], strict=False)
    ]
    largest = max(falls, default=(Decimal(0), ""))
    # A suspicion at most (K22): averaging weights lowers the loss as well. Proof is a run with other text (K6, K8).
    found = f"; val_loss falls before serialisation: {largest[1]}" if largest[0] > 0 else ""
    return [
        Fact("D2", "documents in both splits", False if leaky else None, shards),
        Fact("D1", "validation text before scoring", None, f"needs an isolated run (K6, K8){found}"),
    ]


def _list(numbers: Sequence[int], form: str = ",") -> str:
    return ", ".join(format(number, form) for number in numbers) or "none"
