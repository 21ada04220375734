"""Records that were edited consistently, with every hash made anew: the audit finds the figure that cannot be.

Each test takes an honest record, changes what a forger would, seals all manifests again and tells the new figures
wherever they are shown. Hashes then prove nothing: only what follows from something else is evidence.
"""

import json
import math
import re
import shutil
from dataclasses import replace

import pytest
from finished_run import BYTES, CHUNK, FACTS, TARGETS, WINDOW, finish, tiny_recipe

from evaluation.adaptation.score_first import ScoreFirstConfig
from evaluation.config import EvaluationConfig
from evaluation.ledger import GENESIS, link
from evaluation.scorer import chunks
from modeling_pgolf.errors import FormatError, RecipeError
from pgolf import workdir
from pgolf.artifact import code_bytes
from pgolf.audit.ledgers import chunk_spans
from pgolf.audit.loading import loading_findings
from pgolf.audit.policy import judge, load_policy
from pgolf.audit.records import read_record
from pgolf.compare import read_seeds
from pgolf.corpus.build import CorpusConfig
from pgolf.corpus.fineweb import ChallengeShards
from pgolf.corpus.splits import file_sha256
from pgolf.entries import read_entries
from pgolf.leaderboard import write_page
from pgolf.publication import judge_record, reasons_against_ranking
from pgolf.record import write_record
from pgolf.stages import JUDGE_GPU, JUDGE_GPUS
from pgolf.workdir import MANIFEST, file_hashes

STAGES = {"training": "checkpoint", "quantization": "artifact", "evaluation": "scores"}
LOADING = ("B1", "loading reads what is counted")
SUMS, SCORINGS = ("C7", "scores follow from their sums"), ("C6", "scorings of the recipe")
PLAN, LOG = ("C3", "scored as the recipe plans"), ("E3", "log and manifests agree")
TOLD = ("E2", "card, submission and scores agree")


@pytest.fixture(scope="module")
def honest(tmp_path_factory):
    recipe = tiny_recipe()
    return write_record(recipe, finish(tmp_path_factory.mktemp("run"), recipe))


@pytest.fixture(scope="module")
def honest_adapted(tmp_path_factory):
    recipe = tiny_recipe()
    recipe = replace(recipe, evaluation=replace(recipe.evaluation, adaptation=ScoreFirstConfig(chunk_tokens=CHUNK)))
    return write_record(recipe, finish(tmp_path_factory.mktemp("adapted"), recipe))


@pytest.fixture
def record(honest, tmp_path):
    return shutil.copytree(honest, tmp_path / "record")


@pytest.fixture
def adapted(honest_adapted, tmp_path):
    return shutil.copytree(honest_adapted, tmp_path / "adapted")


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def set_in(path, *keys, to):
    def change(content):
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = to

    edit(path, change)


def seal(record):
    """Make every hash anew: recipe, what stages wrote and read, their manifests, and the record's own."""
    recipe = file_sha256(record / "recipe.json")
    for stage in STAGES:

        def change(manifest, stage=stage):
            manifest["recipe_sha256"] = recipe
            if stage != "training":
                manifest["outputs"] |= {
                    name: file_sha256(record / name) for name in manifest["outputs"] if (record / name).is_file()
                }
            if stage == "evaluation":
                manifest["inputs"]["artifact/model.safetensors"] = file_sha256(record / "model.safetensors")

        edit(record / "manifests" / f"{stage}.json", change)
    set_in(record / "submission.json", "pgolf", "recipe_sha256", to=recipe)
    stages = {
        f"{folder}/{MANIFEST}": file_sha256(record / "manifests" / f"{stage}.json") for stage, folder in STAGES.items()
    }
    edit(record / MANIFEST, lambda manifest: manifest.update(inputs=stages, outputs=file_hashes(record)))
    return record


def tell(record):
    """Show the figures of scores.json and the sizes of the files wherever a record shows them."""
    scores = json.loads((record / "scores.json").read_text())["scores"]
    size = code_bytes(record) + (record / "model.safetensors").stat().st_size
    best, entry = list(scores.values())[-1], record / "submission.json"
    old = json.loads(entry.read_text())["val_bpb"]
    said = {"val_bpb": best["bits_per_byte"], "val_loss": best["nats_per_token"], "bytes_total": size}
    edit(entry, lambda e: e.update(said | {"bytes_code": code_bytes(record)}))
    for path in (record / "bytes.json", record / "manifests" / "quantization.json"):
        edit(path, lambda content: content.update(total_bytes=size, code_bytes=code_bytes(record)))

    def rows(table):
        table["checks"][0]["value"] = size
        for row, score in zip(table["stages"][2:], scores.values(), strict=False):
            row.update(bits_per_byte=score["bits_per_byte"], nats_per_token=score["nats_per_token"], bytes=size)

    edit(record / "stages.json", rows)
    card = record / "README.md"
    text = card.read_text().replace(f"{old:.4f} bits", f"{best['bits_per_byte']:.4f} bits")
    shown = reversed(list(scores.values()))
    text = re.sub(r"(?<= value: )[\d.]+", lambda _: str(round(next(shown)["bits_per_byte"], 6)), text)
    card.write_text(text)
    return record


