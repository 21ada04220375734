"""Who trains what: a partition of the parameters over the optimisers, proven complete and disjoint.

Token-indexed tables and an untied head go to Adam with rates of their own, block matrices to Muon, vectors and
scalars to Adam. Source: SPEC-11L 1.1, 2.3.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.nn import Parameter
from torch.optim import AdamW, Optimizer

from modeling_pgolf.errors import TrainingError

from .config import TrainingConfig
from .optim.muon import Muon

# Adam's constants in all records up to PR 1855.
ADAM_BETAS = (0.9, 0.95)
ADAM_EPS = 1e-8

ROLES = ("token", "head", "matrix", "scalar")
# Two-dimensional parameters that are stacks of vectors: one row for each use.
STACKED_VECTORS = ("resid_mix", "skips.weights", "skips.gates", "lane_routing")


def role_of(name: str, parameter: Parameter, table_projections: str) -> str:
    """Name the role of one parameter: token, head, matrix or scalar."""
    if name.endswith(("embed_tokens.weight", "embed.weight")):
        return "token"
    if name.startswith("lm_head"):
        return "head"
    if parameter.ndim < 2 or name.endswith(STACKED_VECTORS):
        return "scalar"
    if ".self_attn." in name or ".mlp." in name or table_projections == "muon":
        return "matrix"
    return "scalar"


def partition(named: Iterable[tuple[str, Parameter]], table_projections: str) -> dict[str, list[Parameter]]:
    """Split named parameters by role; raises TrainingError unless each has exactly one."""
    named = list(named)
    roles: dict[str, list[Parameter]] = {role: [] for role in ROLES}
    for name, parameter in named:
        roles[role_of(name, parameter, table_projections)].append(parameter)
    owned = [id(p) for members in roles.values() for p in members]
    if sorted(owned) != sorted({id(p) for _, p in named}):
        raise TrainingError("the optimisers do not partition the parameters: one is shared under two names")
    return roles


def build_optimizers(model: nn.Module, config: TrainingConfig) -> list[Optimizer]:
    """Build the optimisers of all trainable parameters; every group carries its peak rate as ``peak_lr``."""
    trainable = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    roles = partition(trainable, config.table_projections)
    # Rate and decay. The reference gives an untied head plain Adam: no decay.
    rates = {
        "token": (config.token_lr, config.token_decay),
        "head": (config.head_lr, 0.0),
        "scalar": (config.scalar_lr, config.scalar_decay),
    }
    fused = any(p.is_cuda for _, p in trainable)
    groups = [
        {"params": roles[role], "lr": rate, "weight_decay": decay}
        for role, (rate, decay) in rates.items()
        if roles[role]
    ]
    optimizers: list[Optimizer] = [AdamW(groups, betas=ADAM_BETAS, eps=ADAM_EPS, fused=fused)] if groups else []
    if roles["matrix"]:
        dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
        rows = config.row_normalized_muon
        optimizers.append(Muon(roles["matrix"], config.matrix_lr, config.matrix_decay, dtype, rows))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return optimizers
