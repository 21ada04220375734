"""Integrity: whether a record is, file by file, what it says of itself, and bears the stamp that it earns.

Hashes show that files belong together, not who made them. Everything here reads the record alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from modeling_pgolf.errors import FormatError

from .artifact import WEIGHTS, code_bytes
from .audit.facts import HISTORICAL, read_json, record_tracks
from .corpus.splits import file_sha256
from .recipe import load_recipe
from .siblings import ROOT
from .stages import stamp
from .workdir import MANIFEST, file_hashes

# A record's manifests by stage, and the folder of the run that each is from.
STAGES = {"training": "checkpoint", "quantization": "artifact", "evaluation": "scores"}

Verdict = Literal["FAIL", "UNKNOWN", "PASS"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. UNKNOWN: it could not be; ``found`` says why."""

    name: str
    verdict: Verdict
    found: str


def check_record(record: Path) -> None:
    """Raise FormatError where a folder is no record, or is damaged or altered."""
    if read_json(record / MANIFEST).get("stage") != "record":
        raise FormatError(f"asked for a record in {record.name}; its {MANIFEST} is of something else; see pgolf record")
    for finding in integrity(record):
        if finding.verdict == "FAIL":
            raise FormatError(
                f"{record.name} is not a sound record: {finding.name}: {finding.found}; make or fetch it again"
            )


def integrity(record: Path) -> list[Finding]:
    """Compare a record with itself: files, hash chain, sizes and stamp."""
    return [files_finding(record), chain_finding(record), sizes_finding(record), stamp_finding(record)]


def files_finding(record: Path) -> Finding:
    """Compare the files of a record with its manifest, both ways."""
    named, here = read_json(record / MANIFEST).get("outputs", {}), file_hashes(record)
    wrong = [
        *[f"{name} is missing" for name in named if name not in here],
        *[f"{name} is another file" for name in named if name in here and here[name] != named[name]],
        *[f"{name} is in no manifest" for name in here if name not in named],
    ]
    return _finding("files", wrong, f"{len(named)} files are those that the manifest names, and no others")


def chain_finding(record: Path) -> Finding:
    """Follow the hashes from the recipe over the stages to the files that are here."""
    inputs, recipe = read_json(record / MANIFEST).get("inputs", {}), file_sha256(record / "recipe.json")
    wrong, links = [], 0
    for stage, folder in STAGES.items():
        path = record / "manifests" / f"{stage}.json"
        manifest = read_json(path)
        if inputs.get(f"{folder}/{MANIFEST}") != file_sha256(path):
            wrong.append(f"the manifest of {stage} is another one")
        if manifest.get("recipe_sha256") != recipe:
            wrong.append(f"{stage} ran another recipe than recipe.json")
        # What a stage wrote and the record carries; training's weights are another file of the same name.
        written = manifest.get("outputs", {}) if stage != "training" else {}
        for name in [name for name in written if (record / name).is_file()]:
            links += 1
            if file_sha256(record / name) != written[name]:
                wrong.append(f"{name} is not what {stage} wrote")
    return _finding("hash chain", wrong, f"recipe, three manifests and {links} files of the stages")


def sizes_finding(record: Path) -> Finding:
    """Count the bytes of weights and code and look for them wherever a record states them."""
    code, weights = code_bytes(record), (record / WEIGHTS).stat().st_size
    told = {
        "bytes.json": read_json(record / "bytes.json").get("total_bytes"),
        "submission.json": read_json(record / "submission.json").get("bytes_total"),
        "manifests/quantization.json": read_json(record / "manifests" / "quantization.json").get("total_bytes"),
    }
    wrong = [
        f"{name} says {said}, the files have {code + weights}" for name, said in told.items() if said != code + weights
    ]
    return _finding("sizes", wrong, f"{code + weights:,} bytes, {code:,} of them code")


def stamp_finding(record: Path) -> Finding:
    """Work the stamp out and look for it wherever a record shows it."""
    earned = earned_stamp(record)
    card = (record / "README.md").read_text(encoding="utf-8", errors="replace")
    told: dict[str, Any] = {
        MANIFEST: read_json(record / MANIFEST).get("stamp"),
        "stages.json": read_json(record / "stages.json").get("stamp"),
        "submission.json": read_json(record / "submission.json").get("pgolf", {}).get("stamp"),
        "README.md": earned if earned in card else "another or none",
    }
    wrong = [f"{name} says {said!r}, the record earns {earned!r}" for name, said in told.items() if said != earned]
    return _finding("stamp", wrong, earned or "none: neither recipe nor track forbids ranking it")


def earned_stamp(record: Path) -> str:
    """Work the stamp out from the recipe, and from the track wherever it is named: one place is enough."""
    recipe = load_recipe(record / "recipe.json")
    historical = HISTORICAL in record_tracks(record).values()
    return stamp(replace(recipe, track="historical") if historical else recipe)


def code_finding(record: Path) -> Finding:
    """Compare the code that the record carries with this pgolf's own."""
    files = sorted(record.glob("*.py"))
    others = [p.name for p in files if not _same_file(p, ROOT / "modeling_pgolf" / p.name)]
    if others:
        return Finding("code", "UNKNOWN", f"not this pgolf's: {', '.join(others)}; another version, or another model")
    return Finding("code", "PASS", f"{len(files)} files are this pgolf's own")


def _same_file(one: Path, other: Path) -> bool:
    return other.is_file() and one.read_bytes() == other.read_bytes()


def _finding(name: str, wrong: list[str], well: str) -> Finding:
    return Finding(name, "FAIL" if wrong else "PASS", "; ".join(wrong[:4]) or well)
