"""What verifying finds in a sound record, and in records that somebody has improved."""

import json
import math
import os
import random

import pytest
import torch
from safetensors.torch import load_file, save_file

from evaluation.adaptation.score_first import ScoreFirstConfig
from evaluation.config import EvaluationConfig
from modeling_pgolf.errors import FormatError
from pgolf.admission import admission_finding
from pgolf.audit.facts import Fact
from pgolf.audit.policy import Verdict
from pgolf.block_nats import BLOCK_NATS, BlockNats, block_sums, read_block_nats
from pgolf.card import published_card
from pgolf.hub_verbs import Asked
from pgolf.integrity import code_finding, integrity
from pgolf.publication import Judgement
from pgolf.rescore import Draw, ask_stranger, compare, draw_blocks, suspects
from pgolf.siblings import ROOT
from pgolf.verify import as_text, verify, weights_finding


def verdicts(findings):
    return {finding.name: finding.verdict for finding in findings}


def test_blocks_add_up_and_the_last_may_be_short():
    nats = torch.arange(10, dtype=torch.float64)
    assert block_sums(nats, 4).tolist() == [6.0, 22.0, 17.0]
    recorded = BlockNats(4, 10, {"plain": block_sums(nats, 4)})
    assert [recorded.count(block) for block in range(3)] == [4, 4, 2]


def test_block_nats_are_compared_with_the_score(finished_run, own_record):
    scores = json.loads((own_record / "scores.json").read_text())["scores"]
    recorded = read_block_nats(own_record / BLOCK_NATS, scores)
    nats = load_file(finished_run.scores / "nats.safetensors")
    assert recorded.size == 16 and torch.equal(recorded.sums["sliding"], block_sums(nats["sliding"], 16))
    for change in ({"nats": scores["plain"]["nats"] + 1e-4}, {"targets": scores["plain"]["targets"] - 1}):
        with pytest.raises(FormatError, match="adds up to"):
            read_block_nats(own_record / BLOCK_NATS, scores | {"plain": scores["plain"] | change})
    with pytest.raises(FormatError, match="asked for sums"):
        read_block_nats(own_record / BLOCK_NATS, {"plain": scores["plain"]})
    (own_record / BLOCK_NATS).write_bytes(b"no tensors")
    with pytest.raises(FormatError, match="the record is damaged"):
        read_block_nats(own_record / BLOCK_NATS, scores)


def test_drawn_blocks_are_scored_by_all_their_windows():
    recorded = BlockNats(16, 100, {"sliding": torch.arange(7.0)})
    config = EvaluationConfig(window=16, stride=5)
    draw = draw_blocks("sliding", config, recorded, random.Random(0), 3)
    assert draw.drawn == 3 and draw.eligible == 7 and draw.blocks == [0, 3, 5, 6], "0 is the lowest"
    scored = {target for window in draw.windows for target in window.scored}
    wanted = {t for block in draw.blocks for t in range(16 * block, 16 * block + recorded.count(block))}
    assert wanted <= scored and len(draw.windows) < 15
    adapting = EvaluationConfig(window=16, stride=5, adaptation=ScoreFirstConfig(chunk_tokens=40))
    before_learning = draw_blocks("sliding", adapting, recorded, random.Random(0), 3)
    assert before_learning.blocks == [0, 1], "from target 32 on, block 2 is not complete"
    whole = EvaluationConfig(window=16, stride=5, adaptation=ScoreFirstConfig(chunk_tokens=100))
    assert draw_blocks("sliding", whole, recorded, random.Random(0), 3).eligible == 7, "one chunk"


def test_suspects_are_where_a_claim_would_pay():
    plain = torch.tensor([9.0, 5.0, 9.0, 9.0, 9.0, 2.0])
    sliding = plain - torch.tensor([1.0, 1.0, 1.0, 3.0, 0.8, 0.5])
    recorded = BlockNats(4, 21, {"plain": plain, "sliding": sliding})
    assert suspects("sliding", recorded, 6, 1) == {1, 3}, "block 5 has one target: its nats are not low"
    assert suspects("plain", recorded, 6, 1) == {1, 4}, "sliding gains least there"
    assert suspects("plain", BlockNats(4, 21, {"plain": plain}), 6, 2) == {1, 5}


