"""On which terms a record is published, and what its card then says first."""

import json
import shutil
from dataclasses import replace

import pytest
from altered_record import change_json
from huggingface_hub import ModelCard

from modeling_pgolf.errors import FormatError, LegalityError
from pgolf.audit.facts import Fact
from pgolf.audit.policy import Verdict
from pgolf.card import published_card
from pgolf.hub import Terms, pull, push
from pgolf.publication import Judgement, judge_record, published_files, reasons_against_ranking
from pgolf.stages import STAMP
from pgolf.workdir import MANIFEST, write_text


def test_a_sound_record_wears_its_verdicts_and_what_was_not_checked(finished_run):
    judgement = judge_record(finished_run.record, "strict")
    files = published_files(finished_run.record, "user/tiny", judgement, ranked=False)
    card = ModelCard(files["README.md"].decode())
    assert 'from_pretrained("user/tiny"' in card.text and "pgolf verify user/tiny" in card.text
    assert "REPOSITORY_OR_FOLDER" not in card.text and "FAILS THE AUDIT" not in card.text
    assert "| PASS | E3 | files match their hashes |" in card.text
    unchecked = card.text.partition("Not checked:\n")[2].partition("<!--")[0]
    assert "B2 training seconds" in unchecked and "E4 seeds" in unchecked
    assert [result.metric_type for result in card.data.eval_results] == ["bits_per_byte"] * 2
    audit = json.loads(files["audit.json"])
    assert audit["policy"] == "strict" and audit["failing"] == [] and not audit["ranked"]
    assert len(audit["verdicts"]) == len(judgement.verdicts)


def test_a_failing_record_goes_up_only_when_asked_by_name_and_says_so_first(historical_run, hub, api, tmp_path):
    record = historical_run.record
    judgement = judge_record(record, "strict")
    with pytest.raises(LegalityError, match=r"fails the policy 'strict': D1 track: historical.*--even-though-it-fails"):
        push(record, "user/old", judgement, Terms(), api)
    assert not hub.requests
    push(record, "user/old", judgement, Terms(even_though_it_fails=True), api)
    pull("user/old", tmp_path / "down", api)
    card = ModelCard.load(tmp_path / "down" / "README.md")
    lines = [line for line in card.text.splitlines() if line.startswith(("#", ">"))]
    assert STAMP in lines[1] and "**FAILS THE AUDIT** (policy strict)" in lines[3] and lines[4].startswith("# tiny")
    assert {"audit-fails", "not-rankable"} <= set(card.data.tags)
    assert json.loads((tmp_path / "down" / "audit.json").read_text())["failing"] == ["D1 track"]


def test_publishing_a_fetched_record_again_renews_its_face(historical_run, tmp_path):
    judgement = judge_record(historical_run.record, "strict")
    one = published_files(historical_run.record, "user/old", judgement, ranked=False)
    for name, content in one.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            (tmp_path / name).write_bytes(content)
        else:
            shutil.copyfile(content, tmp_path / name)
    again = published_files(tmp_path, "user/old", judgement, ranked=False)
    assert {name: again[name] for name in ("README.md", MANIFEST, "audit.json")} == {
        name: one[name] for name in ("README.md", MANIFEST, "audit.json")
    }
    passing = replace(judgement, verdicts=[verdict for verdict in judgement.verdicts if verdict.verdict == "PASS"])
    elsewhere = published_files(tmp_path, "other/new", passing, ranked=False)["README.md"]
    assert b"user/old" not in elsewhere and b"FAILS" not in elsewhere and b"audit-fails" not in elsewhere


def test_ranked_demands_all_that_files_can_show(finished_run, historical_run, api, hub):
    with pytest.raises(LegalityError, match=r"as ranked; found: .*leave --ranked out") as refusal:
        push(finished_run.record, "user/tiny", judge_record(finished_run.record, "strict"), Terms(ranked=True), api)
    assert "not on the challenge's validation split" in str(refusal.value)
    assert "B2 training seconds is UNKNOWN" in str(refusal.value)
    assert "E4" not in str(refusal.value), "one record is one seed: no record could show more"
    terms = Terms(ranked=True, even_though_it_fails=True)
    with pytest.raises(LegalityError, match=STAMP):
        push(historical_run.record, "user/old", judge_record(historical_run.record, "strict"), terms, api)
    assert not hub.requests


def test_a_rankable_record_has_nothing_against_it(own_record):
    """No machine of ours makes one, so the facts that it needs are put in their place."""
    recipe = json.loads((own_record / "recipe.json").read_text())
    recipe["corpus"]["source"] = {"repository": "willdepueoai/parameter-golf", "variant": "v", "train_shards": 1}
    recipe["corpus"]["tokenizer"] = None
    write_text(own_record / "recipe.json", json.dumps(recipe))
    change_json(own_record / "submission.json", lambda entry: entry["pgolf"]["validation_text"].update(comparable=True))
    rules = {"B1", "B2", "D1", "C6", "E3"}
    verdicts = [Verdict(Fact(rule, rule, True, ""), "PASS", "") for rule in rules]
    verdicts.append(Verdict(Fact("E4", "seeds", None, "one"), "UNKNOWN", ""))
    judgement = Judgement({"name": "strict"}, verdicts)
    assert reasons_against_ranking(own_record, judgement) == []
    card = published_card((own_record / "README.md").read_text(), "user/x", "strict", verdicts, ranked=True)
    assert "rankable" in ModelCard(card).data.tags


@pytest.mark.parametrize("place", [MANIFEST, "stages.json", "submission.json"])
def test_no_file_can_lose_the_stamp(place, historical_run, tmp_path, hub, api):
    record = shutil.copytree(historical_run.record, tmp_path / "record")
    holder = {"submission.json": lambda content: content["pgolf"]}.get(place, lambda content: content)
    change_json(record / place, lambda content: holder(content).update(stamp=""))
    change_json(record / MANIFEST, lambda manifest: rehash(manifest, record))
    judgement = judge_record(historical_run.record, "strict")
    with pytest.raises(FormatError, match=f"stamp: {place} says '', the record earns 'NOT RANKABLE"):
        push(record, "user/old", judgement, Terms(even_though_it_fails=True), api)
    assert not hub.requests


def test_nor_can_the_card_or_the_recipe(historical_run, tmp_path, api):
    record = shutil.copytree(historical_run.record, tmp_path / "record")
    judgement = judge_record(historical_run.record, "strict")
    terms = Terms(even_though_it_fails=True)
    card = (record / "README.md").read_text()
    write_text(record / "README.md", card.replace(STAMP, "rankable"))
    change_json(record / MANIFEST, lambda manifest: rehash(manifest, record))
    with pytest.raises(FormatError, match=r"stamp: README\.md"):
        push(record, "user/old", judgement, terms, api)
    write_text(record / "README.md", card)
    recipe = (record / "recipe.json").read_text()
    write_text(record / "recipe.json", recipe.replace('"historical"', '"ranked"'))
    change_json(record / MANIFEST, lambda manifest: rehash(manifest, record))
    with pytest.raises(FormatError, match=r"hash chain: training ran another recipe than recipe\.json"):
        push(record, "user/old", judgement, terms, api)


def rehash(manifest, record):
    """What somebody would do who changes a record and knows how it is checked."""
    from pgolf.workdir import file_hashes

    manifest["outputs"] = file_hashes(record)
