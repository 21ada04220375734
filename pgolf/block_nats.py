"""Nats of a record, summed over blocks of targets: small enough to publish, fine enough to be checked anywhere.

All nats of the challenge's validation text are 500 MB. Their sums over blocks of one window are 500 KB, add up to the
score, and let a reader choose blocks that the author could not foresee, score those alone and compare.

``N`` targets, ``W`` block. Format: docs/FORMAT.md, section 7.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from modeling_pgolf.errors import FormatError

BLOCK_NATS = "block_nats.safetensors"
# Sums of float64 in another order differ in their last digits.
SUM_TOLERANCE = 1e-9


@dataclass(frozen=True)
class BlockNats:
    """Sums over blocks of ``size`` targets, by scoring, each float64 (ceil(targets / size),)."""

    size: int
    targets: int
    sums: dict[str, Tensor]

    def count(self, block: int) -> int:
        """Return how many targets a block has: the last may have fewer."""
        return min(self.size, self.targets - block * self.size)


def block_sums(nats: Tensor, size: int) -> Tensor:
    """Sum nats (N,) over consecutive blocks of ``size``; float64 (ceil(N / size),)."""
    blocks = torch.arange(len(nats)) // size
    return torch.zeros(-(-len(nats) // size), dtype=torch.float64).index_add_(0, blocks, nats.double())


def write_block_nats(nats: dict[str, Tensor], size: int, path: Path) -> None:
    """Write the sums of every scoring; ``nats`` are (N,) each."""
    targets = len(next(iter(nats.values())))
    sums = {name: block_sums(values, size) for name, values in nats.items()}
    save_file(sums, path, metadata={"block": str(size), "targets": str(targets)})


def read_block_nats(path: Path, scores: dict[str, Any]) -> BlockNats:
    """Read sums and compare them with ``scores``, the record's.

    Raises FormatError where the file is none, lacks a scoring, has a sum that no nats have, or does not add up.
    """
    try:
        with safe_open(path, framework="pt") as file:
            facts = file.metadata() or {}
            size, targets = int(facts["block"]), int(facts["targets"])
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
            expected = {name: [-(-targets // size)] for name in scores}
            if size < 1 or shapes != expected:
                raise FormatError(f"asked for sums {expected} in {path.name}; found {shapes}; the record is damaged")
            sums = {name: file.get_tensor(name).double() for name in shapes}
    except (OSError, SafetensorError, KeyError, ValueError, ZeroDivisionError) as error:
        raise FormatError(
            f"asked for {path.name}; found {error!r}; the record is damaged or was made before"
        ) from error
    for name, score in scores.items():
        if not (torch.isfinite(sums[name]) & (sums[name] >= 0)).all():
            raise FormatError(
                f"asked for sums of nats in {path.name}; '{name}' has one that is negative or no number; nats are "
                "neither; the record is damaged"
            )
        total = float(sums[name].sum())
        if targets != score["targets"] or not abs(total - score["nats"]) <= SUM_TOLERANCE * abs(score["nats"]):
            raise FormatError(
                f"{path.name} adds up to {total!r} nats of {targets:,} targets for '{name}'; scores.json says "
                f"{score['nats']!r} of {score['targets']:,}; the record is damaged"
            )
    return BlockNats(size, targets, sums)
