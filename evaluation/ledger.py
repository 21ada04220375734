"""The ledger of scores: nats are posted target by target, in order, once, before anything learns from them.

Events SCORE and UPDATE form a chain of SHA-256 hashes over positions, nats and the fingerprint of the weights. A
score exists only for a complete ledger, and tokens reach an adaptation rule only through ``posted``, so a skipped,
repeated, reordered or peeked target cannot become a number. Source: LEGALITY C3, C4, C6, C7 and K4.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from modeling_pgolf.errors import LegalityError

from .bytecount import ByteTable
from .windows import ValidationTokens

Event = dict[str, Any]
# The chain's link before the first event.
GENESIS = "0" * 64
# Events that are about targets, as against notes.
SPANS = ("SCORE", "UPDATE")


@dataclass(frozen=True)
class Posted:
    """Text that has been scored: ``ids`` int64 (n + 1,), whose ``n`` targets are ``first … first + n - 1``."""

    first: int
    ids: Tensor


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
    """Nats of every target of one stream, posted in stream order, and the updates between them."""

    def __init__(self, tokens: ValidationTokens) -> None:
        self._tokens = tokens
        self._nats: list[Tensor] = []
        self._scored = 0
        self.events: list[Event] = []

    @property
    def scored(self) -> int:
        """How many targets have their nats."""
        return self._scored

    @property
    def nats(self) -> Tensor:
        """All posted nats, float64 (scored,)."""
        return torch.cat(self._nats) if self._nats else torch.zeros(0, dtype=torch.float64)

    def post(self, first: int, nats: Tensor, weights: str) -> None:
        """Post the nats, (n,), of targets ``first … first + n - 1``, scored by weights of that fingerprint.

        Raises LegalityError on a gap, a second score, a target past the end, or nats that are not finite.
        """
        if first != self._scored:
            kind = "a second score" if first < self._scored else "a gap"
            raise LegalityError(f"{kind}: target {first} was posted, target {self._scored} is next")
        if first + len(nats) > self._tokens.targets:
            raise LegalityError(f"{first + len(nats)} targets were posted; the stream has {self._tokens.targets}")
        nats = nats.detach().to("cpu", torch.float64)
        if not torch.isfinite(nats).all() or (nats < 0).any():
            raise LegalityError(
                f"nats of targets {first} to {first + len(nats) - 1} must be finite and not negative, found "
                f"{nats.min().item():.3g} to {nats.max().item():.3g}"
            )
        self._nats.append(nats)
        self._scored += len(nats)
        digest = hashlib.sha256(nats.numpy().tobytes()).hexdigest()
        self._chain({"event": "SCORE", "first": first, "count": len(nats), "nats": digest, "weights": weights})

    def posted(self, first: int, count: int) -> Posted:
        """Hand out the text of targets ``first … first + count - 1``; raises LegalityError where one is not scored."""
        if first < 0 or first + count > self._scored:
            raise LegalityError(
                f"targets {first} to {first + count - 1} were asked for learning, but only {self._scored} are scored"
            )
        return Posted(first, self._tokens.ids[first : first + count + 1].clone())

    def update(self, posted: Posted, weights: str) -> None:
        """Note that weights were changed by ``posted``, to this fingerprint."""
        self._chain({"event": "UPDATE", "first": posted.first, "count": len(posted.ids) - 1, "weights": weights})

    def note(self, event: str, **facts: Any) -> None:
        """Chain any other event, like the deadline's."""
        self._chain({"event": event, **facts})

    def score(self, table: ByteTable) -> Score:
        """Sum up; raises LegalityError unless every target has its nats."""
        if self._scored != self._tokens.targets:
            raise LegalityError(f"{self._scored} of {self._tokens.targets} targets are scored: there is no score yet")
        counted = int(table.of_targets(self._tokens.ids).sum())
        if counted == 0:
            raise LegalityError("the scored tokens spell 0 bytes; the byte table is not that of these tokens")
        return Score(self._scored, float(self.nats.sum()), counted)

    def _chain(self, event: Event) -> None:
        previous = self.events[-1]["chain"] if self.events else GENESIS
        self.events.append({**event, "chain": link(previous, event)})


def link(previous: str, event: Event) -> str:
    """Return the hash that chains ``event`` to the hash before it."""
    return hashlib.sha256((previous + json.dumps(event, sort_keys=True)).encode()).hexdigest()


def walk(events: Iterable[Event]) -> Iterator[tuple[Event, int]]:
    """Yield each event without its link, and how many targets had their nats before it.

    Raises LegalityError at the first event that is none, or that does not match its hash. Judges no order.
    """
    scored, previous = 0, GENESIS
    for number, event in enumerate(events):
        if not isinstance(event, dict):
            raise LegalityError(f"event {number} is {event!r}, no event")
        facts = {key: value for key, value in event.items() if key != "chain"}
        if link(previous, facts) != event.get("chain"):
            raise LegalityError(f"event {number} does not match its hash: the ledger was changed")
        places = facts.get("first"), facts.get("count")
        if "event" not in facts or (facts["event"] in SPANS and not all(isinstance(p, int) and p >= 0 for p in places)):
            raise LegalityError(f"event {number} does not say what it is, or which targets it is about")
        yield facts, scored
        previous = event["chain"]
        if facts["event"] == "SCORE":
            scored = max(scored, facts["first"] + facts["count"])


def replay(events: Iterable[Event], nats: Tensor, tokens: ValidationTokens) -> Ledger:
    """Rebuild a ledger from its events and nats; raises LegalityError where order, hashes or nats disagree."""
    ledger = Ledger(tokens)
    for event, scored in walk(events):
        if event["event"] == "SCORE":
            ledger.post(event["first"], nats[event["first"] : event["first"] + event["count"]], event["weights"])
        elif event["event"] == "UPDATE":
            ledger.update(ledger.posted(event["first"], event["count"]), event["weights"])
        else:
            ledger.note(**event)
        if not ledger.events[-1].items() >= event.items():
            raise LegalityError(f"the nats from target {scored} on are not those that were posted")
    return ledger


@torch.no_grad()
def fingerprint(model: nn.Module) -> str:
    """Return a short fingerprint of all weights: two integer sums of the float32 bits of each tensor, hashed.

    Not cryptographic by itself: it tells versions of one run apart without moving 100 MB to the host for each chunk.
    """
    sums = []
    for parameter in model.parameters():
        bits = parameter.detach().float().contiguous().view(torch.int32).flatten().to(torch.int64)
        places = torch.arange(len(bits), device=bits.device) * 2 + 1
        sums.append(torch.stack((bits.sum(), (bits * places).sum())))
    return hashlib.sha256(torch.stack(sums).cpu().numpy().tobytes()).hexdigest()[:16]
