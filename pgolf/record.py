"""The record: one folder with everything that is published of a run.

It is the artifact with its evidence beside it, so the folder loads like any model of the Hub. Nothing is written
before the manifests of the three stages chain: the checkpoint that was compressed, the artifact that was scored, one
recipe and one corpus throughout.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from modeling_pgolf.errors import FormatError
from modeling_pgolf.quantization_pgolf import read_track

from .audit.policy import judge, load_policy
from .audit.records import read_record
from .block_nats import BLOCK_NATS, write_block_nats
from .corpus.splits import file_sha256
from .plots import bytes_figure, loss_figure, save_figure
from .recipe import Recipe, differences, load_recipe
from .report import model_card, report_html, view
from .score_plots import gains_figure, position_figure, running_figure, token_figure
from .stages import Facts, StageTable, counted_seconds, headline, machine, read_facts, stage_table
from .track import check_track, checkpoint_track
from .workdir import MANIFEST, RunFolder, building, check_outputs, write_manifest, write_text

WEIGHTS, CORPUS, RECIPE = "model.safetensors", "corpus.json", "recipe.json"
# Beside the nats of each scoring: how many bytes each target stands for.
TARGET_BYTES = "target_bytes"
# Of the verdicts in a report. The strictest: whoever wants another asks pgolf audit.
POLICY = "strict"


def write_record(recipe: Recipe, run: RunFolder, author: str = "unknown", github_id: str = "unknown") -> Path:
    """Write the record of a finished run and return its folder.

    author, github_id: who submits; they are in no file of a run.
    Raises FormatError where files or manifests do not chain, LegalityError where one is of another track, RecipeError
    where a stage has not run.
    """
    check_chain(recipe, run)
    facts, table, events = read_facts(run), stage_table(recipe, run), read_events(run.log)
    with building(run.record) as folder:
        copy_evidence(run, facts, folder)
        draw(run, facts, events, folder / "plots")
        write_block_nats(read_nats(run, facts), recipe.evaluation.window, folder / BLOCK_NATS)
        write_text(folder / "stages.json", json.dumps(asdict(table), indent=2, ensure_ascii=False) + "\n")
        write_text(folder / "README.md", model_card(recipe, facts, table))
        entry = submission(recipe, facts, table, author, github_id)
        write_text(folder / "submission.json", json.dumps(entry, indent=2, ensure_ascii=False) + "\n")
        # The page shows what the auditor says of a record that is whole but for the page; then the page is sealed in.
        seal(recipe, run, table, folder)
        told, hardware = read_record(folder)
        verdicts = judge(told, load_policy(POLICY), hardware)
        write_text(folder / "report.html", report_html(recipe, facts, table, verdicts, folder / "plots"))
        seal(recipe, run, table, folder)
    return run.record


def seal(recipe: Recipe, run: RunFolder, table: StageTable, folder: Path) -> None:
    """Write the manifest of a record over all files that ``folder`` has by now."""
    inputs = {f"{part.name}/{MANIFEST}": file_sha256(part / MANIFEST) for part in stage_folders(run)}
    # The bytes that the stages ran: a later version of pgolf may write the same recipe with more fields.
    recorded = file_sha256(run.path / RECIPE)
    write_manifest(folder, "record", recipe, inputs, {}, recipe_sha256=recorded, stamp=table.stamp)


def stage_folders(run: RunFolder) -> tuple[Path, Path, Path]:
    """Return the folders of training, quantization and evaluation."""
    return run.checkpoint, run.artifact, run.scores


def check_chain(recipe: Recipe, run: RunFolder) -> None:
    """Raise FormatError unless the three stages belong to one run and no file of theirs was changed.

    Raises LegalityError where one of them is of another track.
    """
    changed = differences(load_recipe(run.path / RECIPE), recipe)
    if changed:
        field, recorded, asked = changed[0]
        raise FormatError(f"the run was made with {field} = {recorded!r}, not {asked!r}; record it with its own recipe")
    checkpoint, artifact, scores = (check_outputs(folder) for folder in stage_folders(run))
    check_track(recipe.track, run.checkpoint, checkpoint_track(run.checkpoint))
    check_track(recipe.track, run.artifact, read_track(run.artifact / WEIGHTS))
    _same("the track", (f"this run's {RECIPE}", recipe.track), ("scores/manifest.json", scores.get("track")), "score")
    recipe_sha256 = file_sha256(run.path / RECIPE)
    for name, manifest in (("checkpoint", checkpoint), ("artifact", artifact), ("scores", scores)):
        told = (f"{name}/{MANIFEST}", manifest["recipe_sha256"])
        _same("the recipe", (f"this run's {RECIPE}", recipe_sha256), told, f"the stage of {name}")
    _same(
        f"checkpoint/{WEIGHTS}",
        ("checkpoint/manifest.json", checkpoint["outputs"].get(WEIGHTS)),
        ("artifact/manifest.json", artifact["inputs"].get(f"checkpoint/{WEIGHTS}")),
        "export, then score",
    )
    _same(
        f"artifact/{WEIGHTS}",
        ("artifact/manifest.json", artifact["outputs"].get(WEIGHTS)),
        ("scores/manifest.json", scores["inputs"].get(f"artifact/{WEIGHTS}")),
        "score",
    )
    _same(
        CORPUS,
        ("checkpoint/manifest.json", checkpoint["inputs"].get(CORPUS)),
        ("scores/manifest.json", scores["inputs"].get(CORPUS)),
        "score, with the corpus of training",
    )


def _same(what: str, one: tuple[str, str | None], other: tuple[str, str | None], again: str) -> None:
    """Compare what two files, each (whose, SHA-256 or word), say of one thing; ``again`` names the stages to repeat."""
    if one[1] is None or one[1] != other[1]:
        raise FormatError(
            f"{one[0]} and {other[0]} disagree on {what}: {one[1]} in one, {other[1]} in the other; run again: {again}"
        )


def read_events(log: Path) -> list[dict[str, Any]]:
    """Read the training log; raises FormatError where it is missing, damaged or without a step."""
    if not log.is_file():
        raise FormatError(f"{log.name} is missing beside the checkpoint; put it back or train again")
    events = []
    for number, line in enumerate(log.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            events.append(json.loads(line))
        except ValueError as error:
            raise FormatError(f"line {number} of {log.name} is no JSON object ({error}); train again") from error
    if not any(event["event"] == "step" for event in events):
        raise FormatError(f"{log.name} reports no step; train again")
    return events


def copy_evidence(run: RunFolder, facts: Facts, folder: Path) -> None:
    """Copy the artifact's own files, the log, scores, recipe and manifests into the record."""
    for name in facts.manifests["quantization"]["outputs"]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(run.artifact / name, folder / name)
    ledgers = sorted(run.scores.glob("ledger.*.jsonl"))
    for source in (run.log, run.path / RECIPE, run.scores / "scores.json", *ledgers):
        shutil.copyfile(source, folder / source.name)
    (folder / "manifests").mkdir()
    for stage, home in zip(facts.manifests, stage_folders(run), strict=True):
        shutil.copyfile(home / MANIFEST, folder / "manifests" / f"{stage}.json")