def test_a_mean_over_many_targets_may_be_off_by_less():
    recorded = BlockNats(100, 1000, {"plain": torch.zeros(10, dtype=torch.float64)})
    draw = Draw("plain", list(range(10)), 8, 10, [])

    def off_by(nats_per_token, blocks=range(10), precision="bf16"):
        found = dict.fromkeys(range(10), 0.0) | {block: 100 * nats_per_token for block in blocks}
        return compare(draw, found, recorded, precision)

    allowed = 7 * 0.022 / 10  # in a block of 100
    assert off_by(-0.99 * allowed, [3]).verdict == "PASS" and off_by(-1.01 * allowed, [3]).verdict == "FAIL"
    assert off_by(-0.34 * allowed).verdict == "PASS" and off_by(-0.35 * allowed).verdict == "FAIL", "all together"
    assert off_by(float("nan"), [3]).verdict == "FAIL"
    assert off_by(-7.1e-5, [3], "fp32").verdict == "PASS" and off_by(-1e-3, [3], "fp32").verdict == "FAIL"
    favour = 4e-4 + 4 * 0.022 / math.sqrt(1000)
    assert off_by(0.99 * favour).verdict == "PASS" and off_by(1.01 * favour).verdict == "FAIL", "nobody's noise"
    assert "sees all nats too low by 3.2e-03, or 31% of the blocks by more" in off_by(0.0).found


def test_scores_that_the_model_does_not_give_are_found(finished_run, own_record, stranger_at_home):
    """Somebody moves nats from a block to its neighbour: every sum still agrees."""
    sums = load_file(own_record / BLOCK_NATS)
    sums["plain"][3] -= 1.0
    sums["plain"][4] += 1.0
    save_file(sums, own_record / BLOCK_NATS, metadata={"block": "16", "targets": "1122"})
    asked = Asked(root=finished_run.path.parents[1], blocks=10**6, seed=0)
    found = verify(own_record, asked)
    assert verdicts(found)["files"] == "FAIL", "it did not correct the manifest"
    assert verdicts(found)["scores, plain"] == "FAIL" and verdicts(found)["scores, sliding"] == "PASS"
    assert "of 71 blocks" in as_text(found) and as_text(found).count("overall: FAIL") == 1
    assert "not checked:\n  that the training log tells what happened" in as_text(found)


def test_what_cannot_be_checked_is_no_pass(own_record, tmp_path):
    (own_record / "gates.py").write_text((own_record / "gates.py").read_text() + "# ours\n")
    found = verify(own_record, Asked(root=tmp_path))
    assert verdicts(found) | {"code": "UNKNOWN", "scores": "UNKNOWN"} == verdicts(found)
    assert "gates.py" in code_finding(own_record).found and "--trust-code" in found[-1].found
    assert not list(tmp_path.glob("corpora")), "no corpus was built for code that is not run"


def test_another_corpus_is_no_evidence(finished_run, own_record, historical_run):
    """One that is given may be the wrong one; one that is built by the record's own recipe is the record's."""
    training = own_record / "manifests" / "training.json"
    training.write_text(training.read_text().replace(shard_of(training), "0" * 64))
    (corpus,) = (historical_run.path.parents[1] / "corpora").glob("[!.]*")
    given = verify(own_record, Asked(corpus=corpus))
    assert verdicts(given)["scores"] == "UNKNOWN" and "give its own with --corpus" in given[-1].found
    built = verify(own_record, Asked(root=finished_run.path.parents[1]))
    assert verdicts(built)["scores"] == "FAIL" and "built from the record's own recipe" in built[-1].found


def shard_of(training):
    return json.loads(training.read_text())["corpus"]["validation"]["shards"][0]["sha256"]


