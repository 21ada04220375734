"""The byte ledger of an artifact: which group of tensors costs what, beside the entropy of its codes.

A group's bytes are what the codec needs for it alone, scaled so that the groups add up to the file. The order-0
entropy of the codes is the floor of any coder that looks at one code at a time.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from modeling_pgolf.errors import BudgetError
from modeling_pgolf.grid import GridTensor
from modeling_pgolf.quantization_pgolf import Weights, pack

from .assign import group_of

# The challenge's limit on code and weights together, in bytes (decimal). Source: LEGALITY B1.
BYTE_LIMIT = 16_000_000


@dataclass(frozen=True)
class GroupBytes:
    """One line of the byte ledger; entropy_bits is 0 where the group has no codes."""

    group: str
    weights: int
    bytes: int
    bits_per_weight: float
    entropy_bits: float


def byte_ledger(weights: Weights, frame_bytes: int, codec: str) -> list[GroupBytes]:
    """Share ``frame_bytes``, packed by ``codec``, out over the groups of tensors, largest first."""
    groups: dict[str, Weights] = {}
    for name, weight in weights.items():
        groups.setdefault(group_of(name), {})[name] = weight
    # Level 3 is enough for shares and takes seconds less than 22; brotli would take as long again as the export.
    quick = "ans" if codec == "ans" else "zstd"
    alone = {group: len(pack(members, quick, level=3)) for group, members in groups.items()}
    share = frame_bytes / max(sum(alone.values()), 1)
    lines = [_line(group, [*groups[group].values()], round(alone[group] * share)) for group in groups]
    return sorted(lines, key=lambda line: -line.bytes)


def order0_entropy(codes: Tensor) -> float:
    """Return the order-0 entropy of integer codes, in bits per code."""
    counts = torch.bincount(codes.flatten().to(torch.int64) + 128).double()
    share = counts[counts > 0] / counts.sum()
    return float(-(share * share.log2()).sum())


def check_budget(weight_bytes: int, code_bytes: int, limit: int = BYTE_LIMIT) -> int:
    """Return the total in bytes; raises BudgetError where it is over ``limit``."""
    total = weight_bytes + code_bytes
    if total > limit:
        raise BudgetError(
            f"the artifact takes {total:,} bytes ({weight_bytes:,} weights + {code_bytes:,} code), "
            f"{total - limit:,} over the limit of {limit:,}; let quantization.fill_budget choose the grid, coarsen "
            "quantization.clip or shrink the model"
        )
    return total


def _line(group: str, members: list[GridTensor | Tensor], size: int) -> GroupBytes:
    count = sum((m.codes if isinstance(m, GridTensor) else m).numel() for m in members)
    codes = [m.codes.flatten() for m in members if isinstance(m, GridTensor)]
    entropy = order0_entropy(torch.cat(codes)) if codes else 0.0
    return GroupBytes(group, count, size, 8 * size / max(count, 1), entropy)
