"""Facts of a record that need no rerun: what its own files say, and whether they agree.

A fact has a value and a flag: agrees, disagrees, or nothing to go by. No fact is a verdict; policies turn facts into
verdicts. The letters are the checks of LEGALITY 3.3 that a fact belongs to.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation.ledger import GENESIS, link
from modeling_pgolf.errors import FormatError

from ..artifact import WEIGHTS, code_bytes
from ..corpus.splits import file_sha256
from ..stages import machine

# Tokens per byte of the challenge's validation splits, and how far a score may be off. Source: LEGALITY 3.4, K15.
TOKENS_PER_BYTE = {"SP1024": 0.410521, "SP4096": 0.301235, "SP8192": 0.268339, "CaseOps SP8192": 0.316741}
FINGERPRINT_TOLERANCE = 5e-5


@dataclass(frozen=True)
class Fact:
    """One fact: ``holds`` is None where the record lacks what the check needs; ``found`` says what there is."""

    rule: str
    name: str
    holds: bool | None
    found: str
    number: float | None = None


def record_facts(record: Path) -> list[Fact]:
    """Read every fact of a pgolf record; raises FormatError where the folder is none."""
    if not (record / "manifest.json").is_file() or not (record / "scores.json").is_file():
        raise FormatError(f"{record} is not a pgolf record: it has no manifest.json or no scores.json")
    scores = _json(record / "scores.json")
    manifests = {p.stem: _json(p) for p in sorted((record / "manifests").glob("*.json"))}
    return [
        size_fact(record),
        track_fact(manifests),
        *clock_facts(manifests),
        *coverage_facts(record, scores["scores"]),
        *fingerprint_facts(scores["scores"]),
        agreement_fact(record, scores["scores"]),
        hash_fact(record),
        recipe_fact(manifests),
        Fact("C8", "bytes of the original text", None, "the record does not carry the validation text"),
        Fact("E4", "seeds", None, "one record is one seed; compare records with pgolf compare"),
    ]


def record_hardware(record: Path) -> str:
    """Name the hardware that a record was trained on."""
    return machine(_json(record / "manifests" / "training.json")["hardware"])


def size_fact(record: Path) -> Fact:
    """Bytes as shipped: the weights and every file that loading imports."""
    code, weights = code_bytes(record), (record / WEIGHTS).stat().st_size
    return Fact(
        "B1", "bytes as shipped", True, f"{code + weights:,} ({weights:,} weights, {code:,} code)", code + weights
    )


def track_fact(manifests: dict[str, Any]) -> Fact:
    """Whether any stage ran on the historical track, which adapts on validation text before scoring."""
    tracks = {manifest.get("track") for manifest in manifests.values()}
    return Fact("D1", "track", tracks == {"ranked"}, ", ".join(sorted(str(track) for track in tracks)) or "no manifest")


def clock_facts(manifests: dict[str, Any]) -> list[Fact]:
    """Training seconds (all that reads training data or steps an optimiser) and the longest evaluation."""
    training = manifests.get("training", {}).get("seconds", {})
    evaluation = manifests.get("evaluation", {}).get("seconds", {})
    used = sum(training.get(phase, 0.0) for phase in ("step", "replay", "replay_after_clock"))
    longest = max(evaluation.values(), default=math.nan)
    late = training.get("replay_after_clock", 0.0)
    note = f", {late:.1f} s of them after the clock had ended" if late else ""
    inside = None if not training else late == 0.0
    return [
        Fact("B2", "training seconds", inside, f"{used:.1f} s{note}", used if training else None),
        Fact("B3", "evaluation seconds", bool(evaluation) or None, f"{longest:.1f} s", longest if evaluation else None),
    ]


def coverage_facts(record: Path, scores: dict[str, Any]) -> list[Fact]:
    """Coverage and order of each scoring, from the events of its ledger."""
    facts = []
    for name, score in scores.items():
        path = record / f"ledger.{name}.jsonl"
        if not path.is_file():
            facts.append(Fact("C6", f"coverage, {name}", None, "the record carries no ledger of it"))
            continue
        problem = ledger_problem([json.loads(line) for line in path.read_text().splitlines()], score["targets"])
        facts.append(Fact("C6", f"coverage, {name}", problem is None, problem or f"{score['targets']:,} targets once"))
    return facts


def ledger_problem(events: list[dict[str, Any]], targets: int) -> str | None:
    """Say what is wrong with the order of a ledger's events; None where every target is scored once, before any use."""
    scored, previous = 0, GENESIS
    for number, event in enumerate(events):
        facts = {key: value for key, value in event.items() if key != "chain"}
        if link(previous, facts) != event.get("chain"):
            return f"event {number} does not match its hash"
        previous = event["chain"]
        if event["event"] == "SCORE" and event["first"] != scored:
            return f"event {number} scores target {event['first']} where {scored} is next"
        if event["event"] == "SCORE":
            scored += event["count"]
        if event["event"] == "UPDATE" and event["first"] + event["count"] > scored:
            return f"event {number} learns from targets up to {event['first'] + event['count']}, scored are {scored}"
    return None if scored == targets else f"{scored:,} of {targets:,} targets are scored"


