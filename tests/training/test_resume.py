"""Kill and resume: a run that was stopped anywhere ends with the bits of a run that was not."""

import hashlib
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from tqdm import tqdm

from modeling_pgolf.errors import TrainingError
from modeling_pgolf.modeling_pgolf import PGolfForCausalLM
from pgolf import checkpoint
from pgolf.checkpoint import FolderCheckpoints
from training import telemetry
from training.batches import TrainTokens
from training.config import EmaConfig, QatConfig, ReplayConfig, SwaConfig, TrainingConfig
from training.loop import fit

ROOT = Path(__file__).resolve().parents[2]
# Everything that has state is on: the rate falls from step 4, rounding starts at 8, remembering at 6.
CONFIG = TrainingConfig(
    iterations=12,
    seconds=None,
    sequence_length=16,
    span_sequences=2,
    spans_per_step=2,
    micro_batch_sequences=2,
    warmdown_steps=8,
    momentum_warmup_steps=10,
    ema=EmaConfig(decay=0.9),
    swa=SwaConfig(below_scale=0.8, every=2),
    qat=QatConfig(below_scale=0.55, more_elements_than=0),
    replay=ReplayConfig(below_scale=0.8, spans=5, epochs=2),
    precision="fp32",
    compile=False,
    log_every=1,
    checkpoint_every=3,
)
SAVES = range(CONFIG.checkpoint_every, CONFIG.iterations + 1, CONFIG.checkpoint_every)
# Where a run is killed: behind these steps, before their state is kept; behind the replay; inside these writes.
STEPS = sorted(random.Random(0).sample(range(1, CONFIG.iterations + 1), 5))
KILLS = [*(f"step {k}" for k in STEPS), "replay", *(f"write {k}" for k in random.Random(1).sample(SAVES, 2))]


class Killed(BaseException):
    """Stands for a kill: nothing in the product may catch it."""


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """At these sizes a second thread only waits for the first, seconds when another process holds its core."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    # A killed run never closes its progress bar.
    monkeypatch.setattr(telemetry, "tqdm", lambda **options: tqdm(**{**options, "disable": True}))
    yield
    torch.set_num_threads(threads)


def run(model_config, folder, log=lambda event: None):
    """Train a fresh model from the seed; returns its final weights, and what happened."""
    torch.manual_seed(7)
    model = PGolfForCausalLM(model_config)
    tokens = TrainTokens([np.random.default_rng(0).integers(0, 320, 500).astype(np.uint16)])
    states = FolderCheckpoints(folder, keep=2)
    trained = fit(model, tokens, CONFIG, Accelerator(cpu=True), checkpoints=states, log=log)
    return {name: p.detach().clone() for name, p in model.named_parameters()}, trained


def kill_at(place, patch):
    """A log that raises behind a step or a phase; or a state writer that raises half-way."""
    kind, _, number = place.partition(" ")
    genuine = checkpoint.write_state

    def log(event):
        if kind == event["event"] and number in ("", str(event.get("step"))):
            raise Killed

    def write(folder, state):
        genuine(folder, state)
        if kind == "write" and state["steps"] == int(number):
            (folder / checkpoint.TREE).unlink()
            raise Killed

    patch.setattr(checkpoint, "write_state", write)
    return log


def last_state(place):
    """The step of the newest state that a run killed at ``place`` leaves; 0 for none."""
    kind, _, number = place.partition(" ")
    return max([0, *(save for save in SAVES if kind == "replay" or save < int(number))])


@pytest.mark.parametrize("place", KILLS)
def test_a_killed_run_ends_with_the_same_bits(tiny_config, tmp_path, monkeypatch, place):
    events, later = [], []
    weights, trained = run(tiny_config, tmp_path / "straight", events.append)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        run(tiny_config, tmp_path / "killed", kill_at(place, patch))
    resumed, outcome = run(tiny_config, tmp_path / "killed", later.append)

    kept = last_state(place)
    assert [e["step"] for e in later if e["event"] == "resumed"] == ([kept] if kept else [])
    assert (outcome.steps, outcome.train_loss) == (trained.steps, trained.train_loss)
    assert timeless(later) == [
        e for e in timeless(events) if e.get("step", math.inf) > kept or e["event"] == "finished"
    ]
    assert weights.keys() == resumed.keys()
    for name, tensor in weights.items():
        assert torch.equal(tensor, resumed[name]), name


def timeless(events):
    """What was reported of steps, replay and end, without what depends on the clock or on having been stopped."""
    kept = [event for event in events if event["event"] != "resumed"]
    timed = ("seconds", "seconds_left", "tokens_per_second")
    return [{k: v for k, v in event.items() if k not in timed} for event in kept]


def test_everything_that_has_state_was_on(tiny_config, tmp_path):
    """What the comparison above would not notice to be off."""
    events = []
    run(tiny_config, tmp_path, events.append)
    (replay,) = [event for event in events if event["event"] == "replay"]
    assert replay["steps"] == replay["planned"] == 10
    states = [checkpoint.read_state(folder) for folder in sorted(tmp_path.glob("step-*"))]
    assert [state["steps"] for state in states] == [9, 12]
    for state in states:
        assert state["qat"] is True
        assert state["ema"]["updates"] == state["steps"]
        assert state["replay"]["spans"].shape[:2] == (5, 2)
        assert state["swa"]["snapshots"] == {9: 1, 12: 3}[state["steps"]]
        kinds = [{key for entry in part["state"].values() for key in entry} for part in state["optimizers"]]
        assert kinds == [{"step", "exp_avg", "exp_avg_sq"}, {"momentum"}]


def test_a_truncated_state_is_named(tiny_config, tmp_path):
    run(tiny_config, tmp_path)
    newest = tmp_path / "step-00000012"
    tensors = newest / checkpoint.TENSORS
    tensors.write_bytes(tensors.read_bytes()[:-100])
    with pytest.raises(TrainingError, match="step-00000012 is damaged"):
        run(tiny_config, tmp_path)
    shutil.rmtree(newest)
    assert FolderCheckpoints(tmp_path, keep=2).restore()["steps"] == 9


@pytest.mark.parametrize("damage", ["", "{", "\0" * 64, '{"dict": [["steps", {"tensor": "none"}]]}'])
def test_a_damaged_tree_is_named(tiny_config, tmp_path, damage):
    run(tiny_config, tmp_path)
    (tmp_path / "step-00000012" / checkpoint.TREE).write_text(damage)
    with pytest.raises(TrainingError, match="step-00000012 is damaged"):
        run(tiny_config, tmp_path)


def test_a_half_written_state_is_ignored(tiny_config, tmp_path):
    scratch = tmp_path / ".step-00000015.123"
    scratch.mkdir()
    (scratch / checkpoint.TENSORS).write_bytes(b"half")
    assert FolderCheckpoints(tmp_path, keep=2).restore() is None
    weights, _ = run(tiny_config, tmp_path)
    assert FolderCheckpoints(tmp_path, keep=2).restore()["steps"] == 12
    resumed, _ = run(tiny_config, tmp_path)
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in weights.items())


def test_a_full_disk_keeps_the_older_states(tmp_path, monkeypatch):
    states = FolderCheckpoints(tmp_path, keep=2)
    states.save(1, {"steps": 1})

    def refuse(folder, state):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_state", refuse)
    with pytest.raises(TrainingError, match=r"step 2 could not be written.*older states are kept"):
        states.save(2, {"steps": 2})
    assert states.restore() == {"steps": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


RECIPE = """
from evaluation.config import EvaluationConfig
from pgolf.corpus.build import CorpusConfig, TrainBpe
from pgolf.corpus.local import LocalFolder
from pgolf.recipe import ModelConfig, Recipe
from training.config import QatConfig, ReplayConfig, SwaConfig, TrainingConfig

