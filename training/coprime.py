"""The coprime-stride order: windows of many shards in one batch, each shard walked in steps coprime to its length.

A shard is cut into windows of ``T`` tokens from a random phase on and visited at ``start + k · stride`` modulo their
number, so that every window comes once a round. A call mixes several shards, chosen by what is left of them, more and
more of them as training goes on.

All processes draw the same list of ``span_sequences · processes`` windows a call, and process ``r`` takes every
``processes``-th from the ``r``-th on: batches depend on the number of processes, and a state goes on only with as many.
The generator is seeded by the shards' names, byte by byte. In the reference these are paths, so that its order depends
on where the files lie; the shell gives file names alone.

``T`` sequence length. Source: PR 1184, PR 1218; SPEC-11L 3.3, SPEC-8192 3.3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from modeling_pgolf.errors import TrainingError

from .batches import TrainTokens, calls_per_step, refuse_order, refuse_processes
from .config import TrainingConfig

# Prime of the 64-bit FNV hash, whose offset the reference leaves at 0.
FNV_PRIME = 1_099_511_628_211
# Over this many calls the mixture goes from few shards to many, and from large ones to even ones. Source: PR 1184.
MIXING_CALLS = 1800

Window = tuple[int, int]


@dataclass
class Cursor:
    """The walk through one shard: ``blocks`` windows behind ``phase``, of which ``taken`` are taken."""

    phase: int
    blocks: int
    start: int
    stride: int
    taken: int = 0

    def take(self, length: int) -> int:
        """Return the first token of the next window of ``length`` tokens."""
        place = (self.start + self.taken * self.stride) % self.blocks
        self.taken += 1
        return self.phase + place * length


def draw_phase(generator: np.random.Generator, tokens: int, length: int) -> int:
    """Draw where the first window of a shard begins; a shard with no token to spare costs no draw."""
    spare = min(length - 1, max(0, tokens - length - 1))
    return int(generator.integers(spare + 1)) if spare else 0


def draw_cursor(generator: np.random.Generator, tokens: int, length: int) -> Cursor:
    """Draw a walk through a shard of ``tokens`` tokens."""
    phase = draw_phase(generator, tokens, length)
    blocks = (tokens - 1 - phase) // length
    if blocks <= 1:
        return Cursor(phase, blocks, start=0, stride=1)
    start, stride = int(generator.integers(blocks)), 0
    while math.gcd(stride, blocks) != 1:
        stride = int(generator.integers(1, blocks))
    return Cursor(phase, blocks, start, stride)


def names_seed(names: Sequence[str]) -> int:
    """Hash the names of the shards into 64 bits."""
    seed = 0
    for byte in "".join(names).encode():
        seed = ((seed ^ byte) * FNV_PRIME) % 2**64
    return seed


class CoprimeBatches:
    """The share of one process in each step; its state is the number of calls, from which all draws are made again."""

    def __init__(self, tokens: TrainTokens, config: TrainingConfig, rank: int = 0, processes: int = 1) -> None:
        self.calls_per_step = calls_per_step(config, processes)
        self.tokens, self.config = tokens, config
        self.rank, self.processes = rank, processes
        if not any(len(shard) > config.sequence_length for shard in tokens.shards):
            raise TrainingError(
                f"no shard of the {len(tokens.shards)} has a whole window of {config.sequence_length} tokens; use a "
                "larger corpus, or another training.order"
            )
        self._begin()

    def _begin(self) -> None:
        self.calls = 0
        self._random = np.random.default_rng(names_seed(self.tokens.names))
        self._cursors: dict[int, Cursor] = {}

    def next_step(self) -> tuple[Tensor, Tensor]:
        """Return inputs and targets of this process for one step, int64 (sequences, T)."""
        places: list[Window] = []
        for _ in range(self.calls_per_step):
            places += self.draw_call()[self.rank :: self.processes]
        return self.tokens.windows(places, self.config.sequence_length)

    def draw_call(self) -> list[Window]:
        """Draw the (shard, start) of every window of the next call, those of all processes.

        Every draw and its place in the order are the reference's.
        """
        progress, count = min(self.calls / MIXING_CALLS, 1.0), self.config.span_sequences * self.processes
        self.calls += 1
        eligible = [i for i, shard in enumerate(self.tokens.shards) if len(shard) > self.config.sequence_length]
        left = np.array([self._left(shard) for shard in eligible], dtype=np.float64)
        weights = left ** (0.9 - 0.4 * progress)
        weights /= weights.sum()
        mixed = self._shards_mixed(progress, min(len(eligible), count))
        chosen = self._random.choice(len(eligible), size=mixed, replace=False, p=weights)
        counts = np.ones(mixed, dtype=np.int64)
        if count > mixed:
            counts += self._random.multinomial(count - mixed, weights[chosen] / weights[chosen].sum())
        piles = [self._pile(eligible[chosen[i]], counts[i]) for i in self._random.permutation(mixed)]
        return self._interleave(piles)

    def _left(self, shard: int) -> int:
        if shard in self._cursors:
            return max(self._cursors[shard].blocks - self._cursors[shard].taken, 1)
        return (len(self.tokens.shards[shard]) - 1) // self.config.sequence_length

    def _shards_mixed(self, progress: float, most: int) -> int:
        low = min(max(8, self.processes), most)
        high = min(max(32, 8 * self.processes), most)
        return max(1, min(round(low + progress * (high - low)), most))

    def _pile(self, shard: int, count: int) -> list[Window]:
        """Take the next ``count`` windows of a shard, in random order."""
        length = self.config.sequence_length
        pile = []
        for _ in range(count):
            cursor = self._cursors.get(shard)
            if cursor is None or cursor.taken == cursor.blocks:
                cursor = draw_cursor(self._random, len(self.tokens.shards[shard]), length)
                self._cursors[shard] = cursor
            pile.append((shard, cursor.take(length)))
        if count > 1:
            pile = [pile[i] for i in self._random.permutation(count)]
        return pile

    def _interleave(self, piles: list[list[Window]]) -> list[Window]:
        """Take one window of every pile in random order, and again, until none is left."""
        mixed = []
        while piles:
            piles = [piles[i] for i in self._random.permutation(len(piles))]
            mixed += [pile.pop() for pile in piles]
            piles = [pile for pile in piles if pile]
        return mixed

    def state_dict(self) -> dict[str, Any]:
        """Return the number of calls."""
        return {"order": "coprime", "calls": self.calls, "processes": self.processes}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Draw again what was drawn; raises TrainingError for another number of processes."""
        refuse_order(state, "coprime")
        refuse_processes(state, self.processes)
        self._begin()
        while self.calls < state["calls"]:
            self.draw_call()
