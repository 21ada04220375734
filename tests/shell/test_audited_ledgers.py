"""The auditor on ledgers that keep and break the rules: what is scored, how often, and what is learnt before it."""

import pytest
from audited_record import kept, posted, verdicts
from finished_run import TARGETS, WINDOW

from evaluation.ledger import GENESIS, link
from evaluation.windows import sliding_windows

STRIDE = 4


def windows(tail=False):
    """Sliding windows of the record, one SCORE each; with ``tail`` they go on as the challenge's script did (#50)."""
    spans = [("SCORE", w.scored.start, len(w.scored)) for w in sliding_windows(TARGETS, WINDOW, STRIDE)]
    starts = range(0, TARGETS, STRIDE) if tail else ()
    return spans + [("SCORE", TARGETS - STRIDE, STRIDE) for start in starts if start + WINDOW > TARGETS + STRIDE]


def test_p02_windows_with_a_correct_tail(record):
    kept(record, posted(*windows()))
    found = verdicts(record)
    assert found["C6", "coverage, sliding"] == found["C4", "one pass, sliding"] == "PASS"
    assert found["C3", "learning after scoring, sliding"] == "PASS"


def test_p03_the_tail_scored_again(record):
    kept(record, posted(*windows(tail=True)))
    for policy in ("strict", "readme", "precedent"):
        found = verdicts(record, policy)
        assert found["C6", "tail scored again, sliding"] == "WARN"
        assert found["C6", "coverage, sliding"] == found["C4", "one pass, sliding"] == "PASS"


def test_p04_score_first_is_clean(record):
    kept(record, posted(("SCORE", 0, 400), ("UPDATE", 0, 400), ("SCORE", 400, TARGETS - 400)))
    assert {v for (rule, name), v in verdicts(record).items() if name.endswith("sliding") and rule != "C7"} == {"PASS"}


def test_p05_learning_one_target_too_many(record):
    kept(record, posted(("SCORE", 0, 400), ("UPDATE", 0, 401), ("SCORE", 400, TARGETS - 400)))
    assert verdicts(record)["C3", "learning after scoring, sliding"] == "FAIL"
    assert verdicts(record)["C6", "coverage, sliding"] == "PASS"


def test_p06_learning_before_scoring(record):
    kept(record, posted(("UPDATE", 0, 400), ("SCORE", 0, TARGETS)))
    assert verdicts(record)["C3", "learning after scoring, sliding"] == "FAIL"


def test_p11_a_second_pass(record):
    kept(record, posted(("SCORE", 0, TARGETS), ("SCORE", 0, TARGETS)))
    assert verdicts(record)["C4", "one pass, sliding"] == "FAIL"


def test_p19_a_part_reported_as_the_whole(record):
    kept(record, posted(("SCORE", 0, TARGETS // 5)))
    assert verdicts(record)["C6", "coverage, sliding"] == "FAIL"
    kept(record, posted(("SCORE", 0, 400), ("SCORE", 600, TARGETS - 600)))
    assert verdicts(record)["C6", "coverage, sliding"] == "FAIL", "a gap"


@pytest.mark.parametrize("damage", ["changed", "no json", "no object", "no name", "negative"])
def test_a_broken_ledger_proves_nothing(record, damage):
    events = posted(("SCORE", 0, TARGETS))
    if damage == "changed":
        events[0]["weights"] = "other"
    elif damage == "negative":
        events = posted(("SCORE", 0, TARGETS), ("SCORE", TARGETS, -5))
    elif damage == "no name":
        events[0] = {"first": 0, "chain": link(GENESIS, {"first": 0})}
    kept(record, [3] if damage == "no object" else events)
    if damage == "no json":
        (record / "ledger.sliding.jsonl").write_text("{")
    found = verdicts(record)
    assert found["E3", "ledger, sliding"] == "FAIL"
    assert found["C3", "learning after scoring, sliding"] == found["C6", "coverage, sliding"] == "UNKNOWN"


def test_a_record_without_a_ledger_is_unknown(record):
    (record / "ledger.sliding.jsonl").unlink()
    found = verdicts(record)
    assert found["C3", "learning after scoring, sliding"] == found["C6", "coverage, sliding"] == "UNKNOWN"
    assert found["C4", "one pass, sliding"] == "UNKNOWN" and found["C6", "coverage, plain"] == "PASS"
