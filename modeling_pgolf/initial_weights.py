"""Initial weights of every kind of module.

Matrices start orthogonal, output projections at zero, gains at one; tables are small normals. Functions of
``transformers.initialization`` leave loaded tensors alone.

Random draws come in the order of registration, first those of all constructors (most are thrown away), then those
made here. It is the order of PR 414 and PR 1394: one seed gives the weights that their scripts start from, bit for bit.

Source: PR 65 and PR 162; SPEC-11L 1.2; SPEC-8192 1.5.
"""

import torch
from torch import nn
from transformers import initialization as init

from .attention import Attention
from .blocks import Block
from .configuration_pgolf import PGolfConfig
from .embeddings import ProjectedTable, Table
from .gates import SmearGate
from .lanes import MergedLanes, RoutedBlock
from .linear import CastLinear
from .skips import Skips

# A matrix gets an orthogonal start where both sides are at least this long; smaller ones keep torch's default.
ORTHOGONAL_SIDE = 64
# What a branch keeps of the lanes at the start, PR 1204.
LANE_RETENTION = 1.1**0.5


def init_module(module: nn.Module, config: PGolfConfig) -> None:
    """Give the parameters that one module below the model owns their initial values.

    Not those of its children: transformers passes over a module whose own parameters were all loaded.
    """
    if isinstance(module, CastLinear):
        init_matrix(module, config)
    elif isinstance(module, Table):
        module.init_rows()
    elif isinstance(module, Attention):
        init.constant_(module.q_gain, config.q_gain_init)
    elif isinstance(module, Block):
        init.ones_(module.attn_scale)
        init.ones_(module.mlp_scale)
        one = torch.ones_like(module.attn_scale)
        init.copy_(module.resid_mix, torch.stack((one, torch.zeros_like(one))))
    elif isinstance(module, ProjectedTable):
        init.constant_(module.scale, module.initial_scale)
    elif isinstance(module, SmearGate):
        init.zeros_(module.gate)
    elif isinstance(module, Skips):
        init.ones_(module.weights)
        if module.gates is not None:
            init.zeros_(module.gates)
    if config.lanes is not None:
        init_lanes(module)


def init_lanes(module: nn.Module) -> None:
    """Let lanes meet halfway, and routed blocks write both branches to both lanes alike."""
    if isinstance(module, MergedLanes):
        init.constant_(module.merge, 0.5)
    elif isinstance(module, RoutedBlock):
        init.constant_(module.lane_retention, LANE_RETENTION)
        init.ones_(module.lane_routing)


def init_matrix(linear: CastLinear, config: PGolfConfig) -> None:
    """Start a matrix as its layer says; with a short side uniform as torch's linear layers do, unless at zero."""
    if linear.start == "zero":
        init.zeros_(linear.weight)
    elif min(linear.weight.shape) >= ORTHOGONAL_SIDE:
        init.orthogonal_(linear.weight, gain=config.table_proj_init_gain if linear.start == "scaled" else 1.0)
    else:
        bound = linear.in_features**-0.5
        init.uniform_(linear.weight, -bound, bound)
