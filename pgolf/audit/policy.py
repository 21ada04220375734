"""A policy turns facts into verdicts: PASS, WARN, FAIL, UNKNOWN.

Policies are data files with a source for each rule, because the challenge's own rulings contradict one another.
UNKNOWN is printed for every check that did not run, and for seconds of hardware that the rules do not speak of.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modeling_pgolf.errors import RecipeError

from .facts import Fact

FOLDER = Path(__file__).with_name("policies")
ORDER = ("FAIL", "UNKNOWN", "WARN", "PASS")


@dataclass(frozen=True)
class Verdict:
    """The verdict on one fact, with the source of its rule."""

    fact: Fact
    verdict: str
    source: str


def load_policy(name: str) -> dict[str, Any]:
    """Load a policy by name; raises RecipeError with the names there are."""
    path = FOLDER / f"{name}.json"
    if not path.is_file():
        names = ", ".join(sorted(p.stem for p in FOLDER.glob("*.json")))
        raise RecipeError(f"there is no policy '{name}'; there are {names}")
    policy: dict[str, Any] = json.loads(path.read_text())
    return policy


def judge(facts: Sequence[Fact], policy: dict[str, Any], hardware: str | dict[str, str]) -> list[Verdict]:
    """Judge every fact.

    hardware: that of the record, or of the clock of each rule: it decides whether its seconds count.
    """

    def ran_on(fact: Fact) -> str:
        return hardware if isinstance(hardware, str) else hardware.get(fact.rule, "unknown hardware")

    return [Verdict(fact, verdict_of(fact, policy, ran_on(fact)), rule_of(fact, policy["sources"])) for fact in facts]


def verdict_of(fact: Fact, policy: dict[str, Any], hardware: str) -> str:
    """Return the verdict on one fact; a number over its limit fails whatever else is unknown."""
    severity, limit = rule_of(fact, policy["severity"]), policy["limits"].get(fact.rule)
    if fact.holds is False:
        return severity
    judged = policy["judged_hardware"].get(fact.rule, hardware)
    if hardware != judged:
        # Seconds of other hardware prove nothing about the named one, whichever side of the limit they are on.
        return "UNKNOWN"
    if limit is not None and fact.number is not None and fact.number > limit:
        return severity
    return "UNKNOWN" if fact.holds is None else "PASS"


def rule_of(fact: Fact, table: dict[str, str]) -> str:
    """Look a fact's rule up: under rule and name, like "C6 tail scored again", where that is there, else the rule."""
    return table.get(f"{fact.rule} {fact.name.partition(',')[0]}") or table[fact.rule]


def overall(verdicts: Sequence[Verdict]) -> str:
    """Return the worst verdict."""
    found = {verdict.verdict for verdict in verdicts}
    return next(name for name in ORDER if name in found)


def as_text(verdicts: Sequence[Verdict], policy: dict[str, Any]) -> str:
    """Lay the verdicts out for a terminal, worst first."""
    lines = [f"policy {policy['name']}: {policy['about']}"]
    for v in sorted(verdicts, key=lambda v: ORDER.index(v.verdict)):
        lines.append(f"{v.verdict:<8}{v.fact.rule:<4}{v.fact.name:<40}{v.fact.found}  [{v.source}]")
    return "\n".join([*lines, f"overall: {overall(verdicts)}"])
