"""Text that the model writes itself, to calibrate on without reading any.

A first token at random, then one token after another from the model's own distribution, with a key/value cache.
Source: PR 1019, SPEC-11L 4.6; the reference recomputes the whole prefix for each token and takes 197 s on 8 GPUs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

from modeling_pgolf.modeling_pgolf import PGolfForCausalLM

from .config import SelfGenerated


def own_samples(
    model: PGolfForCausalLM,
    config: SelfGenerated,
    seed: int,
    batch_sequences: int = 64,
    precision: Literal["bf16", "fp32"] = "fp32",
) -> Iterator[Tensor]:
    """Yield what the model samples, int64 (up to ``batch_sequences``, tokens - 1): the last token is never an input.

    One generator on the model's device, seeded once, draws every token of every batch. precision: of the products.
    """
    device = model.device
    generator = torch.Generator(device).manual_seed(seed)
    for begin in range(0, config.sequences, batch_sequences):
        sequences = min(batch_sequences, config.sequences - begin)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
            tokens = sample(model, sequences, config.tokens, config.temperature, generator)
        yield tokens[:, :-1]


@torch.no_grad()
def sample(
    model: PGolfForCausalLM, sequences: int, tokens: int, temperature: float, generator: torch.Generator
) -> Tensor:
    """Return sampled token ids, int64 (sequences, tokens)."""
    training = model.training
    model.eval()
    shape = (sequences, 1)
    drawn = [torch.randint(model.vocab_size, shape, generator=generator, device=model.device)]
    cache = None
    for _ in range(tokens - 1):
        out = model(input_ids=drawn[-1], past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache = out.past_key_values
        odds = (out.logits[:, -1].float() / temperature).softmax(-1)
        drawn.append(torch.multinomial(odds, 1, generator=generator))
    model.train(training)
    return torch.cat(drawn, dim=1)
