"""Two processes that are stopped or killed from outside go on, by the same command, to the bits of one that was not."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[2]
QUIET = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
ITERATIONS = 120
RECIPE = """
from evaluation.config import EvaluationConfig
from pgolf.corpus.build import CorpusConfig, TrainBpe
from pgolf.corpus.local import LocalFolder
from pgolf.recipe import ModelConfig, Recipe
from training.config import ReplayConfig, TrainingConfig

recipe = Recipe(
    name="tiny",
    corpus=CorpusConfig(LocalFolder({text!r}), TrainBpe(270)),
    model=ModelConfig(
        vocab_size=270, hidden_size=32, intermediate_size=64, num_blocks=2, num_attention_heads=4,
        num_key_value_heads=2, rotary_dims=4, rotary_length=16, max_position_embeddings=16, xsa_layers=[1],
        bigram_buckets=61, bigram_dim=8, value_embed_layers=[1], value_embed_dim=8,
    ),
    training=TrainingConfig(
        iterations={iterations}, seconds=None, sequence_length=16, span_sequences=2, spans_per_step=2,
        micro_batch_sequences=2, warmdown_steps=100, precision="fp32", compile=False, checkpoint_every=10,
        replay=ReplayConfig(spans=5, epochs=1),
    ),
    evaluation=EvaluationConfig(window=16, stride=16, compile=False, precision="fp32"),
)
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home, draw = tmp_path_factory.mktemp("signals"), random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnop", k=draw.randint(2, 7))) for _ in range(60)]
    (home / "text").mkdir()
    for name, count in (("train", 50), ("validation", 4)):
        lines = (json.dumps({"text": f"{name} {i} {' '.join(draw.choices(words, k=8))}"}) for i in range(count))
        (home / "text" / f"{name}.jsonl").write_text("\n".join(lines))
    (home / "tiny.py").write_text(RECIPE.format(text=str(home / "text"), iterations=ITERATIONS))
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
