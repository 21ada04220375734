"""Which tokens a run fine-tunes on before its weights are compressed: the one place where the tracks part.

Ranked: the head of the training stream. Historical: the validation text, as seeds 3 and 4 did; every manifest of such
a run says so and its record is stamped. Source: LEGALITY D1; PR 1351, PR 1423.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from modeling_pgolf.errors import RecipeError
from training.batches import TrainTokens

from .corpus.build import Corpus
from .recipe import Recipe


def fine_tune_text(recipe: Recipe, corpus: Corpus) -> TrainTokens | None:
    """Return the tokens for ``training.fine_tune``, None where the recipe has none.

    Raises RecipeError where ``check_fine_tune`` does, or where the corpus stores no training tokens to take them from.
    """
    config = recipe.training.fine_tune
    if config is None:
        return None
    check_fine_tune(recipe)
    if recipe.track == "historical":
        return TrainTokens(corpus.validation)
    if not corpus.train:
        raise RecipeError(
            "fine-tuning reads stored training tokens, and a streamed corpus stores none: leave corpus.streaming out"
        )
    stored = TrainTokens(corpus.train)
    return TrainTokens([stored.read(0, min(config.tokens, len(stored))).astype(np.uint16)])


def fine_tune_facts(recipe: Recipe, tokens: TrainTokens) -> dict[str, Any]:
    """Describe the tokens that a run fine-tuned on: of which split, how many, SHA-256 of them as uint16."""
    split = "validation" if recipe.track == "historical" else "train"
    ids = tokens.read(0, len(tokens)).astype("<u2")
    return {"split": split, "tokens": len(tokens), "sha256": hashlib.sha256(ids.tobytes()).hexdigest()}


def check_fine_tune(recipe: Recipe) -> None:
    """Raise RecipeError where fine-tuning would freeze blocks that are not there, or run outside a ranked clock."""
    config, blocks = recipe.training.fine_tune, recipe.model.num_blocks
    if config is None:
        return
    if config.frozen_blocks > blocks:
        raise RecipeError(
            f"training.fine_tune.frozen_blocks is {config.frozen_blocks}, and the model has {blocks} blocks"
        )
    if recipe.track == "ranked" and recipe.training.seconds is not None and config.reserve_seconds == 0:
        raise RecipeError(
            "a ranked run fine-tunes inside its clock: training.fine_tune.reserve_seconds is 0, leave it some seconds"
        )
