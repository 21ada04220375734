"""What a stage would refuse as it starts, its verb refuses before it launches a process, in the same words."""

import importlib
import json
import shutil
from dataclasses import replace

import pytest
from shell.finished_run import finish, tiny_recipe

from modeling_pgolf.errors import CorpusError, RecipeError
from pgolf import cli, launch, readiness, run, trackers
from pgolf import job as jobs
from pgolf.occupied import occupied
from pgolf.place import Place
from pgolf.readiness import slow_step
from pgolf.recipe import recipe_json
from pgolf.workdir import MANIFEST, RunFolder


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A root with a finished run ``base`` and its recipe; not to be changed."""
    root = tmp_path_factory.mktemp("finished")
    finish(root, tiny_recipe(name="base"))
    (root / "tiny.json").write_text(recipe_json(tiny_recipe(name="base")))
    return root


@pytest.fixture
def home(finished, tmp_path):
    """A copy of it that a test may damage."""
    return shutil.copytree(finished, tmp_path / "home")


@pytest.fixture
def launched(monkeypatch):
    """What verbs launch, instead of launching it, on a machine with one GPU or none."""
    calls = []
    monkeypatch.setattr(launch, "run_and_wait", lambda stage, arguments: calls.append((stage, arguments)))
    monkeypatch.setattr(launch, "process_count", lambda: 1)
    return calls


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def without_checkpoint(runs):
    shutil.rmtree(runs / "base" / "checkpoint")


def without_artifact(runs):
    shutil.rmtree(runs / "base" / "artifact")


def without_log(runs):
    RunFolder(runs / "base").log.unlink()


def other_config(runs):
    (runs / "base" / "checkpoint" / "config.json").write_text("{}")


def other_code(runs):
    (runs / "base" / "artifact" / "gates.py").write_text("# other code\n")


def other_track(runs):
    edit(runs / "base" / "checkpoint" / MANIFEST, track="historical")
    edit(runs / "base" / "artifact" / MANIFEST, track="historical")


def foreign_corpus(runs):
    job = jobs.Job(tiny_recipe(), Place(runs.parent))
    jobs.corpus_folder(job).mkdir(parents=True)
    (jobs.corpus_folder(job) / "corpus.json").write_text("{}")


def file_in_the_way(runs):
    shutil.rmtree(runs)
    runs.write_text("")


def folder_in_the_way(runs):
    (runs / "base" / "recipe.json").unlink()
    (runs / "base" / "recipe.json").mkdir()


def nothing(runs):
    pass


NEXT = ["--run", "next", "--reuse", "base"]
REFUSED = [
    (["train", "export", "score"], nothing, ["--training.seed", "7"], "RecipeError: HOME/runs/base holds a run of"),
    (["train", "export", "score"], folder_in_the_way, [], "RecipeError: asked for the run folder HOME/runs/base; foun"),
    (["train"], file_in_the_way, [], "RecipeError: asked for the run folder HOME/runs/base; found"),
    (
        ["train"],
        nothing,
        ["--model.vocab-size", "263"],
        "RecipeError: the tokenizer has 264 tokens, model.vocab_size is",
    ),
    (["train"], nothing, ["--trackers", "wandb"], "EnvironmentMismatch: asked to report to wandb, which is not inst"),
    (["train", "score"], nothing, ["--reuse", "nowhere"], "RecipeError: --reuse nowhere names no other run"),
    (["train"], nothing, [*NEXT, "--training.seed", "7"], "RecipeError: the run base has another training.seed"),
    (["train", "export"], other_config, NEXT, "FormatError: HOME/runs/base/checkpoint/config.json was changed or lost"),
    (["train"], without_checkpoint, NEXT, "RecipeError: HOME/runs/base/checkpoint has no manifest.json"),
    (["train"], without_log, NEXT, "FormatError: HOME/runs/base/log.jsonl is missing"),
    (["score"], other_code, NEXT, "FormatError: HOME/runs/base/artifact/gates.py was changed or lost"),
    (["export"], without_checkpoint, [], "RecipeError: HOME/runs/base/checkpoint has no manifest.json: its stage has"),
    (["export"], other_config, [], "FormatError: HOME/runs/base/checkpoint/config.json was changed or lost"),
    (["export"], other_track, [], "LegalityError: asked for the ranked track; checkpoint/manifest.json names hist"),
    (["score"], without_artifact, [], "RecipeError: HOME/runs/base/artifact has no manifest.json: its stage has not"),
    (["score"], other_code, [], "FormatError: HOME/runs/base/artifact/gates.py was changed or lost"),
    (["score"], other_track, [], "LegalityError: asked for the ranked track; artifact/manifest.json names historical"),
    (["train", "score"], foreign_corpus, [], "CorpusError: asked for a corpus of format"),
]


@pytest.mark.parametrize(
    ("stage", "damage", "overrides", "complaint"),
    [
        pytest.param(stage, damage, overrides, complaint, id=f"{stage}-{damage.__name__}-{''.join(overrides[-2:])}")
        for stages, damage, overrides, complaint in REFUSED
        for stage in stages
    ],
)
def test_a_verb_refuses_what_its_stage_refuses(
    home, launched, monkeypatch, capsys, stage, damage, overrides, complaint
):
    found = trackers.importlib.util.find_spec
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None if name == "wandb" else found(name))
    damage(home / "runs")
    before = {path: path.stat().st_mtime_ns for path in home.rglob("*")}
    told = []
    for command in (cli.main, lambda arguments: run.door(arguments[0], arguments[1:])):
        with pytest.raises(SystemExit) as ended:
            command([stage, str(home / "tiny.json"), "--root", str(home), *overrides])
        told.append(capsys.readouterr().err)
        assert ended.value.code == 1
        if command is cli.main:
            assert {path: path.stat().st_mtime_ns for path in home.rglob("*")} == before
    assert launched == [] and told[0] == told[1] and told[0].count("\n") == 1
    assert told[0].startswith(f"pgolf: {complaint.replace('HOME', str(home))}")


@pytest.mark.parametrize("stage", ["train", "export", "score"])
def test_a_run_that_is_being_worked_on_is_left_alone(home, launched, capsys, stage):
    """By the verb, and by the door, where nobody asked before."""
    with occupied(home / "runs" / "base"):
        for command in (cli.main, lambda arguments: run.door(arguments[0], arguments[1:])):
            with pytest.raises(SystemExit) as ended:
                command([stage, str(home / "tiny.json"), "--root", str(home)])
            assert ended.value.code == 1
            assert f"asked to work in {home / 'runs' / 'base'}; another process is at work" in capsys.readouterr().err
    assert launched == []
    cli.main([stage, str(home / "tiny.json"), "--root", str(home)])
    assert [stage for stage, _ in launched] == [stage]


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        ("corpus.streaming:stream-config --corpus.streaming.lanes 3", "3 lanes of text cannot be dealt to"),
        ("training.qat:qat-config", "late QAT was asked for, but no matrix has more than 65,536 elements"),
    ],
)
def test_a_training_that_could_not_begin_is_not_launched(home, launched, capsys, overrides, complaint):
    with pytest.raises(SystemExit):
        cli.main(["train", str(home / "tiny.json"), "--root", str(home), "--run", "new", *overrides.split()])
    assert f"TrainingError: {complaint}" in capsys.readouterr().err
    assert launched == [] and not (home / "runs" / "new").exists()


@pytest.mark.parametrize("stage", ["train", "export", "score"])
@pytest.mark.parametrize("reuse", [[], NEXT], ids=["own", "reused"])
def test_a_stage_that_can_start_is_launched(home, launched, stage, reuse):
    arguments = [str(home / "tiny.json"), "--root", str(home), *reuse]
    cli.main([stage, *arguments])
    assert launched == [(stage, arguments)]
    assert not (home / "corpora").exists(), "a corpus was built before anything was launched"


def test_an_export_of_a_reused_checkpoint_is_launched(home, launched):
    cli.main(["export", str(home / "tiny.json"), "--root", str(home), *NEXT, "--quantization.codec-level", "1"])
    assert [stage for stage, _ in launched] == ["export"]


def test_processes_that_cannot_share_a_step_are_not_launched(home, launched, monkeypatch, capsys):
    monkeypatch.setattr(launch, "process_count", lambda: 3)
    with pytest.raises(SystemExit):
        cli.main(["train", str(home / "tiny.json"), "--root", str(home)])
    assert "TrainingError: 3 processes cannot share" in capsys.readouterr().err and launched == []
    cli.main(["score", str(home / "tiny.json"), "--root", str(home)])
    cli.main(["train", str(home / "tiny.json"), "--root", str(home), *NEXT])
    assert [stage for stage, _ in launched] == ["score", "train"], "neither trains anything"


def test_the_whole_road_is_refused_before_its_corpus_is_built(home, launched, monkeypatch, capsys):
    monkeypatch.setattr(jobs, "open_job_corpus", lambda job: pytest.fail("a corpus was built for nothing"))
    with pytest.raises(SystemExit):
        cli.main(["run", str(home / "tiny.json"), "--root", str(home), "--training.seed", "7"])
    assert "holds a run of another recipe" in capsys.readouterr().err and launched == []


def test_a_corpus_that_cannot_be_built_leaves_no_run_behind(home, launched, monkeypatch):
    """Else the recipe that mends it would be refused: the folder would hold another one."""

    def broken(job):
        raise CorpusError("the source is gone")

    monkeypatch.setattr(jobs, "open_job_corpus", broken)
    with pytest.raises(SystemExit):
        cli.main(["run", str(home / "tiny.json"), "--root", str(home), "--run", "fresh"])
    assert launched == [] and not (home / "runs" / "fresh").exists()


def test_a_tokenizer_that_was_read_must_fit_the_model(monkeypatch, tmp_path):
    recipe = tiny_recipe(corpus=replace(tiny_recipe().corpus, tokenizer=jobs.SentencePieceModel("large.model")))
    for size, fits in ((264, True), (265, False)):
        corpus = jobs.Corpus(tmp_path, range(size), None, [], [], {})
        monkeypatch.setattr(jobs, "build_corpus", lambda config, folder, corpus=corpus: corpus)
        if fits:
            assert jobs.open_job_corpus(jobs.Job(recipe, Place())) is corpus
        else:
            with pytest.raises(RecipeError, match=r"265 tokens, model.vocab_size is 264: raise it to 265"):
                jobs.open_job_corpus(jobs.Job(recipe, Place()))


@pytest.mark.parametrize("verb", ["run", "corpus"])
def test_an_impossible_root_is_refused_by_every_verb(home, launched, capsys, verb):
    (home / "file").write_text("")
    with pytest.raises(SystemExit) as ended:
        cli.main([verb, str(home / "tiny.json"), "--root", str(home / "file")])
    said = capsys.readouterr().err
    assert ended.value.code == 1 and "found: Not a directory; choose" in said and said.count("\n") == 1
    assert launched == []


def test_a_record_of_no_run_is_refused_and_leaves_none(home, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["record", str(home / "tiny.json"), "--root", str(home), "--run", "never"])
    said = capsys.readouterr().err
    assert ended.value.code == 1 and said.count("\n") == 1
    assert f"{home / 'runs' / 'never'} holds no run: none of its stages has started; pgolf run RECIPE makes" in said
    assert not (home / "runs" / "never").exists()


@pytest.mark.parametrize(
    ("name", "gpus", "slow"), [("sp1024_11l", 0, True), ("sp1024_11l", 1, False), ("demo", 0, False)]
)
def test_a_step_that_takes_a_cpu_very_long_is_announced(name, gpus, slow):
    text = slow_step(importlib.import_module(f"recipes.{name}").recipe, gpus)
    assert text.startswith("no GPU is visible: a step of 786,432 tokens is 1.8e+14") if slow else text == ""


def test_the_announcement_comes_before_the_launch(home, launched, monkeypatch, capsys):
    monkeypatch.setattr(readiness, "slow_step", lambda recipe, gpus: "far too slow")
    cli.run_stage("train", str(home / "tiny.json"), ["--root", str(home), "--run", "new"])
    assert [stage for stage, _ in launched] == ["train"]
    assert capsys.readouterr().err == "pgolf: far too slow\n"


def test_training_that_is_taken_over_is_not_announced(home, launched, monkeypatch, capsys):
    monkeypatch.setattr(readiness, "slow_step", lambda recipe, gpus: "far too slow")
    cli.run_stage("train", str(home / "tiny.json"), ["--root", str(home), "--run", "new", "--reuse", "base"])
    assert [stage for stage, _ in launched] == ["train"]
    assert capsys.readouterr().err == ""
