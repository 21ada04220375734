"""The auditor on records that keep and break the rules: the cases of LEGALITY 5 that records alone can show."""

import json
import math

import pytest
import torch
from audited_record import JUDGED, kept, posted, verdicts

from evaluation.bytecount import ByteTable
from evaluation.ledger import Ledger
from evaluation.windows import ValidationTokens
from modeling_pgolf.errors import FormatError, LegalityError, RecipeError
from pgolf.audit.folders import audit_folder
from pgolf.audit.policy import as_text, judge, load_policy, overall
from pgolf.audit.records import read_record
from pgolf.cli import main

# Bytes that each wrong table counts too many, on the tokens of test_p17_bytes_counted_wrongly_give_another_ratio.
P17_SURPLUS = {"leading blank twice": 2, "byte token as three": 2, "no boundaries": 1}


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
    assert found["C8", "bytes of the text"] == found["C6", "coverage, plain"] == "PASS"
    # Nothing that did not run may pass.
    assert found["C1", "causality"] == found["E4", "seeds"] == "UNKNOWN"


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


@pytest.mark.parametrize("name", ["kernels.cu", "ops.so", "fast/kernels.py"])
def test_p22_code_that_loading_does_not_import(record, name):
    (record / name).parent.mkdir(exist_ok=True)
    (record / name).write_bytes(b"#" * 16_000_000)
    assert verdicts(record)["E3", "files match their hashes"] == "FAIL", "no manifest names it"
    rehash(record)
    found = verdicts(record)
    assert found["B1", "bytes as shipped"] == "FAIL" and found["E3", "files match their hashes"] == "PASS"


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


@pytest.mark.parametrize("name", ["leading blank twice", "byte token as three", "no boundaries"])
def test_p17_other_bytes_than_were_recounted(record, name):
    """Each wrong count of LEGALITY P17 gives another sum of bytes; the ratio of the wrong score agrees with itself."""
    for scoring in ("plain", "sliding"):
        score = json.loads((record / "scores.json").read_text())["scores"][scoring]
        bytes_ = score["bytes"] + P17_SURPLUS[name]
        bits = score["nats"] / math.log(2) / bytes_
        for key, value in (("bytes", bytes_), ("bits_per_byte", bits)):
            change(record / "scores.json", ["scores", scoring, key], value)
    found = verdicts(record)
    assert found["C8", "bytes of the text"] == "FAIL" and found["C7", "sums of one set of targets, sliding"] == "PASS"


def test_bytes_of_the_original(record):
    found = {fact.name: fact for fact in read_record(record)[0]}["reversible to the original"]
    assert found.number == 5 and "7 replaced by 3 in 1 of 2 documents" in found.found
    assert verdicts(record)["C9", "reversible to the original"] == "UNKNOWN", "whose changes these are is not known"
    validation = ["corpus", "validation"]
    manifest = record / "manifests" / "training.json"
    change(manifest, [*validation, "documents_changed"], 0)
    assert verdicts(record)["C9", "reversible to the original"] == "PASS"
    change(manifest, [*validation, "utf8_bytes"], None)
    assert verdicts(record)["C9", "reversible to the original"] == "UNKNOWN"
    assert verdicts(record)["C8", "bytes of the text"] == "PASS"
    change(manifest, validation, {})
    assert verdicts(record)["C8", "bytes of the text"] == "UNKNOWN"


@pytest.mark.parametrize(
    ("stage", "key"),
    [("training", ["inputs", "corpus.json"]), ("quantization", ["outputs", "model.safetensors"])],
)
def test_stages_of_different_runs(record, stage, key):
    assert verdicts(record)["E3", "one chain of files"] == "PASS"
    change(record / "manifests" / f"{stage}.json", key, "0" * 64)
    assert verdicts(record)["E3", "one chain of files"] == "FAIL"


def test_every_rule_has_a_severity_and_a_source(record):
    rules = {fact.rule for fact in read_record(record)[0]}
    for name in ("strict", "readme", "precedent"):
        policy = load_policy(name)
        assert rules <= set(policy["severity"]) and set(policy["severity"]) == set(policy["sources"])
        assert all(policy["sources"].values())


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
    text = as_text(judge(read_record(record)[0], policy, JUDGED), policy)
    assert "overall: UNKNOWN" in text and "[README of the challenge" in text
    assert overall(judge(read_record(record)[0], policy, JUDGED)) == "UNKNOWN"
    with pytest.raises(RecipeError, match="there are precedent, readme, strict"):
        load_policy("lenient")


def test_a_folder_that_is_no_record(tmp_path):
    with pytest.raises(FormatError, match=r"a pgolf record has .*one of the challenge submission\.json"):
        audit_folder(tmp_path)


def test_a_damaged_file_is_a_format_error(record):
    (record / "submission.json").write_text("[]")
    with pytest.raises(FormatError, match=r"JSON object in submission\.json; found list"):
        audit_folder(record)


def test_files_of_the_hub_are_not_the_records(record):
    (record / ".gitattributes").write_text("* text\n")
    assert verdicts(record)["E3", "files match their hashes"] == "PASS"


def test_a_manifest_of_another_kind(record):
    (record / "manifests" / "evaluation.json").write_text('{"seconds": 3}')
    with pytest.raises(FormatError, match="no sound record"):
        audit_folder(record)


def test_the_command(record, capsys):
    main(["audit", str(record), "--policy", "precedent"])
    assert "overall: UNKNOWN" in capsys.readouterr().out
    kept(record, posted(("SCORE", 0, 5)))
    with pytest.raises(SystemExit):
        main(["audit", str(record)])
    assert "overall: FAIL" in capsys.readouterr().out


def test_zero_bytes_have_no_score():
    tokens = ValidationTokens(torch.arange(3))
    book = Ledger(tokens)
    book.post(0, torch.ones(2), "w")
    zero = torch.zeros(3, dtype=torch.bool)
    with pytest.raises(LegalityError, match="0 bytes"):
        book.score(ByteTable(torch.zeros(3, dtype=torch.int16), zero, zero))
