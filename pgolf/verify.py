"""Verify: what a record proves to somebody who did not make it.

Its files, hashes, sizes and stamp are compared with one another; it is loaded only where loading reads what is counted
and nothing else; its weights are decoded by our reader and compared with the ledger; and a clean process loads it and
scores blocks that are drawn now. What could not be checked is said.
"""

from __future__ import annotations

import json
import random
import secrets
from dataclasses import replace
from pathlib import Path
from typing import Any

from evaluation.ledger import fingerprint
from evaluation.windows import ValidationTokens
from modeling_pgolf.errors import CorpusError, FormatError, RecipeError
from modeling_pgolf.modeling_pgolf import PGolfForCausalLM

from .admission import admission_finding
from .audit.facts import read_json
from .audit.loading import loading_findings
from .corpus.build import open_corpus
from .corpus.fineweb import ChallengeShards
from .corpus.splits import shard_facts
from .hub_verbs import Asked
from .integrity import Finding, Verdict, code_finding, integrity
from .job import Job, open_job_corpus, validation_tokens
from .place import Place
from .publication import judge_record
from .readapt import readapt
from .recipe import Recipe, load_recipe
from .rescore import draw_sample, rescore
from .scorings import check_scores, headline_finding, read_scores, read_sums
from .stages import passes

# Said under every table: no run of this command can know it.
NEVER_CHECKED = (
    "that the training log tells what happened: the training was not repeated",
    "seconds and hardware: they are as the record states them",
    "who made the record, and which other runs were not published",
    "blocks that were not drawn; each run draws others",
)
# Worst first, and what each says of a whole record.
VERDICTS: dict[Verdict, str] = {
    "FAIL": "this record is not what it says",
    "UNKNOWN": "this record may be what it says; a part of it was not shown",
    "PASS": "what was checked is as the record says",
}


def verify(record: Path, asked: Asked) -> list[Finding]:
    """Check a record folder and return what was found; raises FormatError or RecipeError where it is none at all."""
    if asked.blocks < 1:
        raise RecipeError(f"asked to draw {asked.blocks} blocks of each scoring; none shows nothing; give --blocks 8")
    recipe, code = load_recipe(record / "recipe.json"), code_finding(record)
    findings = [*integrity(record), admission_finding(record, judge_record(record, asked.policy))]
    # Before anything is loaded: loading may run code and read files that the record does not show.
    if strange := loading_findings(record):
        return [*findings, Finding("loading", "FAIL", f"nothing was loaded: {'; '.join(strange[:4])}")]
    findings += [Finding("loading", "PASS", "reads the counted files alone"), weights_finding(record), code]
    if code.verdict != "PASS" and not asked.trust_code:
        return [*findings, Finding("scores", "UNKNOWN", "that code was not run; read it, then give --trust-code")]
    # Our rule learns by our model; what other code makes of the record is no business of that.
    asked = asked if code.verdict == "PASS" else replace(asked, chunks=0)
    try:
        return findings + score_findings(record, recipe, asked)
    except FormatError as error:
        return [*findings, Finding("scores", "FAIL", str(error))]
    except CorpusError as error:
        return [*findings, Finding("scores", "UNKNOWN", str(error))]


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


def score_findings(record: Path, recipe: Recipe, asked: Asked) -> list[Finding]:
    """Compare the scores with recipe and text, draw blocks of every scoring and score them again in a clean process.

    Raises FormatError where the scores are not of that text or the record does not load, CorpusError without the text.
    """
    scores = read_scores(record, recipe)
    recorded = read_sums(record, recipe, scores)
    tokens, counted = validation_of(record, recipe, asked)
    check_scores(scores, recipe, tokens.targets, counted)
    seed = secrets.randbelow(10**6) if asked.seed is None else asked.seed
    sample = draw_sample(passes(recipe.evaluation), recorded, tokens, random.Random(seed), asked.blocks)
    return [
        headline_finding(record, scores),
        *rescore(record, tokens, recipe.evaluation.precision, recorded, sample),
        Finding("draw", "PASS", f"--seed {seed} draws these blocks again"),
        *readapt(record, recipe.evaluation, tokens, recorded, asked.chunks),
    ]


def validation_of(record: Path, recipe: Recipe, asked: Asked) -> tuple[ValidationTokens, int]:
    """Open or build the validation split, and count the bytes of its targets.

    Raises FormatError where the recipe makes another text than the record was scored on, CorpusError where the text
    cannot be had or the one that was given is another.
    """
    corpus = open_corpus(asked.corpus) if asked.corpus else open_job_corpus(Job(_light(recipe), Place(asked.root)))
    recorded = read_json(record / "manifests" / "training.json").get("corpus", {}).get("validation", {})
    if recorded.get("shards") != shard_facts(corpus.folder, "validation")["shards"]:
        told = f"asked for the record's validation shards; the corpus {corpus.folder.name}"
        if asked.corpus:
            raise CorpusError(f"{told} has others; give its own with --corpus FOLDER, or leave it to be built")
        raise FormatError(f"{told}, built from the record's own recipe, has others; the record is of another text")
    tokens = validation_tokens(corpus)
    return tokens, int(corpus.bytes.of_targets(tokens.ids).sum())


def _light(recipe: Recipe) -> Recipe:
    """Leave out training shards that verifying has no use for: they are 200 MB each."""
    source = recipe.corpus.source
    if not isinstance(source, ChallengeShards):
        return recipe
    return replace(recipe, corpus=replace(recipe.corpus, source=replace(source, train_shards=1)))


def overall(findings: list[Finding]) -> Verdict:
    """Return the worst verdict."""
    return next(verdict for verdict in VERDICTS if any(finding.verdict == verdict for finding in findings))


def as_text(findings: list[Finding]) -> str:
    """Lay the findings out for a terminal, and what no run of this command checks."""
    width, worst = max(len(finding.name) for finding in findings), overall(findings)
    lines = [f"{finding.verdict:<8}{finding.name:<{width + 2}}{finding.found}" for finding in findings]
    lines.append(f"overall: {worst} ({VERDICTS[worst]})")
    return "\n".join([*lines, "not checked:", *(f"  {line}" for line in NEVER_CHECKED)])
