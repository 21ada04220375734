"""What the scorer is told. Source: SPEC-11L 5."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from .adaptation.frozen import FrozenConfig
from .adaptation.score_first import ScoreFirstConfig


@dataclass(frozen=True)
class EvaluationConfig:
    """Settings of one scoring.

    window: positions a prediction may look back on, in tokens. stride: new targets of each window, in tokens; equal
    to ``window`` gives plain disjoint scoring. adaptation: the rule that may change the model between chunks.
    batch_windows: windows of one forward pass, an operational choice that changes no score beyond float noise.
    compile: compile the forward pass.
    """

    window: int = 2048
    stride: int = 64
    adaptation: FrozenConfig | ScoreFirstConfig = field(default_factory=FrozenConfig)
    batch_windows: int = 32
    compile: bool = True
    precision: Literal["bf16", "fp32"] = "bf16"