@pytest.mark.parametrize(
    ("name", "text", "finding"),
    [
        ("bytes.json", '{"total_bytes": 1}', "sizes"),
        ("submission.json", '{"bytes_total": 1, "pgolf": {"stamp": ""}}', "sizes"),
        ("config.json", "{}", "sizes"),
        ("scores.json", "{}", "hash chain"),
        ("recipe.json", None, "hash chain"),
        ("manifests/training.json", "{}", "hash chain"),
        ("plots/loss.svg", "<svg/>", "files"),
        ("notes.txt", "more", "files"),
        ("log.jsonl", "", "files"),
        ("stages.json", '{"stamp": "NOT RANKABLE"}', "stamp"),
    ],
)
def test_changes_are_found_where_they_show(name, text, finding, own_record):
    assert set(verdicts(integrity(own_record)).values()) == {"PASS"}
    path = own_record / name
    path.write_text(path.read_text() + " " if text is None else text)
    assert verdicts(integrity(own_record))[finding] == "FAIL"
    path.unlink()
    if finding == "files":
        assert (verdicts(integrity(own_record))["files"] == "FAIL") == (name != "notes.txt"), (
            "a lost file shows as well"
        )


def test_weights_are_those_that_were_scored(own_record, historical_run):
    assert weights_finding(own_record).verdict == "PASS"
    ledger = own_record / "ledger.plain.jsonl"
    ledger.write_text(ledger.read_text().replace('"weights": "', '"weights": "0'))
    assert weights_finding(own_record).found.endswith("not scored by them: ledger.plain.jsonl")
    frame = bytearray((own_record / "model.safetensors").read_bytes())
    frame[-20] ^= 1
    (own_record / "model.safetensors").write_bytes(frame)
    assert "not to be read" in weights_finding(own_record).found


def test_a_failed_audit_must_be_admitted(own_record):
    """In the audit's file, at the head of the card, and by the tag that the Hub finds it by."""
    verdict = Verdict(Fact("B1", "bytes as shipped", True, "17,000,000"), "FAIL", "")
    failing, card = Judgement({"name": "strict"}, [verdict]), own_record / "README.md"
    bare = card.read_text()
    admitting = published_card(bare, "user/x", "strict", [verdict], ranked=False)

    def found(text, admitted):
        card.write_text(text)
        (own_record / "audit.json").write_text(json.dumps({"failing": admitted}))
        return admission_finding(own_record, failing)

    finding = found(admitting, ["B1 bytes as shipped"])
    assert finding.verdict == "PASS" and "as its card says" in finding.found
    assert "not said in audit.json" in found(admitting, ["C1 causality"]).found
    hidden = found(admitting.replace("- audit-fails\n", ""), ["B1 bytes as shipped"])
    assert hidden.verdict == "FAIL" and hidden.found.endswith("not said in the tags of README.md")
    below = admitting.replace("<!-- face -->", "# tiny: fine\n<!-- face -->")
    commented = admitting.replace("> [!CAUTION]", "<!--").replace("<!-- /face -->", "-->")
    mild = admitting.replace("**FAILS THE AUDIT**", "Fine")
    for text in (below, commented, mild, admitting.replace("B1 bytes", "B2 bytes"), bare):
        assert "the head of README.md" in found(text, ["B1 bytes as shipped"]).found
    card.write_text(bare)
    (own_record / "audit.json").unlink()
    assert "not said in audit.json, the head of README.md, the tags" in admission_finding(own_record, failing).found


def test_foreign_code_runs_only_when_it_is_trusted(finished_run, own_record, stranger_at_home):
    (own_record / "gates.py").write_text((own_record / "gates.py").read_text() + "# ours\n")
    found = verdicts(verify(own_record, Asked(root=finished_run.path.parents[1], blocks=1, trust_code=True)))
    assert found["scores, plain"] == found["scores, sliding"] == "PASS" and found["code"] == "UNKNOWN"


def test_a_stranger_cannot_import_our_packages(own_record, tmp_path, monkeypatch):
    """What it imports first is a torch of ours, which tries."""
    (tmp_path / "torch.py").write_text("import pgolf\n")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{ROOT}")
    one = torch.zeros(1, 1, dtype=torch.int64)
    with pytest.raises(FormatError, match=r"asked a clean process .* found: ImportError: pgolf is not to be had"):
        ask_stranger(own_record, one, one.clone(), "fp32")
