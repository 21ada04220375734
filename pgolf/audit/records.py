"""All facts of a pgolf record, and the machines that its clocks are judged by."""

from __future__ import annotations

from pathlib import Path

from modeling_pgolf.errors import FormatError, PGolfError

from ..integrity import chain_finding, sizes_finding, stamp_finding
from .clocks import clock_facts, machines
from .evidence import Evidence, read_evidence
from .facts import (
    PROBES,
    Fact,
    chain_fact,
    fine_tune_fact,
    hash_fact,
    recipe_fact,
    size_fact,
    split_fact,
    track_fact,
)
from .figures import figure_facts
from .ledgers import ledger_facts
from .loading import loading_fact
from .sums import score_facts

# What a record of wrong types makes of the questions.
DAMAGE = (KeyError, IndexError, TypeError, AttributeError, ValueError, ArithmeticError, RecursionError, OSError)
VERDICTS = {"PASS": True, "FAIL": False, "UNKNOWN": None}


def read_record(record: Path) -> tuple[list[Fact], dict[str, str]]:
    """Read every fact of a pgolf record, and the hardware by rule; raises FormatError where a file of it is damaged.

    Raises RecipeError where its recipe is none.
    """
    try:
        evidence = read_evidence(record)
        return record_facts(evidence), machines(evidence)
    except PGolfError:
        raise
    except DAMAGE as error:
        raise FormatError(f"{record} is no sound record: {error!r} in its files; take it as published") from error


def record_facts(evidence: Evidence) -> list[Fact]:
    """Put all facts together."""
    record, manifests = evidence.record, evidence.manifests
    return [
        size_fact(record),
        loading_fact(record),
        track_fact(record),
        fine_tune_fact(evidence.recipe, manifests),
        *clock_facts(evidence),
        *ledger_facts(evidence),
        *score_facts(evidence),
        *figure_facts(evidence),
        hash_fact(record),
        *integrity_facts(record),
        recipe_fact(manifests),
        chain_fact(record, manifests),
        split_fact(manifests),
        *[Fact(rule, name, None, "needs the scoring run again; a record cannot show it") for rule, name in PROBES],
        Fact("E4", "seeds", None, "one record is one seed; compare records with pgolf compare"),
    ]


def integrity_facts(record: Path) -> list[Fact]:
    """What ``pgolf verify`` finds of hash chain, sizes and stamp as well."""
    findings = (chain_finding(record), sizes_finding(record), stamp_finding(record))
    return [Fact("E3", finding.name, VERDICTS[finding.verdict], finding.found) for finding in findings]
