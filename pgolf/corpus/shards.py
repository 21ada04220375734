"""Shards: token files in the challenge's ``.bin`` format.

A shard is a header of 256 little-endian int32 (magic, version, number of tokens, zeros) and then the ids as
little-endian uint16; a split is its shards in the order of their names. Shards are read as memory maps, so the
operating system decides what is in memory.

``N`` tokens. Source: ``data/download_hf_docs_and_tokenize.py`` of openai/parameter-golf.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from modeling_pgolf.errors import CorpusError
from pgolf.corpus.documents import Split

# The format's constants. Source: the challenge's ``DATAFILE_MAGIC``, ``DATAFILE_VERSION`` and header of 256 int32.
MAGIC = 20240520
VERSION = 1
HEADER_WORDS = 256
HEADER_BYTES = 4 * HEADER_WORDS

# Tokens in every shard of a split but the last. Source: the challenge's ``SHARD_SIZE``.
SHARD_TOKENS = 100_000_000

# Ids are stored in 16 bits.
LARGEST_ID = 2**16 - 1

# How the challenge spells the splits in file names.
FILE_LABEL: dict[Split, str] = {"train": "train", "validation": "val"}

Tokens: TypeAlias = NDArray[np.uint16]
Shard: TypeAlias = "np.memmap[tuple[int, ...], np.dtype[np.uint16]]"


def shard_name(split: Split, number: int) -> str:
    """Name shard ``number`` (from 0) of a split."""
    return f"fineweb_{FILE_LABEL[split]}_{number:06d}.bin"


def write_shard(path: str | Path, tokens: ArrayLike) -> None:
    """Write ids as one shard; the file appears complete or not at all.

    tokens: (N,) integers from 0 to 65535, N at least 1 and below 2**31.
    Raises CorpusError for other ids, an impossible N, or a disk that refuses the file.
    """
    ids = as_ids(tokens)
    if not 0 < ids.size < 2**31:
        raise CorpusError(
            f"asked for a shard of 1 to 2**31 - 1 tokens; found {ids.size} for {path}; cut the stream differently"
        )
    header = np.zeros(HEADER_WORDS, dtype="<i4")
    header[:3] = MAGIC, VERSION, ids.size
    replace_file(path, [header.tobytes(), ids.astype("<u2", copy=False).data])


def as_ids(tokens: ArrayLike) -> Tokens:
    """Narrow integers to uint16 (N,).

    Raises CorpusError for anything but one dimension of integers from 0 to 65535.
    """
    array = np.asarray(tokens)
    if array.size == 0:
        return np.zeros(0, dtype=np.uint16)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise CorpusError(
            f"asked for integer token ids in one dimension; found {array.dtype} of shape {array.shape}; "
            "pass one document's ids, or several concatenated"
        )
    if array.dtype != np.uint16:
        low, high = int(array.min()), int(array.max())
        if low < 0 or high > LARGEST_ID:
            raise CorpusError(
                f"asked for token ids from 0 to {LARGEST_ID}; found {low if low < 0 else high}; "
                "use a vocabulary of at most 65,536 pieces"
            )
    return np.ascontiguousarray(array, dtype=np.uint16)


def replace_file(path: str | Path, blocks: Iterable[bytes | memoryview]) -> None:
    """Write a whole file under a temporary name beside it, then rename it into place.

    Raises CorpusError when the disk refuses; nothing is left behind then.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with temporary.open("wb") as file:
            for block in blocks:
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except OSError as error:
        raise CorpusError(
            f"asked to write {target}; found: {error.strerror or error}; free space there or choose another folder"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def open_shard(path: str | Path) -> Shard:
    """Map a shard's ids into memory, read-only: uint16 (N,).

    Raises CorpusError when the file is missing, is no shard, or is longer or shorter than its header says.
    """
    source = Path(path)
    try:
        header = np.fromfile(source, dtype="<i4", count=HEADER_WORDS)
        found_bytes = source.stat().st_size
    except OSError as error:
        raise CorpusError(
            f"asked for the shard {source}; found: {error.strerror or error}; build or fetch the corpus again"
        ) from error
    if header.size < HEADER_WORDS:
        raise CorpusError(
            f"asked for the shard {source}; found {found_bytes} bytes, less than a header; fetch it again"
        )
    magic, version, count = (int(word) for word in header[:3])
    if (magic, version) != (MAGIC, VERSION):
        raise CorpusError(
            f"asked for a shard with magic {MAGIC} and version {VERSION}; found {magic} and {version} in {source}; "
            "this is another kind of file"
        )
    if count < 1 or found_bytes != HEADER_BYTES + 2 * count:
        raise CorpusError(
            f"asked for {count} tokens, {HEADER_BYTES + 2 * count} bytes, as the header of {source} says; "
            f"found {found_bytes} bytes; fetch or build it again"
        )
    return np.memmap(source, dtype="<u2", mode="r", offset=HEADER_BYTES, shape=(count,))


def open_split(folder: str | Path, split: Split) -> list[Shard]:
    """Map all shards of a split, in the order of their names.

    Raises CorpusError when there are none, or one is damaged.
    """
    paths = sorted(Path(folder).glob(f"fineweb_{FILE_LABEL[split]}_*.bin"))
    if not paths:
        raise CorpusError(
            f"asked for the {split} split in {folder}; found no file {shard_name(split, 0)}; build the corpus first"
        )
    return [open_shard(path) for path in paths]


class WatchedShard:
    """A shard whose file is looked at before each read.

    A mapped file that was cut while a run reads it would end the process by a signal, without a word.
    """

    def __init__(self, shard: Shard) -> None:
        self._path = Path(str(shard.filename))
        self._ids = shard

    @property
    def name(self) -> str:
        """The name of the file."""
        return self._path.name

    def __len__(self) -> int:
        return self._ids.size

    def __getitem__(self, part: slice) -> Tokens:
        """Return ids of the shard, uint16 (N,); raises CorpusError where the file is gone or has another size."""
        try:
            found = self._path.stat().st_size
        except OSError as error:
            raise CorpusError(
                f"asked for the shard {self._path} while it is in use; found: {error.strerror or error}; build or "
                "fetch the corpus again, then resume"
            ) from error
        if found != HEADER_BYTES + 2 * self._ids.size:
            raise CorpusError(
                f"asked for {self._ids.size} tokens of {self._path}; its file has {found} bytes now, "
                f"{HEADER_BYTES + 2 * self._ids.size} when it was opened; build or fetch the corpus again, then resume"
            )
        return self._ids[part]


class ShardWriter:
    """Cuts a stream of documents' ids into the shards of one split; documents may straddle shards.

    Use it as a context manager: leaving it writes the last, shorter shard; leaving it by an error writes nothing more.

    folder: where the shards go, an existing folder.
    shard_tokens: tokens in every shard but the last.
    complete, tokens: to go on behind so many complete shards; the documents to come have so many tokens before them.
    """

    def __init__(
        self, folder: str | Path, split: Split, shard_tokens: int = SHARD_TOKENS, complete: int = 0, tokens: int = 0
    ) -> None:
        if shard_tokens < 1:
            raise CorpusError(f"asked for shards of {shard_tokens} tokens; a shard holds at least 1")
        self.tokens = tokens
        self.paths = [Path(folder) / shard_name(split, number) for number in range(complete)]
        self._stored = complete * shard_tokens
        self._folder = Path(folder)
        self._split: Split = split
        self._shard_tokens = shard_tokens
        self._pending: list[Tokens] = []
        self._pending_tokens = 0

    def write(self, ids: Sequence[int] | NDArray[np.integer]) -> None:
        """Append the ids of one document or of several in a row.

        Raises CorpusError for ids outside 0 to 65535 and for a disk that refuses.
        """
        size = len(ids)
        rest = np.array(as_ids(ids)[max(self._stored - self.tokens, 0) :])  # a copy: the caller may reuse its buffer
        self.tokens += size
        while self._pending_tokens + rest.size >= self._shard_tokens:
            room = self._shard_tokens - self._pending_tokens
            self._keep(rest[:room])
            self._flush()
            rest = rest[room:]
        self._keep(rest)

    def _keep(self, ids: Tokens) -> None:
        self._pending.append(ids)
        self._pending_tokens += ids.size

    def _flush(self) -> None:
        path = self._folder / shard_name(self._split, len(self.paths))
        write_shard(path, np.concatenate(self._pending))
        self.paths.append(path)
        self._pending, self._pending_tokens = [], 0

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None and self._pending_tokens:
            self._flush()
