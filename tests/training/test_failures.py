"""What goes wrong around a run: one clear error each, exit code 1, and the last good state goes on to the same bits.

A full disk is a real refusal of the operating system: a limit on the size of files.
"""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from killing import CONFIG, ROOT, VOCABULARY, random_tokens, resumed_step, train
from tiny_run import write_recipe, write_text
from tqdm import tqdm

from modeling_pgolf.errors import CorpusError, TrainingError
from pgolf import cli, run
from pgolf import job as jobs
from pgolf.corpus.build import CorpusConfig, TrainBpe, build_corpus
from pgolf.corpus.local import LocalFolder
from pgolf.corpus.shards import WatchedShard, open_shard, write_shard
from pgolf.corpus.stream import StreamConfig, TextStream
from pgolf.workdir import open_run
from training import telemetry
from training.batches import TrainTokens
from training.streamed import StreamedBatches
from training.trainer import Trainer

LONG = replace(CONFIG, iterations=10)


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setattr(telemetry, "tqdm", lambda **options: tqdm(**{**options, "disable": True}))


def before_step(patch, number, happen):
    """Let something happen before the step of that number (from 1) of the next run."""
    genuine = Trainer.step

    def step(self):
        if self.steps + 1 == number:
            happen()
        genuine(self)

    patch.setattr(Trainer, "step", step)


def goes_on_after(tokens, folder, weights, repair=lambda: None):
    """A run that failed goes on from its newest state to the bits of one that did not."""
    older, newest = sorted(path.name for path in folder.iterdir())
    assert older < newest <= "step-00000008"
    repair()
    again, events = train(tokens, LONG, folder)
    assert resumed_step(events) == int(newest.removeprefix("step-"))
    assert all(torch.equal(tensor, again[name]) for name, tensor in weights.items())


@pytest.mark.parametrize("harm", ["cut", "removed"])
def test_a_shard_that_is_cut_or_removed_in_use(tmp_path, monkeypatch, harm):
    path = tmp_path / "fineweb_train_000000.bin"
    write_shard(path, random_tokens())
    content = path.read_bytes()
    weights, _ = train(TrainTokens([WatchedShard(open_shard(path))]), LONG, tmp_path / "whole")
    with monkeypatch.context() as patch:
        before_step(patch, 6, path.unlink if harm == "removed" else lambda: os.truncate(path, 1100))
        with pytest.raises(
            CorpusError, match=r"fineweb_train_000000.bin.*build or fetch the corpus again, then resume"
        ):
            train(TrainTokens([WatchedShard(open_shard(path))]), LONG, tmp_path / "run")

    def repair():
        path.write_bytes(content)

    repair()
    goes_on_after(TrainTokens([WatchedShard(open_shard(path))]), tmp_path / "run", weights)


def spoil(patch, number, harm):
    """Let the step of that number (from 1, replayed steps behind the others) meet a number that is not finite."""
    genuine, done = Trainer._backward, [0]

    def backward(self, x, y, weight, synchronize):
        loss = genuine(self, x, y, weight, synchronize)
        done[0] += 1
        if done[0] == number and harm == "gradient":
            next(self.model.parameters()).grad.fill_(float("inf"))
        return loss * float("nan") if done[0] == number and harm == "loss" else loss

    patch.setattr(Trainer, "_backward", backward)


@pytest.mark.parametrize("harm", ["loss", "gradient"])
def test_a_number_that_is_not_finite_never_becomes_the_last_good_state(tmp_path, monkeypatch, harm):
    """In the very step whose state would be kept."""
    tokens = TrainTokens([random_tokens()])
    weights, _ = train(tokens, LONG, tmp_path / "whole")
    with monkeypatch.context() as patch:
        spoil(patch, 6, harm)
        with pytest.raises(TrainingError, match=r"in step 6; the last checkpoint is kept: lower the learning rates"):
            train(tokens, LONG, tmp_path / "run")
    assert sorted(path.name for path in (tmp_path / "run").iterdir())[-1] == "step-00000004"
    goes_on_after(tokens, tmp_path / "run", weights)


