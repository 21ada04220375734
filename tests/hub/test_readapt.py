"""Scores of weights that adapted: what was scored before the first change is drawn, the rest only its rule can show."""

import json
from dataclasses import replace

import pytest
import torch

from modeling_pgolf.errors import FormatError
from pgolf.block_nats import BLOCK_NATS, BlockNats, read_block_nats
from pgolf.corpus.build import open_corpus
from pgolf.hub_verbs import Asked
from pgolf.job import validation_tokens
from pgolf.readapt import readapt
from pgolf.recipe import load_recipe
from pgolf.verify import as_text, verify

RULE = "scores, adapted, by its rule"
# Of the fixture: 1,122 targets in 5 chunks of 256, 71 blocks of 16, 16 of them before the first change.
CHUNKS, BLOCK = 5, 16


@pytest.fixture(scope="module")
def tokens(adapting_run):
    (corpus,) = (adapting_run.path.parents[1] / "corpora").iterdir()
    return validation_tokens(open_corpus(corpus))


@pytest.fixture
def again(adapting_run, tokens):
    """Run the rule again, by the record's sums or by others, and with its settings changed."""
    record = adapting_run.record
    scores = json.loads((record / "scores.json").read_text())["scores"]
    evaluation, honest = load_recipe(record / "recipe.json").evaluation, read_block_nats(record / BLOCK_NATS, scores)

    def run(count, change=lambda sums: None, place=record, **settings):
        sums = {name: values.clone() for name, values in honest.sums.items()}
        change(sums["adapted"])
        recorded = BlockNats(honest.size, honest.targets, sums)
        (finding,) = readapt(place, replace(evaluation, **settings), tokens, recorded, count)
        assert finding.name == RULE
        return finding

    return run


def test_a_record_that_adapts_is_unknown_until_its_rule_ran_again(adapting_run, stranger_at_home):
    asked = Asked(root=adapting_run.path.parents[1], blocks=2)
    findings = {finding.name: finding for finding in verify(adapting_run.record, asked)}
    assert "drawn from 16" in findings["scores, adapted"].found
    assert "adapted, on the card" in findings["headline"].found
    unknown = findings.pop(RULE)
    assert unknown.verdict == "UNKNOWN" and "--chunks 5 scores 5 of 5 chunks again" in unknown.found
    assert {finding.verdict for finding in findings.values()} == {"PASS"}
    whole = verify(adapting_run.record, replace(asked, chunks=CHUNKS))
    assert "overall: PASS" in as_text(whole), as_text(whole)


def test_the_rule_gives_the_same_weights_and_nats_again(again):
    finding = again(10**6)
    assert finding.verdict == "PASS" and finding.found.startswith("5 of 5 chunks again: nats per token off by +0.0e+00")
    assert finding.found.endswith("weights equal to the bit after 4 of 4 rounds of learning")


@pytest.mark.parametrize(("count", "verdict"), [(2, "UNKNOWN"), (3, "FAIL"), (CHUNKS, "FAIL")])
def test_a_claim_is_met_as_far_as_the_rule_was_run(count, verdict, again):
    def claim(sums):
        sums[40] *= 0.5  # targets 640 to 655, in the third chunk

    finding = again(count, claim)
    assert finding.verdict == verdict and (verdict == "UNKNOWN" or "in block 40 by" in finding.found)


def test_a_claim_in_the_last_short_block_is_met(again):
    def claim(sums):
        sums[-1] -= 0.5

    assert again(CHUNKS, claim).verdict == "FAIL" and again(CHUNKS - 1, claim).verdict == "UNKNOWN"


def test_scores_of_another_rule_are_met(again, adapting_run):
    """A record may not say that it learned more gently than it did."""
    rule = load_recipe(adapting_run.record / "recipe.json").evaluation.adaptation
    finding = again(CHUNKS, adaptation=replace(rule, lr=100 * rule.lr))
    assert finding.verdict == "FAIL" and "after 0 of 4 rounds" in finding.found


def test_what_was_scored_after_a_deadline_cannot_be_had_again(again, adapting_run, tmp_path):
    """Its moment was the clock's: the chunks up to it can be shown, those behind it stay unknown."""
    for path in adapting_run.record.iterdir():
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    ledger = tmp_path / "ledger.adapted.jsonl"
    ledger.write_text("".join(ledger.read_text().splitlines(keepends=True)[:3]))  # SCORE, UPDATE, SCORE
    assert "--chunks 2 scores 2 of 5 chunks again" in again(0, place=tmp_path).found
    finding = again(CHUNKS, place=tmp_path)
    assert finding.verdict == "UNKNOWN" and finding.found.startswith("2 of 5 chunks again")


def test_chunks_smaller_than_a_window_complete_a_block_too(again, adapting_run):
    """The first window scores all its targets, and a block is one window."""
    rule = load_recipe(adapting_run.record / "recipe.json").evaluation.adaptation
    assert again(1, adaptation=replace(rule, chunk_tokens=8)).found.startswith("1 of 140 chunks again: nats per token")


def test_a_damaged_ledger_is_told(again, adapting_run, tmp_path):
    (tmp_path / "ledger.adapted.jsonl").write_text('{"event": "SCORE"}\n')
    with pytest.raises(FormatError, match="found event 0 does not match its hash"):
        again(1, place=tmp_path)


def test_bf16_may_be_off_by_more_where_weights_adapt(again):
    """0.0008 nats by bias, and 4 standard deviations of the noise of 1,122 targets: 0.0034 in the record's favour."""

    def lower(by):
        return lambda sums: sums.sub_(torch.full_like(sums, by * BLOCK))

    assert again(CHUNKS, lower(0.0045), precision="bf16").verdict == "FAIL"
    assert again(CHUNKS, lower(0.0015), precision="bf16").verdict == "PASS"
