"""Recipes: overrides on the command line, kinds of a part, recorded JSON, errors that name the nearest key."""

from dataclasses import is_dataclass, replace
from pathlib import Path
from typing import get_type_hints

import pytest

from modeling_pgolf.errors import ConfigError, RecipeError
from pgolf.corpus.build import SentencePieceModel
from pgolf.corpus.local import LocalFolder
from pgolf.job import parse_job
from pgolf.kinds import choices_of, kinds_of
from pgolf.limits import LIMITS, check_limits
from pgolf.recipe import Recipe, differences, load_recipe, parse_recipe, recipe_hash, recipe_json, with_overrides
from quantization.config import GptqConfig, SelfGenerated
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


@pytest.mark.parametrize("turn", range(7))
def test_kinds_are_chosen_anywhere(recipe, turn):
    """Choices and fields in seven orders, an option always before its value."""
    words = [
        ("--training.seconds", "None"),
        ("corpus.source:local-folder",),
        ("--corpus.source.path", "texts"),
        ("corpus.tokenizer:sentence-piece-model",),
        ("--corpus.tokenizer.path", "my.model"),
        ("training.qat:qat-config",),
        ("--training.qat.below-scale", "0.3"),
    ]
    changed = with_overrides(recipe, [word for pair in words[turn:] + words[:turn] for word in pair])
    assert changed.corpus.source == LocalFolder("texts")
    assert changed.corpus.tokenizer == SentencePieceModel("my.model")
    assert changed.training.qat == QatConfig(below_scale=0.3) and changed.training.seconds is None
    assert changed.training.ema == recipe.training.ema and changed.quantization == recipe.quantization
    assert parse_recipe(recipe_json(changed)) == changed


@pytest.mark.parametrize(
    "words", ["training.ema:none", "training.ema:None", "training.ema:ema-config training.ema:none"]
)
def test_a_part_is_left_out(recipe, words):
    assert with_overrides(recipe, words.split()) == replace(recipe, training=replace(recipe.training, ema=None))


def test_a_part_of_a_part_is_chosen_with_it(recipe):
    words = "quantization.gptq.calibration:self-generated quantization.gptq:gptq-config --quantization.gptq.damping 0.5"
    changed = with_overrides(recipe, words.split()).quantization.gptq
    assert changed == GptqConfig(damping=0.5, calibration=SelfGenerated())


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("training.qat:qatconfig", "asked for training.qat:qatconfig, .* did you mean training.qat:qat-config?"),
        ("training.qta:none", "did you mean training.qat:none?"),
        (
            "--model.xsa-layers 1 2 no:way",
            "asked for no:way, which is no part and kind of a recipe; there are corpus.s",
        ),
        (
            "--training.swa.every 5",
            "--training.swa.every belongs to training.swa, which is left out; choose it with tra",
        ),
        (
            "training.ema:none --training.ema.decay=0.9",
            "--training.ema.decay belongs to training.ema, which is left out",
        ),
    ],
)
def test_a_choice_that_does_not_do(recipe, words, told):
    with pytest.raises(RecipeError, match=told):
        with_overrides(recipe, words.split())


def test_a_kind_asks_for_what_it_needs(recipe, capsys):
    words = "corpus.source:local-folder corpus.tokenizer:train-bpe --corpus.tokenizer.vocab-size 300"
    with pytest.raises(SystemExit):
        with_overrides(recipe, words.split())
    assert "corpus.source.path" in capsys.readouterr().err


def test_a_value_may_look_like_a_choice(recipe):
    words = "corpus.source:local-folder --corpus.source.path my:text corpus.tokenizer:train-bpe"
    changed = with_overrides(recipe, [*words.split(), "--corpus.tokenizer.vocab-size", "300"])
    assert changed.corpus.source.path == "my:text"


def test_a_part_of_what_is_left_out_cannot_be_chosen(recipe):
    with pytest.raises(RecipeError, match=r"quantization.gptq.calibration belongs to quantization.gptq, which is left"):
        with_overrides(recipe, ["quantization.gptq.calibration:self-generated"])


def test_help_lists_every_choice(recipe, capsys):
    with pytest.raises(SystemExit):
        with_overrides(recipe, ["--help"])
    shown = capsys.readouterr().out
    for choice in choices_of(Recipe):
        part, _, kind = choice.partition(":")
        (line,) = (line for line in shown.splitlines() if line.strip().startswith(f"{part}:"))
        assert kind in line.split()


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


STRANGE_NAMES = ["", ".", "../../escaped", "/tmp/absolute", ".hidden", "a/b", "a\\b", " a", "a ", "-a", "a\nb"]
STRANGE_NAMES += [
    "tiny\u202egnp",
    "tiny\u200b",
    "<script>",
    "a|b",
    "x: 0.1",
    "[a](b)",
    "`a`",
    "*a*",
    "tiny\n",
    "d\u0435mo",
]


