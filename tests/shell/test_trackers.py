"""A tracker sees what the log sees: tensorboard's own reader reads a run's numbers back."""

import json
import signal

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_run import write_recipe, write_text

from pgolf.job import parse_job
from pgolf.run import train
from pgolf.workdir import open_run


def test_tensorboard_reads_the_numbers_of_the_log(tmp_path):
    text = write_text(tmp_path / "text", {"train": 30, "validation": 4})
    recipe = write_recipe(tmp_path / "tiny.py", text, "iterations=6, log_every=2, validate_every=3")
    job = parse_job(recipe, ["--root", str(tmp_path), "--trackers", "tensorboard"])
    run, before = open_run(tmp_path, None, job.recipe), signal.getsignal(signal.SIGTERM)
    train(job, run)
    signal.signal(signal.SIGTERM, before)
    reader = EventAccumulator(str(run.path / "tiny"))
    reader.Reload()
    logged = [json.loads(line) for line in run.log.read_text().splitlines()]
    for name, steps in (("train_loss", [1, 2, 4, 6]), ("validation_bpb", [3, 6])):
        expected = {event["step"]: event[name] for event in logged if name in event}
        assert [*expected] == steps
        seen = {scalar.step: scalar.value for scalar in reader.Scalars(name)}
        assert seen == pytest.approx(expected, rel=1e-6)  # tensorboard keeps float32
