"""Shards: the challenge's file format, byte for byte, and every way a file can be wrong."""

import errno
import os
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_pgolf.errors import CorpusError
from pgolf.corpus.shards import ShardWriter, WatchedShard, open_shard, open_split, write_shard

IDS = st.integers(0, 65535)


def spelled(tokens, magic=20240520, version=1, count=None):
    """The format written out with the standard library alone."""
    head = struct.pack("<3i", magic, version, len(tokens) if count is None else count).ljust(1024, b"\0")
    return head + struct.pack(f"<{len(tokens)}H", *tokens)


def test_the_bytes_are_the_challenges(tmp_path):
    write_shard(tmp_path / "a.bin", [1, 258, 65535])
    assert (tmp_path / "a.bin").read_bytes() == spelled([1, 258, 65535])
    assert os.listdir(tmp_path) == ["a.bin"]


@given(tokens=st.lists(IDS, min_size=1, max_size=50))
def test_what_is_written_is_read(tmp_path_factory, tokens):
    path = tmp_path_factory.mktemp("shard") / "a.bin"
    write_shard(path, tokens)
    shard = open_shard(path)
    assert isinstance(shard, np.memmap) and shard.dtype == np.uint16
    assert shard.tolist() == tokens
    with pytest.raises(ValueError, match="read-only"):
        shard[0] = 1


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([1, 65536], "found 65536"),
        ([1, -1], "found -1"),
        ([1.5], "found float64"),
        ([[1, 2]], r"shape \(1, 2\)"),
        ([], "found 0"),
    ],
)
def test_ids_that_do_not_fit_are_refused(tmp_path, tokens, message):
    with pytest.raises(CorpusError, match=message):
        write_shard(tmp_path / "a.bin", tokens)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "found 0 bytes"),
        (spelled([1, 2])[:1000], "found 1000 bytes"),
        (spelled([1, 2], magic=20240521), "found 20240521 and 1"),
        (spelled([1, 2], version=2), "found 20240520 and 2"),
        (spelled([1, 2])[:-1], "asked for 2 tokens, 1028 bytes.*found 1027 bytes"),
        (spelled([1, 2]) + b"\0", "found 1029 bytes"),
        (spelled([], count=0), "asked for 0 tokens"),
        (spelled([1, 2], count=-1), "asked for -1 tokens"),
    ],
)
def test_a_damaged_shard_is_refused(tmp_path, content, message):
    (tmp_path / "a.bin").write_bytes(content)
    with pytest.raises(CorpusError, match=message):
        open_shard(tmp_path / "a.bin")


def test_a_missing_shard_or_split_is_named(tmp_path):
    with pytest.raises(CorpusError, match=r"absent.bin; found: No such file"):
        open_shard(tmp_path / "absent.bin")
    with pytest.raises(CorpusError, match=r"validation split .* fineweb_val_000000.bin"):
        open_split(tmp_path, "validation")


def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CorpusError, match="No space left"), ShardWriter(tmp_path, "train") as writer:
        writer.write([1, 2])
    assert os.listdir(tmp_path) == []


@settings(max_examples=50)
@given(documents=st.lists(st.lists(IDS, max_size=9), max_size=9), shard_tokens=st.integers(1, 12))
def test_a_split_is_its_documents_in_a_row(tmp_path_factory, documents, shard_tokens):
    folder = tmp_path_factory.mktemp("split")
    with ShardWriter(folder, "train", shard_tokens) as writer:
        for ids in documents:
            writer.write(ids)
    stream = [token for ids in documents for token in ids]
    assert writer.tokens == len(stream)
    if not stream:
        assert os.listdir(folder) == []
        return
    shards = open_split(folder, "train")
    assert np.concatenate(shards).tolist() == stream
    assert all(shard.size == shard_tokens for shard in shards[:-1])
    assert 0 < shards[-1].size <= shard_tokens
    assert sorted(os.listdir(folder)) == [f"fineweb_train_{number:06d}.bin" for number in range(len(shards))]


def test_a_writer_keeps_a_copy_of_the_callers_buffer(tmp_path):
    buffer = np.array([1, 2], dtype=np.uint16)
    with ShardWriter(tmp_path, "validation") as writer:
        writer.write(buffer)
        buffer[:] = 9
    assert open_split(tmp_path, "validation")[0].tolist() == [1, 2]
    assert writer.paths[0].name == "fineweb_val_000000.bin"


def test_an_error_inside_a_writer_writes_no_last_shard(tmp_path):
    with pytest.raises(CorpusError, match="found 65536"), ShardWriter(tmp_path, "train", 2) as writer:
        writer.write([1, 2, 3])
        writer.write([65536])
    assert os.listdir(tmp_path) == ["fineweb_train_000000.bin"]


def test_a_watched_shard_reads_as_its_file(tmp_path):
    write_shard(tmp_path / "a.bin", range(50))
    watched = WatchedShard(open_shard(tmp_path / "a.bin"))
    assert (watched.name, len(watched), watched[10:13].tolist()) == ("a.bin", 50, [10, 11, 12])


@pytest.mark.parametrize("harm", ["cut", "lengthened", "removed", "emptied"])
def test_a_shard_that_changes_in_use_is_named(tmp_path, harm):
    """Without the look at its file, reading a cut shard would kill this process by SIGBUS."""
    path = tmp_path / "a.bin"
    write_shard(path, range(50_000))
    watched = WatchedShard(open_shard(path))
    assert watched[49_990:50_000].tolist() == list(range(49_990, 50_000))
    if harm == "removed":
        path.unlink()
    elif harm == "lengthened":
        path.write_bytes(path.read_bytes() + b"\0")
    else:
        os.truncate(path, 3000 if harm == "cut" else 0)
    with pytest.raises(CorpusError, match=r"a.bin.*build or fetch the corpus again, then resume"):
        watched[49_990:50_000]
