"""Initial weights of every kind of module.

Matrices start orthogonal, output projections at zero, gains at one; tables are small normals. Functions of
``transformers.initialization`` leave loaded tensors alone. Source: PR 65 and PR 162; SPEC-11L 1.2.
"""

import torch
from torch import Tensor, nn
from transformers import initialization as init

from .attention import Attention
from .blocks import Block
from .configuration_pgolf import PGolfConfig
from .embeddings import ProjectedTable
from .gates import SmearGate

# A matrix gets an orthogonal start where both sides are at least this long; smaller ones keep torch's default.
ORTHOGONAL_SIDE = 64


def init_module(module: nn.Module, config: PGolfConfig) -> None:
    """Give one module below the model its initial weights; other modules are left alone."""
    if isinstance(module, Attention):
        for linear in (module.q_proj, module.k_proj, module.v_proj):
            init_matrix(linear.weight)
        init.zeros_(module.o_proj.weight)
        init.constant_(module.q_gain, config.q_gain_init)
    elif isinstance(module, Block):
        init_matrix(module.mlp.up_proj.weight)
        init.zeros_(module.mlp.down_proj.weight)
        init.ones_(module.attn_scale)
        init.ones_(module.mlp_scale)
        one = torch.ones_like(module.attn_scale)
        init.copy_(module.resid_mix, torch.stack((one, torch.zeros_like(one))))
    elif isinstance(module, ProjectedTable):
        init.normal_(module.embed.weight, std=module.table_std)
        init.constant_(module.scale, module.initial_scale)
        if module.proj is not None:
            init_matrix(module.proj.weight, gain=config.table_proj_init_gain)
    elif isinstance(module, SmearGate):
        init.zeros_(module.gate)


def init_matrix(weight: Tensor, gain: float = 1.0) -> None:
    """Start a matrix orthogonal, or uniform as torch's linear layers do where a side is short."""
    if min(weight.shape) >= ORTHOGONAL_SIDE:
        init.orthogonal_(weight, gain=gain)
    else:
        bound = weight.shape[1] ** -0.5
        init.uniform_(weight, -bound, bound)
