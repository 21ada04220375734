"""Entropy coding of integer codes by how widely their row and their column spread; needs the package constriction.

A row and a column of a matrix have a level each: the spread of their codes in quarter octaves. Cells with equal sums
of levels are one class with one table of frequencies, and asymmetric numeral systems spend on a code what the table
of its class says it is worth. The rest of the inner file goes through zstd. A reader computes with whole numbers
only, so every machine reads the same.

``R`` rows, ``C`` columns, ``N`` codes of a matrix. Layout: docs/FORMAT.md. Source: Duda 2013 for the coder.
"""

import itertools
import json
import struct
from math import prod
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .brotli_codec import shuffle, unshuffle
from .errors import EnvironmentMismatch, FormatError
from .frequency_tables import TABLE_BYTES, Table, read_tables, table_of, write_tables
from .zstd_codec import declared_bytes, zstd_decode, zstd_encode

try:
    import constriction
except ImportError:
    constriction = None

# Levels are in quarter octaves of the root mean square of the codes: finer ones cost more to store than they save
# (docs/CODECS.md). A class is a sum of two levels, kept between 2^-4 and 2^7.
LEVELS_PER_OCTAVE = 4
LOWEST_CLASS, HIGHEST_CLASS = -16, 28
# A level of a row or a column pays for itself only over so many codes.
LEAST_CODES = 32
# What a damaged file may ask for beside a byte for every code: all tables there can be, and the mark of the shuffle.
SIDE_BYTES = (HIGHEST_CLASS - LOWEST_CLASS + 1) * TABLE_BYTES + 1
SHUFFLE_BYTES = 5

Bytes = NDArray[np.uint8]
Codes = NDArray[np.int8]
Numbers = NDArray[np.int64]


class Layout(NamedTuple):
    """Where the codes of an inner file are: behind ``prefix`` bytes, matrix after matrix, each (R, C)."""

    prefix: int
    shapes: list[tuple[int, int]]

    @property
    def codes(self) -> int:
        """Number of codes."""
        return sum(rows * columns for rows, columns in self.shapes)


def ans_encode(raw: bytes, level: int) -> bytes:
    """Compress an inner file; ``level`` is zstd's effort for what is no code. constriction must be there."""
    layout = read_layout(raw)
    matrices = _split(np.frombuffer(raw, np.int8)[layout.prefix :], layout.shapes)
    levels = [_levels(matrix) for matrix in matrices]
    cells = [_cells(rows, columns) for rows, columns in levels]
    tables = _count_tables(matrices, cells)
    coder = constriction.stream.stack.AnsCoder()
    for matrix, classes in zip(reversed(matrices), reversed(cells), strict=True):
        order, ends = _by_class(classes)
        for place, codes in reversed(list(enumerate(np.split(matrix.ravel()[order], ends)))):
            if len(codes):
                tables[place].push(coder, codes)
    side = write_tables(tables) + b"".join(
        part.astype(np.int8).tobytes() for axis in zip(*levels, strict=True) for part in axis
    )
    sections = (zstd_encode(shuffle(raw[: layout.prefix]), level), zstd_encode(side, level))
    framed = b"".join(struct.pack("<I", len(section)) + section for section in sections)
    coded: bytes = coder.get_compressed().astype("<u4").tobytes()
    return framed + coded


def ans_decode(payload: bytes, raw_bytes: int) -> bytes:
    """Return the inner file of ``raw_bytes`` bytes; raises FormatError on damage."""
    prefix, behind = _section(payload, raw_bytes + SHUFFLE_BYTES)
    side, words = _section(behind, raw_bytes + SIDE_BYTES)
    prefix = unshuffle(prefix)
    layout = read_layout(prefix)
    if layout.prefix != len(prefix) or layout.prefix + layout.codes != raw_bytes:
        raise FormatError(f"the inner file is laid out for {layout.prefix + layout.codes} bytes, not {raw_bytes}")
    tables, place = read_tables(side)
    levels = _read_levels(side[place:], layout.shapes)
    if len(words) % 4:
        raise FormatError(f"{len(words)} bytes of coded words are not whole words; fetch the file again")
    out = bytearray(prefix)
    try:
        coder = constriction.stream.stack.AnsCoder(np.frombuffer(words, "<u4").astype(np.uint32))
    except ValueError as error:
        raise FormatError(f"the coded words are damaged: {error}") from error
    for rows, columns in levels:
        out += _decode_matrix(coder, _cells(rows, columns), tables).tobytes()
    if not coder.is_empty():
        raise FormatError("coded words are left over behind the last code; fetch the file again")
    return bytes(out)


def read_layout(raw: bytes) -> Layout:
    """Read where the codes are from the safetensors header at the head of ``raw``; raises FormatError."""
    try:
        (length,) = struct.unpack_from("<Q", raw)
        entries = [entry for name, entry in json.loads(raw[8 : 8 + length]).items() if name != "__metadata__"]
        spans = sorted((*entry["data_offsets"], entry["shape"]) for entry in entries if entry["dtype"] == "I8")
        start = max((entry["data_offsets"][1] for entry in entries if entry["dtype"] != "I8"), default=0)
        begins, ends, shapes = zip(*spans, strict=True) if spans else ((), (), ())
        edges = [*itertools.accumulate(map(prod, shapes), initial=start)]
        whole = all(type(n) is int and n >= 0 for n in (start, *begins, *ends, *itertools.chain(*shapes)))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, struct.error) as error:
        raise FormatError(f"the header of the inner file cannot be read: {error!r}") from error
    if not whole or [*begins] != edges[:-1] or [*ends] != edges[1:] or 8 + length + start > len(raw):
        raise FormatError("the codes of the inner file are not one block of rows and columns at its end")
    matrices = [(shape[0] if shape else 1, prod(shape[1:])) for shape in shapes if prod(shape)]
    return Layout(8 + length + start, matrices)


