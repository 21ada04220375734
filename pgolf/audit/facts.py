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

from evaluation.ledger import Event, walk
from modeling_pgolf.errors import FormatError, LegalityError
from modeling_pgolf.quantization_pgolf import TRACKS, read_track

from ..artifact import WEIGHTS, code_bytes
from ..corpus.splits import file_sha256
from ..stages import counted_seconds, machine
from ..workdir import MANIFEST, file_hashes
from .shipped_code import CODE_SUFFIXES

# Tokens per byte of the challenge's validation splits, and how far a score may be off. Source: LEGALITY 3.4, K15.
TOKENS_PER_BYTE = {"SP1024": 0.410521, "SP4096": 0.301235, "SP8192": 0.268339, "CaseOps SP8192": 0.316741}
FINGERPRINT_TOLERANCE = 5e-5

RANKED, HISTORICAL = TRACKS
STAGES = ("training", "quantization", "evaluation")

# What no file can show. Source: LEGALITY 3.3, K1 to K3 and K8.
PROBES = (("C1", "causality"), ("C2", "normalised probabilities"), ("D4", "self-contained evaluation"))


@dataclass(frozen=True)
class Fact:
    """One fact: ``holds`` is None where the record lacks what the check needs; ``found`` says what there is."""

    rule: str
    name: str
    holds: bool | None
    found: str
    number: float | None = None


def record_facts(record: Path) -> list[Fact]:
    """Read every fact of a pgolf record; raises FormatError where a file of it is missing or damaged."""
    scores = read_json(record / "scores.json")["scores"]
    manifests = {p.stem: read_json(p) for p in sorted((record / "manifests").glob("*.json"))}
    return [
        size_fact(record),
        track_fact(record),
        *clock_facts(manifests),
        *[fact for name, score in scores.items() for fact in ledger_facts(record, name, score)],
        *fingerprint_facts(scores),
        *bytes_facts(manifests, scores),
        agreement_fact(record, scores),
        hash_fact(record),
        recipe_fact(manifests),
        chain_fact(record, manifests),
        split_fact(manifests),
        *[Fact(rule, name, None, "needs the scoring run again; a record cannot show it") for rule, name in PROBES],
        Fact("E4", "seeds", None, "one record is one seed; compare records with pgolf compare"),
    ]


def record_hardware(record: Path) -> str:
    """Name the hardware that a record was trained on."""
    return machine(read_json(record / "manifests" / "training.json")["hardware"])


def size_fact(record: Path) -> Fact:
    """Bytes as shipped: the weights, every file that loading imports, and whatever else is code."""
    total, weights = shipped_bytes(record), (record / WEIGHTS).stat().st_size
    return Fact("B1", "bytes as shipped", True, f"{total:,} ({weights:,} weights, {total - weights:,} code)", total)


def shipped_bytes(record: Path) -> int:
    """Count the weights, the code and configuration of an artifact, and source or compiled code anywhere below it."""
    below = (p for p in record.rglob("*") if p.suffix in CODE_SUFFIXES and p.is_file())
    helpers = sum(p.stat().st_size for p in below if p.parent != record or p.suffix != ".py")
    return code_bytes(record) + (record / WEIGHTS).stat().st_size + helpers


def track_fact(record: Path) -> Fact:
    """Whether any place names another track than the ranked one; unknown where one names none."""
    named = record_tracks(record)
    tracks = sorted(set(named.values()), key=lambda track: (track is None, str(track)))
    if tracks == [RANKED]:
        return Fact("D1", "track", True, f"{RANKED}, in all {len(named)} places")
    told = [f"{track or 'not named'} in {', '.join(p for p, t in named.items() if t == track)}" for track in tracks]
    if HISTORICAL in tracks:
        told.append("the historical track adapts on validation text before it scores that text")
    return Fact("D1", "track", None if set(tracks) <= {RANKED, None} else False, "; ".join(told))


def record_tracks(record: Path) -> dict[str, str | None]:
    """Return the track that each place of a record names, the weights' own file last; None where it names none."""
    files = ["recipe.json", *[f"manifests/{stage}.json" for stage in STAGES], MANIFEST, "submission.json"]
    here = {name: read_json(record / name) if (record / name).is_file() else {} for name in files}
    if not here[MANIFEST]:
        del here[MANIFEST]  # it is written last, when the record has been judged
    named = {name: content.get("track") for name, content in here.items()}
    named["submission.json"] = here["submission.json"].get("pgolf", {}).get("track")
    try:
        named[WEIGHTS] = read_track(record / WEIGHTS)
    except FormatError:
        named[WEIGHTS] = None
    return {name: None if track is None else str(track) for name, track in named.items()}


def clock_facts(manifests: dict[str, Any]) -> list[Fact]:
    """Training seconds (all that reads training data or steps an optimiser) and the longest evaluation."""
    training = manifests.get("training", {}).get("seconds", {})
    evaluation = manifests.get("evaluation", {}).get("seconds", {})
    late = training.get("replay_after_clock", 0.0)
    used = late + counted_seconds(manifests)
    longest = max(evaluation.values(), default=math.nan)
    note = f", {late:.1f} s of them after the clock had ended" if late else ""
    inside = None if not training else late == 0.0
    return [
        Fact("B2", "training seconds", inside, f"{used:.1f} s{note}", used if training else None),
        Fact("B3", "evaluation seconds", bool(evaluation) or None, f"{longest:.1f} s", longest if evaluation else None),
    ]


