"""The stages of a finished run: what each left behind, and the one table that says what the run came to.

Rows follow the model from the last training step to the published score; checks compare bytes and seconds with the
limits of the game. A check that cannot be made on this machine says so instead of passing. Source: LEGALITY B1-B4.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any, Literal

from evaluation.adaptation.frozen import FrozenConfig
from evaluation.config import EvaluationConfig
from training.clock import COUNTED

from .recipe import Recipe
from .workdir import RunFolder, read_manifest

# Seconds count on eight of these, the challenge's H100 SXM as the driver names it. Source: LEGALITY B4.
JUDGE_GPU, JUDGE_GPUS = "NVIDIA H100 80GB HBM3", 8

STAMP = "NOT RANKABLE"


@dataclass(frozen=True)
class Facts:
    """What the stages wrote, read once.

    manifests: by stage, "training", "quantization", "evaluation". metrics: of the float model. sizes: the byte ledger.
    scores: of the artifact, "plain" and "sliding". seconds: of the two scorings.
    """

    manifests: dict[str, dict[str, Any]]
    metrics: dict[str, Any]
    sizes: dict[str, Any]
    scores: dict[str, dict[str, Any]]
    seconds: dict[str, float]


@dataclass(frozen=True)
class Stage:
    """One row: a model as one stage leaves it. None where a stage has no such number.

    bytes: of the model, code included once there is an artifact. seconds: spent to get this row. how: what was scored.
    """

    name: str
    bits_per_byte: float | None
    nats_per_token: float | None
    bytes: int | None
    seconds: float | None
    how: str


@dataclass(frozen=True)
class Phase:
    """Seconds of one phase of one stage."""

    stage: str
    name: str
    seconds: float


@dataclass(frozen=True)
class Check:
    """A number beside its limit. reason: why it is not judged; empty where it is."""

    name: str
    value: float
    limit: float
    verdict: Literal["within", "over", "not judged"]
    reason: str = ""


@dataclass(frozen=True)
class StageTable:
    """The outcome of a run. stamp: why it may not be ranked; empty where it may."""

    stages: list[Stage]
    phases: list[Phase]
    checks: list[Check]
    stamp: str


def read_facts(run: RunFolder) -> Facts:
    """Read what the stages of ``run`` wrote; raises RecipeError where one has not run."""
    folders = {"training": run.checkpoint, "quantization": run.artifact, "evaluation": run.scores}
    manifests = {stage: read_manifest(folder) for stage, folder in folders.items()}
    outcome = json.loads((run.scores / "scores.json").read_text())
    return Facts(
        manifests=manifests,
        metrics=json.loads((run.checkpoint / "metrics.json").read_text()),
        sizes=json.loads((run.artifact / "bytes.json").read_text()),
        scores=outcome["scores"],
        seconds=outcome["seconds"],
    )


def passes(config: EvaluationConfig) -> dict[str, EvaluationConfig]:
    """Name the scorings of a run: plain, sliding, and adapted where a rule is configured. Adapting comes last."""
    frozen = replace(config, adaptation=FrozenConfig())
    # A plain pass reads each token once: on an H200 compiling it took 26 s, and 2.4 million tokens took 3.
    named = {"plain": replace(frozen, stride=config.window, compile=False), "sliding": frozen}
    return named if config == frozen else {**named, "adapted": config}


def headline(scores: dict[str, Any]) -> str:
    """Name the scoring whose figure is published: the last one, adapted where a rule was configured, else sliding."""
    return list(scores)[-1]


def stage_table(recipe: Recipe, run: RunFolder) -> StageTable:
    """Tabulate a finished run; raises RecipeError where a stage has not run."""
    return tabulate(recipe, read_facts(run), (run.checkpoint / "model.safetensors").stat().st_size)


def tabulate(recipe: Recipe, facts: Facts, checkpoint_bytes: int) -> StageTable:
    """Tabulate what the stages wrote."""
    return StageTable(
        stages=_rows(recipe, facts, checkpoint_bytes),
        phases=[
            Phase(stage, name, seconds)
            for stage, manifest in facts.manifests.items()
            for name, seconds in manifest["seconds"].items()
        ],
        checks=_checks(recipe, facts),
        stamp=stamp(recipe),
    )


def stamp(recipe: Recipe) -> str:
    """Say why a recipe's outcome may not be ranked; empty where it may. Sources: LEGALITY D1, B2."""
    reasons = []
    if recipe.track == "historical":
        reasons.append("historical track, the system adapts on validation text before it scores that text")
    if recipe.training.replay is not None and recipe.training.replay.after_clock:
        reasons.append("training goes on when its clock is over (training.replay.after_clock)")
    return f"{STAMP}: {'; '.join(reasons)}" if reasons else ""


