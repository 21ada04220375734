"""Local text: a folder of Parquet or JSON-lines files, one row a document.

``train*`` and ``validation*`` files (``.parquet``, ``.jsonl``, ``.jsonl.gz``) are read in the order of their names,
row by row, with FineWeb's columns; only ``text`` is required. Nothing is loaded whole.

Source: the layout that ``datasets`` gives split names to (Hub documentation, "Structure your repository").
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any, TypeAlias

from modeling_pgolf.errors import CorpusError
from pgolf.corpus.documents import COLUMNS, Document, Split, document_from_row, generated_stream

SUFFIXES = (".parquet", ".jsonl", ".jsonl.gz")

# Our choice: bounds the memory of a batch (a few MB of web pages) without costing speed.
ROWS_PER_BATCH = 1024

# A file, and a row group of it where it has some.
Part: TypeAlias = "tuple[str, int | None]"


@dataclass(frozen=True)
class LocalFolder:
    """The documents of a folder on this machine.

    path: a folder with ``train*`` and ``validation*`` files.
    """

    path: str

    @property
    def name(self) -> str:
        """The folder's name without the way to it, which is this machine's business."""
        return Path(self.path).name

    def documents(self, split: Split) -> Iterator[Document]:
        """Yield the rows of the split's files, in the order of the file names.

        Raises CorpusError for a missing folder, a split without files, or a damaged or foreign file (naming the row).
        """
        yield from read_parts(split_parts(Path(self.path), split))

    def stream(self) -> Any:
        """Return the training documents as a ``datasets.IterableDataset``; files and row groups are its parts."""
        return generated_stream(read_parts, parts=split_parts(Path(self.path), "train"))


def split_parts(folder: Path, split: Split) -> list[Part]:
    """List what can be read by itself of a split: row groups of Parquet files, other files whole."""
    parts: list[Part] = []
    for path in split_files(folder, split):
        if path.suffix == ".parquet":
            with _parquet_file(path) as file:
                parts += [(str(path), group) for group in range(file.num_row_groups)] or [(str(path), None)]
        else:
            parts.append((str(path), None))
    return parts


def read_parts(parts: list[Part]) -> Iterator[Document]:
    """Yield the rows of the parts; raises CorpusError for a damaged or foreign file (naming the row)."""
    for name, group in parts:
        path = Path(name)
        yield from _row_group(path, group) if path.suffix == ".parquet" else _json_lines(path)


def split_files(folder: Path, split: Split) -> list[Path]:
    """List the files of a split in the order of their names.

    Raises CorpusError when the folder is missing or has no file of that split.
    """
    if not folder.is_dir():
        raise CorpusError(f"asked for documents in the folder {folder}; found no such folder; check the path")
    names = sorted(path.name for path in folder.iterdir())
    files = [folder / name for name in names if name.startswith(split) and name.endswith(SUFFIXES)]
    if not files:
        listed = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
        raise CorpusError(
            f"asked for the {split} split in {folder}; found no file {split}*.parquet, .jsonl or .jsonl.gz "
            f"among [{listed}]; name the files by their split"
        )
    return files


@contextmanager
def _parquet_file(path: Path) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    try:
        with parquet.ParquetFile(path) as file:
            yield file
    except (pa.ArrowException, OSError) as error:
        raise CorpusError(
            f"asked for the Parquet file {path.name}; found it unreadable ({error}); fetch or write it again"
        ) from error


def _row_group(path: Path, group: int | None) -> Iterator[Document]:
    """Yield the rows of one row group; None stands for the rows of a file without any."""
    with _parquet_file(path) as file:
        columns = [name for name in file.schema_arrow.names if name in COLUMNS]
        if "text" not in columns:
            # Reading no column at all yields no rows, so the missing column must be found here.
            document_from_row(dict.fromkeys(file.schema_arrow.names), where=path.name)
        row_number = sum(file.metadata.row_group(earlier).num_rows for earlier in range(group or 0))
        groups = [] if group is None else [group]
        for batch in file.iter_batches(batch_size=ROWS_PER_BATCH, row_groups=groups, columns=columns):
            for row in batch.to_pylist():
                yield document_from_row(row, where=f"row {row_number} of {path.name}")
                row_number += 1


def _json_lines(path: Path) -> Iterator[Document]:
    line_number = 0
    try:
        with _open(path) as file:
            for line_number, line in enumerate(file, start=1):
                if line.strip():
                    where = f"line {line_number} of {path.name}"
                    yield document_from_row(_json_object(line, where), where)
    except (OSError, EOFError, zlib.error) as error:
        raise CorpusError(
            f"asked for the file {path.name}; found it unreadable after line {line_number} ({error}); "
            "fetch or write it again"
        ) from error


def _open(path: Path) -> gzip.GzipFile | BufferedReader:
    """Open for bytes: lines then end at b"\\n" only, and wrong UTF-8 is found on its own line."""
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")


def _json_object(line: bytes, where: str) -> dict[str, object]:
    try:
        value = json.loads(line.decode("utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CorpusError(f"asked for a JSON object in {where}; found {error}; fix or drop that line") from error
    if not isinstance(value, dict):
        raise CorpusError(f"asked for a JSON object in {where}; found {type(value).__name__}; fix or drop that line")
    return value
