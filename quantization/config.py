"""What the exporter is told: which grid each kind of tensor gets, and how coarse a grid may be.

Defaults are the export of PR 414. Source: SPEC-11L 4.1-4.3.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class QuantizationConfig:
    """Settings of one export.

    small_tensor_elements: a tensor with no more elements than this stays float16.
    matrix_scale_floor: smallest step of the int6 matrices. Trained rows rarely reach ±1, so a floor of 1/31 gives
    every row the same absolute step: it, not the clip search, decides the size of the file (FRONTIER 0.4).
    table_scale_floor: smallest step of the int8 tables.
    codec_level: effort of the byte codec; a low level is for tests.
    fill_budget: search the floor instead: the smallest whose file fits the byte budget.
    """

    small_tensor_elements: int = 65_536
    matrix_scale_floor: float = 1 / 31
    table_scale_floor: float = 1 / 127
    codec_level: int = 22
    fill_budget: bool = False
