"""How much arithmetic a step is, and the share of the device's peak that it reaches (MFU).

Per token and pass: 6 floating-point operations a matrix weight (2 forward, 4 backward), and ``6 · T · D`` for causal
attention. Tables that are looked up cost nothing; the head is a matrix. Sources: Kaplan et al., 2020, 2.1; Chowdhery
et al., 2022, appendix B.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from modeling_pgolf.linear import CastLinear

# Dense bf16 peak, operations a second, by the driver's name. Source: NVIDIA data sheets of the SXM modules.
PEAK = {"NVIDIA H100 80GB HBM3": 989.4e12, "NVIDIA H200": 989.4e12, "NVIDIA A100-SXM4-80GB": 312e12}


def training_flops(model: Any, sequence_length: int) -> float:
    """Count the operations of training ``model`` on one token, with its layer program as it stands."""
    config, stack = model.config, model.model
    blocks = sum(_matrix_weights(stack.layers[visit.block]) for visit in stack.program)
    tables = _matrix_weights(stack) - sum(_matrix_weights(block) for block in stack.layers)
    head = model.lm_head.weight.numel()
    attention = sequence_length * config.hidden_size * len(stack.program)
    return float(6 * (blocks + tables + head + attention))


def peak_flops(device: torch.device, processes: int) -> float | None:
    """Return the peak of all devices together, operations a second; None where it is not known."""
    if device.type != "cuda" or torch.cuda.get_device_name(device) not in PEAK:
        return None
    return PEAK[torch.cuda.get_device_name(device)] * processes


def _matrix_weights(module: nn.Module) -> int:
    return sum(m.weight.numel() for m in module.modules() if isinstance(m, CastLinear))
