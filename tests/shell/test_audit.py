"""The auditor on records that keep and break the rules: the cases of LEGALITY 5 that records alone can show."""

import json
import shutil

import pytest
import torch
from finished_run import CORPUS, finish, tiny_recipe

from evaluation.bytecount import ByteTable
from evaluation.ledger import Ledger, link
from evaluation.windows import ValidationTokens
from modeling_pgolf.errors import FormatError, LegalityError, RecipeError
from pgolf.audit.facts import ledger_problem, record_facts
from pgolf.audit.policy import as_text, judge, load_policy, overall
from pgolf.record import write_record

JUDGED = "8 × NVIDIA H100 80GB HBM3"


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    recipe = tiny_recipe()
    assert CORPUS
    return write_record(recipe, finish(tmp_path_factory.mktemp("run"), recipe))


@pytest.fixture
def record(clean, tmp_path):
    return shutil.copytree(clean, tmp_path / "record")


def verdicts(record, policy="strict", hardware=JUDGED):
    return {(v.fact.rule, v.fact.name): v.verdict for v in judge(record_facts(record), load_policy(policy), hardware)}


def change(path, key, value):
    content = json.loads(path.read_text())
    target = content
    for part in key[:-1]:
        target = target[part]
    target[key[-1]] = value
    path.write_text(json.dumps(content))


def rehash(record):
    """What a forger does next: make the manifest match the changed files."""
    from pgolf.workdir import MANIFEST, file_hashes

    change(record / MANIFEST, ["outputs"], file_hashes(record))


def test_p01_p02_a_clean_record(record):
    found = verdicts(record)
    assert found["B1", "bytes as shipped"] == found["D1", "track"] == "PASS"
    assert found["E2", "card, submission and scores agree"] == found["E3", "files match their hashes"] == "PASS"
    assert "FAIL" not in found.values()
    # Nothing that did not run may pass.
    assert found["C8", "bytes of the original text"] == found["E4", "seeds"] == "UNKNOWN"


def test_seconds_of_other_hardware_are_unknown(record):
    assert verdicts(record, hardware="2 CPU cores")["B2", "training seconds"] == "UNKNOWN"
    assert verdicts(record)["B2", "training seconds"] == "PASS"


def test_p09_replay_inside_and_after_the_clock(record):
    path = record / "manifests" / "training.json"
    change(path, ["seconds"], {"step": 560.0, "replay": 20.0})
    assert verdicts(record)["B2", "training seconds"] == "PASS"
    change(path, ["seconds"], {"step": 560.0, "replay_after_clock": 20.0})
    assert verdicts(record)["B2", "training seconds"] == "FAIL"
    assert verdicts(record, hardware="2 CPU cores")["B2", "training seconds"] == "FAIL"


def test_training_over_the_clock(record):
    change(record / "manifests" / "training.json", ["seconds"], {"step": 600.15})
    assert verdicts(record)["B2", "training seconds"] == "FAIL"
    assert verdicts(record, "precedent")["B2", "training seconds"] == "PASS"


def test_evaluation_over_the_clock(record):
    change(record / "manifests" / "evaluation.json", ["seconds"], {"sliding": 617.4})
    assert verdicts(record)["B3", "evaluation seconds"] == "FAIL"


def test_p22_an_uncounted_helper(record):
    (record / "kernels.py").write_bytes(b"#" * 16_000_000)
    rehash(record)
    found = verdicts(record)
    assert found["B1", "bytes as shipped"] == "FAIL"
    assert found["E2", "card, submission and scores agree"] == "FAIL"


@pytest.mark.parametrize("key", ["val_bpb", "bytes_total"])
def test_p24_figures_that_disagree(record, key):
    change(record / "submission.json", [key], 1.0)
    rehash(record)
    assert verdicts(record)["E2", "card, submission and scores agree"] == "FAIL"
    assert verdicts(record, "precedent")["E2", "card, submission and scores agree"] == "WARN"


