"""Limits: what the numbers of a recipe may be, so that no run begins that could not end.

Each number is at least 0 and at most ``LARGEST`` unless it is named here. A part that a recipe does not have has no
limits. How the numbers of a model fit together is its configuration's business.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict
from typing import NamedTuple

from modeling_pgolf.errors import RecipeError

from .corpus.tokenizer import LARGEST_VOCABULARY, LEAST_VOCABULARY
from .recipe import Recipe, flat

# Tokens, bytes, steps, rates: nothing that a run counts or multiplies by comes near it.
LARGEST = 10**15


class Limits(NamedTuple):
    """A range; ``least`` itself is allowed unless ``above`` says that numbers lie above it."""

    least: float = 0
    most: float = LARGEST
    above: bool = False

    def allow(self, value: float) -> bool:
        """Say whether ``value`` is in the range; not-a-number and infinity never are."""
        return math.isfinite(value) and self.least <= value <= self.most and not (self.above and value == self.least)

    def words(self, value: float) -> str:
        """Say the range, as far as ``value`` may have missed it."""
        lower = f"{'above' if self.above else 'at least'} {self.least:,}"
        return lower if self.most == LARGEST and not value > LARGEST else f"{lower} and at most {self.most:,}"


COUNT, SHARE, POSITIVE = Limits(1), Limits(0, 1), Limits(0, above=True)
TABLE = (
    (COUNT, "training", "iterations sequence_length span_sequences spans_per_step micro_batch_sequences log_every"),
    (COUNT, "training", "keep_checkpoints"),
    (COUNT, "training.swa", "every"),
    (COUNT, "training.replay", "spans epochs"),
    (COUNT, "training.fine_tune", "epochs rows tokens"),
    (COUNT, "quantization.gptq.calibration", "batches batch_sequences sequences"),
    (COUNT, "evaluation", "window stride batch_windows"),
    (COUNT, "evaluation.adaptation", "chunk_tokens epochs rows"),
    (COUNT, "corpus", "train_tokens validation_tokens"),
    (COUNT, "model", "vocab_size hidden_size intermediate_size num_blocks num_attention_heads num_key_value_heads"),
    (COUNT, "model", "max_position_embeddings rotary_trained_length rotary_length bigram_dim value_embed_dim"),
    (COUNT, "model", "embedding_size"),
    (COUNT, "budget", "artifact_bytes"),
    (SHARE, "training", "warmdown_fraction loop_from"),
    (SHARE, "training.ema", "decay"),
    (SHARE, "evaluation.adaptation", "momentum"),
    (POSITIVE, "training", "seconds grad_clip"),
    (POSITIVE, "model", "logit_softcap rms_norm_eps rotary_base embed_init_std"),
    (POSITIVE, "training.fine_tune", "grad_clip"),
    (POSITIVE, "training.qat", "scale_floor"),
    (POSITIVE, "quantization.clip", "matrix_scale_floor table_scale_floor"),
    (POSITIVE, "quantization.clip", "attention_sigmas feed_forward_sigmas table_sigmas"),
    (POSITIVE, "quantization.gptq", "damping"),
    (POSITIVE, "quantization.gptq.calibration", "temperature"),
    (POSITIVE, "evaluation.adaptation", "grad_clip"),
    (POSITIVE, "corpus.tokenizer", "train_megabytes"),
    (POSITIVE, "budget", "training_seconds evaluation_seconds"),
    (Limits(-LARGEST), "model", "loop_end pad_token_id"),
    (Limits(0, 2**32 - 1), "training", "seed"),  # numpy's
    (Limits(LEAST_VOCABULARY, LARGEST_VOCABULARY), "corpus.tokenizer", "vocab_size"),
    (Limits(2), "quantization.gptq.calibration", "tokens"),
    (Limits(1, 22), "quantization", "codec_level"),  # zstd's
    (Limits(2, 8), "training.qat", "bits"),
    (Limits(-128, -1), "training.qat", "lowest_code"),
)
LIMITS = {f"{part}.{name}": limits for limits, part, names in TABLE for name in names.split()}


def check_limits(recipe: Recipe) -> None:
    """Raise RecipeError on the first number of a recipe that is out of its limits, and on sums that leave nothing."""
    for name, value in numbers(recipe):
        limits = LIMITS.get(name, Limits())
        if not limits.allow(value):
            raise RecipeError(f"{name} must be {limits.words(value)}, found {value}")
    if recipe.evaluation.stride > recipe.evaluation.window:
        raise RecipeError(
            f"evaluation.stride must be at most the window of {recipe.evaluation.window}, "
            f"found {recipe.evaluation.stride}: targets between the windows would never be scored"
        )
    left, training = recipe.training.loop_seconds, recipe.training
    if left is not None and left <= 0:
        raise RecipeError(
            f"training.seconds {training.seconds:g} leaves {left:g} seconds to train: calibration, replay and "
            "fine-tuning have reserved the rest; give the run more seconds, or them less"
        )


def numbers(recipe: Recipe) -> Iterable[tuple[str, float]]:
    """Yield the numbers of a recipe, each with its dotted name."""
    for name, value in flat(asdict(recipe)).items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            yield name, value
