"""Documents: what every text source of a corpus yields.

A document is one row with FineWeb's columns, so that FineWeb itself, a folder of files and the built-in prose are
interchangeable. Its identity is the sha256 of its text: two splits may not share one.

Source: the FineWeb data card (Penedo et al., 2024) for the columns; LEGALITY rule D2 for the identity.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, Protocol, TypedDict, TypeVar

from modeling_pgolf.errors import CorpusError

Split = Literal["train", "validation"]
Value = TypeVar("Value")


class Document(TypedDict):
    """One page of text with FineWeb's columns, in FineWeb's order; what a source does not know is None."""

    text: str
    id: str | None
    dump: str | None
    url: str | None
    date: str | None
    file_path: str | None
    language: str | None
    language_score: float | None
    token_count: int | None


COLUMNS: tuple[str, ...] = tuple(Document.__annotations__)


class TextSource(Protocol):
    """Anything that yields the documents of two disjoint splits, in the same order each time it is asked."""

    def __hash__(self) -> int: ...

    @property
    def name(self) -> str:
        """The source's name in progress bars and messages."""
        ...

    def documents(self, split: Split) -> Iterator[Document]:
        """Yield the documents of ``split`` from its beginning."""
        ...

    def stream(self) -> Any:
        """Return the training documents as a ``datasets.IterableDataset`` with the column ``text``.

        Its shards are the parts of the source (files, row groups). Whoever reads it leaves out validation documents.
        """
        ...


def document_hash(text: str) -> str:
    """Identify a document by the sha256 of its UTF-8 text, as 64 hex digits.

    Raises CorpusError for text that UTF-8 cannot hold (an unpaired surrogate, which JSON escapes can spell).
    """
    return hashlib.sha256(utf8(text)).hexdigest()


def document_key(text: str) -> str:
    """Identify a document among those of one corpus: the first 64 bits of its hash, as 16 hex digits."""
    return document_hash(text)[:16]


def utf8(text: str) -> bytes:
    """Encode ``text`` as the UTF-8 bytes whose number BPB divides by.

    Raises CorpusError for an unpaired surrogate.
    """
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        near = text[max(0, error.start - 20) : error.start + 20]
        raise CorpusError(
            f"asked for the UTF-8 bytes of a document; found an unpaired surrogate at character {error.start} "
            f"({near!r}); clean that document or drop it"
        ) from error


def generated_stream(documents: Callable[..., Iterator[Document]], **parts: list[Any]) -> Any:
    """Return documents as a ``datasets.IterableDataset``.

    documents: called with lists of parts under the names given here, whole or a share of them.
    """
    import datasets

    return datasets.IterableDataset.from_generator(_texts, gen_kwargs={"documents": documents, **parts})


def _texts(documents: Callable[..., Iterator[Document]], **parts: list[Any]) -> Iterator[dict[str, str]]:
    for document in documents(**parts):
        yield {"text": document["text"]}


@contextmanager
def unbroken(name: str) -> Iterator[None]:
    """Turn what ``datasets`` raises when a stream cannot be opened or breaks off into CorpusError."""
    import datasets
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # root of its HTTP library's errors

    try:
        yield
    except (datasets.exceptions.DatasetsError, HTTPError, OSError, ValueError) as error:
        raise CorpusError(
            f"asked for {name} as a stream; found: {error}; check the name, the configuration and the connection, or "
            "use a LocalFolder"
        ) from error


def document_from_row(row: Mapping[str, Any], where: str) -> Document:
    """Make a document of one row of a table.

    row: column name to value; columns that FineWeb lacks are ignored, missing ones become None.
    where: names the row in errors.
    Raises CorpusError when ``text`` is missing or no string, or a value does not fit its column.
    """
    if "text" not in row:
        raise CorpusError(f"asked for the column 'text' in {where}; found {sorted(row)}; rename the column of the text")
    text = row["text"]
    if not isinstance(text, str):
        raise CorpusError(
            f"asked for a string in the column 'text' in {where}; found {type(text).__name__}; fix or drop that row"
        )
    return Document(
        text=text,
        id=_optional(row, "id", str, where),
        dump=_optional(row, "dump", str, where),
        url=_optional(row, "url", str, where),
        date=_optional(row, "date", str, where),
        file_path=_optional(row, "file_path", str, where),
        language=_optional(row, "language", str, where),
        language_score=_optional(row, "language_score", float, where),
        token_count=_optional(row, "token_count", int, where),
    )


def _optional(row: Mapping[str, Any], column: str, kind: Callable[[Any], Value], where: str) -> Value | None:
    value = row.get(column)
    if value is None:
        return None
    try:
        return kind(value)
    except (TypeError, ValueError) as error:
        raise CorpusError(
            f"asked for the column {column!r} as FineWeb types it in {where}; found {value!r}; "
            "convert that column or drop it"
        ) from error
