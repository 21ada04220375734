"""The auditor on records of the challenge: synthetic folders, one that passes and one for each fact that fails."""

import base64
import json
import lzma
import math
import zlib
from dataclasses import replace
from decimal import Decimal

import pytest

from modeling_pgolf.errors import FormatError
from pgolf.audit.challenge import read_challenge
from pgolf.audit.challenge_log import LoggedScore, read_log, read_logs
from pgolf.audit.claims import claimed_scoring
from pgolf.audit.folders import audit_folder
from pgolf.audit.policy import judge, load_policy
from pgolf.audit.shipped_code import read_code

JUDGED = "8 × NVIDIA H100 80GB HBM3"
TOKENS_PER_BYTE = 0.410521
SCRIPT = "import os\n\nprint(os.environ.get('VOCAB_SIZE', 1024))\n"
SMI = "|   {index}  NVIDIA H100 80GB HBM3          On  |   00000000:19:00.0 Off |                    0 |\n"


def log_text(seed, bits, **changes):
    """A log of the challenge; ``changes`` replace its figures, None leaves the line out."""
    said = {
        "train_ms": 599_900,
        "eval_ms": 73_133,
        "model": 15_000_000,
        "code": len(SCRIPT),
        "total": 15_000_000 + len(SCRIPT),
        "targets": 62_021_632,
        "ratio": TOKENS_PER_BYTE,
        "gpus": 8,
        "shards": 80,
    } | changes
    loss = bits * math.log(2) / said["ratio"]
    lines = [
        "val_bpb:enabled tokenizer_kind=sentencepiece tokenizer_path=./data/tokenizers/fineweb_1024_bpe.model",
        f"train_loader:dataset:fineweb10B_sp1024 train_shards:{said['shards']}",
        f"val_loader:shards pattern=./data/fineweb_val_*.bin tokens:{said['targets']}" if said["targets"] else "",
        "train_batch_tokens:524288 train_seq_len:2048 iterations:20000",
        f"seed:{seed}" if seed is not None else "",
        "step:4000/20000 val_loss:2.0601 val_bpb:1.2201 train_time:338000ms step_avg:84.5ms",
        f"stopping_early: wallclock_cap train_time:{said['train_ms']}ms step:7096/20000" if said["train_ms"] else "",
        *said.get("before", []),
        "Serialized model: 106178569 bytes",
        f"Code size: {said['code']} bytes" if said["code"] else "",
        f"Serialized model int6+zstd: {said['model']} bytes" if said["model"] else "",
        f"Total submission size int6+zstd: {said['total']} bytes" if said["total"] else "",
        f"final_int6_roundtrip_exact val_loss:{loss + 0.04:.8f} val_bpb:{bits + 0.0237:.8f}",
        f"final_int6_sliding_window val_loss:{loss:.4f} val_bpb:{bits:.4f} stride:64 eval_time:{said['eval_ms']}ms"
        if said["eval_ms"]
        else "",
        f"final_int6_sliding_window_exact val_loss:{loss:.8f} val_bpb:{bits:.8f}",
        *said.get("after", []),
    ]
    smi = "".join(SMI.format(index=index) for index in range(said["gpus"]))
    return "    log0('val_loss:1.0 val_bpb:1.0')\n" + smi + "\n".join(line for line in lines if line) + "\n"


BITS = {1337: 1.12, 42: 1.121, 2024: 1.1225}
MEAN = sum(BITS.values()) / 3


def write_folder(folder, script=SCRIPT, entry=None, card=None, **changes):
    folder.mkdir()
    (folder / "train_gpt.py").write_text(script)
    for seed, bits in BITS.items():
        (folder / f"train_seed{seed}.log").write_text(log_text(seed, bits, **changes))
    total = 15_000_000 + len(SCRIPT)
    claims = {"val_bpb": round(MEAN, 5), "val_loss": round(MEAN * math.log(2) / TOKENS_PER_BYTE, 5)}
    (folder / "submission.json").write_text(json.dumps(claims | {"bytes_total": total} | (entry or {})))
    (folder / "README.md").write_text(card or f"Mean of three seeds: {MEAN:.4f} BPB in {total:,} bytes.\n")
    return folder


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "record")


