"""Readapt: a scoring that adapts, made again from its first chunk, by the record's rule on the verifier's text.

What weights score after they changed depends on everything before, so no block of it can be drawn alone. The rule
itself runs again, for as many chunks as are asked for; what lies behind them stays UNKNOWN.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from evaluation.config import EvaluationConfig
from evaluation.ledger import Event, Ledger, walk
from evaluation.scorer import build_rule, run_rule
from evaluation.windows import ValidationTokens
from modeling_pgolf.errors import FormatError, LegalityError
from modeling_pgolf.modeling_pgolf import PGolfForCausalLM

from .audit.ledgers import chunk_spans, read_events
from .block_nats import BlockNats, block_sums
from .integrity import Finding, Verdict
from .processes import join_processes
from .rescore import NOISE, judge_blocks
from .stages import passes

# As rescore.BIAS, of scorings that adapt: between bf16 and fp32 the demo's artifact differed by 7.0e-4 nats after 29
# rounds of learning (rate 0.01, 30,208 targets), where it differs by 3.8e-4 without. The noise of one target did not
# grow: 0.017 root mean square in both. Weights off by 1e-6 of themselves moved no later nats by more than earlier ones.
BIAS = {"fp32": 0.0, "bf16": 8e-4}


@dataclass(frozen=True)
class Rerun:
    """A scoring that adapts, and what the record has of it: its sums by block and its ledger."""

    name: str
    config: EvaluationConfig
    plan: int
    recorded: BlockNats
    events: list[Event]

    @property
    def reach(self) -> int:
        """Chunks that can be had again: after a deadline, weights stood still from a moment that the clock chose."""
        return min(self.plan, 1 + len([event for event in self.events if event["event"] == "UPDATE"]))

    def compare(self, ledger: Ledger) -> tuple[Verdict, str]:
        """Compare the blocks that a ledger completes with the record's; PASS only where they are the whole text."""
        size, whole = self.recorded.size, ledger.scored == self.recorded.targets
        done = len(self.recorded.sums[self.name]) if whole else ledger.scored // size  # the last may be short
        found = dict(enumerate(block_sums(ledger.nats[: done * size], size).tolist()))
        arithmetic = NOISE[self.config.precision], BIAS[self.config.precision]
        agree, told = judge_blocks(self.name, found, self.recorded, arithmetic)
        told = f"{told}; {equal_weights(ledger.events, self.events)}"
        if not agree:
            return "FAIL", told
        return "PASS" if whole else "UNKNOWN", told


def readapt(
    record: Path, evaluation: EvaluationConfig, tokens: ValidationTokens, recorded: BlockNats, count: int
) -> list[Finding]:
    """Score ``count`` chunks of every scoring that adapts again, learning between them; a finding each.

    Raises FormatError where a ledger is none.
    """
    findings = []
    for name, config in passes(evaluation).items():
        plan = len(chunk_spans(tokens.targets, config.window, config.stride, config.adaptation.chunk_tokens))
        if plan > 1:
            rerun = Rerun(name, config, plan, recorded, checked_events(record, name))
            findings.append(Finding(f"scores, {name}, by its rule", *run_again(record, rerun, tokens, count)))
    return findings


def run_again(record: Path, rerun: Rerun, tokens: ValidationTokens, count: int) -> tuple[Verdict, str]:
    """Score the first ``count`` chunks again, if there are so many, and compare."""
    count = min(count, rerun.reach)
    if count < 1:
        hint = f"--chunks {rerun.reach} scores {rerun.reach} of {rerun.plan} chunks again, learning from each"
        return "UNKNOWN", f"not run; where the code is this pgolf's, {hint}"
    verdict, told = rerun.compare(after(score_chunks(record, rerun.config, tokens), count))
    return verdict, f"{count} of {rerun.plan} chunks again: {told}"


def score_chunks(record: Path, config: EvaluationConfig, tokens: ValidationTokens) -> Iterator[Ledger]:
    """Yield the ledger after each chunk; compiled only on a GPU, where that is worth its time."""
    accelerator = join_processes()
    config = replace(config, compile=config.compile and torch.cuda.is_available())
    model = PGolfForCausalLM.from_pretrained(record).to(accelerator.device)
    return run_rule(model, build_rule(model, config, accelerator), tokens, config, accelerator, "again")


def after(ledgers: Iterator[Ledger], count: int) -> Ledger:
    """Return the ledger as it is after ``count`` chunks; nothing is learned from the last of them."""
    for _ in range(count - 1):
        next(ledgers)
    return next(ledgers)


def equal_weights(made: list[Event], recorded: list[Event]) -> str:
    """Say after how many rounds of learning the weights are those of the record to the bit."""
    rounds, said = (
        [event.get("weights") for event in events if event["event"] == "UPDATE"] for events in (made, recorded)
    )
    same = sum(one == other for one, other in zip(rounds, said, strict=False))
    return f"weights equal to the bit after {same} of {len(rounds)} rounds of learning"


def checked_events(record: Path, name: str) -> list[Event]:
    """Read a ledger's events; raises FormatError where they are none, or do not match their hashes."""
    try:
        return [event for event, _ in walk(read_events(record, name))]
    except (OSError, ValueError, RecursionError, LegalityError) as error:
        raise FormatError(
            f"asked for the events of ledger.{name}.jsonl; found {error}; the record is damaged"
        ) from error
