"""Figures that are told: ``submission.json``, ``stages.json`` and the card, each number beside its source.

What people and leaderboards read is worked out again from scores, manifests and recipe. What can be worked out from
nothing (the float model's losses: its nats are not kept) must at least be the same wherever it stands.
Source: LEGALITY E2, E4; ``record.submission``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from yaml import YAMLError

from modeling_pgolf.errors import FormatError

from ..corpus.build import describe
from ..report import validation_text
from ..stages import Facts, StageTable, counted_seconds, headline, machine, tabulate
from .evidence import Evidence, close
from .facts import Fact, read_json, shipped_bytes

TITLE = re.compile(r"^# (.*): (\S+) bits per byte$", re.M)


def figure_facts(evidence: Evidence) -> list[Fact]:
    """Whether every figure that is told has its source, and the manifests are those of the recipe."""
    try:
        wrong = list(told_breaches(evidence))
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        wrong = [f"a figure or its source is missing: {error!r}"]
    return [
        Fact("E2", "card, submission and scores agree", not wrong, "; ".join(wrong[:4]) or "they do"),
        run_fact(evidence),
    ]


def told_breaches(evidence: Evidence) -> Iterator[str]:
    """Compare all that is told with its sources."""
    told, entry = read_json(evidence.record / "stages.json"), read_json(evidence.record / "submission.json")
    facts = told_facts(evidence, told)
    yield from submission_breaches(evidence, entry, facts)
    yield from text_breaches(entry["pgolf"]["validation_text"], validation_text(evidence.recipe, facts))
    yield from table_breaches(told, tabulate(evidence.recipe, facts, told["stages"][1]["bytes"]))
    yield from card_breaches(evidence, evidence.record / "README.md")


def told_facts(evidence: Evidence, told: dict[str, Any]) -> Facts:
    """Put together what the stages wrote, with the float model's losses as ``stages.json`` tells them."""
    floating = told["stages"][1]
    losses = {
        "train_loss": told["stages"][0]["nats_per_token"],
        "validation_bpb": floating["bits_per_byte"],
        "validation_loss": floating["nats_per_token"],
    }
    return evidence.stage_facts(evidence.training.get("stream", {}).get("steps"), losses)


def submission_breaches(evidence: Evidence, entry: dict[str, Any], facts: Facts) -> Iterator[str]:
    """Compare ``submission.json`` with what it is made of."""
    published, trained, recipe = headline(facts.scores), evidence.training, evidence.recipe
    score, told = facts.scores[published], entry["pgolf"]
    size = shipped_bytes(evidence.record)
    pairs = {
        "val_bpb": (entry["val_bpb"], score["bits_per_byte"]),
        "val_loss": (entry["val_loss"], score["nats_per_token"]),
        "pre_quant_val_bpb": (entry["pre_quant_val_bpb"], facts.metrics["validation_bpb"]),
        "pre_quant_val_loss": (entry["pre_quant_val_loss"], facts.metrics["validation_loss"]),
        "bytes_total": (entry["bytes_total"], size),
        "bytes_code": (entry["bytes_code"], facts.sizes["code_bytes"]),
        "parameters": (told["parameters"], sum(group["weights"] for group in facts.sizes["groups"])),
        "steps": (told["steps"], facts.metrics["steps"]),
        "training_seconds": (told["training_seconds"], counted_seconds(facts.manifests)),
        "evaluation_seconds": (told["evaluation_seconds"], facts.seconds[published]),
    }
    words = {
        "seeds": (entry["seeds"], [recipe.training.seed]),
        "name": (entry["name"], recipe.name),
        "hardware": (entry["hardware"], machine(trained["hardware"])),
        "pytorch_version": (entry["pytorch_version"], trained["versions"]["torch"]),
        "date": (entry["date"], facts.manifests["evaluation"]["finished"][:10]),
        "recipe_sha256": (told["recipe_sha256"], trained["recipe_sha256"]),
        "commit": (told["commit"], trained["commit"]),
    }
    for name, (said, source) in pairs.items():
        if not close(said, source):
            yield f"{name} of submission.json is {said}, its source says {source}"
    for name, (word, original) in words.items():
        if word != original:
            yield f"{name} of submission.json is {word!r}, its source says {original!r}"


def text_breaches(told: dict[str, Any], made: dict[str, Any]) -> Iterator[str]:
    """Compare the validation text as it is told with the recipe's and the corpus's: is it the challenge's?"""
    for key in {"comparable", *told}:
        if key in made and told.get(key) != made[key]:
            yield f"{key} of the validation text in submission.json is {told.get(key)!r}, its source says {made[key]!r}"


def table_breaches(told: dict[str, Any], made: StageTable) -> Iterator[str]:
    """Compare the numbers of ``stages.json`` with the table made anew; its words may be of another version."""
    numbers = ("bits_per_byte", "nats_per_token", "bytes", "seconds", "value", "limit")
    for part, rows in asdict(made).items():
        if part == "stamp":
            continue  # ``integrity.stamp_finding``
        if len(told[part]) != len(rows):
            yield f"stages.json has {len(told[part])} {part}, the run has {len(rows)}"
            continue
        for said, row in zip(told[part], rows, strict=True):
            for key, value in row.items():
                same = close(said[key], value) if key in numbers else key != "verdict" or said[key] == value
                if not same:
                    yield f"{key} of {row['name']} in stages.json is {said[key]}, its source says {value}"


def card_breaches(evidence: Evidence, path: Path) -> Iterator[str]:
    """Compare the card's title and the results in its metadata with the scores."""
    try:
        text = path.read_text(encoding="utf-8")
        data = ModelCard(text).data
    except (OSError, ValueError, YAMLError) as error:
        yield f"README.md cannot be read: {error}"
        return
    results = (data.eval_results if isinstance(data, ModelCardData) else None) or []
    best = evidence.scores[headline(evidence.scores)]["bits_per_byte"]
    shown = [value for _, value in TITLE.findall(text)]
    if shown != [f"{best:.4f}"]:
        yield f"the card's title shows {', '.join(shown) or 'no score'}, the score is {best:.4f}"
    said = {result.metric_name: result.metric_value for result in results}
    scored = {f"bits per byte, {name}": round(s["bits_per_byte"], 6) for name, s in evidence.scores.items()}
    if said != scored:
        yield f"the card's metadata has {said}, the scores are {scored}"


def run_fact(evidence: Evidence) -> Fact:
    """Whether all stages ran with the recipe's seed, and training on the recipe's corpus."""
    recipe, wrong = evidence.recipe, []
    for stage, manifest in evidence.manifests.items():
        if manifest.get("seed") != recipe.training.seed:
            wrong.append(f"{stage} ran with seed {manifest.get('seed')}, the recipe has {recipe.training.seed}")
    built = evidence.training.get("corpus", {}).get("config")
    if built is not None and built != describe(recipe.corpus):
        wrong.append("the corpus of training is not that of the recipe")
    return Fact("E3", "seed and corpus of the recipe", not wrong, "; ".join(wrong) or f"seed {recipe.training.seed}")


def text_of(evidence: Evidence) -> dict[str, Any]:
    """Describe the validation text, and whether it is the challenge's, by the recipe and the corpus alone."""
    try:
        return validation_text(evidence.recipe, evidence.stage_facts(None, {}))
    except (KeyError, TypeError) as error:
        raise FormatError(f"the manifest of training does not describe its corpus: {error!r}") from error
