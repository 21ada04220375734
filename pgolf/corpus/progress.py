"""Progress: an unfinished corpus, so that a build that was killed goes on where it stopped.

A corpus is built in a hidden folder beside its place, under a lock that dies with the process that holds it. Each
time a shard is complete, a small file says how far its split has come: the documents before the one whose tokens
reach into the next shard. The next build of the same plan reads those documents past, without tokenising them, and
goes on; what a build left that completed no shard is thrown away.
"""

from __future__ import annotations

import json
import shutil
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from modeling_pgolf.errors import CorpusError
from pgolf.corpus.documents import Split, document_hash, utf8
from pgolf.corpus.shards import replace_file

# Names inside an unfinished folder.
LOCK, PLAN, PROGRESS = "lock", "plan.json", "{}.progress.json"


@dataclass(frozen=True)
class Progress:
    """A place between two documents of a split.

    documents, tokens, utf8_bytes: of all documents before it. shards: complete ones, all tokens of the documents
    before and perhaps some of the next. last: the hash of the document before it.
    """

    documents: int = 0
    tokens: int = 0
    utf8_bytes: int = 0
    shards: int = 0
    last: str = ""

    def behind(self, text: str, tokens: int) -> Progress:
        """Return the place behind one more document of so many tokens."""
        size = self.utf8_bytes + len(utf8(text))
        return Progress(self.documents + 1, self.tokens + tokens, size, self.shards, document_hash(text))


def read_progress(folder: Path, split: Split) -> Progress:
    """Return how far a split has come; the beginning where no shard is complete."""
    path = folder / PROGRESS.format(split)
    return Progress(**json.loads(path.read_text())) if path.exists() else Progress()


def keep_progress(folder: Path, split: Split, place: Progress) -> None:
    """Write down how far a split has come."""
    replace_file(folder / PROGRESS.format(split), [json.dumps(asdict(place)).encode()])


def rest(texts: Iterable[str], place: Progress) -> Iterator[str]:
    """Read the documents before ``place`` past and return the others.

    Raises CorpusError where the last of them is not the one that was read before.
    """
    reader = iter(texts)
    last = deque(islice(reader, place.documents), maxlen=1)
    if place.documents and (not last or document_hash(last[0]) != place.last):
        raise CorpusError(
            f"asked to go on behind document {place.documents} of an unfinished corpus; the source has another one "
            "there now; remove the hidden .building folder to begin again"
        )
    return reader


@contextmanager
def unfinished(target: Path, plan: dict[str, Any]) -> Iterator[Path]:
    """Give the hidden folder in which ``target`` is built, with what an earlier build of the same plan completed.

    Raises CorpusError where another process is building it. A block that ends in an error leaves the folder where a
    shard is complete; one that ends well has renamed or emptied it.
    """
    folder = target.with_name(f".{target.name}.building")
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise CorpusError(
            f"asked to build a corpus in {target}; another process is building it now; wait for it, then start again"
        ) from error
    try:
        going_on = _goes_on(folder, plan)
        _empty(folder, ".*.part" if going_on else "*")  # files that a kill left half written, or everything
        if not going_on:
            replace_file(folder / PLAN, [json.dumps(plan).encode()])
        yield folder
    finally:
        if not any(folder.glob(PROGRESS.format("*"))):
            shutil.rmtree(folder, ignore_errors=True)
        lock.release()


def strip(folder: Path) -> None:
    """Remove from a finished folder what only an unfinished one needs."""
    for path in [folder / LOCK, folder / PLAN, *folder.glob(PROGRESS.format("*"))]:
        path.unlink(missing_ok=True)


def _goes_on(folder: Path, plan: dict[str, Any]) -> bool:
    path = folder / PLAN
    return path.exists() and json.loads(path.read_text()) == plan and any(folder.glob(PROGRESS.format("*")))


def _empty(folder: Path, names: str) -> None:
    for path in folder.glob(names):
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != LOCK:
            path.unlink()
