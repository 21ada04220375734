"""Forged scores: means that do not follow from their sums, and scorings of another text or by another plan."""

import math
import shutil

import pytest
from finished_run import BYTES, TARGETS
from forging import SCORINGS, SUMS, edit, failing, relink, set_in, tell


def rescale(record, factor, *keys):
    def change(outcome):
        for score in outcome["scores"].values():
            score.update({key: score[key] * factor for key in keys})

    edit(record / "scores.json", change)


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