def fingerprint_facts(scores: dict[str, Any]) -> list[Fact]:
    """Tokens per byte: the sums must be of one set of targets, and a known split has a known ratio (K15)."""
    facts = []
    for name, score in scores.items():
        ratio = score["bits_per_byte"] * math.log(2) / score["nats_per_token"]
        counted = score["targets"] / score["bytes"]
        known = [split for split, value in TOKENS_PER_BYTE.items() if abs(value - ratio) < FINGERPRINT_TOLERANCE]
        text = f"{ratio:.6f} tokens per byte, counted {counted:.6f}; " + (known[0] if known else "of no known split")
        facts.append(Fact("C7", f"sums of one set of targets, {name}", abs(ratio - counted) < 1e-9, text, ratio))
    return facts


def agreement_fact(record: Path, scores: dict[str, Any]) -> Fact:
    """Whether submission.json, the card and the scores name the same figures."""
    entry, card = _json(record / "submission.json"), (record / "README.md").read_text()
    best = [
        score["bits_per_byte"] for score in scores.values() if abs(score["bits_per_byte"] - entry["val_bpb"]) < 1e-9
    ]
    shown = f"{entry['val_bpb']:.4f}" in card
    size = code_bytes(record) + (record / WEIGHTS).stat().st_size
    wrong = [
        text
        for holds, text in (
            (bool(best), "submission.json's val_bpb is none of the scores"),
            (shown, "the card does not show submission.json's val_bpb"),
            (
                entry["bytes_total"] == size,
                f"submission.json says {entry['bytes_total']:,} bytes, the files are {size:,}",
            ),
        )
        if not holds
    ]
    return Fact("E2", "card, submission and scores agree", not wrong, "; ".join(wrong) or "they do")


def hash_fact(record: Path) -> Fact:
    """Whether every file is the one that the record's manifest names."""
    outputs = _json(record / "manifest.json")["outputs"]
    wrong = [
        name for name, sha in outputs.items() if not (record / name).is_file() or file_sha256(record / name) != sha
    ]
    return Fact("E3", "files match their hashes", not wrong, ", ".join(wrong[:4]) or f"{len(outputs)} files do")


def recipe_fact(manifests: dict[str, Any]) -> Fact:
    """Whether all stages ran one recipe."""
    hashes = {manifest.get("recipe_sha256") for manifest in manifests.values()}
    return Fact(
        "E3",
        "one recipe in all stages",
        len(hashes) == 1,
        f"{len(hashes)} different recipe hash(es) in {len(manifests)} stages",
    )


def _json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text())
    return content
