"""Records that were edited consistently, with every hash made anew: the audit finds the figure that cannot be."""

import json

import pytest
from finished_run import FACTS, finish, tiny_recipe
from forging import LOADING, LOG, PLAN, SCORINGS, SUMS, TOLD, edit, failing, seal, set_in, tell, verdicts

from modeling_pgolf.errors import FormatError, RecipeError
from pgolf import workdir
from pgolf.audit.loading import loading_findings
from pgolf.compare import read_seeds
from pgolf.corpus.build import CorpusConfig
from pgolf.corpus.fineweb import ChallengeShards
from pgolf.entries import read_entries
from pgolf.leaderboard import write_page
from pgolf.publication import judge_record, reasons_against_ranking
from pgolf.record import write_record
from pgolf.stages import JUDGE_GPU, JUDGE_GPUS
from pgolf.workdir import MANIFEST, file_hashes


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