def verdicts(folder, policy="strict"):
    facts, hardware = audit_folder(folder)
    return {(v.fact.rule, v.fact.name): v.verdict for v in judge(facts, load_policy(policy), hardware)}


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


HELPERS = {
    "import": "from kernels import fast\n",
    "package": "import fused.ops\n",
    "name": "import torch\nkernel = load(__file__ + '/../fused/kernel.cu')\n",
    "exec": "exec(open(__file__.replace('train_gpt.py', 'kernels.py')).read())\n",
}


@pytest.mark.parametrize("way", HELPERS)
def test_p22_helpers_beside_the_script_are_counted(tmp_path, way):
    folder = write_folder(tmp_path / "record", script=HELPERS[way])
    (folder / "fused").mkdir()
    for name in ("kernels.py", "fused/ops.py", "fused/kernel.cu", "prepare_data.py"):
        (folder / name).write_text("# " + "x" * 1_000_000)
    used = {"import": "kernels.py", "package": "fused/ops.py", "name": "fused/kernel.cu", "exec": "kernels.py"}[way]
    assert list(read_code(folder).files) == ["train_gpt.py", used] and not read_code(folder).unread
    assert verdicts(folder)["B1", "bytes as shipped"] == "FAIL"


def test_helpers_of_helpers(tmp_path):
    folder = write_folder(tmp_path / "record", script="import one\n")
    (folder / "one.py").write_text("import two, train_gpt\n")
    (folder / "two.py").write_text("import one\n")
    assert sorted(read_code(folder).files) == ["one.py", "train_gpt.py", "two.py"]


def packed(source, how):
    """A script that carries another one, as the challenge's wrappers do."""
    filters = [{"id": lzma.FILTER_LZMA2}]
    text = {
        "lzma": base64.b85encode(lzma.compress(source)),
        "raw": base64.b85encode(lzma.compress(source, lzma.FORMAT_RAW, filters=filters)),
        "zlib": base64.b64encode(zlib.compress(source)),
        "unknown": base64.b85encode(bytes(byte ^ 85 for byte in zlib.compress(source))),
    }[how]
    return f'import lzma as L,base64 as B\nexec(L.decompress(B.b85decode("{text.decode()}")))\n'


@pytest.mark.parametrize("how", ["lzma", "raw", "zlib"])
def test_packed_scripts_are_followed(tmp_path, how):
    noise = "".join(f"value_{i} = {i * i * 7919 % 104729}\n" for i in range(400))
    folder = write_folder(tmp_path / "record", script=packed(f"{noise}import kernels\n".encode(), how))
    (folder / "kernels.py").write_text("# fast\n")
    code = read_code(folder)
    assert list(code.files) == ["train_gpt.py", "kernels.py"] and not code.unread


def test_source_that_cannot_be_read_is_unknown(tmp_path):
    noise = "".join(f"value_{i} = {i * i * 7919 % 104729}\n" for i in range(400)).encode()
    folder = write_folder(tmp_path / "record", script=packed(noise, "unknown"))
    assert read_code(folder).unread == ("train_gpt.py",)
    shown = verdicts(folder)
    assert shown["B1", "bytes as shipped"] == shown["C6", "settings that score a part"] == "UNKNOWN"
    large = write_folder(tmp_path / "large", script=packed(noise, "unknown"), model=16_000_000)
    assert verdicts(large)["B1", "bytes as shipped"] == "FAIL", "what could not be read would only add to it"


def test_statements_of_a_later_python_are_followed_and_unknown(tmp_path):
    folder = write_folder(tmp_path / "record", script="x = f'{', '.join(y)}' +\nif x:from kernels import fast\n")
    (folder / "kernels.py").write_text("# fast\n")
    code = read_code(folder)
    assert list(code.files) == ["train_gpt.py", "kernels.py"] and code.unread == ("train_gpt.py",)


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