@pytest.mark.parametrize("harm", ["loss", "gradient"])
def test_a_replay_that_is_not_finite_leaves_the_state_before_it(tmp_path, monkeypatch, harm):
    tokens = TrainTokens([random_tokens()])
    weights, _ = train(tokens, LONG, tmp_path / "whole")
    with monkeypatch.context() as patch:
        spoil(patch, LONG.iterations + 2, harm)
        with pytest.raises(TrainingError, match=r"in step 12; the last checkpoint is kept"):
            train(tokens, LONG, tmp_path / "run")
    again, events = train(tokens, LONG, tmp_path / "run")
    assert resumed_step(events) == LONG.iterations
    assert all(torch.equal(tensor, again[name]) for name, tensor in weights.items())


def write_web(folder, documents=40):
    return write_text(folder, {"train-0": 12, "train-1": documents, "validation": 4})


@pytest.fixture
def stream(tmp_path):
    # More lanes than files: every lane reads both files, one document at a time.
    source, config = (
        LocalFolder(str(write_web(tmp_path / "web"))),
        StreamConfig(lanes=4, shuffle_documents=1, workers=0),
    )
    corpus = build_corpus(CorpusConfig(source, TrainBpe(270), streaming=config), tmp_path / "corpus")
    return TextStream(source, corpus.folder, config)


@pytest.mark.parametrize("harm", ["removed", "damaged"])
def test_a_stream_whose_source_goes_away(stream, tmp_path, monkeypatch, harm):
    weights, _ = train(stream, LONG, tmp_path / "whole")
    part = tmp_path / "web" / "train-1.jsonl"
    content = part.read_bytes()
    damage = part.unlink if harm == "removed" else lambda: part.write_bytes(b'{"text": "a"}\nbroken')
    with monkeypatch.context() as patch:
        before_step(patch, 5, damage)
        with pytest.raises(CorpusError, match=r"train-1.jsonl"):
            train(stream, LONG, tmp_path / "run")
    goes_on_after(stream, tmp_path / "run", weights, repair=lambda: part.write_bytes(content))


def test_a_worker_that_dies_is_named(stream):
    stream = replace(stream, config=replace(stream.config, workers=1))
    batches = StreamedBatches(stream, CONFIG)
    batches.next_step()
    (worker,) = multiprocessing.active_children()
    os.kill(worker.pid, signal.SIGSTOP)  # so that this process waits for it when it dies
    threading.Timer(0.5, os.kill, (worker.pid, signal.SIGKILL)).start()
    with pytest.raises(TrainingError, match=r"ended without a word .*.*use fewer .*workers, and resume"):
        while True:
            batches.next_step()


def test_a_disk_that_is_full_when_a_state_is_written(tmp_path, monkeypatch, full_disk):
    tokens = TrainTokens([random_tokens()])
    weights, _ = train(tokens, LONG, tmp_path / "whole")
    limits = full_disk(50_000)
    with monkeypatch.context() as patch:
        before_step(patch, 6, limits.__enter__)
        try:
            with pytest.raises(TrainingError, match=r"state of step 6 could not be written .*older states are kept"):
                train(tokens, LONG, tmp_path / "run")
        finally:
            limits.__exit__(None, None, None)
    goes_on_after(tokens, tmp_path / "run", weights)


TRAINING = "iterations=2000, checkpoint_every=10"


@pytest.fixture
def recipe(tmp_path):
    """A recipe file whose corpus is built; and the folder of that corpus."""
    write_recipe(tmp_path / "tiny.py", write_web(tmp_path / "web"), TRAINING)
    job = jobs.parse_job(tmp_path / "tiny.py", ["--root", str(tmp_path)])
    return tmp_path / "tiny.py", jobs.open_job_corpus(job).folder


def said_by(capsys, call, *arguments):
    """Run a command that must end with status 1; returns what it said on the error stream."""
    with pytest.raises(SystemExit) as ended:
        call(*arguments)
    assert ended.value.code == 1
    return capsys.readouterr().err


