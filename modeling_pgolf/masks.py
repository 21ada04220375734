"""Where a position stands, and what it may see: position ids and the causal mask of a call.

Position 0 is one without predecessor: the start of a row, of its text behind left padding, of a document in a packed
row. Everything that reads the position before, bigram, smear and attention, stops there.

``B`` batch, ``T`` time.
"""

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache
from transformers.masking_utils import create_causal_mask

from .configuration_pgolf import PGolfConfig


def positions(attention_mask: Any, x: Tensor, past: int | Tensor) -> Tensor:
    """Return position ids (B, T) for ``x`` (B, T, ...) behind ``past`` cached positions; padding does not count."""
    B, T = x.shape[:2]
    if isinstance(attention_mask, Tensor) and attention_mask.ndim == 2:
        return (attention_mask.cumsum(-1) - 1).clamp(min=0)[:, -T:]
    return (torch.arange(T, device=x.device) + past)[None].expand(B, T)


def causal_mask(
    config: PGolfConfig, attention_mask: Any, x: Tensor, cache: Cache | None, packed: Tensor | None
) -> Tensor | None:
    """Return the mask for the attention back-end in use, None where that back-end is causal by itself.

    attention_mask: (B, past + T) of 1 and 0, a finished 4-D mask, generate's dict of masks, or None. x: (B, T, D).
    packed: position ids that the caller gave; they may describe packed documents.
    """
    if isinstance(attention_mask, dict):
        full: Tensor | None = attention_mask["full_attention"]
        return full
    plain = attention_mask is None and packed is None and cache is None
    if plain and config._attn_implementation != "flex_attention":
        # Every back-end but flex is causal by itself. Under torch.compile transformers 5.17 would write a mask
        # out all the same, and a training step takes 1.5 times as long (docs/LOG.md).
        return None
    mask: Tensor | None = create_causal_mask(
        config=config, inputs_embeds=x, attention_mask=attention_mask, past_key_values=cache, position_ids=packed
    )
    return mask
