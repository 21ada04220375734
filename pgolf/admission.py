"""Admission: whether a record that fails the audit says so where people and the Hub look.

Publishing writes it in three places: ``audit.json``, the head of the card, and the card's tags. Whoever takes one away
has a record that fails and hides it.
"""

from __future__ import annotations

import re
from pathlib import Path

from huggingface_hub import ModelCard

from .audit.facts import read_json
from .card import FAILS
from .integrity import Finding
from .publication import AUDIT, Judgement

# What stands before the first heading of a card, where publishing puts the failure.
HEAD = re.compile(r"\A.*?(?=^# )", re.DOTALL | re.MULTILINE)


def admission_finding(record: Path, judgement: Judgement) -> Finding:
    """Say which checks of the audit fail, and whether the record admits them: FAIL only where it does not."""
    policy, failing = judgement.policy["name"], judgement.failing
    unknown = sum(verdict.verdict == "UNKNOWN" for verdict in judgement.verdicts)
    if hidden := silent_places(record, failing):
        return Finding("audit", "FAIL", f"policy {policy}: fails {', '.join(failing)}; not said in {', '.join(hidden)}")
    found = f"fails {', '.join(failing)}, as its card says" if failing else "nothing fails"
    return Finding("audit", "PASS", f"policy {policy}: {found}; {unknown} checks could not be made (pgolf audit)")


def silent_places(record: Path, failing: list[str]) -> list[str]:
    """Name the places of a record that do not admit what fails; none where nothing fails."""
    if not failing:
        return []
    admitted = read_json(record / AUDIT).get("failing") if (record / AUDIT).is_file() else []
    head, tags = _head_and_tags((record / "README.md").read_text(encoding="utf-8"))
    places = {
        AUDIT: isinstance(admitted, list) and set(failing) <= set(admitted),
        "the head of README.md": "**FAILS THE AUDIT**" in head and all(name in head for name in failing),
        "the tags of README.md": FAILS in tags,
    }
    return [place for place, says in places.items() if not says]


def _head_and_tags(text: str) -> tuple[str, list[str]]:
    try:
        card = ModelCard(text)
    except ValueError:  # its metadata are none
        return "", []
    found, tags = HEAD.match(card.text), card.data.get("tags", [])
    head = re.sub(r"<!--.*?-->", "", found[0] if found else "", flags=re.DOTALL)
    return head, tags if isinstance(tags, list) else []
