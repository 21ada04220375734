"""The auditor on records of the challenge: synthetic folders, one that passes and one for each fact that fails."""

from dataclasses import replace
from decimal import Decimal

import pytest
from challenge_folder import BITS, MEAN, SCRIPT, log_text, verdicts, write_folder

from modeling_pgolf.errors import FormatError
from pgolf.audit.challenge import read_challenge
from pgolf.audit.challenge_log import LoggedScore, read_log, read_logs
from pgolf.audit.claims import claimed_scoring
from pgolf.audit.folders import audit_folder
from pgolf.audit.policy import load_policy

JUDGED = "8 × NVIDIA H100 80GB HBM3"


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "record")


def found(folder, name):
    return next(fact for fact in read_challenge(folder)[0] if fact.name == name)


UNDECIDABLE = {
    ("B2", "training data after the clock"), ("C1", "causality"), ("C2", "normalised probabilities"),
    ("C3", "learning after scoring"), ("C4", "one pass"), ("D1", "validation text before scoring"),
    ("D2", "documents in both splits"), ("D3", "training data in evaluation"), ("D4", "self-contained evaluation"),
    ("D5", "calibration data"),
}  # fmt: skip


def test_a_record_whose_files_agree_passes_what_they_can_show(folder):
    shown = verdicts(folder)
    assert {key for key, verdict in shown.items() if verdict != "PASS"} == UNDECIDABLE
    assert {shown[key] for key in UNDECIDABLE} == {"UNKNOWN"}
    assert len(shown) - len(UNDECIDABLE) == 17
    assert found(folder, "bytes as shipped").number == 15_000_000 + len(SCRIPT)
    assert "mean 1.12117 BPB, sd 0.00126" in found(folder, "seeds").found


@pytest.mark.parametrize(
    ("changes", "rule", "name"),
    [
        ({"model": 15_999_990}, "B1", "bytes as shipped"),
        ({"total": 16_000_001}, "B1", "bytes as logged"),
        ({"entry": {"bytes_total": 16_119_065}}, "B1", "bytes as claimed"),
        ({"entry": {"bytes_total": 15_758_590}}, "E2", "bytes of submission and logs"),
        ({"train_ms": 600_137}, "B2", "training clock"),
        ({"eval_ms": 617_400}, "B3", "evaluation clock"),
        ({"gpus": 4}, "B4", "hardware"),
        ({"entry": {"val_bpb": 1.1150}}, "E2", "val_bpb of submission and logs"),
        ({"entry": {"val_loss": 1.8800}}, "E2", "val_loss of submission and logs"),
        ({"entry": {"val_bpb": 1.12}}, "E4", "score is the mean of the seeds"),
        ({"card": "Mean of three seeds: 1.1190 BPB.\n"}, "E2", "score of README"),
        ({"card": f"{MEAN:.4f} BPB in 15,100,000 bytes.\n"}, "E2", "bytes of README"),
        ({"code": 74_001}, "E3", "code size of the logs"),
        ({"ratio": 0.2280}, "C8", "tokens per byte"),
        ({"ratio": 0.35}, "C8", "tokens per byte"),
        ({"targets": 12_404_326}, "C6", "validation targets"),
        ({"shards": 1499}, "D2", "documents in both splits"),
    ],
    ids=lambda value: next(iter(value), "") if isinstance(value, dict) else None,
)
def test_each_fact_that_fails(tmp_path, changes, rule, name):
    """LEGALITY P14, P17, P19, P22 and P24 on records of the challenge, and the clocks."""
    assert verdicts(write_folder(tmp_path / "record", **changes))[rule, name] == "FAIL"


