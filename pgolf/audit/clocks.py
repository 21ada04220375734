"""Seconds and machines: what was measured, on what, and whether log, manifests and scores say the same of it.

Seconds of other hardware prove nothing about the challenge's, so each clock is judged by the machine that it ran on.
Source: LEGALITY B2 to B4.
"""

from __future__ import annotations

import json
import math
from typing import Any

from modeling_pgolf.errors import FormatError

from ..stages import counted_seconds, machine, passes
from .evidence import Evidence, close, is_amount
from .facts import STAGES, Fact

# A step's seconds are read from a clock that is running, so they may be this much over what its phases add up to.
RUNNING = 1e-3


def clock_facts(evidence: Evidence) -> list[Fact]:
    """Training seconds (all that reads training data or steps an optimiser), the longest evaluation, and the log's."""
    manifests = evidence.manifests
    training, evaluation = (manifests.get(stage, {}).get("seconds", {}) for stage in ("training", "evaluation"))
    impossible = [
        f"{stage} {name} {seconds}"
        for stage, manifest in manifests.items()
        for name, seconds in manifest.get("seconds", {}).items()
        if not is_amount(seconds)
    ]
    if impossible:
        told = f"{'; '.join(impossible)}: no clock says that"
        names = (("B2", "training seconds"), ("B3", "evaluation seconds"))
        return [*[Fact(rule, name, False, told) for rule, name in names], log_fact(evidence)]
    late = training.get("replay_after_clock", 0.0)
    used = late + counted_seconds(manifests)
    longest = max(evaluation.values(), default=math.nan)
    note = f", {late:.1f} s of them after the clock had ended" if late else ""
    inside = None if not training else late == 0.0
    return [
        Fact("B2", "training seconds", inside, f"{used:.1f} s{note}", used if training else None),
        Fact("B3", "evaluation seconds", bool(evaluation) or None, f"{longest:.1f} s", longest if evaluation else None),
        log_fact(evidence),
    ]


def machines(evidence: Evidence) -> dict[str, str]:
    """Name the hardware by which each clock is judged; of stages on different ones all, which no rule names."""
    named = {stage: machine(evidence.manifests[stage]["hardware"]) for stage in STAGES if stage in evidence.manifests}
    # Calibration on training text is part of the training clock, wherever the export ran.
    calibrated = evidence.manifests.get("quantization", {}).get("seconds", {}).get("calibration")
    trained = [named["training"], *([named["quantization"]] if calibrated else [])]
    return {"B2": ", then ".join(dict.fromkeys(trained)), "B3": named.get("evaluation", "unknown hardware")}


def log_fact(evidence: Evidence) -> Fact:
    """Whether the training log ends as the manifests say, and the scores took as long as their manifest says."""
    title = "log and manifests agree"
    try:
        events = read_log(evidence)
    except FormatError as error:
        return Fact("E3", title, False, str(error))
    ended = next((event for event in reversed(events) if event.get("event") == "finished"), None)
    last = next((event for event in reversed(events) if event.get("event") == "step"), None)
    if ended is None or last is None or not evidence.training:
        missing = "the training manifest" if ended and last else "the log's last step, or its end"
        return Fact("E3", title, False, f"{missing} is missing")
    wrong = [*step_breaches(evidence, ended, last), *second_breaches(evidence, ended, last)]
    return Fact("E3", title, not wrong, "; ".join(wrong) or f"{ended['step']:,} steps, and seconds by phase")


def read_log(evidence: Evidence) -> list[dict[str, Any]]:
    """Read the training log; raises FormatError where a line is no JSON object."""
    try:
        lines = (evidence.record / "log.jsonl").read_text(encoding="utf-8").splitlines()
        events = [json.loads(line) for line in lines]
    except (OSError, ValueError, RecursionError) as error:
        raise FormatError(f"the log cannot be read: {error!r}") from error
    if not all(isinstance(event, dict) for event in events):
        raise FormatError("the log has lines that are no JSON objects")
    return events


def step_breaches(evidence: Evidence, ended: dict[str, Any], last: dict[str, Any]) -> list[str]:
    """Compare the log's number of steps with the recipe's and with the stream that training read."""
    config, steps, stream = evidence.recipe.training, ended["step"], evidence.training.get("stream", {})
    wrong = []
    if last["step"] > steps or steps > config.iterations or (steps < config.iterations and config.seconds is None):
        wrong.append(f"{steps} steps at the log's end, {last['step']} before it; the recipe has {config.iterations}")
    read = {"steps": steps, "tokens": steps * config.step_tokens}
    return wrong + [
        f"training read {stream.get(key)} {key}, the log has {value}"
        for key, value in read.items()
        if stream.get(key) != value
    ]


def second_breaches(evidence: Evidence, ended: dict[str, Any], last: dict[str, Any]) -> list[str]:
    """Compare the log's seconds with the manifest of training, and those of the scores with that of evaluation."""
    wrong = []
    for what, one, other in (
        ("log", ended["seconds"], evidence.training["seconds"]),
        ("scores", evidence.seconds, evidence.manifests.get("evaluation", {}).get("seconds", {})),
    ):
        if one.keys() != other.keys() or not all(close(one[name], other[name]) for name in one):
            wrong.append(f"other seconds in the {what} than in the manifest")
    if not all(map(is_amount, evidence.training["seconds"].values())):
        return [*wrong, "seconds that no clock says"]
    counted = counted_seconds({"training": evidence.training})
    if not is_amount(last["seconds"]) or last["seconds"] > counted + RUNNING:
        wrong.append(f"{last['seconds']} s at the log's last step, {counted} s in the manifest")
    if missing := passes(evidence.recipe.evaluation).keys() - evidence.seconds.keys():
        wrong.append(f"no seconds of {', '.join(sorted(missing))}")
    return wrong
