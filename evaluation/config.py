"""What the scorer is told. Source: SPEC-11L 5."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class EvaluationConfig:
    """Settings of one scoring.

    window: positions a prediction may look back on, in tokens. stride: new targets of each window, in tokens; equal
    to ``window`` gives plain disjoint scoring. batch_windows: windows of one forward pass, an operational choice that
    changes no score beyond float noise. compile: compile the forward pass.
    """

    window: int = 2048
    stride: int = 64
    batch_windows: int = 32
    compile: bool = True
    precision: str = "bf16"
