"""Twenty kills at random moments, with shards and with a stream, and real ones from outside: the same bits again."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from killing import CONFIG, ROOT, Killed, killed_in_call, moments, random_tokens, resumed_step, train
from tiny_run import write_recipe, write_text
from tqdm import tqdm

from pgolf.corpus.build import CorpusConfig, TrainBpe, build_corpus, open_corpus
from pgolf.corpus.local import LocalFolder
from pgolf.corpus.stream import StreamConfig, TextStream
from pgolf.job import corpus_folder, parse_job, training_tokens
from pgolf.recipe import parse_recipe
from pgolf.run import STAGES
from pgolf.workdir import open_run, read_manifest
from training import telemetry
from training.batches import TrainTokens
from training.next_token_loss import NextTokenLoss
from training.orders import step_batches, stream_facts

POINTS = 20
STREAMING = StreamConfig(lanes=4, shuffle_documents=3, workers=0)


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    """A killed run never closes its progress bar."""
    monkeypatch.setattr(telemetry, "tqdm", lambda **options: tqdm(**{**options, "disable": True}))


DOCUMENTS = {"train-0": 30, "train-1": 40, "validation": 4}


@pytest.fixture(scope="module")
def stream(tmp_path_factory):
    home = tmp_path_factory.mktemp("text")
    source = LocalFolder(str(write_text(home / "web", DOCUMENTS, words=20)))
    corpus = build_corpus(CorpusConfig(source, TrainBpe(270), streaming=STREAMING), home / "corpus")
    stream = TextStream(source, corpus.folder, STREAMING)
    next(stream.spans(0, 1, None))  # imports and opens here what every worker would for itself
    return stream


def tokens_of(kind, stream):
    if kind.startswith("stream"):
        return replace(stream, config=replace(STREAMING, workers=int(kind.removeprefix("stream"))))
    part = random_tokens()
    return TrainTokens([part[:300], part[300:520], part[520:]])


@pytest.mark.parametrize(
    ("kind", "order", "points"),
    [
        ("shards", "sequential", POINTS),
        ("stream0", "sequential", POINTS),
        ("stream2", "sequential", 2),
        ("shards", "coprime", 3),
        ("shards", "shuffled", 3),
    ],
)
def test_a_run_killed_anywhere_ends_with_the_same_bits(stream, tmp_path, kind, order, points):
    config, tokens = replace(CONFIG, order=order), tokens_of(kind, stream)
    with killed_in_call(None) as calls:
        weights, events = train(tokens, config, tmp_path / "whole")
    assert [event["steps"] for event in events if event["event"] == "replay"] == [3]
    starts = []
    for moment in moments(calls[0], points, seed=f"{kind} {order}"):
        folder = tmp_path / str(moment)
        with pytest.raises(Killed), killed_in_call(moment):
            train(tokens, config, folder)
        again, later = train(tokens, config, folder)
        starts.append(resumed_step(later))
        for name, tensor in weights.items():
            assert torch.equal(tensor, again[name]), f"killed in call {moment} of {calls[0]}: {name}"
    assert len(set(starts)) > min(points, 12) // 4  # the kills fell before, between and behind the checkpoints


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run that streams, trained in this process; its folder, and the batches that the model was given."""
    home = tmp_path_factory.mktemp("runs")
    text = write_text(home / "web", DOCUMENTS, words=20)
    streaming = "StreamConfig(lanes=4, shuffle_documents=3, workers=2)"
    write_recipe(home / "tiny.py", text, "iterations=120, warmdown_steps=100, checkpoint_every=10", streaming)
    seen, genuine = [], NextTokenLoss.forward

    def forward(self, inputs, targets):
        seen.append((inputs.clone(), targets.clone()))
        return genuine(self, inputs, targets)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(NextTokenLoss, "forward", forward)
        train_here(home, "whole")
    return home, seen


def train_here(home, name):
    """Run the train stage in this process."""
    job = parse_job(home / "tiny.py", ["--root", str(home), "--run", name])
    before = signal.getsignal(signal.SIGTERM)
    STAGES["train"](job, open_run(home, name, job.recipe))
    signal.signal(signal.SIGTERM, before)


def test_every_batch_of_a_run_is_listed_from_its_manifest_alone(finished):
    """From what the run recorded and the corpus: the recipe's JSON, the manifest, nothing that this process knows."""
    home, seen = finished
    run = home / "runs" / "whole"
    manifest = read_manifest(run / "checkpoint")
    job = parse_job(run / "recipe.json", ["--root", str(home)])
    assert job.recipe == parse_recipe((run / "recipe.json").read_text())
    corpus = open_corpus(corpus_folder(job))
    assert corpus.facts == manifest["corpus"]
    recorded, tokens = manifest["stream"], training_tokens(job, corpus)
    listed = list(step_batches(tokens, job.recipe.training, recorded["steps"], recorded["processes"]))
    halves = [half for step in listed for half in zip(*(part.chunk(2) for part in step), strict=True)]
    assert len(halves) == len(seen) == 240  # two passes of a step
    for (x, y), (inputs, targets) in zip(seen, halves, strict=True):
        assert torch.equal(x, inputs) and torch.equal(y, targets)
    counted = {"steps": len(listed), "tokens": sum(inputs.numel() for inputs, _ in listed)}
    assert stream_facts(tokens, job.recipe.training, recorded["processes"]) | counted == recorded
    digest = hashlib.sha256()
    for inputs, targets in listed[:4]:
        digest.update(inputs.numpy().tobytes() + targets.numpy().tobytes())
    assert recorded["fingerprint"] == digest.hexdigest()[:16]


def start(home, name):
    """Start the train stage as a player does, in a process and a process group of its own."""
    command = [sys.executable, str(ROOT / "training" / "train.py"), str(home / "tiny.py"), "--root", str(home)]
    quiet = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with open(home / f"{name}.txt", "a") as output:
        return subprocess.Popen(
            [*command, "--run", name], cwd=home, env=quiet, stdout=output, stderr=output, start_new_session=True
        )


def wait_for_state(process, states, behind=0):
    while not any(int(path.name.removeprefix("step-")) > behind for path in states.glob("step-*")):
        assert process.poll() is None, "the run ended before its next state"
        time.sleep(0.005)


def test_a_stream_stopped_and_killed_from_outside_ends_with_the_same_bytes(finished):
    """SIGTERM to the whole group of processes, the workers among them, then SIGKILL to the trainer, then to the end."""
    home, _ = finished
    folder = home / "runs" / "killed"
    process = start(home, "killed")
    wait_for_state(process, folder / "states")
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait(timeout=60) == 1
    said = (home / "killed.txt").read_text()
    assert "TrainingError: stopped as asked after step" in said and "Traceback" not in said
    stopped = max(int(path.name.removeprefix("step-")) for path in (folder / "states").iterdir())

    process = start(home, "killed")
    wait_for_state(process, folder / "states", stopped)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL and not (folder / "checkpoint").exists()

    train_here(home, "killed")
    weights = [(home / "runs" / run / "checkpoint" / "model.safetensors").read_bytes() for run in ("whole", "killed")]
    assert weights[0] == weights[1]
    events = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    resumed = [event["step"] for event in events if event["event"] == "resumed"]
    assert len(resumed) == 2 and stopped == resumed[0] < resumed[1] < 120