def test_a_changed_file(record):
    (record / "modeling_pgolf.py").write_text("# other code\n")
    assert verdicts(record)["E3", "files match their hashes"] == "FAIL"


def test_a_historical_record_fails(record):
    change(record / "manifests" / "training.json", ["track"], "historical")
    assert verdicts(record)["D1", "track"] == "FAIL"


def test_p14_sums_of_different_targets(record):
    change(record / "scores.json", ["scores", "sliding", "bits_per_byte"], 1.0)
    assert verdicts(record)["C7", "sums of one set of targets, sliding"] == "FAIL"


def ledger():
    tokens = ValidationTokens(torch.arange(11))
    book = Ledger(tokens)
    book.post(0, torch.ones(4), "a")
    book.update(book.posted(0, 4), "b")
    book.post(4, torch.ones(6), "b")
    return book.events


def forged(events):
    previous = "0" * 64
    for event in events:
        event.pop("chain", None)
        event["chain"] = previous = link(previous, dict(event))
    return events


def test_p04_score_first_is_clean():
    assert ledger_problem(ledger(), 10) is None


def test_p05_learning_one_target_too_many():
    events = ledger()
    events[1]["count"] = 5
    assert "scored are 4" in ledger_problem(forged(events), 10)
    assert "does not match its hash" in ledger_problem(
        [{**e, "count": 5} if i == 1 else e for i, e in enumerate(ledger())], 10
    )


def test_p03_the_tail_scored_again():
    events = ledger()
    events.append({"event": "SCORE", "first": 8, "count": 2, "nats": "", "weights": "b"})
    assert "scores target 8 where 10 is next" in ledger_problem(forged(events), 10)


def test_p19_a_part_reported_as_the_whole():
    assert "4 of 10" in ledger_problem(ledger()[:2], 10)


def test_p17_bytes_counted_wrongly_give_another_ratio():
    """A leading blank counted twice, and a byte token counted as three, move tokens per byte off the known value."""
    tokens = torch.tensor([1, 5, 6, 5, 7, 6])
    boundary = torch.zeros(8, dtype=torch.bool)
    boundary[:4] = True
    blank = torch.tensor([0, 0, 0, 0, 0, 1, 0, 0], dtype=torch.bool)
    right = ByteTable(torch.tensor([0, 0, 0, 0, 1, 3, 2, 1], dtype=torch.int16), blank, boundary)
    count = lambda table: int(table.count(tokens[:-1], tokens[1:]).sum())  # noqa: E731
    assert count(right) == 3 + 2 + 4 + 1 + 2
    twice = ByteTable(right.base_bytes + blank.to(torch.int16), blank, boundary)
    three = ByteTable(torch.where(torch.arange(8) == 7, 3, right.base_bytes).to(torch.int16), blank, boundary)
    no_boundary = ByteTable(right.base_bytes, blank, torch.zeros(8, dtype=torch.bool))
    assert count(twice) == count(right) + 2 and count(three) == count(right) + 2
    assert count(no_boundary) == count(right) + 1


def test_policies_and_words(record):
    policy = load_policy("strict")
    text = as_text(judge(record_facts(record), policy, JUDGED), policy)
    assert "overall: UNKNOWN" in text and "[README of the challenge" in text
    assert overall(judge(record_facts(record), policy, JUDGED)) == "UNKNOWN"
    with pytest.raises(RecipeError, match="there are precedent, readme, strict"):
        load_policy("lenient")


def test_a_folder_that_is_no_record(tmp_path):
    with pytest.raises(FormatError, match="not a pgolf record"):
        record_facts(tmp_path)


def test_zero_bytes_have_no_score():
    tokens = ValidationTokens(torch.arange(3))
    book = Ledger(tokens)
    book.post(0, torch.ones(2), "w")
    zero = torch.zeros(3, dtype=torch.bool)
    with pytest.raises(LegalityError, match="0 bytes"):
        book.score(ByteTable(torch.zeros(3, dtype=torch.int16), zero, zero))
