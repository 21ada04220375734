"""Verify: what a record proves to somebody who did not make it.

Its files, hashes, sizes and stamp are compared with one another; its weights are decoded by our reader and compared
with the ledger; and a clean process loads it and scores blocks that are drawn now. What could not be checked is said.
"""

from __future__ import annotations

import json
import random
import secrets
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from evaluation.ledger import fingerprint
from evaluation.windows import ValidationTokens
from modeling_pgolf.errors import CorpusError, FormatError
from modeling_pgolf.modeling_pgolf import PGolfForCausalLM

from .audit.facts import read_json
from .block_nats import BLOCK_NATS, BlockNats, read_block_nats
from .corpus.build import Corpus, open_corpus
from .corpus.fineweb import ChallengeShards
from .corpus.splits import shard_facts
from .integrity import Finding, code_finding, integrity
from .job import Job, Place, open_job_corpus, validation_tokens
from .publication import AUDIT, Judgement, judge_record
from .recipe import Recipe, load_recipe
from .rescore import draw_blocks, rescore
from .run import passes

# Said under every table: no run of this command can know it.
NEVER_CHECKED = (
    "that the training log tells what happened: the training was not repeated",
    "seconds and hardware: they are as the record states them",
    "who made the record, and which other runs were not published",
    "blocks that were not drawn; each run draws others",
)


@dataclass(frozen=True)
class Asked:
    """What to verify with. corpus: a built corpus; None builds the recipe's below ``root``. blocks: to draw for each
    scoring. seed: of the draw; None for one that nobody knew. trust_code: run code that is not this pgolf's."""

    corpus: Path | None = None
    root: Path = Path()
    blocks: int = 8
    seed: int | None = None
    trust_code: bool = False
    policy: str = "strict"


def verify(record: Path, asked: Asked) -> list[Finding]:
    """Check a record folder and return what was found; raises FormatError or RecipeError where it is none at all."""
    recipe, code = load_recipe(record / "recipe.json"), code_finding(record)
    findings = [
        *integrity(record),
        admission_finding(record, judge_record(record, asked.policy)),
        weights_finding(record),
        code,
    ]
    if code.verdict != "PASS" and not asked.trust_code:
        return [*findings, Finding("scores", "UNKNOWN", "that code was not run; read it, then give --trust-code")]
    try:
        recorded = read_block_nats(record / BLOCK_NATS, read_json(record / "scores.json")["scores"])
        tokens = validation_of(record, recipe, asked)
        return findings + score_findings(record, recipe, recorded, tokens, asked)
    except FormatError as error:
        return [*findings, Finding("scores", "FAIL", str(error))]
    except CorpusError as error:
        return [*findings, Finding("scores", "UNKNOWN", str(error))]


def admission_finding(record: Path, judgement: Judgement) -> Finding:
    """Say which checks of the audit fail, and whether the record admits them: FAIL only where it does not."""
    admitted = read_json(record / AUDIT).get("failing", []) if (record / AUDIT).is_file() else []
    hidden = [name for name in judgement.failing if name not in admitted]
    policy = judgement.policy["name"]
    if hidden:
        return Finding("audit", "FAIL", f"policy {policy}: fails {', '.join(hidden)}, and does not say so")
    found = f"fails {', '.join(judgement.failing)}, as its card says" if judgement.failing else "nothing fails"
    unknown = sum(verdict.verdict == "UNKNOWN" for verdict in judgement.verdicts)
    return Finding("audit", "PASS", f"policy {policy}: {found}; {unknown} checks could not be made (pgolf audit)")


def weights_finding(record: Path) -> Finding:
    """Decode the weights by our own reader and compare them with those that the ledgers begin with."""
    try:
        found = fingerprint(PGolfForCausalLM.from_pretrained(record))
        begun = {path.name: first_event(path).get("weights") for path in sorted(record.glob("ledger.*.jsonl"))}
    except (FormatError, OSError, RuntimeError, ValueError) as error:
        return Finding("weights", "FAIL", f"not to be read: {' '.join(str(error).split())[:200]}")
    wrong = [name for name, weights in begun.items() if weights != found]
    if wrong or not begun:
        return Finding(
            "weights", "FAIL", f"they decode to {found}; not scored by them: {', '.join(wrong) or 'nothing'}"
        )
    return Finding("weights", "PASS", f"they decode to {found}, which {len(begun)} ledgers begin with")


def first_event(ledger: Path) -> dict[str, Any]:
    """Read the first event of a ledger: the targets scored before any weight changed."""
    try:
        with ledger.open(encoding="utf-8") as file:
            event = json.loads(file.readline())
    except (OSError, ValueError) as error:
        raise FormatError(
            f"asked for the first event of {ledger.name}; found {error}; the record is damaged"
        ) from error
    return event if isinstance(event, dict) else {}


def score_findings(
    record: Path, recipe: Recipe, recorded: BlockNats, tokens: ValidationTokens, asked: Asked
) -> list[Finding]:
    """Draw blocks of every scoring and score them again in a clean process."""
    seed = secrets.randbelow(10**6) if asked.seed is None else asked.seed
    dice, draws, findings = random.Random(seed), [], []
    scorings = passes(recipe.evaluation)
    for name, config in scorings.items():
        if name not in recorded.sums:
            findings.append(Finding(f"scores, {name}", "UNKNOWN", "the record has no scores of that name"))
            continue
        frozen = int(first_event(record / f"ledger.{name}.jsonl").get("count", 0))
        draw = draw_blocks(name, config, recorded, frozen, dice, asked.blocks)
        if draw.blocks:
            draws.append(draw)
        else:
            findings.append(Finding(f"scores, {name}", "UNKNOWN", "weights change before a block is complete"))
    if draws:
        findings += rescore(record, tokens, scorings, recorded, draws)
    return [*findings, Finding("draw", "PASS", f"--seed {seed} draws these blocks again")]


def validation_of(record: Path, recipe: Recipe, asked: Asked) -> ValidationTokens:
    """Open or build the validation split; raises CorpusError where it is not the one that the record was scored on."""
    corpus = open_corpus(asked.corpus) if asked.corpus else open_job_corpus(Job(_light(recipe), Place(asked.root)))
    recorded = read_json(record / "manifests" / "training.json").get("corpus", {}).get("validation", {})
    if recorded.get("shards") != shard_facts(corpus.folder, "validation")["shards"]:
        raise CorpusError(f"the validation shards of {_name(corpus)} are not those of the record; give --corpus FOLDER")
    return validation_tokens(corpus)


def _light(recipe: Recipe) -> Recipe:
    """Leave out training shards that verifying has no use for: they are 200 MB each."""
    source = recipe.corpus.source
    if not isinstance(source, ChallengeShards):
        return recipe
    return replace(recipe, corpus=replace(recipe.corpus, source=replace(source, train_shards=1)))


def _name(corpus: Corpus) -> str:
    return f"the corpus {corpus.folder.name}"


def as_text(findings: list[Finding]) -> str:
    """Lay the findings out for a terminal, and what no run of this command checks."""
    width = max(len(finding.name) for finding in findings)
    lines = [f"{finding.verdict:<8}{finding.name:<{width + 2}}{finding.found}" for finding in findings]
    worst = next(v for v in ("FAIL", "UNKNOWN", "PASS") if any(finding.verdict == v for finding in findings))
    return "\n".join([*lines, f"overall: {worst}", "not checked:", *(f"  {line}" for line in NEVER_CHECKED)])