@pytest.mark.parametrize("name", STRANGE_NAMES)
def test_a_name_stays_in_its_folder_and_its_line(name, recipe, tmp_path):
    file = tmp_path / "recipe.json"
    file.write_text(recipe_json(replace(recipe, name=name)))
    with pytest.raises(RecipeError, match=r"asked for the name .*letters"):
        load_recipe(file)
    file.write_text(recipe_json(recipe))
    settings = [["--name", name]] + ([["--run", name], ["--reuse", name]] if name else [])
    for setting in settings:
        with pytest.raises((RecipeError, SystemExit)):
            parse_job(file, [f"{setting[0]}={setting[1]}"])


@pytest.mark.parametrize("name", ["demo", "score first", "seed1_replay.as-committed", "7", "_x", "a..b"])
def test_names_that_are_fine(name, recipe, tmp_path):
    file = tmp_path / "recipe.json"
    file.write_text(recipe_json(replace(recipe, name=name)))
    job = parse_job(file, ["--run", name, "--reuse", name])
    assert (job.recipe.name, job.place.run, job.place.reuse) == (name, name, name)


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


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("recipe = (", "SyntaxError"),
        ("import nothing_of_this_name", "ModuleNotFoundError: No module named 'nothing_of_this_name'"),
        ("from pgolf.recipe import Recipe\nrecipe = Recipe(nam='x')", "TypeError"),
    ],
)
def test_a_file_that_cannot_be_run(tmp_path, content, complaint):
    (tmp_path / "mine.py").write_text(content)
    with pytest.raises(RecipeError, match=f"mine.py cannot be run as a recipe: {complaint}"):
        load_recipe(tmp_path / "mine.py")


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ("--training.iterations -5", "training.iterations must be at least 1, found -5"),
        ("--training.micro-batch-sequences 0", "training.micro_batch_sequences must be at least 1"),
        ("--training.log-every 0", "training.log_every must be at least 1, found 0"),
        ("--training.seconds nan", "training.seconds must be above 0, found nan"),
        ("--training.seconds inf", "training.seconds must be above 0 and at most 1,000,000,000,000,000, found inf"),
        (
            "--training.iterations 99999999999999999999",
            "at least 1 and at most 1,000,000,000,000,000, found 9999999999",
        ),
        ("--training.seed 4294967296", "training.seed must be at least 0 and at most 4,294,967,295, found 4294967296"),
        ("--corpus.tokenizer.vocab-size 100", "corpus.tokenizer.vocab_size must be at least 262 and at most 65,536"),
        ("--model.num-attention-heads 0", "model.num_attention_heads must be at least 1, found 0"),
        ("--model.logit-softcap nan", "model.logit_softcap must be above 0, found nan"),
        ("--training.warmdown-steps -1", "training.warmdown_steps must be at least 0, found -1"),
        ("--training.warmdown-fraction 1.5", "training.warmdown_fraction must be at least 0 and at most 1, found 1.5"),
        ("--training.swa.every 0 training.swa:swa-config", "training.swa.every must be at least 1"),
        ("--quantization.codec-level 99", "quantization.codec_level must be at least 1 and at most 22, found 99"),
        ("--evaluation.stride 0", "evaluation.stride must be at least 1, found 0"),
        ("--evaluation.stride 9999", "evaluation.stride must be at most the window of 256, found 9999"),
        ("--budget.artifact-bytes 0", "budget.artifact_bytes must be at least 1, found 0"),
        ("--training.seconds 15 training.replay:replay-config", "15 leaves -5 seconds to train"),
    ],
)
def test_numbers_out_of_range(fields, complaint):
    with pytest.raises(RecipeError, match=complaint):
        parse_job(ROOT / "recipes" / "demo.py", fields.split())


def test_limits_are_of_fields_that_there_are():
    """A field that is renamed would lose its limits without a word."""
    names, kinds = set(), {part: members.values() for part, members in kinds_of(Recipe)}

    def walk(kind, prefix):
        for name, hint in get_type_hints(kind).items():
            inner = kinds.get(prefix + name, [hint])
            names.add(prefix + name)
            for member in filter(is_dataclass, inner):
                walk(member, f"{prefix}{name}.")

    walk(Recipe, "")
    assert set(LIMITS) <= names, set(LIMITS) - names


@pytest.mark.parametrize("file", sorted((ROOT / "recipes").glob("*.py")), ids=lambda file: file.stem)
def test_every_recipe_is_within_its_limits(file):
    check_limits(load_recipe(file))
