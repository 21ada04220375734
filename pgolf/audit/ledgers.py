"""The ledgers of a record: their order by themselves, and the order that the recipe gives them.

Order is judged twice. Whatever a system does, it may not learn from targets before they are scored; and a system that
pgolf ran posts the chunks of its recipe, and changes its weights by learning alone.
Source: LEGALITY C3, C4, C6, V31.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from evaluation.ledger import Event, walk
from modeling_pgolf.errors import LegalityError

from ..stages import passes
from .evidence import Evidence
from .facts import Fact

CHECKS = (("C3", "learning after scoring"), ("C4", "one pass"), ("C6", "coverage"))


def ledger_facts(evidence: Evidence) -> list[Fact]:
    """Order and coverage of every scoring, from the events of its ledger."""
    facts: list[Fact] = []
    ledgers: dict[str, list[Event]] = {}
    for name, score in evidence.known.items():
        try:
            events = read_events(evidence.record, name)
            facts += order_facts(name, events, score["targets"], evidence.recipe.evaluation.window)
            ledgers[name] = events
        except FileNotFoundError:
            facts += unknown(name, "the record carries no ledger of it")
        except (ValueError, RecursionError, LegalityError) as error:
            facts += [Fact("E3", f"ledger, {name}", False, str(error)), *unknown(name, "its ledger is broken")]
    return [*facts, plan_fact(evidence, ledgers)]


def unknown(name: str, reason: str) -> list[Fact]:
    """Return the facts of a scoring whose ledger cannot be read."""
    return [Fact(rule, f"{title}, {name}", None, reason) for rule, title in CHECKS]


def read_events(record: Path, name: str) -> list[Event]:
    """Read the events of one scoring; raises ValueError or RecursionError where a line is no JSON."""
    lines = (record / f"ledger.{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def order_facts(name: str, events: list[Event], targets: int, window: int) -> list[Fact]:
    """Judge the order of a ledger's events; raises LegalityError where one does not match its hash.

    The challenge's script scores the end of the stream again, at most a window of it (LEGALITY V31): a fact of its
    own, because it was accepted. Any other second score is a second pass, and so is one after learning from the end.
    """
    reached = again = 0
    early = gap = ""
    learnt = relearnt = False
    for event, scored in walk(events):
        first, end = event.get("first", 0), event.get("first", 0) + event.get("count", 0)
        if event["event"] == "UPDATE":
            learnt = True
            if end > scored:
                early = early or f"learns from targets up to {end:,} when {scored:,} are scored"
        elif event["event"] == "SCORE":
            gap = gap or (f"scores target {first:,} where {scored:,} is next" if first > scored else "")
            repeated = max(0, min(end, scored) - first)
            relearnt = relearnt or (learnt and repeated > 0)
            again += repeated
            reached = max(reached, end)
    if not gap and reached != targets:
        gap = f"{reached:,} of {targets:,} targets are scored"
    tail = again < window and not relearnt
    told = f"{again:,} targets are scored again{', after learning' if relearnt else ''}" if again else "none"
    return [
        Fact("C3", f"learning after scoring, {name}", not early, early or "only from scored targets"),
        Fact("C4", f"one pass, {name}", tail, "one pass" if tail else told),
        Fact("C6", f"coverage, {name}", not gap, gap or f"all {targets:,} targets"),
        *([Fact("C6", f"tail scored again, {name}", False, told)] if again and tail else []),
    ]


def plan_fact(evidence: Evidence, ledgers: dict[str, list[Event]]) -> Fact:
    """Say whether all ledgers are those that the recipe's scorings write; ``ledgers`` are those that can be read."""
    title = "scored as the recipe plans"
    breaches = {name: plan_breach(evidence, name, events) for name, events in ledgers.items()}
    wrong = [f"{name}: {breach}" for name, breach in breaches.items() if breach]
    begun = {str(events[0].get("weights")) for events in ledgers.values() if events}
    if len(begun) > 1:
        wrong.append(f"the scorings begin with {len(begun)} different weights")
    if wrong:
        return Fact("C3", title, False, "; ".join(wrong))
    if len(ledgers) < len(passes(evidence.recipe.evaluation)):
        return Fact("C3", title, None, "not every scoring of the recipe has a ledger that can be read")
    return Fact("C3", title, True, "the chunks of the recipe; weights change by learning alone")


def plan_breach(evidence: Evidence, name: str, events: list[Event]) -> str:
    """Say where a ledger leaves the plan of its scoring first; empty where it follows it to the end."""
    config, targets = passes(evidence.recipe.evaluation)[name], evidence.scores[name]["targets"]
    chunk = config.adaptation.chunk_tokens
    plan = chunk_spans(targets, config.window, config.stride, chunk)
    weights, adapting, left = None, chunk is not None, iter(events)
    for number, span in enumerate(plan):
        event = next(left, {})
        if not is_span(event, "SCORE", *span):
            return f"{told(event)} where SCORE of {span[1]:,} targets from {span[0]:,} is next"
        if weights is not None and event.get("weights") != weights:
            return f"weights change before target {span[0]:,} without learning"
        weights = event.get("weights")
        if chunk is None or not adapting or number == len(plan) - 1:
            continue
        event = next(left, {})
        if event.get("event") == "DEADLINE" and event.get("scored") == sum(span):
            adapting = False
        elif is_span(event, "UPDATE", number * chunk, chunk):
            weights = event.get("weights")
        else:
            return f"{told(event)} where UPDATE by {chunk:,} targets from {number * chunk:,} is next"
    rest = next(left, None)
    return "" if rest is None else f"{told(rest)} behind the last chunk"


def is_span(event: Any, kind: str, first: int, count: int) -> bool:
    """Say whether an event is of a kind, and about these targets."""
    return (event.get("event"), event.get("first"), event.get("count")) == (kind, first, count)


def told(event: dict[str, Any]) -> str:
    """Name an event."""
    if not event:
        return "the ledger ends"
    return f"{event.get('event')} of {event.get('count', 'no')} targets from {event.get('first', 'nowhere')}"


def chunk_spans(targets: int, window: int, stride: int, chunk: int | None) -> list[tuple[int, int]]:
    """Return first target and number of targets of every chunk that the scorer posts.

    Windows belong to the chunk of their first new target, so a chunk ends where a window does: ``scorer.chunks``,
    without listing a million windows.
    """
    starts = [0] if chunk is None else sorted(set(first_windows(targets, window, stride, chunk)))
    return [(first, end - first) for first, end in pairwise([*starts, targets])]


def first_windows(targets: int, window: int, stride: int, chunk: int) -> Iterator[int]:
    """Yield the first new target of the first window whose new targets begin in each chunk, or behind it."""
    yield 0
    for number in range(1, -(-targets // chunk)):
        behind = max(number * chunk - window, 0)
        start = window + -(-behind // stride) * stride
        if start < targets:
            yield start
