"""Rate control: the finest grid whose file still fits.

With an absolute grid the step decides the size of the file, so the step is searched: predicted from the entropy of
the codes by bisection, then checked against the real file and widened until it fits. Source: FRONTIER 0.4.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from modeling_pgolf.grid import GridTensor, encode, largest_code
from modeling_pgolf.quantization_pgolf import Weights, pack

from .assign import MATRIX_BITS, Kind, assign
from .budget import order0_entropy
from .clipping import row_reach
from .config import QuantizationConfig

# The search aims this far below the limit; the check against the real file makes up for what the prediction misses.
MARGIN = 0.002
# Steps searched, from a thousandth of the given floor to eight times it.
FINEST, COARSEST = 1e-3, 8.0
# 12 halvings of those 13 octaves leave the step known to a fifth of a percent.
BISECTIONS = 12
# How often a frame that misses the limit is aimed lower.
ATTEMPTS = 6


def fitted_config(
    state: dict[str, Tensor], config: QuantizationConfig, frame_bytes: float, fixed: int
) -> QuantizationConfig:
    """Return ``config`` with the smallest ``matrix_scale_floor`` whose predicted frame is under ``frame_bytes``.

    fixed: bytes of everything in the frame that is not a matrix code.
    """
    matrices = [w.float() for name, w in state.items() if assign(name, w, config.small_tensor_elements) is Kind.MATRIX]
    scales = [row_reach(matrix, 1.0) / largest_code(MATRIX_BITS) for matrix in matrices]
    low, high = config.matrix_scale_floor * FINEST, config.matrix_scale_floor * COARSEST
    target = frame_bytes * (1 - MARGIN) - fixed
    for _ in range(BISECTIONS):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if predicted_bytes(matrices, scales, middle) > target else (low, middle)
    return replace(config, matrix_scale_floor=high)


def predicted_bytes(matrices: list[Tensor], scales: list[Tensor], floor: float) -> float:
    """Predict the bytes of all matrix codes from their order-0 entropy, matrix by matrix."""
    total = 0.0
    for matrix, scale in zip(matrices, scales, strict=True):
        codes = encode(matrix, scale.clamp_min(floor).to(torch.float16), MATRIX_BITS)
        total += matrix.numel() * order0_entropy(codes) / 8
    return total


def fixed_bytes(weights: Weights) -> int:
    """Return the bytes of a frame that holds only what is not a matrix."""
    return len(
        pack({n: w for n, w in weights.items() if not (isinstance(w, GridTensor) and w.bits == MATRIX_BITS)}, level=3)
    )