@pytest.mark.parametrize(
    ("changes", "rule", "name"),
    [
        ({"model": None}, "B1", "bytes as shipped"),
        ({"total": None}, "B1", "bytes as logged"),
        ({"total": None}, "E2", "bytes of submission and logs"),
        ({"entry": {"bytes_total": None}}, "B1", "bytes as claimed"),
        ({"train_ms": None}, "B2", "training clock"),
        ({"eval_ms": None}, "B3", "evaluation clock"),
        ({"gpus": 0}, "B4", "hardware"),
        ({"entry": {"val_bpb": None}}, "E2", "val_bpb of submission and logs"),
        ({"entry": {"val_bpb": None}}, "E4", "score is the mean of the seeds"),
        ({"entry": {"val_loss": "1.9"}}, "E2", "val_loss of submission and logs"),
        ({"card": " "}, "E2", "bytes of README"),
        ({"code": None}, "E3", "code size of the logs"),
        ({"targets": None}, "C6", "validation targets"),
        ({"targets": 63_779_840}, "C6", "validation targets"),
        ({"ratio": 0.409449}, "C8", "tokens per byte"),
    ],
    ids=lambda value: next(iter(value), "") if isinstance(value, dict) else None,
)
def test_what_no_line_says_is_unknown(tmp_path, changes, rule, name):
    shown = verdicts(write_folder(tmp_path / "record", **changes))
    if name == "val_loss of submission and logs":
        assert (rule, name) not in shown  # nothing is claimed
    else:
        assert shown[rule, name] == "UNKNOWN"


def test_a_folder_without_logs_shows_next_to_nothing(folder):
    for path in folder.glob("*.log"):
        path.unlink()
    passed = {key for key, verdict in verdicts(folder).items() if verdict == "PASS"}
    assert passed == {("B1", "bytes as claimed"), ("E2", "score of README"), ("E2", "bytes of README"),
                      ("C6", "settings that score a part")}  # fmt: skip


def test_seconds_on_a_claimed_machine_are_judged(tmp_path):
    folder = write_folder(tmp_path / "record", gpus=0, train_ms=601_000, entry={"hardware": "8xH100 80GB SXM"})
    assert audit_folder(folder)[1] == JUDGED and verdicts(folder)["B2", "training clock"] == "FAIL"
    assert "claimed: 8xH100" in found(folder, "hardware").found
    nobody = write_folder(tmp_path / "nobody", gpus=0, train_ms=601_000)
    assert audit_folder(nobody)[1] == "unknown hardware" and verdicts(nobody)["B2", "training clock"] == "UNKNOWN"


def test_a_clock_in_some_logs_only_cannot_pass(folder):
    (folder / "train_seed42.log").write_text(log_text(42, BITS[42], train_ms=None))
    assert verdicts(folder)["B2", "training clock"] == "UNKNOWN"
    (folder / "train_seed1337.log").write_text(log_text(1337, BITS[1337], train_ms=700_000))
    assert verdicts(folder)["B2", "training clock"] == "FAIL", "one log over the limit is enough"


def test_accepted_clocks_and_sizes(tmp_path):
    folder = write_folder(tmp_path / "record", train_ms=600_137, model=15_999_990)
    shown = verdicts(folder, "precedent")
    assert shown["B2", "training clock"] == "PASS" and shown["B1", "bytes as shipped"] == "WARN"


def test_two_seeds_are_too_few(folder):
    (folder / "train_seed2024.log").unlink()
    assert verdicts(folder)["E4", "seeds"] == "FAIL"


def test_the_same_log_twice_is_one_seed(folder):
    for seed in (42, 2024):
        (folder / f"train_seed{seed}.log").write_text(log_text(1337, BITS[1337]))
    assert [log.name for log in read_logs(folder)] == ["train_seed1337.log"]
    assert verdicts(folder)["E4", "seeds"] == "FAIL"


def test_several_logs_of_a_seed_leave_open_which_count(folder):
    (folder / "rerun.log").write_text(log_text(42, 1.13))
    shown = verdicts(folder)
    assert shown["E2", "val_bpb of submission and logs"] == "PASS"
    assert shown["E4", "score is the mean of the seeds"] == "UNKNOWN"
    assert "one of 2 choices" in found(folder, "score is the mean of the seeds").found