def verdicts(record, policy="strict"):
    facts, hardware = read_record(record)
    return {(v.fact.rule, v.fact.name): v.verdict for v in judge(facts, load_policy(policy), hardware)}


def failing(record):
    """The checks that fail once everything is sealed again."""
    return {check for check, verdict in verdicts(seal(record)).items() if verdict == "FAIL"}


def rescale(record, factor, *keys):
    def change(outcome):
        for score in outcome["scores"].values():
            score.update({key: score[key] * factor for key in keys})

    edit(record / "scores.json", change)


def relink(record, name, spans):
    """Write a ledger anew whose chain matches: (kind, first, count, weights) each."""
    previous, lines = GENESIS, []
    for kind, first, count, weights in spans:
        event = {"event": kind, "first": first, "count": count, "weights": weights}
        previous = link(previous, event)
        lines.append(json.dumps(event | {"chain": previous}) + "\n")
    (record / f"ledger.{name}.jsonl").write_text("".join(lines))


def spans_of(record, name):
    events = [json.loads(line) for line in (record / f"ledger.{name}.jsonl").read_text().splitlines()]
    return [(event["event"], event["first"], event["count"], event["weights"]) for event in events]


def test_honest_records_fail_nothing_and_sealing_changes_no_verdict(record, adapted):
    for own in (record, adapted):
        before = verdicts(own)
        assert "FAIL" not in before.values() and "WARN" not in before.values()
        assert {LOADING, SUMS, SCORINGS, PLAN, LOG, TOLD} <= {check for check, v in before.items() if v == "PASS"}
        assert verdicts(seal(tell(own))) == before, "the forger's tools alone change nothing"


def test_an_honest_record_of_the_challenges_text_and_machine_is_rankable(tmp_path, monkeypatch):
    monkeypatch.setattr(
        workdir, "hardware", lambda: {"machine": "x86_64", "cores": 8, "gpus": [JUDGE_GPU] * JUDGE_GPUS}
    )
    unpublished = ("utf8_bytes", "normalisation_bytes", "lost_bytes", "gained_bytes", "documents_changed")
    validation = FACTS["validation"] | dict.fromkeys(unpublished)
    recipe = tiny_recipe(corpus=CorpusConfig(ChallengeShards()))
    facts = FACTS | {"validation": validation, "train_documents_dropped_as_validation_duplicates": None}
    record = write_record(recipe, finish(tmp_path, recipe, facts))
    assert reasons_against_ranking(record, judge_record(record, "strict")) == []


def other_config(**changes):
    return lambda record: edit(record / "config.json", lambda config: config.update(changes))


def other_code(record):
    edit(record / "config.json", lambda c: c["auto_map"].update(AutoModelForCausalLM="someone/evil--modeling.Model"))


def linked_weights(record):
    (record / "model.safetensors").rename(record.parent / "elsewhere")
    (record / "model.safetensors").symlink_to(record.parent / "elsewhere")


def new_file(name):
    def change(record):
        (record / name).parent.mkdir(exist_ok=True)
        (record / name).write_bytes(b"#" * 100)

    return change


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (other_config(transformers_weights="plots/loss.safetensors"), "transformers_weights"),
        (other_config(attn_implementation="flex_attention"), "attn_implementation"),
        (other_config(is_causal=False), "is_causal"),
        (other_config(num_blocks=20_000), "the recipe's is 2"),
        (other_config(quantization_config={"quant_method": "other", "bits": 6}), "quantization_config"),
        (other_code, "auto_map"),
        (new_file("plots/loss.safetensors"), "plots/loss.safetensors"),
        (new_file("plots/modeling.py"), "plots/modeling.py"),
        (new_file("helper.py"), "helper.py"),
        (new_file("adapter_model.safetensors"), "adapter_model.safetensors"),
        (new_file("__pycache__/modeling_pgolf.cpython-311.pyc"), "__pycache__"),
        (linked_weights, "model.safetensors is a link"),
        (lambda r: edit(r / "generation_config.json", lambda c: c.update(payload="A" * 5000)), "'payload'"),
        (lambda r: edit(r / "generation_config.json", lambda c: c.update(pad_token_id=[1] * 5000)), "'pad_token_id'"),
    ],
)
def test_b1_loading_reads_what_nobody_counts(record, change, told):
    assert not loading_findings(record)
    change(record)
    assert LOADING in failing(tell(record))
    assert any(told in problem for problem in loading_findings(record))


