"""Fixtures of the shell's tests: honest records, and finished runs of the published recipes."""

import shutil
from dataclasses import replace

import pytest
from finished_run import CHUNK, finish, tiny_recipe
from shrunk_runs import finish_shrunk, write_documents

from evaluation.adaptation.score_first import ScoreFirstConfig
from pgolf.record import write_record


@pytest.fixture(scope="session")
def honest(tmp_path_factory):
    """A record of synthetic numbers; not to be changed."""
    recipe = tiny_recipe()
    return write_record(recipe, finish(tmp_path_factory.mktemp("run"), recipe))


@pytest.fixture(scope="session")
def honest_adapted(tmp_path_factory):
    """The record of a run that learns from what it has scored; not to be changed."""
    recipe = tiny_recipe()
    recipe = replace(recipe, evaluation=replace(recipe.evaluation, adaptation=ScoreFirstConfig(chunk_tokens=CHUNK)))
    return write_record(recipe, finish(tmp_path_factory.mktemp("adapted"), recipe))


@pytest.fixture
def record(honest, tmp_path):
    """A copy of the honest record that a test may change."""
    return shutil.copytree(honest, tmp_path / "record")


@pytest.fixture
def adapted(honest_adapted, tmp_path):
    """A copy of the adapted record that a test may change."""
    return shutil.copytree(honest_adapted, tmp_path / "adapted")


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """Finished runs of shrunk recipes by name, each made once; not to be changed."""
    home, made = tmp_path_factory.mktemp("stamp"), {}
    write_documents(home / "text")

    def finish(name):
        if name not in made:
            made[name] = finish_shrunk(name, home)
        return made[name]

    return finish