def test_a_shard_that_is_cut_before_a_run_ends_it_with_status_1(recipe, tmp_path, capsys):
    file, corpus = recipe
    (shard,) = corpus.glob("fineweb_train_*.bin")
    os.truncate(shard, shard.stat().st_size - 2)
    said = said_by(capsys, run.door, "train", [str(file), "--root", str(tmp_path)])
    assert said.startswith("pgolf: CorpusError: asked for ") and "fetch or build it again" in said
    assert not (tmp_path / "runs" / "tiny" / "checkpoint").exists()


def test_a_shard_that_is_cut_under_a_run_ends_it_with_status_1(recipe, tmp_path):
    """In a process of its own, which would die by SIGBUS were the file not looked at before each read."""
    file, corpus = recipe
    command = [sys.executable, str(ROOT / "training" / "train.py"), str(file), "--root", str(tmp_path)]
    quiet = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with open(tmp_path / "said.txt", "w") as output:
        process = subprocess.Popen(command, cwd=tmp_path, env=quiet, stdout=output, stderr=output)
    states = tmp_path / "runs" / "tiny" / "states"
    while not any(states.glob("step-*")):
        assert process.poll() is None, (tmp_path / "said.txt").read_text()
        time.sleep(0.01)
    for shard in corpus.glob("fineweb_train_*.bin"):
        os.truncate(shard, 1024)
    assert process.wait(timeout=60) == 1
    said = (tmp_path / "said.txt").read_text()
    assert "pgolf: CorpusError: asked for" in said and "its file has 1024 bytes now" in said
    assert "Traceback" not in said
    assert any(states.glob("step-*")) and not (tmp_path / "runs" / "tiny" / "checkpoint").exists()


def test_a_source_that_is_gone_behind_the_last_step_costs_nothing(tmp_path, monkeypatch):
    """What identifies the stream is read before the first step, not when the model is ready."""
    text = write_web(tmp_path / "web")
    streaming = "StreamConfig(lanes=4, shuffle_documents=1, workers=0)"
    file = write_recipe(tmp_path / "tiny.py", text, "iterations=12, checkpoint_every=10", streaming)
    genuine, before = Trainer.finish, signal.getsignal(signal.SIGTERM)

    def finish(self):
        for part in text.glob("train-*"):
            part.unlink()
        genuine(self)

    monkeypatch.setattr(Trainer, "finish", finish)
    job = jobs.parse_job(file, ["--root", str(tmp_path)])
    run.train(job, open_run(tmp_path, None, job.recipe))
    signal.signal(signal.SIGTERM, before)
    kept = tmp_path / "runs" / "tiny"
    manifest = json.loads((kept / "checkpoint" / "manifest.json").read_text())
    assert manifest["stream"]["steps"] == 12 and len(manifest["stream"]["fingerprint"]) == 16
    assert not (kept / "states").exists()


def test_a_full_disk_ends_a_run_with_status_1(recipe, tmp_path, capsys, full_disk):
    file, _ = recipe
    with full_disk(300):  # the log outgrows it first
        said = said_by(capsys, run.door, "train", [str(file), "--root", str(tmp_path), "--run", "full"])
    assert said.startswith("pgolf: the disk refuses ([Errno 27] File too large") and "start again" in said


def test_a_full_disk_ends_the_building_of_a_corpus_with_status_1(tmp_path, capsys, full_disk):
    file = tmp_path / "tiny.py"
    write_recipe(file, write_web(tmp_path / "web", documents=900), TRAINING)
    with full_disk(50_000):
        said = said_by(capsys, cli.main, ["corpus", str(file), "--root", str(tmp_path)])
    assert said.startswith("pgolf: CorpusError: asked to write") and "fineweb_train_000000.bin; found: File too" in said
    cli.main(["corpus", str(file), "--root", str(tmp_path)])
    assert len(list((tmp_path / "corpora").glob("*/fineweb_train_000000.bin"))) == 1


def test_the_tokens_of_these_tests_fit_their_model():
    assert int(random_tokens().max()) < VOCABULARY and random_tokens().dtype == np.uint16
    assert Path(ROOT / "training" / "train.py").is_file()