def test_a_seed_without_its_line_is_in_the_name():
    assert read_log("train_seed7.log", log_text(None, 1.1)).seed == 7
    assert read_log("train_seed7.log", log_text(3, 1.1)).seed == 3, "what the run printed counts"
    assert read_log("train.log", log_text(None, 1.1)).seed is None


def test_p03_the_tail_scored_again(tmp_path):
    line = "ttt_sliding:start chunks=1893 chunk_tokens=32768 total_windows={} stride=64 ttt_lr=0.002"
    again = write_folder(tmp_path / "again", after=[line.format(969_088)])
    exact = write_folder(tmp_path / "exact", after=[line.format(969_057)])
    assert verdicts(again)["C6", "tail scored again"] == "WARN"
    assert "1,984 targets" in found(again, "tail scored again").found
    assert ("C6", "tail scored again") not in verdicts(exact)


def test_seed_three_falls_before_it_is_serialised(tmp_path):
    """LEGALITY K22: a suspicion, printed with the unknown that only an isolated run can decide."""
    before = [
        "DIAGNOSTIC post_ema val_loss:1.9168 val_bpb:1.1352",
        "DIAGNOSTIC post_ttt val_loss:1.8474 val_bpb:1.0941",
    ]
    folder = write_folder(tmp_path / "record", before=before)
    fact = found(folder, "validation text before scoring")
    assert fact.holds is None and "post_ema 1.9168 to DIAGNOSTIC post_ttt 1.8474" in fact.found
    assert verdicts(folder)["E2", "val_bpb of submission and logs"] == "PASS", "they are no scores of the artifact"


@pytest.mark.parametrize(
    ("setting", "printed", "verdict"),
    [
        ("VAL_DOC_FRACTION", "1.0", "PASS"),
        ("VAL_DOC_FRACTION", "0.2", "FAIL"),
        ("VAL_DOC_FRACTION", None, "UNKNOWN"),
        ("TTT_EVAL_BATCHES", "", "PASS"),
        ("PPM_SUBSET_TOKENS", "3000000", "UNKNOWN"),
    ],
)
def test_settings_that_score_a_part(tmp_path, setting, printed, verdict):
    script = f"import os\nfraction = os.environ.get({setting!r}, 1.0)\n"
    after = [] if printed is None else [f"  {setting.lower()}: {printed}"]
    folder = write_folder(tmp_path / "record", script=script, after=after)
    assert verdicts(folder)["C6", "settings that score a part"] == verdict


def test_claims_are_right_to_their_last_decimal():
    def lines(*bits):
        scores = [LoggedScore("final_exact", Decimal("1.9"), Decimal(value)) for value in bits]
        return [replace(read_log("train.log", ""), seed=seed, scores=[one]) for seed, one in enumerate(scores)]

    logs = lines("1.11922988", "1.12002032", "1.11888882")
    assert claimed_scoring(Decimal("1.1194"), logs).matches == "mean"
    assert claimed_scoring(Decimal("1.1192"), logs).matches == "one"
    assert claimed_scoring(Decimal("1.11922988"), logs).matches == "one"
    assert claimed_scoring(Decimal("1.1176"), logs).matches == "none"
    assert claimed_scoring(Decimal("1.12"), lines("1.1200")).matches == "mean", "one run is its own mean"


def test_logs_with_the_second_in_front_of_each_line(folder):
    path = folder / "train_seed42.log"
    path.write_text("".join(f"1776142348.094 {line}\n" for line in path.read_text().splitlines()))
    assert {key for key, verdict in verdicts(folder).items() if verdict != "PASS"} == UNDECIDABLE


def test_every_rule_has_a_severity_and_a_source(folder):
    rules = {fact.rule for fact in read_challenge(folder)[0]}
    for name in ("strict", "readme", "precedent"):
        assert rules <= set(load_policy(name)["severity"]) & set(load_policy(name)["sources"])


def test_a_damaged_entry(folder):
    (folder / "submission.json").write_text("{")
    with pytest.raises(FormatError, match=r"JSON object submission\.json"):
        audit_folder(folder)
