"""Forged ledgers, whose chains match: the recipe says what is scored, in which order and by which weights."""

import json

import pytest
from finished_run import CHUNK, TARGETS, WINDOW
from forging import PLAN, failing, relink, set_in

from evaluation.config import EvaluationConfig
from evaluation.scorer import chunks
from pgolf.audit.ledgers import chunk_spans


def spans_of(record, name):
    events = [json.loads(line) for line in (record / f"ledger.{name}.jsonl").read_text().splitlines()]
    return [(event["event"], event["first"], event["count"], event["weights"]) for event in events]


def test_c4_a_second_pass_called_a_tail(record):
    for name in ("plain", "sliding"):
        set_in(record / "scores.json", "scores", name, "window", to=10**6)
        relink(record, name, [("SCORE", 0, TARGETS, "after 0"), ("SCORE", 0, TARGETS, "after 0")])
    assert {("C4", "one pass, plain"), ("C4", "one pass, sliding"), PLAN} <= failing(record)


def test_c4_a_tail_scored_again_after_learning_from_it(record):
    tail = ("SCORE", TARGETS - 4, 4, "other")
    relink(record, "sliding", [("SCORE", 0, TARGETS, "after 0"), ("UPDATE", TARGETS - 4, 4, "other"), tail])
    assert ("C4", "one pass, sliding") in failing(record)


@pytest.mark.parametrize(
    "spans",
    [
        [("SCORE", 0, WINDOW, "after 0"), ("SCORE", WINDOW, TARGETS - WINDOW, "after 0")],
        [("SCORE", 0, TARGETS, "after 0"), ("UPDATE", 0, 64, "other")],
        [("SCORE", 0, TARGETS, "other")],
        [("NOTE", 0, 0, "after 0"), ("SCORE", 0, TARGETS, "after 0")],
        [],
    ],
    ids=["split", "learns", "other weights", "unknown event", "empty"],
)
def test_a_frozen_ledger_is_one_score_by_the_weights_of_the_others(record, spans):
    relink(record, "sliding", spans)
    assert PLAN in failing(record)


@pytest.mark.parametrize("damage", ["weights", "chunk", "no update", "early", "late"])
def test_an_adapted_ledger_is_the_recipes_chunks(adapted, damage):
    spans = spans_of(adapted, "adapted")
    assert spans[1] == ("UPDATE", 0, CHUNK, "after 1") and spans[2][3] == "after 1"
    if damage == "weights":
        spans[2] = (*spans[2][:3], "other")
    elif damage == "chunk":
        spans[:3] = [("SCORE", 0, 2 * CHUNK, "after 0")]
    elif damage == "no update":
        del spans[1]
    elif damage == "early":
        spans[3] = ("UPDATE", 0, CHUNK, spans[3][3])
    else:
        spans.append(("UPDATE", 6 * CHUNK, 5, "other"))
    relink(adapted, "adapted", spans)
    assert PLAN in failing(adapted)


@pytest.mark.parametrize(("targets", "stride", "chunk"), [(965, 4, 160), (965, 7, 50), (100, 16, 33), (17, 4, 5)])
def test_the_plan_is_the_scorers(targets, stride, chunk):
    config = EvaluationConfig(window=WINDOW, stride=stride)
    made = [(part[0].scored.start, part[-1].scored.stop) for part in chunks(targets, config, chunk)]
    assert [(first, first + count) for first, count in chunk_spans(targets, WINDOW, stride, chunk)] == made
