"""Comparisons: the challenge's two rules with units, and paired statistics by document."""

import json
from dataclasses import replace

import numpy as np
import pytest
from finished_run import tiny_recipe

from modeling_pgolf.errors import RecipeError
from pgolf.compare import Seeds, as_text, check_apart, compare, paired_by_document, read_seeds
from pgolf.recipe import recipe_json

# LEGALITY 1.4: on SP1024 one BPB is 1.6884 nats per token (0.005 nats are 0.00296 BPB).
NATS_PER_BPB = 0.005 / 0.00296


def seeds(name, mean_bits, spread_bits):
    bits = tuple(mean_bits + spread_bits * d for d in (-1.0, 0.0, 1.0))
    return Seeds(name, tuple(b * NATS_PER_BPB for b in bits), bits)


def test_p25_a_gap_of_the_margins_size():
    """LEGALITY P25: three seeds, sd 0.0007 BPB; gaps of 0.0061 and 0.001 BPB pass and fail the README's rule."""
    base = seeds("base", 1.1200, 0.0007)
    wide, narrow = compare(base, seeds("wide", 1.1139, 0.0007)), compare(base, seeds("narrow", 1.1190, 0.0007))
    assert wide.passes_margin and wide.passes_frontier
    assert not narrow.passes_margin and narrow.passes_frontier
    # With three seeds each and this spread the README's rule needs 0.0051 BPB (LEGALITY K18): 0.004 is not enough.
    assert not compare(base, seeds("named", 1.1160, 0.0007)).passes_margin


def test_a_loss_passes_nothing():
    verdict = compare(seeds("base", 1.12, 0.0007), seeds("worse", 1.13, 0.0007))
    assert verdict.gain_nats < 0 and not verdict.passes_margin and not verdict.passes_frontier


def test_one_seed_is_unknown():
    one = Seeds("one", (1.9,), (1.12,))
    text = as_text(one, one, compare(one, one))
    assert text.count("UNKNOWN") == 2 and "nats per token" in text and "bits per byte" in text


def test_records_are_read(tmp_path):
    for number in range(2):
        folder = tmp_path / str(number)
        folder.mkdir()
        scores = {"scores": {"sliding": {"nats_per_token": 1.9 + number, "bits_per_byte": 1.1 + number}}}
        (folder / "scores.json").write_text(json.dumps(scores))
        recipe = tiny_recipe()
        recipe = replace(recipe, training=replace(recipe.training, seed=number))
        (folder / "recipe.json").write_text(recipe_json(recipe))
        (folder / "model.safetensors").write_bytes(bytes([number]))
    assert read_seeds([tmp_path / "0", tmp_path / "1"], "a").nats == (1.9, 2.9)
    with pytest.raises(RecipeError, match="no scoring named 'plain'"):
        read_seeds([tmp_path / "0"], "a", "plain")
    with pytest.raises(RecipeError, match="not the folder of a record"):
        read_seeds([tmp_path], "a")


def test_paired_by_document_finds_a_small_gain():
    rng = np.random.default_rng(0)
    starts = np.sort(rng.choice(np.arange(1, 50_000), 199, replace=False))
    starts = np.insert(starts, 0, 0)
    base = rng.gamma(2.0, 1.0, 50_000)
    gain, error = paired_by_document(base, base - 0.01 + rng.normal(0, 0.05, 50_000), starts)
    assert gain == pytest.approx(0.01, abs=4 * error) and 1e-5 < error < 1e-3


def test_a_record_stands_on_one_side(tmp_path):
    one, other, third = (tmp_path / name for name in ("one", "other", "third"))
    check_apart([one], [other, third])
    with pytest.raises(RecipeError, match="other is on both sides of the comparison; name two systems"):
        check_apart([one, other], [third, tmp_path / "third" / ".." / "other"])