recipe = Recipe(
    name="tiny",
    corpus=CorpusConfig(LocalFolder({text!r}), TrainBpe(vocab_size=320)),
    model=ModelConfig(
        vocab_size=320, hidden_size=32, intermediate_size=64, num_blocks=2, num_attention_heads=4,
        num_key_value_heads=2, rotary_dims=4, rotary_length=16, max_position_embeddings=16, xsa_layers=[1],
        bigram_buckets=61, bigram_dim=8, value_embed_layers=[1], value_embed_dim=8,
    ),
    training=TrainingConfig(
        iterations=150, seconds=None, sequence_length=16, span_sequences=2, spans_per_step=2, micro_batch_sequences=2,
        warmdown_steps=100, qat=QatConfig(below_scale=0.5, more_elements_than=0),
        replay=ReplayConfig(below_scale=0.5, spans=5), precision="fp32", compile=False, checkpoint_every=10,
    ),
    evaluation=EvaluationConfig(window=16, stride=16, compile=False, precision="fp32"),
)
"""


def start_training(tmp_path, name):
    """Start the train stage as a player does, in a process of its own."""
    command = [sys.executable, str(ROOT / "training" / "train.py"), str(tmp_path / "tiny.py")]
    quiet = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command += ["--root", str(tmp_path), "--run", name]
    with open(tmp_path / f"{name}.txt", "w") as output:
        return subprocess.Popen(command, cwd=tmp_path, env=quiet, stdout=output, stderr=output)


def finish(process, tmp_path, name):
    assert process.wait(timeout=120) == 0, (tmp_path / f"{name}.txt").read_text()[-2000:]
    weights = tmp_path / "runs" / name / "checkpoint" / "model.safetensors"
    return hashlib.sha256(weights.read_bytes()).hexdigest()


def write_inputs(tmp_path):
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnop", k=draw.randint(2, 7))) for _ in range(60)]
    (tmp_path / "text").mkdir()
    for split, documents in (("train", 60), ("validation", 4)):
        lines = (json.dumps({"text": f"{i} {' '.join(draw.choices(words, k=60))}"}) for i in range(documents))
        (tmp_path / "text" / f"{split}.jsonl").write_text("\n".join(lines))
    (tmp_path / "tiny.py").write_text(RECIPE.format(text=str(tmp_path / "text")))


def wait_for_state(process, states):
    while not list(states.glob("step-*")):
        assert process.poll() is None, "the run ended before its first state"
        time.sleep(0.01)


def test_a_process_killed_for_good_ends_with_the_same_bytes(tmp_path):
    write_inputs(tmp_path)
    whole = finish(start_training(tmp_path, "whole"), tmp_path, "whole")
    process = start_training(tmp_path, "killed")
    folder = tmp_path / "runs" / "killed"
    wait_for_state(process, folder / "states")
    time.sleep(random.uniform(0.0, 0.5))
    assert process.poll() is None, "the run ended before it was killed: give it more iterations"
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL and not (folder / "checkpoint").exists()

    assert finish(start_training(tmp_path, "killed"), tmp_path, "killed") == whole
    events = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    (resumed,) = [event for event in events if event["event"] == "resumed"]
    assert 0 < resumed["step"] < 150 and resumed["step"] % 10 == 0