def read_nats(run: RunFolder, facts: Facts) -> dict[str, Tensor]:
    """Read the nats of every scoring, (N,) each."""
    with safe_open(run.scores / "nats.safetensors", framework="pt") as file:
        return {name: file.get_tensor(name) for name in facts.scores}


def draw(run: RunFolder, facts: Facts, events: list[dict[str, Any]], folder: Path) -> None:
    """Draw the plots into ``folder``."""
    plain, sliding = facts.scores["plain"], facts.scores["sliding"]
    nats, target_bytes = read_nats(run, facts), read_target_bytes(run)
    published = {name: nats[name] for name in dict.fromkeys(("sliding", headline(facts.scores)))}
    figures = {
        "loss": loss_figure(events),
        "bytes": bytes_figure(facts.sizes),
        "running": running_figure(published, target_bytes),
        "position": position_figure(
            nats["plain"], plain["window"], plain["bytes"] / plain["targets"], sliding["bits_per_byte"]
        ),
        "tokens": token_figure(nats[headline(facts.scores)], target_bytes),
    }
    if "adapted" in nats:
        figures["gains"] = gains_figure(nats["sliding"], nats["adapted"], target_bytes, chunk_starts(run, "adapted"))
    folder.mkdir()
    for name, figure in figures.items():
        save_figure(figure, folder, name)


def read_target_bytes(run: RunFolder) -> Tensor:
    """Read how many bytes every target stands for, int16 (N,); raises FormatError where scores lack it."""
    with safe_open(run.scores / "nats.safetensors", framework="pt") as file:
        if TARGET_BYTES not in file.keys():  # noqa: SIM118 - the file is no dictionary
            raise FormatError(f"the scores have no {TARGET_BYTES}, those of an older pgolf have none; score again")
        counted: Tensor = file.get_tensor(TARGET_BYTES)
    return counted


def chunk_starts(run: RunFolder, name: str) -> list[int]:
    """Return the first target of each chunk of a scoring, from its ledger."""
    lines = (run.scores / f"ledger.{name}.jsonl").read_text(encoding="utf-8").splitlines()
    events = [json.loads(line) for line in lines]
    return [event["first"] for event in events if event["event"] == "SCORE"]


def submission(
    recipe: Recipe, facts: Facts, table: StageTable, author: str = "unknown", github_id: str = "unknown"
) -> dict[str, Any]:
    """Return the challenge's ``submission.json``; what it has no key for stands under "pgolf".

    Losses are nats per token, sizes bytes. Source: the records of openai/parameter-golf, ``records/*/submission.json``.
    """
    published = headline(facts.scores)
    score, trained, shown = facts.scores[published], facts.manifests["training"], view(recipe, facts, table)
    blurb = (
        f"{shown['parameters']:,} parameters in {recipe.model.num_blocks} blocks, {facts.metrics['steps']:,} steps of "
        f"{recipe.training.step_tokens:,} tokens; mixed int6/int8 weights; scored on {shown['text']['name']} by "
        f"windows of {score['window']} tokens, {score['stride']} new targets each."
    )
    finished = facts.manifests["evaluation"]["finished"][:10]
    return {
        "author": author,
        "github_id": github_id,
        "name": recipe.name,
        "blurb": f"{table.stamp}. {blurb}" if table.stamp else blurb,
        "date": finished,
        "val_loss": score["nats_per_token"],
        "val_bpb": score["bits_per_byte"],
        "pre_quant_val_loss": facts.metrics["validation_loss"],
        "pre_quant_val_bpb": facts.metrics["validation_bpb"],
        "bytes_total": facts.sizes["total_bytes"],
        "bytes_code": facts.sizes["code_bytes"],
        "seeds": [trained["seed"]],
        "hardware": machine(trained["hardware"]),
        "pytorch_version": trained["versions"]["torch"],
        "pgolf": {
            "track": recipe.track,
            "stamp": table.stamp,
            "recipe_sha256": trained["recipe_sha256"],
            "commit": trained["commit"],
            "parameters": shown["parameters"],
            "steps": facts.metrics["steps"],
            "training_seconds": counted_seconds(facts.manifests),
            "evaluation_seconds": facts.seconds[published],
            "validation_text": shown["text"],
            "checks": [asdict(check) for check in table.checks],
        },
    }
