"""Text to calibrate an export on: the first batches of the training stream, or what the model writes itself.

Validation text cannot come in here: nothing of it is opened. Source: LEGALITY D5.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from modeling_pgolf.modeling_pgolf import PGolfForCausalLM
from quantization.calibration import own_samples
from quantization.config import SelfGenerated, TrainBatches
from training.batches import TrainTokens
from training.config import TrainingConfig
from training.orders import step_batches
from training.streamed import TokenStream

from .recipe import Recipe

Tokens = TrainTokens | TokenStream


def first_batches(tokens: Tokens, config: TrainingConfig, calibration: TrainBatches) -> Iterator[Tensor]:
    """Yield the first inputs of the run's own order, int64 (batch_sequences, T), as a fresh loader gives them."""
    left = calibration.batches
    step_sequences = config.spans_per_step * config.span_sequences
    steps = -(-left * calibration.batch_sequences // step_sequences)
    for inputs, _ in step_batches(tokens, config, steps):
        for batch in torch.split(inputs, calibration.batch_sequences)[:left]:
            yield batch
            left -= 1


def calibration_text(model: PGolfForCausalLM, recipe: Recipe, open_tokens: Callable[[], Tokens]) -> Iterable[Tensor]:
    """Return the batches that the recipe's export calibrates on, none where it does not.

    open_tokens: opens the training tokens; called only where the recipe calibrates on them.
    """
    gptq = recipe.quantization.gptq
    if gptq is None:
        return ()
    if isinstance(gptq.calibration, SelfGenerated):
        return own_samples(model, gptq.calibration, recipe.training.seed, precision=gptq.precision)
    return first_batches(open_tokens(), recipe.training, gptq.calibration)
