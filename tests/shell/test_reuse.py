"""A run takes finished stages from another one, and nothing that its own recipe would have made differently."""

import json
import shutil
from dataclasses import replace

import pytest
from shell.finished_run import finish, tiny_recipe, write_scores

from pgolf import run as stages
from pgolf.job import Job
from pgolf.place import Place
from pgolf.recipe import recipe_hash, recipe_json
from pgolf.run import door
from pgolf.workdir import RunFolder, check_outputs, file_hashes


@pytest.fixture
def home(tmp_path):
    """A root with a finished run ``base``, and the recipe as a file."""
    finish(tmp_path, tiny_recipe(name="base"))
    (tmp_path / "tiny.json").write_text(recipe_json(tiny_recipe(name="base")))
    return tmp_path


@pytest.fixture
def went(monkeypatch):
    """Names of the stages that were run and not reused."""
    names = []
    for stage in stages.STAGES:
        monkeypatch.setitem(stages.STAGES, stage, lambda job, run, stage=stage: names.append(stage))
    return names


def go(home, *overrides, to="score", name="next"):
    for stage in list(stages.STAGES)[: list(stages.STAGES).index(to) + 1]:
        door(stage, [str(home / "tiny.json"), "--root", str(home), "--run", name, "--reuse", "base", *overrides])
    return RunFolder(home / "runs" / name)


@pytest.mark.parametrize(
    ("overrides", "again"),
    [
        (["--evaluation.stride", "2"], ["score"]),
        (["--name", "other"], ["score"]),
        (["--quantization.codec-level", "1"], ["export", "score"]),
        (["--budget.artifact-bytes", "999999"], ["export", "score"]),
    ],
)
def test_only_what_reads_a_changed_part_runs(home, went, overrides, again):
    run = go(home, *overrides)
    assert went == again
    base = RunFolder(home / "runs" / "base")
    taken = [(base.checkpoint, run.checkpoint)] + ([(base.artifact, run.artifact)] if "export" not in again else [])
    for source, copy in taken:
        assert file_hashes(source) == file_hashes(copy)
        assert check_outputs(copy)["reused_from"]["run"] == "base"
    assert run.artifact.exists() == ("export" not in again)
    assert run.log.read_bytes() == base.log.read_bytes()


def test_a_run_with_a_reused_checkpoint_and_artifact_is_recorded(home, went):
    run = go(home, "--evaluation.stride", "2")
    recipe = tiny_recipe(name="base")
    recipe = replace(recipe, evaluation=replace(recipe.evaluation, stride=2))
    write_scores(recipe, run)
    stages.record(Job(recipe, Place(home, "next")))
    told = json.loads((run.record / "manifests" / "training.json").read_text())
    assert told["recipe_sha256"] == recipe_hash(recipe)
    assert told["reused_from"] == {"run": "base", "recipe_sha256": recipe_hash(tiny_recipe(name="base"))}


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        (["--training.seed", "7"], "has another training.seed: nothing of it can be reused"),
        (["--model.q-gain-init", "2"], "has another model.q_gain_init"),
        (["--track", "historical"], "has another track"),
    ],
)
def test_another_training_is_not_reused(home, went, capsys, overrides, complaint):
    with pytest.raises(SystemExit):
        go(home, *overrides, to="train")
    assert f"pgolf: RecipeError: the run base {complaint}" in capsys.readouterr().err
    assert not RunFolder(home / "runs" / "next").checkpoint.exists()


@pytest.mark.parametrize("name", ["base", "nowhere"])
def test_reuse_names_another_run(home, went, capsys, name):
    with pytest.raises(SystemExit):
        door("train", [str(home / "tiny.json"), "--root", str(home), "--run", "base", "--reuse", name])
    assert f"--reuse {name} names no other run" in capsys.readouterr().err


def test_a_changed_checkpoint_is_not_reused(home, went, capsys):
    (home / "runs" / "base" / "checkpoint" / "config.json").write_text("{}")
    with pytest.raises(SystemExit):
        go(home, to="train")
    assert "base/checkpoint/config.json was changed" in capsys.readouterr().err
    assert went == [] and not RunFolder(home / "runs" / "next").checkpoint.exists()


def test_what_the_run_has_itself_stays(home, went):
    run = go(home, "--evaluation.stride", "2", to="train")
    (run.checkpoint / "note").write_text("kept")
    run.log.write_text("its own")
    go(home, "--evaluation.stride", "2")
    assert (run.checkpoint / "note").exists() and run.artifact.exists()
    assert run.log.read_text() == "its own"


def test_what_the_other_run_lacks_is_made(home, went):
    shutil.rmtree(home / "runs" / "base" / "artifact")
    run = go(home, "--evaluation.stride", "2")
    assert went == ["export", "score"] and run.checkpoint.exists()


def test_a_run_that_lost_its_log_is_not_reused(home, went, capsys):
    RunFolder(home / "runs" / "base").log.unlink()
    with pytest.raises(SystemExit):
        go(home, to="train")
    assert "log.jsonl is missing" in capsys.readouterr().err


def test_an_edited_recipe_is_not_made_good(home, went, capsys):
    """Else this run would pass for one of the seed that somebody wrote into the other's recipe."""
    edited = recipe_json(replace(tiny_recipe(name="base"), training=replace(tiny_recipe().training, seed=42)))
    (home / "runs" / "base" / "recipe.json").write_text(edited)
    with pytest.raises(SystemExit):
        go(home, "--training.seed", "42", to="train")
    assert "which was changed since; nothing of it can be reused" in capsys.readouterr().err


def test_the_run_that_made_a_stage_is_named(home, went):
    go(home, "--evaluation.stride", "2", name="second")
    third = ["--run", "third", "--reuse", "second", "--evaluation.stride", "8"]
    door("export", [str(home / "tiny.json"), "--root", str(home), *third])
    assert check_outputs(RunFolder(home / "runs" / "third").artifact)["reused_from"]["run"] == "base"
