"""Facts of a record that need no rerun: what its own files say, and whether they agree.

A fact has a value and a flag: agrees, disagrees, or nothing to go by. No fact is a verdict; policies turn facts into
verdicts. The letters are the checks of LEGALITY 3.3 that a fact belongs to.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modeling_pgolf.errors import FormatError
from modeling_pgolf.quantization_pgolf import TRACKS, read_track

from ..artifact import WEIGHTS, code_bytes
from ..corpus.splits import file_sha256
from ..recipe import Recipe
from ..workdir import MANIFEST, file_hashes
from .shipped_code import CODE_SUFFIXES

RANKED, HISTORICAL = TRACKS
STAGES = ("training", "quantization", "evaluation")

SHA256 = re.compile(r"[0-9a-f]{64}")

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
    named = {name: content.get("track") for name, content in here.items()}
    named["submission.json"] = here["submission.json"].get("pgolf", {}).get("track")
    try:
        named[WEIGHTS] = read_track(record / WEIGHTS)
    except FormatError:
        named[WEIGHTS] = None
    return {name: None if track is None else str(track) for name, track in named.items()}


def hash_fact(record: Path) -> Fact:
    """Whether the files are those that the record's manifest names, all of them and no others."""
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


def fine_tune_fact(recipe: Recipe, manifests: dict[str, Any]) -> Fact:
    """On which tokens the weights were fine-tuned, by the training stage's own account, beside what the recipe asks."""
    name, config = "text of fine-tuning", recipe.training.fine_tune
    training = manifests.get("training", {})
    told, spent = training.get("fine_tune"), training.get("seconds", {}).get("fine_tune")
    if config is None:
        said = {"seconds": spent, "text": told} if told or spent else "none"
        return Fact("D1", name, told is None and spent is None, f"{said!s:.80}: the recipe has no fine-tuning")
    if told is None:
        return Fact("D1", name, None, "not named by the training stage")
    stored = training.get("corpus", {}).get("train", {}).get("tokens")
    asked = {"split": "train", "tokens": min(config.tokens, stored or config.tokens)}
    found = {key: told.get(key) for key in asked}
    holds = found == asked and type(found["tokens"]) is int and bool(SHA256.fullmatch(str(told.get("sha256"))))
    return Fact("D1", name, holds, f"{found['tokens']} tokens of the {found['split']} split; asked {asked['tokens']}")


def split_fact(manifests: dict[str, Any]) -> Fact:
    """How many training documents were validation documents, by the corpus's own account; they are left out."""
    corpus = manifests.get("training", {}).get("corpus", {})
    dropped = corpus.get("train_documents_dropped_as_validation_duplicates")
    if dropped is None:
        return Fact("D2", "documents in both splits", None, "not compared: only tokens were published")
    return Fact("D2", "documents in both splits", dropped >= 0, f"{dropped:,} found and left out")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; raises FormatError where it is missing or none, or names a key twice."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_unique)
    except (OSError, ValueError, RecursionError) as error:
        raise FormatError(
            f"asked for the JSON object {path.name}; found {error}; take the record as published"
        ) from error
    if not isinstance(content, dict):
        raise FormatError(f"asked for a JSON object in {path.name}; found {type(content).__name__}")
    return content


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build an object of which every reader reads the same."""
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError(f"a key twice among {', '.join(key for key, _ in pairs[:6])}")
    return content
