"""Causal self-attention with q/k norm, a gain per query head, partial rotary, value embeddings and XSA.

The softmax part goes through transformers' attention interface, so every back-end it knows can be chosen. XSA
(exclusive self-attention) removes from a head's output its component along the position's own value vector.

``B`` batch, ``T`` time, ``H`` query heads, ``K`` key/value heads, ``G = H/K``, ``h`` head width.
Source: q/k norm and gain, the challenge's baseline; XSA, PR 265; SPEC-11L 1.7.
"""

from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers.cache_utils import Cache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .configuration_pgolf import PGolfConfig
from .linear import CastLinear
from .norms import rms_norm
from .rotary import rotate


def eager_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """Softmax attention written out: the reference for every other back-end.

    query (B, H, T, h), key and value (B, K, S, h), attention_mask additive (B, 1, T, S) or None (causal).
    Returns the mixed values (B, T, H, h) and the weights (B, H, T, S).
    """
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scores = query @ key.transpose(-1, -2) * scaling
    if attention_mask is None:
        causal = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device)
        causal = causal.tril(scores.shape[-1] - scores.shape[-2])
        scores = scores.masked_fill(~causal, torch.finfo(scores.dtype).min)
    else:
        scores = scores + attention_mask
    weights = scores.float().softmax(-1).to(query.dtype)
    return (weights @ value).transpose(1, 2), weights


def fastest_attention() -> AbstractContextManager[None]:
    """Let ``sdpa`` try its kernels in the order of their measured speed while the context lasts.

    torch prefers flash; on one H200 the published script of PR 445 takes 599 ms a step with cuDNN, 685 ms with flash.
    """
    order = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    context: AbstractContextManager[None] = sdpa_kernel(order, set_priority=True)
    return context


def causal_rows(length: int, queries: slice, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the additive causal mask (1, 1, S, T) of the positions ``queries`` over ``length`` positions."""
    positions = torch.arange(length, device=device)
    hidden = positions > positions[queries, None]
    return torch.zeros(hidden.shape, dtype=dtype, device=device).masked_fill(hidden, torch.finfo(dtype).min)[None, None]


def exclude_own_value(y_BTHh: Tensor, v_BTKh: Tensor) -> Tensor:
    """Remove from each head's output its component along the value of its own position (XSA)."""
    B, T, K, h = v_BTKh.shape
    grouped = y_BTHh.reshape(B, T, K, -1, h)
    direction = F.normalize(v_BTKh.float(), dim=-1).to(y_BTHh.dtype)[:, :, :, None]
    return (grouped - (grouped * direction).sum(-1, keepdim=True) * direction).reshape(B, T, -1, h)


class Attention(nn.Module):
    """One attention branch: (B, T, D) to (B, T, D), before its gain."""

    def __init__(self, config: PGolfConfig, layer: int) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer
        self.head_dim = config.head_dim
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.is_causal = True
        self.exclusive = layer in config.xsa_layers
        self.q_proj = CastLinear(config.hidden_size, config.hidden_size)
        self.k_proj = CastLinear(config.hidden_size, config.num_key_value_heads * self.head_dim)
        self.v_proj = CastLinear(config.hidden_size, config.num_key_value_heads * self.head_dim)
        self.o_proj = CastLinear(config.hidden_size, config.hidden_size, "zero")
        self.q_gain = nn.Parameter(torch.empty(config.num_attention_heads))

    def forward(
        self,
        x: Tensor,
        rotary: tuple[Tensor, Tensor],
        value_embedding: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        cache_idx: int = 0,
        queries: slice | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Return the branch output (B, T, D) and, with the eager back-end, the attention weights (B, H, T, S).

        rotary: cos and sin (B, T, R/2). value_embedding: (B, T, K·h), added to the values. cache_idx: the cache
        slot of this visit (a block that is visited twice has two). queries: the only positions to return.
        """
        B, T, _ = x.shape
        eps = self.config.rms_norm_eps
        asked, asked_rotary = x, rotary
        if queries is not None:
            asked, asked_rotary = x[:, queries], (rotary[0][:, queries], rotary[1][:, queries])
            attention_mask = causal_rows(T, queries, x.dtype, x.device)
        values = self.v_proj(x)
        if value_embedding is not None:
            values = values + value_embedding
        q = rotate(
            rms_norm(self.q_proj(asked).view(B, -1, self.config.num_attention_heads, self.head_dim), eps), *asked_rotary
        )
        k = rotate(rms_norm(self.k_proj(x).view(B, T, -1, self.head_dim), eps), *rotary)
        v = values.view(B, T, -1, self.head_dim)
        q = q * self.q_gain.to(q.dtype)[:, None]
        keys, memory = k.transpose(1, 2), v.transpose(1, 2)
        if past_key_values is not None:
            keys, memory = past_key_values.update(keys, memory, cache_idx)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention)
        y, weights = attend(
            self, q.transpose(1, 2), keys, memory, attention_mask, scaling=self.head_dim**-0.5, dropout=0.0, **kwargs
        )
        if self.exclusive:
            y = exclude_own_value(y, v if queries is None else v[:, queries])
        return self.o_proj(y.reshape(B, asked.shape[1], -1)), weights
