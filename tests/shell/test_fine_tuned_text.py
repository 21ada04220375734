"""What a record says of the text that it was fine-tuned on: the split, its tokens and the steps."""

import hashlib
import json

import numpy as np
import pytest

from pgolf.audit.facts import fine_tune_fact
from pgolf.recipe import load_recipe, with_overrides


@pytest.mark.parametrize(("name", "split"), [("seed4_prequant", "validation"), ("seed4_prequant_ranked", "train")])
def test_what_was_fine_tuned_on_is_what_the_record_says(finished, name, split):
    """The manifest's hash is that of the split's own tokens, read from the shards on disk."""
    run = finished(name)
    training = json.loads((run.record / "manifests" / "training.json").read_text())
    told = training["fine_tune"]
    (shard,) = (run.path.parents[1] / "corpora").glob(f"*/fineweb_{split[:5] if split == 'train' else 'val'}_*.bin")
    tokens = np.fromfile(shard, "<u2", offset=1024)[: 800 if split == "train" else None]
    assert told == {
        "split": split,
        "tokens": len(tokens),
        "sha256": hashlib.sha256(tokens.tobytes()).hexdigest(),
    }
    assert fine_tune_fact(load_recipe(run.record / "recipe.json"), {"training": training}).holds == (split == "train")


@pytest.mark.parametrize("name", ["seed4_prequant", "seed4_prequant_ranked"])
def test_the_log_counts_the_steps_of_fine_tuning(finished, name):
    run = finished(name)
    events = [json.loads(line) for line in run.log.read_text().splitlines()]
    (tuned,) = [event for event in events if event["event"] == "fine_tune"]
    told = json.loads((run.record / "manifests" / "training.json").read_text())["fine_tune"]
    assert tuned["tokens"] == told["tokens"] and tuned["steps"] == tuned["planned"] > 0


GOOD = {"split": "train", "tokens": 800, "sha256": "0" * 64}


@pytest.mark.parametrize(
    ("told", "holds"),
    [
        (GOOD, True),
        (None, None),
        (GOOD | {"split": "validation"}, False),
        (GOOD | {"tokens": 799}, False),
        (GOOD | {"tokens": 800.0}, False),
        (GOOD | {"tokens": None}, False),
        (GOOD | {"sha256": None}, False),
        (GOOD | {"sha256": "0" * 63}, False),
        ({}, False),
    ],
)
def test_what_a_manifest_may_say_of_fine_tuning(finished, told, holds):
    recipe = load_recipe(finished("seed4_prequant_ranked").record / "recipe.json")
    training = {"corpus": {"train": {"tokens": 2000}}} | ({} if told is None else {"fine_tune": told})
    assert fine_tune_fact(recipe, {"training": training}).holds is holds
    without = with_overrides(recipe, ["training.fine-tune:none"])
    assert fine_tune_fact(without, {"training": training}).holds is (told is None)
    assert fine_tune_fact(without, {"training": {"seconds": {"fine_tune": 1.0}}}).holds is False
