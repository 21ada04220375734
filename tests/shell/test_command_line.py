"""The command line: help shows every option of a stage, and costs no seconds."""

import re
import subprocess
import sys
from dataclasses import fields

import pytest

from pgolf import cli
from pgolf.place import Place
from pgolf.reference_systems import SYSTEMS
from pgolf.siblings import ROOT


def said(capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        cli.main(list(arguments))
    captured = capsys.readouterr()
    return ended.value.code, " ".join((captured.out + captured.err).replace("│", " ").split())


@pytest.mark.parametrize("verb", cli.STAGE_VERBS)
def test_help_of_a_stage_shows_its_options_and_overrides(verb, capsys):
    status, shown = said(capsys, verb, "--help")
    assert status == 0 and cli.VERBS[verb][1] in shown
    assert "RECIPE a recipe file; behind it any of its fields can be overridden, like --training.iterations" in shown
    for field in fields(Place):
        _, _, told = shown.partition(f"--{field.name} ")
        assert len(told.partition("(default:")[0].split()) > 5, f"--{field.name} says nothing about itself"


def test_help_names_every_system_that_can_be_converted(capsys):
    _, shown = said(capsys, "convert", "--help")
    _, _, told = shown.partition("the pull request it is from:")
    assert set(re.findall(r"\d+|fork", told.partition("(required)")[0])) == set(SYSTEMS)


@pytest.mark.parametrize("option", ["--root", "--trackers=tensorboard"])
def test_options_may_stand_before_the_recipe(option, monkeypatch):
    stages = []
    monkeypatch.setattr(cli, "run_stage", lambda verb, recipe, rest: stages.append((recipe, rest)))
    words = [option, "here"] if option == "--root" else ["--trackers", "tensorboard", "--trackers", "wandb"]
    cli.main(["train", *words, "RECIPE"])
    assert stages == [("RECIPE", words)]


def test_help_imports_nothing_that_takes_seconds():
    code = "import sys, pgolf.cli; print(sorted({'torch', 'transformers', 'accelerate'} & set(sys.modules)))"
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ended.stdout == "[]\n"


@pytest.mark.parametrize("arguments", [(), ("--root", "here"), ("--training.iterations", "3")])
def test_a_stage_without_its_recipe_is_an_error_that_names_it(arguments, capsys):
    status, shown = said(capsys, "run", *arguments)
    assert status == 2 and "recipe" in shown and "pgolf run --help" in shown


@pytest.mark.parametrize(
    ("arguments", "behind"),
    [
        (["RECIPE", "--run", "x", "--training.iterations", "3"], ["--run", "x", "--training.iterations", "3"]),
        (["--root", "here", "--run=x", "RECIPE"], ["--root", "here", "--run=x"]),
        (["--run", "RECIPE", "RECIPE"], ["--run", "RECIPE"]),
        (["RECIPE", "--help"], ["--help"]),
    ],
)
def test_options_stand_on_either_side_of_the_recipe(arguments, behind, monkeypatch):
    stages = []
    monkeypatch.setattr(cli, "run_stage", lambda verb, recipe, rest: stages.append((verb, recipe, rest)))
    cli.main(["score", *arguments])
    assert stages == [("score", "RECIPE", behind)]
