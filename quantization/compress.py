"""Compress a model: assign, quantise, pack.

Takes a module, gives back the weights on their grids and the packed frame; writing files is the shell's business.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from modeling_pgolf.errors import BudgetError
from modeling_pgolf.grid import GridTensor
from modeling_pgolf.quantization_pgolf import Weights, pack

from .assign import MATRIX_BITS, TABLE_BITS, Kind, assign
from .budget import GroupBytes, byte_ledger
from .clipping import finite, quantize_matrix, quantize_table
from .config import QuantizationConfig
from .rate import ATTEMPTS, MARGIN, fitted_config, fixed_bytes


@dataclass(frozen=True)
class Artifact:
    """A compressed model: weights on their grids, the frame that holds them, the byte ledger, the floor in use."""

    weights: Weights
    frame: bytes
    ledger: list[GroupBytes]
    matrix_scale_floor: float


def compress(model: nn.Module, config: QuantizationConfig, frame_limit: int) -> Artifact:
    """Quantise and pack every weight of ``model``; equal weights give equal bytes.

    frame_limit: bytes that the frame may take; only rate control (``fill_budget``) looks at it.
    """
    state = stored_state(model)
    if config.fill_budget:
        return fill_budget(state, config, frame_limit)
    return packed(state, config)


def packed(state: dict[str, Tensor], config: QuantizationConfig) -> Artifact:
    """Quantise and pack a state on the grids that ``config`` names."""
    weights = quantize_state(state, config)
    frame = pack(weights, level=config.codec_level)
    return Artifact(weights, frame, byte_ledger(weights, len(frame)), config.matrix_scale_floor)


def fill_budget(state: dict[str, Tensor], config: QuantizationConfig, frame_limit: int) -> Artifact:
    """Pack a state on the finest grid whose frame fits; raises BudgetError where none does."""
    fixed = fixed_bytes(quantize_state(state, config))
    aim = float(frame_limit)
    for _ in range(ATTEMPTS):
        artifact = packed(state, fitted_config(state, config, aim, fixed))
        if len(artifact.frame) <= frame_limit:
            return artifact
        aim *= frame_limit / len(artifact.frame) * (1 - MARGIN)
    raise BudgetError(
        f"no grid found whose frame fits {frame_limit:,} bytes; the last took {len(artifact.frame):,}: shrink the model"
    )


def stored_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the parameters by name, a tied head left out."""
    return {name: p.detach().cpu() for name, p in model.named_parameters(remove_duplicate=True)}


def quantize_state(state: dict[str, Tensor], config: QuantizationConfig) -> Weights:
    """Put each tensor on the grid that the assignment gives it."""
    return {name: quantize_tensor(name, tensor, config) for name, tensor in sorted(state.items())}


def quantize_tensor(name: str, tensor: Tensor, config: QuantizationConfig) -> GridTensor | Tensor:
    """Quantise one named tensor, or round it to float16."""
    kind = assign(name, tensor, config.small_tensor_elements)
    if kind is Kind.MATRIX:
        return quantize_matrix(tensor, MATRIX_BITS, config.matrix_scale_floor)
    if kind is Kind.TABLE:
        return quantize_table(tensor, TABLE_BITS, config.table_scale_floor)
    return finite(tensor).to(torch.float16)


def dequantized(weights: Weights) -> dict[str, Tensor]:
    """Return the float32 weights that a loader of the artifact sees."""
    return {name: w.decode() if isinstance(w, GridTensor) else w.float() for name, w in weights.items()}
