"""Records: they chain, load, say the same everywhere, and need nothing from the network."""

import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import torch
from finished_run import FACTS, WINDOW, finish, tiny_recipe
from forging import edit
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM

from modeling_pgolf.errors import FormatError, RecipeError
from pgolf.corpus.build import CorpusConfig, TrainBpe
from pgolf.corpus.embedded import EmbeddedProse
from pgolf.corpus.fineweb import ChallengeShards, FineWebStream
from pgolf.corpus.splits import file_sha256
from pgolf.record import write_record
from pgolf.report import hub_datasets
from pgolf.stages import JUDGE_GPU, STAMP, as_text, stage_table
from pgolf.workdir import MANIFEST, RunFolder, check_outputs
from training.config import ReplayConfig

PLOTS = ("loss", "bytes", "running", "tokens", "position")


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A recipe and its recorded run; not to be changed."""
    recipe = tiny_recipe()
    run = finish(tmp_path_factory.mktemp("recorded"), recipe)
    write_record(recipe, run)
    return recipe, run


@pytest.fixture
def own(recorded, tmp_path):
    """A copy of the run that a test may damage; without the record."""
    recipe, run = recorded
    copy = RunFolder(tmp_path / "run")
    shutil.copytree(run.path, copy.path, ignore=shutil.ignore_patterns("record"))
    return recipe, copy


def headline(run):
    return json.loads((run.scores / "scores.json").read_text())["scores"]["sliding"]["bits_per_byte"]


def test_record_is_complete_and_its_manifest_holds(recorded):
    _, run = recorded
    manifest = check_outputs(run.record)
    own_files = {
        "README.md",
        "submission.json",
        "report.html",
        "log.jsonl",
        "scores.json",
        "recipe.json",
        "stages.json",
        "block_nats.safetensors",
        "ledger.plain.jsonl",
        "ledger.sliding.jsonl",
    }
    plots = {f"plots/{name}.{kind}" for name in PLOTS for kind in ("svg", "png")}
    manifests = {f"manifests/{stage}.json" for stage in ("training", "quantization", "evaluation")}
    artifact = set(json.loads((run.artifact / MANIFEST).read_text())["outputs"])
    assert set(manifest["outputs"]) == own_files | plots | manifests | artifact
    assert manifest["stage"] == "record" and manifest["stamp"] == ""
    assert manifest["inputs"]["artifact/manifest.json"] == file_sha256(run.artifact / MANIFEST)
    for name in artifact:
        assert file_sha256(run.record / name) == file_sha256(run.artifact / name)


def test_record_loads_like_the_artifact(recorded):
    _, run = recorded
    ids = torch.arange(24).view(2, 12)
    with torch.no_grad():
        one, other = (
            AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()(input_ids=ids).logits
            for folder in (run.artifact, run.record)
        )
    assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("folder", "path", "both"),
    [
        (
            "artifact",
            ("inputs", "checkpoint/model.safetensors"),
            r"checkpoint/manifest.json and artifact/manifest.json",
        ),
        ("scores", ("inputs", "artifact/model.safetensors"), r"artifact/manifest.json and scores/manifest.json"),
        (
            "scores",
            ("inputs", "corpus.json"),
            r"checkpoint/manifest.json and scores/manifest.json disagree on corpus.json",
        ),
        ("artifact", ("recipe_sha256",), r"recipe.json and artifact/manifest.json disagree on the recipe"),
    ],
)
def test_broken_chain_is_refused(own, folder, path, both):
    recipe, run = own

    def break_link(manifest):
        for key in path[:-1]:
            manifest = manifest[key]
        manifest[path[-1]] = "0" * 64

    edit(run.path / folder / MANIFEST, break_link)
    with pytest.raises(FormatError, match=both):
        write_record(recipe, run)
    assert not run.record.exists()


def test_changed_artifact_is_refused(own):
    recipe, run = own
    (run.artifact / "gates.py").write_text("# other code\n")
    with pytest.raises(FormatError, match=r"artifact/gates.py was changed"):
        write_record(recipe, run)


def test_other_recipe_is_refused(own):
    recipe, run = own
    with pytest.raises(FormatError, match="track = 'ranked'"):
        write_record(replace(recipe, track="historical"), run)


def test_unfinished_run_is_refused(own):
    recipe, run = own
    shutil.rmtree(run.scores)
    with pytest.raises(RecipeError, match="has not run"):
        write_record(recipe, run)


@pytest.mark.parametrize("log", [None, "not json\n", '{"event": "finished"}\n'])
def test_useless_log_is_refused_and_leaves_nothing(own, log):
    recipe, run = own
    run.log.unlink() if log is None else run.log.write_text(log)
    with pytest.raises(FormatError, match=r"log\.jsonl"):
        write_record(recipe, run)
    assert not [path for path in run.path.iterdir() if "record" in path.name]


class References(HTMLParser):
    """Collects what a page would fetch or link to, and its element names."""

    def __init__(self):
        super().__init__()
        self.tags, self.found = set(), []

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.found += [value for name, value in attributes if name in ("src", "href", "xlink:href", "srcset", "data")]


def test_report_needs_nothing_from_outside(recorded):
    _, run = recorded
    page = (run.record / "report.html").read_text()
    references = References()
    references.feed(page)
    assert references.found and all(value.startswith("#") for value in references.found)
    assert not {"script", "link", "iframe", "img", "object"} & references.tags
    assert "@import" not in page and not re.search(r"url\((?!#)", page)
    targets = set(re.findall(r'\bid="([^"]+)"', page))
    assert all(value[1:] in targets for value in references.found), "a plot refers to what is not on the page"
    assert f"{headline(run):.4f}" in page and STAMP not in page
    assert str(run.path) not in page


def test_card_metadata(recorded):
    _, run = recorded
    card = ModelCard.load(run.record / "README.md")
    assert card.data.license == "mit" and card.data.library_name == "transformers"
    assert card.data.pipeline_tag == "text-generation" and "parameter-golf" in card.data.tags
    assert card.data.datasets is None, "the text is no data set of the Hub"
    sliding, plain = card.data.eval_results
    assert sliding.metric_type == "bits_per_byte" and sliding.metric_value == round(headline(run), 6)
    assert plain.metric_args == {"window": WINDOW, "stride": WINDOW}
    assert "trust_remote_code=True" in card.text and "pgolf run recipe.json" in card.text
    assert "Not comparable" in card.text and STAMP not in card.text
    for picture in re.findall(r"\]\((plots/[^)]+)\)", card.text):
        assert (run.record / picture).is_file()


def test_data_sets_of_the_hub():
    def of(source, tokenizer=None):
        return hub_datasets(tiny_recipe(corpus=CorpusConfig(source, tokenizer)))

    assert of(ChallengeShards()) == [ChallengeShards().repository]
    assert of(FineWebStream(), TrainBpe(64)) == ["HuggingFaceFW/fineweb"]
    assert of(FineWebStream("/a/folder/of/pages"), TrainBpe(64)) == []
    assert of(EmbeddedProse(), TrainBpe(64)) == []


def test_card_on_the_challenge_text(tmp_path):
    recipe = tiny_recipe(corpus=CorpusConfig(ChallengeShards()))
    run = finish(tmp_path, recipe, FACTS | {"validation": FACTS["validation"] | {"utf8_bytes": None}})
    write_record(recipe, run)
    card = ModelCard.load(run.record / "README.md")
    assert card.data.datasets == ["willdepueoai/parameter-golf"]
    assert card.data.eval_results[0].dataset_type == "willdepueoai/parameter-golf"
    for text in (card.text, (run.record / "report.html").read_text()):
        assert "own validation split (fineweb10B_sp1024)" in text and "Not comparable" not in text


def test_submission(recorded, own):
    _, run = recorded
    entry = json.loads((run.record / "submission.json").read_text())
    sizes = json.loads((run.artifact / "bytes.json").read_text())
    assert entry["author"] == entry["github_id"] == "unknown"
    assert entry["val_bpb"] == headline(run) and entry["pre_quant_val_bpb"] == 1.8
    assert (entry["bytes_total"], entry["bytes_code"]) == (sizes["total_bytes"], sizes["code_bytes"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", entry["date"])
    recipe, copy = own
    edit(copy.scores / MANIFEST, lambda manifest: manifest.update(finished="2026-03-22T01:02:03Z"))
    write_record(recipe, copy, author="A. Author", github_id="author")
    entry = json.loads((copy.record / "submission.json").read_text())
    assert (entry["date"], entry["author"], entry["github_id"]) == ("2026-03-22", "A. Author", "author")


def test_historical_track_is_stamped(tmp_path):
    recipe = tiny_recipe(track="historical")
    run = finish(tmp_path, recipe)
    write_record(recipe, run)
    card = ModelCard.load(run.record / "README.md")
    assert card.text.lstrip().startswith("> [!WARNING]\n> **NOT RANKABLE")
    assert "not-rankable" in card.data.tags
    page = (run.record / "report.html").read_text()
    assert page.index(STAMP) < page.index("<h1>")
    told = [json.loads((run.record / name).read_text()) for name in ("submission.json", "stages.json", MANIFEST)]
    assert told[0]["blurb"].startswith(STAMP)
    assert told[0]["pgolf"]["stamp"] == told[1]["stamp"] == told[2]["stamp"]
    assert "historical track" in told[2]["stamp"]
    assert as_text(stage_table(recipe, run)).startswith(f"*** {STAMP}")


def test_training_after_the_clock_is_stamped(recorded):
    recipe, run = recorded
    late = replace(recipe, training=replace(recipe.training, replay=ReplayConfig(after_clock=True)))
    assert "after_clock" in stage_table(late, run).stamp
    assert not stage_table(replace(recipe, training=replace(recipe.training, replay=ReplayConfig())), run).stamp


def test_stage_table(recorded):
    recipe, run = recorded
    table = stage_table(recipe, run)
    assert [row.name for row in table.stages] == ["train loss", "float, plain", "int6, plain", "int6, sliding"]
    assert table.stages[0].bits_per_byte is None and table.stages[0].seconds == 12.5, "compiling is not counted"
    assert [(phase.stage, phase.name) for phase in table.phases][:2] == [("training", "compile"), ("training", "step")]
    text = as_text(table)
    assert f"{headline(run):.4f}" in text and STAMP not in text
    assert max(len(line) for line in text.splitlines()[:5]) <= 120


def test_seconds_are_judged_on_the_challenge_hardware_alone(own):
    recipe, run = own

    def verdicts(gpus, limit):
        for folder in (run.checkpoint, run.scores):
            edit(folder / MANIFEST, lambda manifest: manifest["hardware"].update(gpus=gpus))
        budget = replace(recipe.budget, training_seconds=limit)
        return [check.verdict for check in stage_table(replace(recipe, budget=budget), run).checks]

    assert verdicts([], 600.0) == ["within", "not judged", "not judged"]
    assert verdicts([JUDGE_GPU] * 4, 600.0) == ["within", "not judged", "not judged"]
    assert verdicts(["NVIDIA H200"] * 8, 600.0) == ["within", "not judged", "not judged"]
    assert verdicts([JUDGE_GPU] * 8, 600.0) == ["within", "within", "within"]
    assert verdicts([JUDGE_GPU] * 8, 12.0) == ["within", "over", "within"]