def counted_seconds(manifests: dict[str, dict[str, Any]]) -> float:
    """Return the seconds that use up the training budget: those of training, and the export's on training text.

    manifests: by stage. Hessians of training text are training, whichever stage makes them. Source: LEGALITY B2.
    """
    training = manifests.get("training", {}).get("seconds", {})
    calibration = manifests.get("quantization", {}).get("seconds", {}).get("calibration", 0.0)
    return float(sum(training.get(name, 0.0) for name in COUNTED) + calibration)


def machine(hardware: dict[str, Any]) -> str:
    """Name a manifest's hardware in a few words."""
    if hardware["gpus"]:
        return " + ".join(f"{count} × {name}" for name, count in Counter(hardware["gpus"]).items())
    return f"{hardware['cores']} CPU cores ({hardware['machine']}), no GPU"


def _rows(recipe: Recipe, facts: Facts, checkpoint_bytes: int) -> list[Stage]:
    metrics, total, trained = facts.metrics, facts.sizes["total_bytes"], recipe.training
    averaged = ", before weight averaging" if trained.ema else ""
    rows = [
        Stage(
            "train loss",
            None,
            metrics["train_loss"],
            None,
            counted_seconds(facts.manifests),
            f"last step's batch{averaged}",
        ),
        Stage(
            "float, plain",
            metrics["validation_bpb"],
            metrics["validation_loss"],
            checkpoint_bytes,
            None,
            f"disjoint windows of {trained.sequence_length:,} tokens",
        ),
    ]
    for name, score in facts.scores.items():
        how = f"windows of {score['window']:,} tokens, {score['stride']:,} new targets each"
        if score["stride"] == score["window"]:
            how = f"disjoint windows of {score['window']:,} tokens"
        if name == "adapted":
            how += ", learning from each chunk after it is scored"
        bits, nats = score["bits_per_byte"], score["nats_per_token"]
        rows.append(Stage(f"int6, {name}", bits, nats, total, facts.seconds[name], how))
    return rows


def _checks(recipe: Recipe, facts: Facts) -> list[Check]:
    limits, total = recipe.budget, facts.sizes["total_bytes"]
    published = headline(facts.scores)
    return [
        Check("artifact bytes", total, limits.artifact_bytes, "within" if total <= limits.artifact_bytes else "over"),
        _clocked(
            "training seconds", counted_seconds(facts.manifests), limits.training_seconds, facts.manifests["training"]
        ),
        _clocked(
            "evaluation seconds", facts.seconds[published], limits.evaluation_seconds, facts.manifests["evaluation"]
        ),
    ]


def _clocked(name: str, seconds: float, limit: float, manifest: dict[str, Any]) -> Check:
    hardware = manifest["hardware"]
    if hardware["gpus"] != [JUDGE_GPU] * JUDGE_GPUS:
        reason = f"seconds count on {JUDGE_GPUS} × {JUDGE_GPU} alone; this ran on {machine(hardware)}"
        return Check(name, seconds, limit, "not judged", reason)
    return Check(name, seconds, limit, "within" if seconds <= limit else "over")


def as_text(table: StageTable) -> str:
    """Lay the table out for a terminal."""
    lines = [f"*** {table.stamp} ***", ""] if table.stamp else []
    lines.append(f"{'stage':<14} {'BPB':>8} {'nats/token':>11} {'bytes':>12} {'seconds':>9}")
    for row in table.stages:
        lines.append(
            f"{row.name:<14} {_number(row.bits_per_byte, '.4f'):>8} {_number(row.nats_per_token, '.4f'):>11} "
            f"{_number(row.bytes, ','):>12} {_number(row.seconds, ',.1f'):>9}  {row.how}"
        )
    lines.append("")
    for check in table.checks:
        verdict = f"{check.verdict}: {check.reason}" if check.reason else check.verdict
        lines.append(f"{check.name:<18} {round(check.value, 1):>12,} of {check.limit:>12,.0f}  {verdict}")
    spent = ", ".join(f"{phase.name} {phase.seconds:,.1f}" for phase in table.phases)
    return "\n".join([*lines, "", f"seconds by phase: {spent}"])


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)
