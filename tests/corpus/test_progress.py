"""Unfinished corpora: a build that was killed anywhere goes on behind its last complete shard, to the same bytes."""

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_text import WORDS

from modeling_pgolf.errors import CorpusError
from pgolf.corpus import shards, splits
from pgolf.corpus.build import CorpusConfig, TrainBpe, build_corpus, describe
from pgolf.corpus.local import LocalFolder
from pgolf.corpus.progress import unfinished
from pgolf.corpus.shards import ShardWriter, open_split
from pgolf.corpus.splits import file_sha256
from pgolf.corpus.tokenizer import Encoder

ROOT = Path(__file__).resolve().parents[2]


class Killed(BaseException):
    """Stands for a kill: nothing in the product may catch it."""


def write_web(folder, first="Page"):
    draw = random.Random(0)
    folder.mkdir()
    for split, count in (("train", 60), ("validation", 12)):
        rows = [f"{first} {split} {n} {' '.join(draw.choices(WORDS, k=draw.randrange(60)))}" for n in range(count)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    return CorpusConfig(LocalFolder(str(folder)), TrainBpe(vocab_size=320))


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Shards and batches so small that a build makes many of them."""
    monkeypatch.setattr(splits, "SHARD_TOKENS", 150)
    monkeypatch.setattr(splits, "BATCH_DOCUMENTS", 3)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return write_web(tmp_path_factory.mktemp("source") / "web")


def bytes_of(folder):
    return {path.name: file_sha256(path) for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def whole(config, tmp_path):
    """What a build that nobody disturbs leaves."""
    return bytes_of(build_corpus(config, tmp_path / "whole").folder)


def kill_in_batch(patch, number):
    """Let the encoder die in its batch of that number; returns the list of documents that it got."""
    genuine, seen, batches = Encoder.encode, [], []

    def encode(self, texts):
        batches.append(len(texts))
        if len(batches) == number:
            raise Killed
        seen.extend(texts)
        return genuine(self, texts)

    patch.setattr(Encoder, "encode", encode)
    return seen


def test_a_build_killed_anywhere_ends_with_the_same_bytes(config, whole, tmp_path, monkeypatch):
    assert len([name for name in whole if name.startswith("fineweb_train")]) > 8
    spared = []
    for number in [1, *random.Random(0).sample(range(8, 25), 5)]:
        target = tmp_path / f"killed-{number}"
        with monkeypatch.context() as patch, pytest.raises(Killed):
            kill_in_batch(patch, number)
            build_corpus(config, target)
        assert not target.exists()
        with monkeypatch.context() as patch:
            seen = kill_in_batch(patch, None)
            again = build_corpus(config, target)
        assert bytes_of(again.folder) == whole
        spared.append(72 - len(seen))
    assert spared[0] == 0 and max(spared) > 30  # what complete shards held was not tokenised again


def test_a_build_killed_again_and_again_ends_with_the_same_bytes(config, whole, tmp_path, monkeypatch):
    target, kills = tmp_path / "killed", 0
    while not target.exists():
        with monkeypatch.context() as patch:
            kill_in_batch(patch, 9)
            try:
                build_corpus(config, target)
            except Killed:
                kills += 1
    assert kills >= 2 and bytes_of(target) == whole
    assert sorted(os.listdir(tmp_path)) == ["killed", "whole"]


def test_a_kill_between_a_shard_and_its_note_costs_only_that_shard(config, whole, tmp_path, monkeypatch):
    genuine = splits.keep_progress

    def keep(folder, split, place):
        if split == "train" and place.shards == 5:
            raise Killed
        genuine(folder, split, place)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(splits, "keep_progress", keep)
        build_corpus(config, tmp_path / "killed")
    kept = tmp_path / ".killed.building"
    assert len(open_split(kept, "train")) == 5 and json.loads((kept / "train.progress.json").read_text())["shards"] == 4
    assert bytes_of(build_corpus(config, tmp_path / "killed").folder) == whole


SCRIPT = """
import sys, time
from pgolf.corpus import splits
from pgolf.corpus.build import CorpusConfig, TrainBpe, build_corpus
from pgolf.corpus.local import LocalFolder
from pgolf.corpus.tokenizer import Encoder

splits.SHARD_TOKENS, splits.BATCH_DOCUMENTS, genuine = 150, 3, Encoder.encode

def slow(self, texts):
    time.sleep(0.05)
    return genuine(self, texts)

Encoder.encode = slow
build_corpus(CorpusConfig(LocalFolder(sys.argv[1]), TrainBpe(vocab_size=320)), sys.argv[2])
"""


def test_a_builder_killed_for_good_leaves_its_shards_and_no_lock(config, whole, tmp_path):
    target = tmp_path / "killed"
    builder = subprocess.Popen([sys.executable, "-c", SCRIPT, config.source.path, str(target)], cwd=ROOT)
    note = tmp_path / ".killed.building" / "train.progress.json"
    while not note.exists():
        assert builder.poll() is None, "the build ended before it was killed"
        time.sleep(0.01)
    with pytest.raises(CorpusError, match="another process is building it now"):
        build_corpus(config, target)
    builder.send_signal(signal.SIGKILL)
    assert builder.wait() == -signal.SIGKILL and not target.exists()
    assert bytes_of(build_corpus(config, target).folder) == whole


def test_a_full_disk_keeps_what_is_complete(config, whole, tmp_path, monkeypatch):
    genuine = shards.write_shard

    def write(path, tokens):
        if path.name == "fineweb_train_000006.bin":
            monkeypatch.setattr(os, "fsync", full)
        genuine(path, tokens)

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(shards, "write_shard", write)
        with pytest.raises(CorpusError, match=r"fineweb_train_000006.bin; found: No space left on device; free space"):
            build_corpus(config, tmp_path / "full")
    monkeypatch.undo()
    monkeypatch.setattr(splits, "SHARD_TOKENS", 150)
    assert len(open_split(tmp_path / ".full.building", "train")) == 6
    assert bytes_of(build_corpus(config, tmp_path / "full").folder) == whole


def killed(config, target, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_in_batch(patch, 15)
        build_corpus(config, target)
    return target.with_name(f".{target.name}.building")


def test_a_source_that_changed_is_not_mixed_in(tmp_path, monkeypatch):
    config = write_web(tmp_path / "web")
    left = killed(config, tmp_path / "c", monkeypatch)
    lines = (tmp_path / "web" / "train.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "web" / "train.jsonl").write_text("".join(lines[1:]))
    with pytest.raises(CorpusError, match=r"behind document \d+ of an unfinished corpus; the source has another one"):
        build_corpus(config, tmp_path / "c")
    (tmp_path / "web" / "train.jsonl").write_text("".join(lines[:2]))
    with pytest.raises(CorpusError, match="the source has another one"):
        build_corpus(config, tmp_path / "c")
    assert (left / "train.progress.json").exists()  # nothing is thrown away behind the user's back


def test_what_another_plan_left_is_thrown_away(config, whole, tmp_path, monkeypatch):
    killed(CorpusConfig(config.source, TrainBpe(vocab_size=330)), tmp_path / "c", monkeypatch)
    assert bytes_of(build_corpus(config, tmp_path / "c").folder) == whole


def test_two_builders_do_not_share_a_folder(config, tmp_path):
    with (
        unfinished(tmp_path / "c", {"config": describe(config)}),
        pytest.raises(CorpusError, match="another process is building it now; wait for it"),
    ):
        build_corpus(config, tmp_path / "c")
    assert build_corpus(config, tmp_path / "c").facts["train"]["documents"] == 60


@pytest.mark.parametrize("complete", range(5))
def test_a_writer_goes_on_inside_a_document(tmp_path, complete):
    documents = [list(range(n, n + size)) for n, size in ((0, 7), (10, 25), (40, 3), (50, 5))]
    with ShardWriter(tmp_path, "train", 8) as writer:
        for ids in documents:
            writer.write(ids)
    expected = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    before = [sum(len(ids) for ids in documents[:n]) for n in range(4)]
    first = max(n for n in range(4) if before[n] <= 8 * complete)
    for path in sorted(tmp_path.iterdir())[complete:]:
        path.unlink()
    with ShardWriter(tmp_path, "train", 8, complete, before[first]) as writer:
        for ids in documents[first:]:
            writer.write(ids)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == expected
    assert writer.tokens == 40
