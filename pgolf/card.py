"""The card of a published record: the record's own, with the verdicts of an audit, its name, and what it fails first.

A record cannot judge itself while it is being written, so its card keeps marked places for what publishing adds.
Publishing a published record again replaces them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from huggingface_hub import ModelCard

from modeling_pgolf.errors import FormatError

from .audit.policy import ORDER, Verdict, overall

# Tags by which the Hub finds records that were published despite a failed audit, or as rankable.
FAILS, RANKED = "audit-fails", "rankable"
# Where a card names the repository that it is in.
PLACES = re.compile(r'(from_pretrained\("|model="|pgolf verify )[\w./-]+')


def published_card(text: str, repository: str, policy: str, verdicts: Sequence[Verdict], ranked: bool) -> str:
    """Return a record's card as it is published; raises FormatError where it has no place for that."""
    failing = [verdict for verdict in verdicts if verdict.verdict == "FAIL"]
    card = ModelCard(PLACES.sub(rf"\g<1>{repository}", text))
    body = _replace(card.text, "face", _face(policy, failing))
    card.text = _replace(body, "verdicts", _table(policy, verdicts))
    tags = [tag for tag in card.data.get("tags", []) if tag not in (FAILS, RANKED)]
    card.data["tags"] = tags + [FAILS] * bool(failing) + [RANKED] * ranked
    return str(card)


def _replace(body: str, name: str, lines: list[str]) -> str:
    """Put lines into the marked place of that name."""
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    content = "".join(f"{line}\n" for line in lines)
    found, times = pattern.subn(lambda match: match[1] + content + match[2], body)
    if times != 1:
        raise FormatError(
            f"asked for the place '{name}' of README.md; found {times}; make the record again: pgolf record"
        )
    return found


def _face(policy: str, failing: Sequence[Verdict]) -> list[str]:
    if not failing:
        return []
    told = "; ".join(f"{verdict.fact.rule} {verdict.fact.name}: {verdict.fact.found}" for verdict in failing)
    return ["> [!CAUTION]", f"> **FAILS THE AUDIT** (policy {policy}), and was published all the same. {told}."]


def _table(policy: str, verdicts: Sequence[Verdict]) -> list[str]:
    """Lay the verdicts out, worst first, and behind them what was not checked."""
    judged = sorted((v for v in verdicts if v.verdict != "UNKNOWN"), key=lambda v: ORDER.index(v.verdict))
    unknown = [v for v in verdicts if v.verdict == "UNKNOWN"]
    lines = [
        f"Policy `{policy}`, on the files as published: **{overall(verdicts)}**.",
        "",
        "| verdict | rule | check | found |",
        "|:--|:--|:--|:--|",
        *[f"| {v.verdict} | {v.fact.rule} | {v.fact.name} | {_cell(v.fact.found)} |" for v in judged],
    ]
    if unknown:
        lines += ["", "Not checked:", "", *[f"- {v.fact.rule} {v.fact.name}: {v.fact.found}" for v in unknown]]
    return lines


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
