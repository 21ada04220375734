"""Tables of frequencies for an entropy coder, a byte for every code, turned into whole numbers.

A table says how often each code of one class occurs, to a sixteenth of an octave. What a coder gets from it are
integers that sum to a power of two, computed with whole numbers: two machines that disagree on one bit of a frequency
read different weights. Needs the package constriction. Layout: docs/FORMAT.md.
"""

import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import FormatError

try:
    import constriction
except ImportError:
    constriction = None

# Frequencies are counted in units of 2^-24, as constriction's models do.
FREQUENCY_BITS = 24
# A stored byte counts sixteenths of an octave: these are 2^16 · 2^(i/16).
SIXTEENTHS = (
    65536, 68438, 71468, 74632, 77936, 81386, 84990, 88752,
    92682, 96785, 101070, 105545, 110218, 115098, 120194, 125515,
)  # fmt: skip
# The serialised form of one table at most.
TABLE_BYTES = 3 + 256

Codes = NDArray[np.int8]
Numbers = NDArray[np.int64]


class Table:
    """Frequencies of the codes ``lowest, lowest + 1, …``; ``weights`` are the stored bytes, one a code."""

    def __init__(self, lowest: int, weights: NDArray[np.uint8]) -> None:
        self.lowest, self.weights = lowest, weights
        # Where there is one code, nothing has to be coded.
        self.model: Any = None
        if len(weights) > 1:
            frequencies = table_frequencies(weights).astype(np.float32)
            self.model = constriction.stream.model.Categorical(frequencies, perfect=False)

    def push(self, coder: Any, codes: Codes) -> None:
        """Put ``codes`` on the coder's stack, the last first."""
        if self.model is not None:
            coder.encode_reverse(codes.astype(np.int32) - self.lowest, self.model)

    def pop(self, coder: Any, count: int) -> Codes:
        """Take ``count`` codes off the coder's stack."""
        if self.model is None:
            return np.full(count, self.lowest, dtype=np.int8)
        codes: Codes = (coder.decode(self.model, count) + self.lowest).astype(np.int8)
        return codes


def table_frequencies(weights: NDArray[np.uint8]) -> Numbers:
    """Return whole frequencies that sum to 2^24 - n for the n stored bytes of a table.

    constriction adds one to each, so that every code of the table can be coded; the sum is one that it takes over
    without rounding. A byte b above 0 stands for 2^(b / 16), 0 for nothing; what rounding down loses goes to the
    largest. Raises FormatError where all are nothing.
    """
    stored = weights.astype(np.int64)
    scaled = np.where(stored > 0, np.array(SIXTEENTHS)[stored % 16] << (stored // 16), 0)
    free = (1 << FREQUENCY_BITS) - len(weights)
    if not scaled.any():
        raise FormatError("a table of frequencies is empty; fetch the file again")
    frequencies: Numbers = scaled * free // scaled.sum()
    frequencies[frequencies.argmax()] += free - frequencies.sum()
    return frequencies


def table_of(counts: Numbers) -> Table:
    """Return the table of the codes -128 … 127 that were counted (256,), at least one of them above 0."""
    seen = np.flatnonzero(counts)
    counted = counts[seen[0] : seen[-1] + 1]
    steps = np.rint(16 * np.log2(np.maximum(counted, 1) / counted.max())) + 255
    weights = np.where(counted > 0, np.maximum(steps, 1), 0).astype(np.uint8)
    return Table(int(seen[0]) - 128, weights)


def write_tables(tables: dict[int, Table]) -> bytes:
    """Serialise tables: their number, then for each its class, its lowest code, its length less one, its bytes."""
    parts = [bytes([len(tables)])]
    for place, table in tables.items():
        parts.append(struct.pack("<BbB", place, table.lowest, len(table.weights) - 1) + table.weights.tobytes())
    return b"".join(parts)


def read_tables(data: bytes) -> tuple[dict[int, Table], int]:
    """Read the tables at the head of ``data``; returns them by class, and where they end. Raises FormatError."""
    tables: dict[int, Table] = {}
    try:
        (number,) = struct.unpack_from("<B", data)
        end = 1
        for _ in range(number):
            place, lowest, more = struct.unpack_from("<BbB", data, end)
            if place in tables or lowest + more > 127:
                raise ValueError(f"class {place} has a table twice, or one up to code {lowest + more}")
            tables[place] = Table(lowest, np.frombuffer(data, np.uint8, more + 1, end + 3))
            end += 4 + more
    except (struct.error, ValueError) as error:
        raise FormatError(f"the tables of frequencies cannot be read: {error}") from error
    return tables, end
