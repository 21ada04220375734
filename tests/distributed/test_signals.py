"""Two processes that are stopped or killed from outside go on, by the same command, to the bits of one that was not."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file
from tiny_run import write_recipe, write_text

ROOT = Path(__file__).resolve().parents[2]
QUIET = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
ITERATIONS = 120
TRAINING = f"iterations={ITERATIONS}, warmdown_steps=100, checkpoint_every=10, replay=ReplayConfig(spans=5, epochs=1)"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("signals")
    write_recipe(home / "tiny.py", write_text(home / "text", {"train": 50, "validation": 4}), TRAINING)
    return home


def start(home, name):
    """Train by torchrun on two processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    stage = [str(ROOT / "training" / "train.py"), str(home / "tiny.py"), "--root", str(home / name)]
    with open(home / f"{name}.txt", "a") as said:
        return subprocess.Popen([*command, *stage], env=QUIET, stdout=said, stderr=said)


def weights_of(home, name):
    return load_file(home / name / "runs" / "tiny" / "checkpoint" / "model.safetensors")


@pytest.fixture(scope="module")
def whole(home):
    assert start(home, "whole").wait(timeout=240) == 0, (home / "whole.txt").read_text()[-3000:]
    return weights_of(home, "whole")


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGKILL], ids=lambda kind: kind.name)
def test_the_same_command_goes_on_to_the_same_bits(home, whole, kind):
    name, run = kind.name, home / kind.name / "runs" / "tiny"
    states = run / "states"
    process = start(home, name)
    while not any(states.glob("step-*")):
        assert process.poll() is None, (home / f"{name}.txt").read_text()[-3000:]
        time.sleep(0.01)
    # torchrun hands SIGTERM on; nobody can hand on SIGKILL, and its workers are in sessions of their own.
    family = [*psutil.Process(process.pid).children(recursive=True), process] if kind is signal.SIGKILL else [process]
    for member in family:
        member.send_signal(kind)
    assert process.wait(timeout=60) != 0
    kept = max(int(path.name.removeprefix("step-")) for path in states.glob("step-*"))
    assert 10 <= kept < ITERATIONS and not (run / "checkpoint").exists()
    if kind is signal.SIGTERM:
        assert f"stopped as asked after step {kept}" in (home / f"{name}.txt").read_text()

    assert start(home, name).wait(timeout=240) == 0, (home / f"{name}.txt").read_text()[-3000:]
    resumed = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [event["step"] for event in resumed if event["event"] == "resumed"] == [kept]
    again = weights_of(home, name)
    assert all(again[key].equal(tensor) for key, tensor in whole.items())
    assert not states.exists(), "states are gone once the weights are kept"
