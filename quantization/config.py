"""What the exporter is told: how far rows may reach, how codes are rounded, how the file is packed and fitted.

A composition of small parts, each with the meaning of one published choice. Defaults are the export of PR 414.
Sources: SPEC-11L 4; SPEC-8192 4.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class PercentileClip:
    """Row scales by a search over clip percentiles: GPTQ-lite (PR 374, PR 414).

    matrix_scale_floor: smallest step of the int6 matrices. Trained rows rarely reach ±1, so a floor of 1/31 gives
    every row the same absolute step: it, not the search, decides the size of the file (FRONTIER 0.4).
    table_scale_floor: smallest step of the int8 tables.
    """

    matrix_scale_floor: float = 1 / 31
    table_scale_floor: float = 1 / 127


@dataclass(frozen=True)
class SdClip:
    """Row scales by standard deviations: a row reaches ``k`` of its own (PR 1394), so ``k`` sets the bits of a code.

    attention_sigmas, feed_forward_sigmas, table_sigmas: k of each role. table_bits: grid of the tables, 8 or 7.
    unit_floor: a row of 6 bits reaches at least ±1 all the same, as the script of PR 1423 has it.
    """

    attention_sigmas: float = 12.85
    feed_forward_sigmas: float = 12.85
    table_sigmas: float = 20.0
    table_bits: Literal[7, 8] = 8
    unit_floor: bool = False


@dataclass(frozen=True)
class TrainBatches:
    """Calibrate on training text, the first batches of the stream: it counts as training time (LEGALITY B2).

    batches: how many. batch_sequences: sequences of the training length in each; PR 1394 has 64 of 48.
    """

    batches: int = 64
    batch_sequences: int = 48


@dataclass(frozen=True)
class SelfGenerated:
    """Calibrate on text that the model itself samples (PR 1019): no training text is read.

    sequences, tokens: how many, and how long. temperature: of the sampling.
    """

    sequences: int = 64
    tokens: int = 2048
    temperature: float = 0.8


@dataclass(frozen=True)
class GptqConfig:
    """Rounding that makes up for its own error with the columns still to come (GPTQ), from second moments of inputs.

    damping: share of the mean diagonal that is added to it. damp_twice: once more where the moments are collected, as
    PR 1019's line has it. token_table: the head's table as well, by the inputs of the head (PR 1394); PR 1019 does not.
    additive_skips: calibrate without the skip gates, as the script of PR 1423 does by mistake.
    """

    calibration: TrainBatches | SelfGenerated = TrainBatches()
    damping: float = 0.01
    damp_twice: bool = False
    token_table: bool = True
    additive_skips: bool = False
    precision: Literal["bf16", "fp32"] = "bf16"


@dataclass(frozen=True)
class QuantizationConfig:
    """Settings of one export.

    small_tensor_elements: a tensor with no more elements than this stays float16.
    clip: how row scales are found. gptq: how codes are rounded; None for the nearest.
    codec: how the file is packed. codec_level: zstd's effort; a low one is for tests.
    fill_budget: widen or narrow the rows of ``clip``, all roles by one factor, until the file just fits its budget.
    prune_to_fit: as a last resort, set the cheapest codes of ±1 to 0 until the file fits (PR 609, PR 1019).
    """

    small_tensor_elements: int = 65_536
    clip: PercentileClip | SdClip = PercentileClip()
    gptq: GptqConfig | None = None
    codec: Literal["zstd", "shuffle-brotli", "ans"] = "zstd"
    codec_level: int = 22
    fill_budget: bool = False
    prune_to_fit: bool = False
