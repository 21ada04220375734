"""The ledger of scores: nats are posted target by target, in order, once.

A score exists only for a complete ledger, so a skipped, repeated or reordered target cannot become a number.
Sums are float64. Source: LEGALITY C4, C6, C7.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from modeling_pgolf.errors import LegalityError

from .bytecount import ByteTable
from .windows import ValidationTokens


@dataclass(frozen=True)
class Score:
    """The outcome of a complete ledger: sums over the same targets."""

    targets: int
    nats: float
    bytes: int

    @property
    def nats_per_token(self) -> float:
        """Mean loss in nats per token."""
        return self.nats / self.targets

    @property
    def bits_per_byte(self) -> float:
        """BPB = Σ nats / (ln 2 · Σ bytes)."""
        return self.nats / math.log(2) / self.bytes


class Ledger:
    """Nats of every target of one stream, posted in stream order."""

    def __init__(self, targets: int) -> None:
        self.targets = targets
        self._nats: list[Tensor] = []
        self._posted = 0

    def post(self, first: int, nats: Tensor) -> None:
        """Post the nats, float64 (n,), of targets ``first … first + n - 1``.

        Raises LegalityError on a gap, a second score, a target past the end, or a score that is not a finite number.
        """
        if first != self._posted:
            kind = "a second score" if first < self._posted else "a gap"
            raise LegalityError(f"{kind}: target {first} was posted, target {self._posted} is next")
        if first + len(nats) > self.targets:
            raise LegalityError(f"targets up to {first + len(nats)} were posted; the stream has {self.targets}")
        if not torch.isfinite(nats).all() or (nats < 0).any():
            raise LegalityError(
                f"nats of targets {first} to {first + len(nats) - 1} must be finite and not negative, found "
                f"{nats.min().item():.3g} to {nats.max().item():.3g}"
            )
        self._nats.append(nats.detach().to("cpu", torch.float64))
        self._posted += len(nats)

    @property
    def nats(self) -> Tensor:
        """All posted nats, float64 (posted,)."""
        return torch.cat(self._nats) if self._nats else torch.zeros(0, dtype=torch.float64)

    def score(self, tokens: ValidationTokens, table: ByteTable) -> Score:
        """Sum up; raises LegalityError unless every target of ``tokens`` has its nats."""
        if self._posted != self.targets or tokens.targets != self.targets:
            raise LegalityError(f"{self._posted} of {tokens.targets} targets are scored: there is no score yet")
        counted = int(table.count(tokens.ids[:-1], tokens.ids[1:]).sum())
        if counted == 0:
            raise LegalityError("the scored tokens spell 0 bytes; the byte table is not that of these tokens")
        return Score(self.targets, float(self.nats.sum()), counted)
