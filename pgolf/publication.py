"""Publication: what goes to the Hub of a record, and on which terms.

The record goes as it is, with the verdicts of an audit on its face. A record that fails is not published unless that
is asked for by name, and then its card begins with it; a damaged or altered one is not published at all.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from modeling_pgolf.errors import LegalityError

from .audit.evidence import read_evidence
from .audit.facts import read_json
from .audit.figures import text_of
from .audit.policy import Verdict, judge, load_policy, overall
from .audit.records import read_record
from .card import published_card
from .integrity import check_record, earned_stamp
from .recipe import BudgetConfig, load_recipe
from .workdir import MANIFEST

AUDIT = "audit.json"
# What the files of one record show by themselves; the other rules need the scoring run again, or more seeds.
RANKED_RULES = ("B1", "B2", "B3", "C3", "C4", "C6", "C7", "C8", "D1", "E2", "E3")


@dataclass(frozen=True)
class Judgement:
    """The verdicts of a policy on a record."""

    policy: dict[str, Any]
    verdicts: list[Verdict]

    @property
    def failing(self) -> list[str]:
        """The checks that fail, by rule and name."""
        return [f"{v.fact.rule} {v.fact.name}" for v in self.verdicts if v.verdict == "FAIL"]


def judge_record(record: Path, policy: str) -> Judgement:
    """Judge a record by a named policy; raises FormatError where it is none, RecipeError where there is no policy."""
    rules = load_policy(policy)
    facts, hardware = read_record(record)
    return Judgement(rules, judge(facts, rules, hardware))


def check_publishable(record: Path, judgement: Judgement, *, ranked: bool, even_though_it_fails: bool) -> None:
    """Raise FormatError where a record is damaged, LegalityError where it may not go up on these terms."""
    check_record(record)
    if ranked and (reasons := reasons_against_ranking(record, judgement)):
        raise LegalityError(
            f"asked to publish {record.name} as ranked; found: {'; '.join(reasons)}; leave --ranked out"
        )
    if judgement.failing and not even_though_it_fails:
        told = "; ".join(
            f"{v.fact.rule} {v.fact.name}: {v.fact.found}" for v in judgement.verdicts if v.verdict == "FAIL"
        )
        raise LegalityError(
            f"asked to publish {record.name}; it fails the policy '{judgement.policy['name']}': {told}; mend it, or "
            "give --even-though-it-fails, which publishes it with that at the head of its card"
        )


def reasons_against_ranking(record: Path, judgement: Judgement) -> list[str]:
    """Say why a record may not be ranked: the stamp it earns, and all that its files can show and do not."""
    recipe, text = load_recipe(record / "recipe.json"), text_of(read_evidence(record))
    reasons = [earned] if (earned := earned_stamp(record)) else []
    if recipe.budget != BudgetConfig():
        reasons.append("its limits are not the challenge's")
    if not text["comparable"]:
        reasons.append(f"it is scored on {text['name']}, not on the challenge's validation split")
    return reasons + [
        f"{v.fact.rule} {v.fact.name} is {v.verdict} ({v.fact.found})"
        for v in judgement.verdicts
        if v.fact.rule in RANKED_RULES and v.verdict in ("FAIL", "UNKNOWN")
    ]


def published_files(record: Path, repository: str, judgement: Judgement, ranked: bool) -> dict[str, Path | bytes]:
    """Return what is published, by path: files as they are, and the contents of those that name the verdicts.

    The same record on the same terms gives the same bytes, so publishing twice changes nothing.
    """
    manifest = read_json(record / MANIFEST)
    policy, own = judgement.policy["name"], (record / "README.md").read_text(encoding="utf-8")
    card = published_card(own, repository, policy, judgement.verdicts, ranked)
    audit = {
        "policy": policy,
        "overall": overall(judgement.verdicts),
        "ranked": ranked,
        "failing": judgement.failing,
        "verdicts": [{**asdict(v.fact), "verdict": v.verdict, "source": v.source} for v in judgement.verdicts],
    }
    written = {"README.md": card.encode(), AUDIT: _json(audit)}
    manifest["outputs"] |= {name: hashlib.sha256(content).hexdigest() for name, content in written.items()}
    kept = {name: record / name for name in manifest["outputs"] if name not in written}
    return {**kept, **written, MANIFEST: _json(manifest)}


def _json(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()
