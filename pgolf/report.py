"""What a person reads of a record: the report as one page, and the model card.

Both say the same from the same facts; layout and wording live in ``templates/``. The page needs nothing from the
network: its style and its plots are inside it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from .audit.policy import ORDER, Verdict, overall
from .corpus.build import describe
from .corpus.fineweb import ChallengeShards, FineWebStream
from .plots import PALETTE
from .recipe import BudgetConfig, Recipe, differences, recipe_json
from .stages import Facts, StageTable, counted_seconds, headline, machine

TEMPLATES = Path(__file__).parent / "templates"
# What reading an artifact needs besides torch and transformers, by its codec (docs/FORMAT.md 2).
DECODERS = {
    "zstd": "zstandard",
    "shuffle-brotli": "zstandard` and `brotli",
    "ans": "zstandard` and `constriction",
}
# Bits of a byte that nothing is known about: what a score of no use comes to.
RAW_BITS = 8
REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


def report_html(recipe: Recipe, facts: Facts, table: StageTable, verdicts: Sequence[Verdict], plots: Path) -> str:
    """Render the report.

    verdicts: the auditor's, of all files but this one. plots: the folder of the SVG files that are put into it.
    """
    drawn = {file.stem: inline_svg(file.read_text(), file.stem) for file in sorted(plots.glob("*.svg"))}
    judged = {"verdicts": sorted(verdicts, key=lambda v: ORDER.index(v.verdict)), "overall": overall(verdicts)}
    return render("report.html.j2", **view(recipe, facts, table), **judged, plots=drawn, palette=PALETTE)


def model_card(recipe: Recipe, facts: Facts, table: StageTable) -> str:
    """Render ``README.md``: metadata for the Hub, then the card."""
    decoder = DECODERS[recipe.quantization.codec]
    metadata = card_data(recipe, facts, table).to_yaml()
    return render("README.md.j2", metadata=metadata, decoder=decoder, **view(recipe, facts, table))


def card_data(recipe: Recipe, facts: Facts, table: StageTable) -> ModelCardData:
    """Return the card's metadata with both scores as evaluation results."""
    datasets, text = hub_datasets(recipe), validation_text(recipe, facts)
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type=datasets[0] if datasets else text["kind"],
            dataset_name=text["name"],
            dataset_split="validation",
            metric_type="bits_per_byte",
            metric_name=f"bits per byte, {name}",
            metric_value=round(score["bits_per_byte"], 6),
            metric_args={"window": score["window"], "stride": score["stride"]},
        )
        for name, score in reversed(facts.scores.items())
    ]
    stamp = ["not-rankable"] if table.stamp else []
    return ModelCardData(
        language="en",
        license="mit",
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["parameter-golf", "pgolf", *stamp],
        datasets=datasets or None,
        metrics=["bits_per_byte"],
        model_name=recipe.name,
        eval_results=results,
    )


def hub_datasets(recipe: Recipe) -> list[str]:
    """Return the Hub repositories that the corpus comes from."""
    source = recipe.corpus.source
    if isinstance(source, ChallengeShards):
        return [source.repository]
    # A stream may also be read from a folder on disk, which is nobody else's business.
    if isinstance(source, FineWebStream) and REPOSITORY.fullmatch(source.dataset) and not Path(source.dataset).exists():
        return [source.dataset]
    return []


def validation_text(recipe: Recipe, facts: Facts) -> dict[str, Any]:
    """Describe the text that the scores are measured on; ``comparable`` says whether it is the challenge's."""
    source, corpus = recipe.corpus.source, facts.manifests["training"]["corpus"]
    official = isinstance(source, ChallengeShards) and source.repository == ChallengeShards().repository
    return {
        "kind": type(source).__name__,
        "name": source.name,
        "comparable": official,
        "documents": corpus["validation"]["documents"],
        "utf8_bytes": corpus["validation"]["utf8_bytes"],
        "lost_bytes": corpus["validation"]["lost_bytes"],
        "gained_bytes": corpus["validation"]["gained_bytes"],
        "free_blanks": corpus["validation"]["free_blanks"],
        "changed": corpus["validation"]["documents_changed"],
        "train_tokens": corpus["train"]["tokens"],
        "train_documents": corpus["train"]["documents"],
        "duplicates": corpus["train_documents_dropped_as_validation_duplicates"],
        "fingerprint": corpus["train_fingerprint"],
    }


