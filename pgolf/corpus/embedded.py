"""Embedded prose: a few megabytes of English that every Python installation already holds.

The standard library's docstrings, block comments, language-reference topics and text files are real written English
under one licence, so a demonstration or a test needs no network and no data set. One module is one document; order
and splits follow from the hash of the text, so they are the same on every machine with the same Python.

Source: the standard library of the running interpreter (Python Software Foundation licence). Numbers measured on it
are not challenge numbers: the text differs between Python versions and is nothing like the web.
"""

from __future__ import annotations

import ast
import functools
import re
import sysconfig
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modeling_pgolf.errors import CorpusError
from pgolf.corpus.documents import Document, Split, document_from_row, document_hash, generated_stream

# Our choice: of 3.0 MB (Python 3.11) it sets 158 kB apart, some 30 windows of 2048 tokens at 1024 pieces.
VALIDATION_SHARE = 0.06

# Our choice: a shorter document is a name or a version line, not prose.
SHORTEST_DOCUMENT = 80

# Test packages repeat code; installed packages are not the standard library.
SKIPPED_FOLDERS = frozenset({"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"})

# Three comment lines or more in a row are usually sentences, fewer are usually labels.
COMMENT_BLOCK = re.compile(r"(?:^[ \t]*#.*\n){3,}", re.MULTILINE)
COMMENT_MARK = re.compile(r"^[ \t]*#+ ?", re.MULTILINE)


@dataclass(frozen=True)
class EmbeddedProse:
    """The prose of the running Python's standard library: about 3 MB in some 700 documents, offline."""

    @property
    def name(self) -> str:
        """The source's name in progress bars and messages."""
        return "embedded prose"

    def documents(self, split: Split) -> Iterator[Document]:
        """Yield the documents of ``split`` in the order of their hashes.

        Raises CorpusError where the standard library has no readable sources.
        """
        for identity, path, text in harvest(Path(sysconfig.get_path("stdlib"))):
            if split_of(identity) == split:
                row = {"text": text, "id": identity[:16], "file_path": path, "language": "en"}
                yield document_from_row(row, where=path)

    def stream(self) -> Any:
        """Return the training documents as a ``datasets.IterableDataset`` of one part."""
        return generated_stream(_training, sources=[self])


def _training(sources: list[EmbeddedProse]) -> Iterator[Document]:
    for source in sources:
        yield from source.documents("train")


def split_of(identity: str) -> Split:
    """Assign a document to a split by the last 32 bits of its hash (the first ones are its place in the order)."""
    return "validation" if int(identity[-8:], 16) < VALIDATION_SHARE * 2**32 else "train"


@functools.cache
def harvest(folder: Path) -> tuple[tuple[str, str, str], ...]:
    """Collect the prose under a standard-library folder, without duplicates, in the order of the hashes.

    Returns (hash, path relative to ``folder``, text) of each document. Cached: parsing takes seconds.
    Raises CorpusError when no document is found.
    """
    found: dict[str, tuple[str, str, str]] = {}
    for path, text in sorted([*_modules(folder), *_text_files(folder), *_topics()]):
        if len(text) >= SHORTEST_DOCUMENT:
            identity = document_hash(text)
            found.setdefault(identity, (identity, path, text))
    if not found:
        raise CorpusError(
            f"asked for the prose of the standard library in {folder}; found no Python source with docstrings; "
            "use a Python installed with its sources, or a LocalFolder of text"
        )
    return tuple(found[identity] for identity in sorted(found))


def _files(folder: Path, suffix: str) -> Iterator[tuple[str, str]]:
    """Yield (relative path, text) of the readable files with that suffix."""
    for path in folder.rglob(f"*{suffix}"):
        name = path.relative_to(folder)
        if SKIPPED_FOLDERS.isdisjoint(name.parts):
            try:
                yield name.as_posix(), path.read_text(encoding="utf-8")
            except UnicodeDecodeError:
                continue  # a few sources are in other encodings on purpose; they are no loss


def _modules(folder: Path) -> Iterator[tuple[str, str]]:
    for name, source in _files(folder, ".py"):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # old sources have invalid escapes: their business
                tree = ast.parse(source)
        except (SyntaxError, ValueError):
            continue  # lib2to3 ships sources that are no Python 3 on purpose
        yield name, "\n\n".join([*_docstrings(tree), *_comments(source)])


def _docstrings(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield text.strip()


def _comments(source: str) -> Iterator[str]:
    for block in COMMENT_BLOCK.finditer(source):
        text = COMMENT_MARK.sub("", block.group()).strip()
        if text:
            yield text


def _text_files(folder: Path) -> Iterator[tuple[str, str]]:
    for name, text in _files(folder, ".txt"):
        yield name, text.strip()


def _topics() -> Iterator[tuple[str, str]]:
    """Yield the language reference as ``help()`` prints it."""
    from pydoc_data.topics import topics  # large: only when this source is used

    for name, text in topics.items():
        yield f"pydoc_data/topics/{name}", str(text).strip()
