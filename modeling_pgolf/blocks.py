"""A block: residual mix, attention branch, feed-forward branch.

``u = m₀ x + m₁ x₀``; ``x' = u + a · Attn(λ rms(u))``; ``x'' = x' + b · FF(λ rms(x'))`` with ``λ = 1/sqrt(i + 1)``.
In the parallel form both branches read the same ``u`` (PR 1412). The residual base is ``u``, not ``x``.

``B`` batch, ``T`` time, ``D`` width. Source: residual mix, the challenge's baseline; λ, PR 315; SPEC-11L 1.6.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .attention import Attention
from .configuration_pgolf import PGolfConfig
from .feedforward import FeedForward
from .norms import rms_norm


class Block(GradientCheckpointingLayer):
    """One physical block; a looped configuration visits it several times."""

    def __init__(self, config: PGolfConfig, layer: int) -> None:
        super().__init__()
        self.eps = config.rms_norm_eps
        self.branch_scale = (layer + 1) ** -0.5 if config.ln_scale else 1.0
        self.parallel = layer >= config.parallel_from
        self.self_attn = Attention(config, layer)
        self.mlp = FeedForward(config)
        self.attn_scale = nn.Parameter(torch.empty(config.hidden_size))
        self.mlp_scale = nn.Parameter(torch.empty(config.hidden_size))
        self.resid_mix = nn.Parameter(torch.empty(2, config.hidden_size))

    def forward(
        self,
        x: Tensor,
        x0: Tensor,
        value_embedding: Tensor | None,
        rotary: tuple[Tensor, Tensor],
        queries: slice | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Return the stream behind the block, (B, T, D).

        x: the stream, (B, T, D). x0: the stream as it left the embedding stage. rotary: cos and sin (B, T, R/2).
        queries: the only positions to return; the others are keys and values. Other arguments are the attention's.
        What gradients flow into comes by position: checkpointing of the re-entrant kind sees no named tensor.
        """
        u = self.mixed(x, x0)
        attended = self.attend(u, value_embedding, rotary, queries, **kwargs)
        if queries is not None:
            u = u[:, queries]
        x = u + attended
        return x + self.feed(u if self.parallel else x)

    def mixed(self, x: Tensor, x0: Tensor) -> Tensor:
        """Mix the stream with its beginning: what the branches read, (B, T, D)."""
        mix = self.resid_mix.to(x.dtype)
        return mix[0] * x + mix[1] * x0

    def attend(
        self,
        u: Tensor,
        value_embedding: Tensor | None,
        rotary: tuple[Tensor, Tensor],
        queries: slice | None,
        **kwargs: Any,
    ) -> Tensor:
        """Return what the attention branch adds, (B, T, D), for ``queries`` or all positions."""
        normed = self.branch_scale * rms_norm(u, self.eps)
        attended: Tensor
        attended, _ = self.self_attn(normed, rotary, value_embedding, queries=queries, **kwargs)
        return self.attn_scale.to(u.dtype) * attended

    def feed(self, u: Tensor) -> Tensor:
        """Return what the feed-forward branch adds, (B, T, D)."""
        fed: Tensor = self.mlp(self.branch_scale * rms_norm(u, self.eps))
        return self.mlp_scale.to(u.dtype) * fed