def view(recipe: Recipe, facts: Facts, table: StageTable) -> dict[str, Any]:
    """Gather what the templates show."""
    score, groups = facts.scores[headline(facts.scores)], facts.sizes["groups"]
    tokens = facts.metrics["steps"] * recipe.training.step_tokens
    return {
        "recipe": recipe,
        "table": table,
        "score": score,
        "sizes": facts.sizes,
        "header_bytes": facts.sizes["total_bytes"] - facts.sizes["code_bytes"] - sum(g["bytes"] for g in groups),
        "text": validation_text(recipe, facts),
        "raw_bits": RAW_BITS,
        "compressed_bytes": round(score["bytes"] * score["bits_per_byte"] / RAW_BITS),
        "parameters": sum(group["weights"] for group in groups),
        "steps": facts.metrics["steps"],
        "tokens": tokens,
        "training_seconds": counted_seconds(facts.manifests),
        "machine": machine(facts.manifests["training"]["hardware"]),
        "effects": effects(recipe, facts),
        "differences": [
            (name, _short(ours), _short(usual))
            for name, ours, usual in differences(recipe, Recipe(recipe.name, recipe.corpus))
        ],
        "recipe_text": json.dumps(json.loads(recipe_json(recipe)) | {"corpus": describe(recipe.corpus)}, indent=2),
        "provenance": provenance(facts),
        "hashes": hashes(facts),
        "unchecked": not_checked(recipe, facts, table),
    }


def _short(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def effects(recipe: Recipe, facts: Facts) -> list[str]:
    """Say what compression and the sliding window changed, where the rows can be compared."""
    plain, sliding = facts.scores["plain"], facts.scores["sliding"]
    found = []
    if plain["window"] == recipe.training.sequence_length:
        change = plain["bits_per_byte"] - facts.metrics["validation_bpb"]
        found.append(f"Storing the weights as integers changed the score by {_signed(change)} BPB.")
    if sliding["stride"] < sliding["window"]:
        change = sliding["bits_per_byte"] - plain["bits_per_byte"]
        found.append(f"Sliding windows, which give each target more context, changed it by {_signed(change)} BPB.")
    return found


def _signed(change: float) -> str:
    return f"{change:+.4f}".replace("-", "−")


def provenance(facts: Facts) -> list[tuple[str, list[str]]]:
    """Return rows of (what, value in training, quantization, evaluation): commit, hardware and versions."""
    manifests = list(facts.manifests.values())
    rows = [
        ("commit", [manifest["commit"] or "unknown" for manifest in manifests]),
        ("machine", [machine(manifest["hardware"]) for manifest in manifests]),
    ]
    names = sorted({name for manifest in manifests for name in manifest["versions"]})
    return rows + [(name, [manifest["versions"].get(name, "–") for manifest in manifests]) for name in names]


def hashes(facts: Facts) -> list[tuple[str, str]]:
    """Return (file, SHA-256) of what identifies the run, in the order in which one was made from the other."""
    training, quantization, evaluation = facts.manifests.values()
    reused = {
        f"recipe of the run {m['reused_from']['run']}, whose {stage} was reused": m["reused_from"]["recipe_sha256"]
        for stage, m in facts.manifests.items()
        if "reused_from" in m
    }
    return [
        ("recipe", training["recipe_sha256"]),
        *reused.items(),
        ("corpus.json", training["inputs"]["corpus.json"]),
        ("checkpoint/model.safetensors", training["outputs"]["model.safetensors"]),
        ("artifact/model.safetensors", quantization["outputs"]["model.safetensors"]),
        ("scores/nats.safetensors", evaluation["outputs"]["nats.safetensors"]),
        ("scores/scores.json", evaluation["outputs"]["scores.json"]),
    ]


def not_checked(recipe: Recipe, facts: Facts, table: StageTable) -> list[str]:
    """List what this record does not show, so that nobody reads it into the record."""
    timed = [check for check in table.checks if check.verdict == "not judged"]
    commits = {manifest["commit"] for manifest in facts.manifests.values()}
    found = [f"The {check.name} ({check.value:,.1f}) are not judged: {check.reason}." for check in timed]
    if recipe.budget != BudgetConfig():
        found.append(f"The limits are the recipe's own, not the challenge's: {recipe.budget}.")
    if not validation_text(recipe, facts)["comparable"]:
        found.append("The validation text is not the challenge's, so the score does not compare with its leaderboard.")
    if any(commit is None or commit.endswith("-dirty") for commit in commits):
        found.append("The code had changes that are in no commit, or came from no checkout: a commit does not name it.")
    elif len(commits) > 1:
        found.append("The stages ran at different commits.")
    return [
        *found,
        "One run with one seed: no statement about the spread over seeds, and none about runs that were not published.",
        "The hashes show that these files belong together and are unchanged. They do not show who computed them: "
        "only running the recipe again does.",
        "No probe of the scoring itself (causality, normalisation, swapped validation text) is part of a record.",
        "The training log is covered by this record's manifest alone, not by the manifest of training.",
    ]


def inline_svg(text: str, prefix: str) -> str:
    """Return an SVG file as an element for a page: ids of its own, colours from the page's theme."""
    element = text[text.index("<svg") :]
    element = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}-", element)
    for name, colour in PALETTE.items():
        element = element.replace(colour, f"var(--{name})")
    return element


def render(template: str, **values: Any) -> str:
    """Fill a template of ``templates/``; a value that it wants and does not get is an error."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=select_autoescape(["html.j2"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(template).render(**values)