def ledger_facts(record: Path, name: str, score: dict[str, Any]) -> list[Fact]:
    """Order and coverage of one scoring, from the events of its ledger."""
    path, broken = record / f"ledger.{name}.jsonl", []
    reason = "the record carries no ledger of it"
    if path.is_file():
        try:
            events = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            return order_facts(name, events, score["targets"], score["window"])
        except (ValueError, LegalityError) as error:
            reason, broken = "its ledger is broken", [Fact("E3", f"ledger, {name}", False, str(error))]
    checks = (("C3", "learning after scoring"), ("C4", "one pass"), ("C6", "coverage"))
    return [*broken, *[Fact(rule, f"{title}, {name}", None, reason) for rule, title in checks]]


def order_facts(name: str, events: list[Event], targets: int, window: int) -> list[Fact]:
    """Judge the order of a ledger's events; raises LegalityError where one does not match its hash.

    The challenge's script scores the end of the stream again, at most a window of it (LEGALITY V31): a fact of its
    own, because it was accepted. Any other second score is a second pass.
    """
    reached = again = 0
    early = gap = ""
    for event, scored in walk(events):
        first, end = event.get("first", 0), event.get("first", 0) + event.get("count", 0)
        if event["event"] == "UPDATE" and end > scored:
            early = early or f"learns from targets up to {end:,} when {scored:,} are scored"
        elif event["event"] == "SCORE":
            gap = gap or (f"scores target {first:,} where {scored:,} is next" if first > scored else "")
            again += max(0, min(end, scored) - first)
            reached = max(reached, end)
    if not gap and reached != targets:
        gap = f"{reached:,} of {targets:,} targets are scored"
    tail = again < window
    repeated = f"{again:,} targets are scored again" if again else "none"
    return [
        Fact("C3", f"learning after scoring, {name}", not early, early or "only from scored targets"),
        Fact("C4", f"one pass, {name}", tail, "one pass" if tail else repeated),
        Fact("C6", f"coverage, {name}", not gap, gap or f"all {targets:,} targets"),
        *([Fact("C6", f"tail scored again, {name}", False, repeated)] if again and tail else []),
    ]


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


def bytes_facts(manifests: dict[str, Any], scores: dict[str, Any]) -> list[Fact]:
    """What scores divide by, beside the recounted corpus: its decoded text and, where there is one, its original."""
    validation = manifests.get("training", {}).get("corpus", {}).get("validation", {})
    counted, original = validation.get("counted_bytes"), validation.get("utf8_bytes")
    if counted is None:
        return [Fact("C8", "bytes of the text", None, "the corpus was not recounted")]
    other = [f"{name} divides by {score['bytes']:,}" for name, score in scores.items() if score["bytes"] != counted]
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


def agreement_fact(record: Path, scores: dict[str, Any]) -> Fact:
    """Whether submission.json, the card and the scores name the same figures."""
    entry, card = read_json(record / "submission.json"), (record / "README.md").read_text()
    best = [
        score["bits_per_byte"] for score in scores.values() if abs(score["bits_per_byte"] - entry["val_bpb"]) < 1e-9
    ]
    shown = f"{entry['val_bpb']:.4f}" in card
    size = shipped_bytes(record)
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
    """Whether the files are those that the record's manifest names, all of them and no others."""
    if not (record / MANIFEST).is_file():
        return Fact("E3", "files match their hashes", None, "the manifest is written last; pgolf audit compares it")
    named = read_json(record / MANIFEST)["outputs"]
    # What begins with a dot is the Hub's own.
    here = {name: sha for name, sha in file_hashes(record).items() if not any(p[0] == "." for p in Path(name).parts)}
    wrong = sorted(name for name in named.keys() | here.keys() if named.get(name) != here.get(name))
    return Fact("E3", "files match their hashes", not wrong, ", ".join(wrong[:4]) or f"{len(named)} files do")


def recipe_fact(manifests: dict[str, Any]) -> Fact:
    """Whether all stages ran one recipe."""
    hashes = {manifest.get("recipe_sha256") for manifest in manifests.values()}
    return Fact(
        "E3",
        "one recipe in all stages",
        len(hashes) == 1,
        f"{len(hashes)} recipe(s) in {len(manifests)} stages",
    )


def chain_fact(record: Path, manifests: dict[str, Any]) -> Fact:
    """Whether the stages worked on one corpus, one checkpoint and one artifact, the one that is here."""
    name = "one chain of files"
    if not manifests.keys() >= set(STAGES):
        return Fact("E3", name, None, f"manifests of {', '.join(manifests) or 'no stage'} alone")
    training, quantization, evaluation = (manifests[stage] for stage in STAGES)
    artifact = quantization["outputs"].get(WEIGHTS)
    links = {
        "corpus": (training["inputs"].get("corpus.json"), evaluation["inputs"].get("corpus.json")),
        "checkpoint": (training["outputs"].get(WEIGHTS), quantization["inputs"].get(f"checkpoint/{WEIGHTS}")),
        "scored artifact": (artifact, evaluation["inputs"].get(f"artifact/{WEIGHTS}")),
        "artifact here": (artifact, file_sha256(record / WEIGHTS)),
    }
    wrong = [link for link, (one, other) in links.items() if one is None or one != other]
    return Fact("E3", name, not wrong, f"another {', '.join(wrong)}" if wrong else ", ".join(links))


def split_fact(manifests: dict[str, Any]) -> Fact:
    """How many training documents were validation documents, by the corpus's own account; they are left out."""
    corpus = manifests.get("training", {}).get("corpus", {})
    dropped = corpus.get("train_documents_dropped_as_validation_duplicates")
    found = "not compared: only tokens were published" if dropped is None else f"{dropped:,} found and left out"
    return Fact("D2", "documents in both splits", None if dropped is None else True, found)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; raises FormatError where it is missing or none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FormatError(
            f"asked for the JSON object {path.name}; found {error}; take the record as published"
        ) from error
    if not isinstance(content, dict):
        raise FormatError(f"asked for a JSON object in {path.name}; found {type(content).__name__}")
    return content