def _levels(matrix: Codes) -> tuple[Numbers, Numbers]:
    """Return the levels of the rows and of the columns of (R, C) codes: each spread is measured beside the other."""
    squares = np.square(matrix.astype(np.float64))
    rows, columns = np.zeros(matrix.shape[0], np.int64), np.zeros(matrix.shape[1], np.int64)
    for _ in range(2):
        if matrix.shape[1] >= LEAST_CODES:
            rows = _level((squares * _spread(columns)).mean(1))
        if matrix.shape[0] >= LEAST_CODES:
            columns = _level((squares * _spread(rows)[:, None]).mean(0))
    return rows, columns


def _level(mean_square: NDArray[np.float64]) -> Numbers:
    least = 2.0 ** (2 * LOWEST_CLASS / LEVELS_PER_OCTAVE)
    level: Numbers = np.rint(LEVELS_PER_OCTAVE / 2 * np.log2(np.maximum(mean_square, least))).astype(np.int64)
    return level


def _spread(levels: Numbers) -> NDArray[np.float64]:
    spread: NDArray[np.float64] = 2.0 ** (-2.0 * levels / LEVELS_PER_OCTAVE)
    return spread


def _cells(rows: NDArray[Any], columns: NDArray[Any]) -> Bytes:
    """Return the class of every cell, counted from ``LOWEST_CLASS``, as (R, C)."""
    sums = rows.astype(np.int16)[:, None] + columns.astype(np.int16)
    return (np.clip(sums, LOWEST_CLASS, HIGHEST_CLASS) - LOWEST_CLASS).astype(np.uint8)


def _count_tables(matrices: list[Codes], cells: list[Bytes]) -> dict[int, Table]:
    classes = HIGHEST_CLASS - LOWEST_CLASS + 1
    counts = np.zeros((classes, 256), np.int64)
    for matrix, place in zip(matrices, cells, strict=True):
        joint = place.astype(np.int32) * 256 + matrix + 128
        counts += np.bincount(joint.ravel(), minlength=classes * 256).reshape(classes, 256)
    return {int(place): table_of(counts[place]) for place in np.flatnonzero(counts.any(1))}


def _by_class(cells: Bytes) -> tuple[Numbers, Numbers]:
    """Return the order that brings cells of one class together, and where each class but the last ends."""
    flat = cells.ravel()
    counts = np.bincount(flat, minlength=HIGHEST_CLASS - LOWEST_CLASS + 1)
    return np.argsort(flat, kind="stable"), np.cumsum(counts)[:-1]


def _read_levels(data: bytes, shapes: list[tuple[int, int]]) -> list[tuple[Codes, Codes]]:
    """Split levels, one byte each, into those of all rows and then those of all columns, matrix by matrix."""
    lengths = [length for axis in zip(*shapes, strict=True) for length in axis]
    if len(data) != sum(lengths):
        raise FormatError(f"{len(data)} levels for {sum(lengths)} rows and columns of codes; fetch the file again")
    parts = np.split(np.frombuffer(data, np.int8), np.cumsum(lengths)[:-1]) if shapes else []
    return list(zip(parts[: len(shapes)], parts[len(shapes) :], strict=True))


def _decode_matrix(coder: Any, cells: Bytes, tables: dict[int, Table]) -> Codes:
    order, ends = _by_class(cells)
    edges = [0, *ends.tolist(), cells.size]
    out = np.empty(cells.size, np.int8)
    for place, (begin, end) in enumerate(itertools.pairwise(edges)):
        if begin == end:
            continue
        if place not in tables:
            raise FormatError(f"codes of class {place} have no table of frequencies; fetch the file again")
        out[order[begin:end]] = tables[place].pop(coder, end - begin)
    return out


def _section(data: bytes, most: int) -> tuple[bytes, bytes]:
    """Read a zstd frame behind its length; its size is checked before memory is taken. Returns it and the rest."""
    (length,) = struct.unpack("<I", data[:4]) if len(data) >= 4 else (len(data),)
    packed = data[4 : 4 + length]
    if len(packed) != length:
        raise FormatError(f"a section of the payload claims {length} bytes, {len(packed)} are left")
    declared = declared_bytes(packed)
    if not 0 <= declared <= most:
        raise FormatError(f"a zstd frame declares {declared} bytes where at most {most} can be")
    return zstd_decode(packed, declared), data[4 + length :]


def _split(codes: Codes, shapes: list[tuple[int, int]]) -> list[Codes]:
    ends = np.cumsum([rows * columns for rows, columns in shapes])
    parts = np.split(codes, ends[:-1]) if shapes else []
    return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]


def require_constriction() -> None:
    """Raise EnvironmentMismatch where the package constriction is not installed."""
    if constriction is None:
        raise EnvironmentMismatch(
            "these weights are packed by the codec 'ans', whose package is not installed: pip install constriction"
        )
