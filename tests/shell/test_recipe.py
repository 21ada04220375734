"""Recipes: overrides on the command line, kinds of a part, recorded JSON, errors that name the nearest key."""

from pathlib import Path

import pytest

from modeling_pgolf.errors import ConfigError, RecipeError
from pgolf.corpus.build import SentencePieceModel
from pgolf.corpus.local import LocalFolder
from pgolf.recipe import differences, load_recipe, parse_recipe, recipe_hash, recipe_json, with_overrides
from training.config import QatConfig

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def recipe():
    return load_recipe(ROOT / "recipes" / "sp1024_11l.py")


def test_fields_are_overridden(recipe):
    changed = with_overrides(
        recipe, ["--training.iterations", "7", "--model.xsa-layers", "1", "2", "--training.no-compile"]
    )
    assert (changed.training.iterations, changed.model.xsa_layers, changed.training.compile) == (7, [1, 2], False)
    names = [name for name, _, _ in differences(recipe, changed)]
    assert names == ["model.xsa_layers", "training.compile", "training.iterations"]
    assert recipe_hash(changed) != recipe_hash(recipe)


def test_kinds_are_chosen_behind_the_fields(recipe):
    words = "--training.seconds None corpus.source:local-folder --corpus.source.path texts"
    words += " corpus.tokenizer:sentence-piece-model --corpus.tokenizer.path my.model"
    words += " training.qat:qat-config --training.qat.below-scale 0.3"
    changed = with_overrides(recipe, words.split())
    assert changed.corpus.source == LocalFolder("texts")
    assert changed.corpus.tokenizer == SentencePieceModel("my.model")
    assert changed.training.qat == QatConfig(below_scale=0.3) and changed.training.seconds is None
    assert parse_recipe(recipe_json(changed)) == changed


def test_a_part_is_left_out(recipe):
    assert with_overrides(recipe, ["training.ema:None"]).training.ema is None


def test_a_misspelt_override_names_the_nearest(recipe, capsys):
    with pytest.raises(SystemExit):
        with_overrides(recipe, ["--training.iteration", "7"])
    assert "--training.iterations" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("warmdown_steps", "warmdwn_steps", "did you mean 'warmdown_steps'"),
        ('"iterations": 20000', '"iterations": "many"', "iterations"),
        ("{", "[", "cannot be used"),
    ],
)
def test_recorded_json_that_cannot_be_used(recipe, old, new, reason):
    with pytest.raises(RecipeError, match=reason):
        parse_recipe(recipe_json(recipe).replace(old, new, 1))


def test_files_that_are_no_recipes(tmp_path):
    with pytest.raises(RecipeError, match="there is no recipe file"):
        load_recipe(tmp_path / "none.py")
    (tmp_path / "empty.py").write_text("recipes = []\n")
    with pytest.raises(RecipeError, match="must bind the name 'recipe'"):
        load_recipe(tmp_path / "empty.py")


def test_a_contradictory_model_is_refused(recipe):
    changed = with_overrides(recipe, ["--model.num-blocks", "3"])
    with pytest.raises(ConfigError, match=r"xsa_layers names \[7, 8, 9, 10\]"):
        changed.model_config()
