"""Forged clocks: seconds that no clock says, a log that says other ones, and seconds of another machine."""

import json
import math

import pytest
from forging import LOG, STAGES, failing, seal, set_in, verdicts

from pgolf.stages import JUDGE_GPU, JUDGE_GPUS


@pytest.mark.parametrize("seconds", [math.nan, -5.0, math.inf, "3"])
def test_seconds_that_no_clock_says(record, seconds):
    on_judged(record)
    set_in(record / "manifests" / "training.json", "seconds", "step", to=seconds)
    set_in(record / "manifests" / "evaluation.json", "seconds", "sliding", to=seconds)
    assert {("B2", "training seconds"), ("B3", "evaluation seconds")} <= failing(record)


@pytest.mark.parametrize("damage", ["booked elsewhere", "fewer", "fewer steps", "no log", "not the scores'"])
def test_the_log_is_another_witness_of_the_clock(record, damage):
    manifest, log = record / "manifests" / "training.json", record / "log.jsonl"
    if damage == "booked elsewhere":
        set_in(manifest, "seconds", to={"compile": 13.5})
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        lines[-1]["seconds"] = {"compile": 13.5}
        log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    elif damage == "fewer":
        set_in(manifest, "seconds", "step", to=1.0)
    elif damage == "fewer steps":
        set_in(manifest, "stream", "steps", to=3)
    elif damage == "no log":
        log.write_text("")
    else:
        set_in(record / "scores.json", "seconds", "sliding", to=0.1)
    assert LOG in failing(record)


def on_judged(record, **others):
    """Say that all stages ran on the challenge's hardware, or some on ``others``."""
    for stage in STAGES:
        gpus = [others.get(stage, JUDGE_GPU)] * JUDGE_GPUS
        set_in(record / "manifests" / f"{stage}.json", "hardware", "gpus", to=gpus)


def test_each_clock_is_judged_by_the_machine_that_it_ran_on(record):
    on_judged(record)
    found = verdicts(seal(record))
    assert found["B2", "training seconds"] == found["B3", "evaluation seconds"] == "PASS"
    on_judged(record, evaluation="NVIDIA B200", quantization="NVIDIA B200")
    found = verdicts(seal(record))
    assert found["B2", "training seconds"] == "PASS" and found["B3", "evaluation seconds"] == "UNKNOWN"
    set_in(record / "manifests" / "quantization.json", "seconds", "calibration", to=3.0)
    assert verdicts(seal(record))["B2", "training seconds"] == "UNKNOWN", "calibration is training"