@pytest.mark.parametrize("keys", [("bits_per_byte", "nats_per_token"), ("bits_per_byte",), ("nats",)])
def test_means_that_do_not_follow_from_their_sums(record, keys):
    rescale(record, 0.5, *keys)
    assert SUMS in failing(tell(record))


@pytest.mark.parametrize("nats", [0, -5.0, math.nan, "many"])
def test_sums_that_no_text_has(record, nats):
    set_in(record / "scores.json", "scores", "plain", "nats", to=nats)
    assert SUMS in failing(record)


def test_scores_of_a_part_of_the_text(record):
    def change(outcome):
        for score in outcome["scores"].values():
            score.update(targets=TARGETS // 4, bytes=BYTES // 4, nats=score["nats"] / 4)
            score["nats_per_token"] = score["nats"] / score["targets"]
            score["bits_per_byte"] = score["nats"] / math.log(2) / score["bytes"]

    edit(record / "scores.json", change)
    set_in(record / "manifests" / "training.json", "corpus", "validation", "counted_bytes", to=BYTES // 4)
    for name in ("plain", "sliding"):
        relink(record, name, [("SCORE", 0, TARGETS // 4, "after 0")])
    found = failing(tell(record))
    assert ("C6", "targets of the text") in found and ("C8", "recount adds up") in found and SUMS not in found


def test_more_bytes_than_the_text_has(record):
    def change(outcome):
        for score in outcome["scores"].values():
            score["bytes"] = 2 * BYTES
            score["bits_per_byte"] /= 2

    edit(record / "scores.json", change)
    set_in(record / "manifests" / "training.json", "corpus", "validation", "counted_bytes", to=2 * BYTES)
    assert failing(tell(record)) == {("C8", "recount adds up")}


def test_a_scoring_that_the_recipe_does_not_make(record):
    def change(outcome):
        best = dict(outcome["scores"]["sliding"])
        outcome["scores"]["best"] = best | {key: 0.6 * best[key] for key in ("nats", "nats_per_token", "bits_per_byte")}
        outcome["seconds"]["best"] = 1.0

    edit(record / "scores.json", change)
    shutil.copy(record / "ledger.sliding.jsonl", record / "ledger.best.jsonl")
    assert SCORINGS in failing(tell(record))


@pytest.mark.parametrize(("key", "value"), [("window", 10**6), ("stride", 2)])
def test_windows_other_than_the_recipes(record, key, value):
    set_in(record / "scores.json", "scores", "sliding", key, to=value)
    assert SCORINGS in failing(record)


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


@pytest.mark.parametrize("seconds", [math.nan, -5.0, math.inf, "3"])
def test_seconds_that_no_clock_says(record, seconds):
    on_judged(record)
    set_in(record / "manifests" / "training.json", "seconds", "step", to=seconds)
    set_in(record / "manifests" / "evaluation.json", "seconds", "sliding", to=seconds)
    assert {("B2", "training seconds"), ("B3", "evaluation seconds")} <= failing(record)


@pytest.mark.parametrize("damage", ["booked elsewhere", "fewer", "fewer steps", "no log", "not the scores'"])
def test_the_log_is_another_witness_of_the_clock(record, damage):
    manifest, log = record / "manifests" / "training.json", record / "log.jsonl"
    if damage == "booked elsewhere":
        set_in(manifest, "seconds", to={"compile": 13.5})
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        lines[-1]["seconds"] = {"compile": 13.5}
        log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    elif damage == "fewer":
        set_in(manifest, "seconds", "step", to=1.0)
    elif damage == "fewer steps":
        set_in(manifest, "stream", "steps", to=3)
    elif damage == "no log":
        log.write_text("")
    else:
        set_in(record / "scores.json", "seconds", "sliding", to=0.1)
    assert LOG in failing(record)


def on_judged(record, **others):
    """Say that all stages ran on the challenge's hardware, or some on ``others``."""
    for stage in STAGES:
        gpus = [others.get(stage, JUDGE_GPU)] * JUDGE_GPUS
        set_in(record / "manifests" / f"{stage}.json", "hardware", "gpus", to=gpus)


def test_each_clock_is_judged_by_the_machine_that_it_ran_on(record):
    on_judged(record)
    found = verdicts(seal(record))
    assert found["B2", "training seconds"] == found["B3", "evaluation seconds"] == "PASS"
    on_judged(record, evaluation="NVIDIA B200", quantization="NVIDIA B200")
    found = verdicts(seal(record))
    assert found["B2", "training seconds"] == "PASS" and found["B3", "evaluation seconds"] == "UNKNOWN"
    set_in(record / "manifests" / "quantization.json", "seconds", "calibration", to=3.0)
    assert verdicts(seal(record))["B2", "training seconds"] == "UNKNOWN", "calibration is training"


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (["seeds"], [7]),
        (["val_loss"], 0.5),
        (["pre_quant_val_bpb"], 0.9),
        (["bytes_code"], 3),
        (["hardware"], "8 × NVIDIA H100 80GB HBM3"),
        (["pgolf", "training_seconds"], 1),
        (["pgolf", "parameters"], 1),
        (["pgolf", "steps"], 1),
        (["pgolf", "validation_text", "comparable"], True),
    ],
)
def test_a_submission_that_tells_something_else(record, keys, value):
    set_in(record / "submission.json", *keys, to=value)
    assert failing(record) == {TOLD}


def test_comparable_is_what_the_recipe_says(record):
    set_in(record / "submission.json", "pgolf", "validation_text", "comparable", to=True)
    seal(record)
    assert any("embedded prose" in reason for reason in reasons_against_ranking(record, judge_record(record, "strict")))
    (entry,), _ = read_entries([str(record)], record)
    assert entry.text.startswith("embedded prose") and entry.against


@pytest.mark.parametrize("damage", ["title", "metadata", "stages", "seconds", "limit"])
def test_a_card_or_table_that_shows_something_else(record, damage):
    card, table = record / "README.md", record / "stages.json"
    score = json.loads((record / "submission.json").read_text())["val_bpb"]
    if damage == "title":
        card.write_text(card.read_text().replace(f"{score:.4f}", "0.9999") + f"\n<!-- {score:.4f} -->\n")
    elif damage == "metadata":
        card.write_text(card.read_text().replace(f"value: {round(score, 6)}", "value: 0.9999"))
    elif damage == "stages":
        set_in(table, "stages", -1, "bits_per_byte", to=0.9999)
    elif damage == "seconds":
        set_in(table, "phases", 0, "seconds", to=0.5)
    else:
        set_in(table, "checks", 0, "limit", to=10**9)
    assert failing(record) == {TOLD}


def test_seed_and_steps_of_the_recipe(record):
    edit(record / "recipe.json", lambda recipe: recipe["training"].update(seed=99, iterations=7))
    set_in(record / "submission.json", "seeds", to=[99])
    assert {("E3", "seed and corpus of the recipe"), LOG} <= failing(record)


@pytest.mark.parametrize("name", ["scores.json", "recipe.json"])
def test_evidence_that_no_stage_wrote(record, name):
    (record / name).write_text((record / name).read_text() + "\n")
    edit(record / MANIFEST, lambda manifest: manifest.update(outputs=file_hashes(record)))
    found = {check for check, verdict in verdicts(record).items() if verdict == "FAIL"}
    assert found == {("E3", "hash chain")}, "the record's own manifest is sealed, those of the stages are not"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("recipe.json", b"[" * 200_000),
        ("scores.json", b"[" * 200_000),
        ("scores.json", b'{"scores": []}'),
        ("scores.json", b'{"scores": {"plain": 3}}'),
        ("submission.json", b'{"val_bpb": 1, "val_bpb": 2}'),
        ("submission.json", b"\xff\xfe"),
        ("bytes.json", b""),
        ("recipe.json", b"\xff\xfe"),
        ("manifests/training.json", b'{"seconds": 3}'),
    ],
)
def test_damage_is_an_error_or_a_verdict_and_leaves_one_record_out(record, honest, tmp_path, name, content):
    (record / name).write_bytes(content)
    with pytest.raises((FormatError, RecipeError)):
        judge_record(record, "strict")
    told = write_page([str(record), str(honest)], tmp_path / "page.html")
    assert "1 ranked, 0 apart" in told and "left out: " in told and "cannot be ranked" in told
    with pytest.raises(FormatError, match="cannot be ranked"):
        write_page([str(record)], tmp_path / "page.html")


@pytest.mark.parametrize("name", ["README.md", "ledger.plain.jsonl", "log.jsonl"])
def test_text_that_is_none_fails(record, name):
    (record / name).write_bytes(b"\xff\xfe" if name != "ledger.plain.jsonl" else b"[" * 200_000)
    assert failing(record) & {TOLD, LOG, ("E3", "ledger, plain")}


def test_seeds_are_runs_of_their_own(record, honest, adapted, tmp_path):
    with pytest.raises(RecipeError, match=r"differ in evaluation\.adaptation"):
        read_seeds([honest, adapted], "mixed")
    with pytest.raises(RecipeError, match="the same seed"):
        read_seeds([honest, record], "copies")
    edit(record / "recipe.json", lambda recipe: recipe["training"].update(seed=99))
    with pytest.raises(RecipeError, match="the same weights"):
        read_seeds([honest, seal(record)], "copies")
    with pytest.raises(RecipeError, match="the same weights"):
        write_page([str(honest), str(record)], tmp_path / "page.html")
