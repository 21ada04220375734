"""Compress a model: assign, calibrate, quantise, pack, and fit the result into its bytes.

Takes a module, gives back the weights on their grids and the packed frame; writing files is the shell's business.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from modeling_pgolf.byte_codecs import require
from modeling_pgolf.errors import BudgetError, RecipeError
from modeling_pgolf.grid import GridTensor, encode
from modeling_pgolf.modeling_pgolf import PGolfForCausalLM
from modeling_pgolf.quantization_pgolf import Weights, pack

from .assign import Role, assign
from .budget import GroupBytes, byte_ledger
from .clipping import (
    bits_of,
    finite,
    least_error,
    percentile_scales,
    quantize_table,
    quantize_vector,
    row_width,
    scale_of,
)
from .config import PercentileClip, QuantizationConfig, SdClip, TrainBatches
from .gptq import Curvature, curvature, round_columns
from .hessian import collect_hessians, head_name
from .pruning import smallest_pruning
from .rate import (
    ATTEMPTS,
    CLOSE,
    MARGIN,
    RateSearch,
    RolePlan,
    finest_factor,
    intent,
    next_aim,
    plan_of,
    scaled,
    searchable,
)

Curvatures = dict[str, Curvature]


@dataclass(frozen=True)
class Calibration:
    """What GPTQ knows of a model's inputs: second moments (C, C) by parameter name; seconds by phase."""

    hessians: dict[str, Tensor]
    seconds: dict[str, float]


@dataclass(frozen=True)
class Artifact:
    """A compressed model.

    weights, frame: on their grids, and packed by ``codec``. clip: the clip in use, which rate control may have changed.
    seconds: by phase.
    """

    weights: Weights
    frame: bytes
    codec: str
    clip: PercentileClip | SdClip
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def ledger(self) -> list[GroupBytes]:
        """The bytes of each group of tensors. Counted when asked for: rate control throws most artifacts away."""
        return byte_ledger(self.weights, len(self.frame), self.codec)

    @property
    def plan(self) -> list[RolePlan]:
        """What the codes of each role are worth."""
        return plan_of(self.weights, self.clip)


def compress(
    model: PGolfForCausalLM,
    config: QuantizationConfig,
    frame_limit: int,
    calibration: Calibration | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> Artifact:
    """Quantise and pack every weight of ``model``; equal weights and calibration give equal bytes.

    frame_limit: bytes that the frame may take; rate control and pruning look at it, a fixed grid does not.
    calibration: of this model, for GPTQ. tell: hears what rate control is about to try, and why it left bytes free.
    Raises RecipeError where GPTQ has no calibration, BudgetError where rate control or pruning finds nothing that fits,
    EnvironmentMismatch where the codec's package is not installed.
    """
    require(config.codec)
    if config.gptq is not None and calibration is None:
        raise RecipeError("quantization.gptq needs text to calibrate on; give compress() what calibrate() returns")
    seconds = dict(calibration.seconds) if calibration else {}
    state, curvatures = stored_state(model), dict[str, Curvature]()
    if config.gptq is not None and calibration is not None:
        with timed(seconds, "round"):
            damping = config.gptq.damping
            curvatures = {name: curvature(hessian, damping) for name, hessian in calibration.hessians.items()}
    if config.fill_budget:
        artifact = fill_budget(state, config, frame_limit, curvatures, model.device, tell)
    else:
        artifact = packed(state, config, curvatures)
    if config.prune_to_fit and len(artifact.frame) > frame_limit:
        artifact = pruned(artifact, config, frame_limit)
    phases = {phase: seconds.get(phase, 0.0) + artifact.seconds.get(phase, 0.0) for phase in seconds | artifact.seconds}
    return replace(artifact, seconds=phases)


def calibrate(model: PGolfForCausalLM, config: QuantizationConfig, batches: Iterable[Tensor]) -> Calibration:
    """Collect the second moments of everything that GPTQ rounds; nothing without GPTQ.

    batches: this process's share of the text, token ids (B, T), read while the phase ``calibration`` is measured, or
    ``self_calibration`` where the model wrote them. All processes must call it together.
    Raises TrainingError where no process has any text.
    """
    gptq, seconds = config.gptq, dict[str, float]()
    if gptq is None:
        return Calibration({}, seconds)
    roles = {name: assign(name, p, config.small_tensor_elements) for name, p in model.named_parameters()}
    head = head_name(model) if gptq.token_table else None
    with timed(seconds, "calibration" if isinstance(gptq.calibration, TrainBatches) else "self_calibration"):
        hessians = collect_hessians(
            model,
            batches,
            gptq,
            lambda name: roles[name].is_matrix or (name == head and roles[name] is Role.TABLE),
        )
    return Calibration(hessians, seconds)


def packed(state: dict[str, Tensor], config: QuantizationConfig, curvatures: Curvatures) -> Artifact:
    """Quantise and pack a state on the grids that ``config`` names."""
    seconds: dict[str, float] = {}
    with timed(seconds, "round"):
        weights = quantize_state(state, config, curvatures)
    return framed(weights, config, seconds)


def framed(weights: Weights, config: QuantizationConfig, seconds: dict[str, float]) -> Artifact:
    """Pack weights that are on their grids; ``seconds`` so far go on."""
    with timed(seconds, "pack"):
        frame = pack(weights, config.codec, config.codec_level)
    return Artifact(weights, frame, config.codec, config.clip, seconds)


def fill_budget(
    state: dict[str, Tensor],
    config: QuantizationConfig,
    frame_limit: int,
    curvatures: Curvatures,
    device: torch.device,
    tell: Callable[[str], None],
) -> Artifact:
    """Pack a state on the finest grid whose frame fits, within half a percent of the limit where the model has so much.

    device: where sizes are predicted.
    Raises BudgetError where none fits; with ``prune_to_fit`` the last one tried is left to pruning.
    """
    target, best, spent, planning = frame_limit * (1 - MARGIN), None, dict[str, float](), dict[str, float]()
    with timed(planning, "plan"):
        tensors = searchable(state, config, device)
        rest = {name: tensor for name, tensor in state.items() if name not in tensors}
        others = len(pack(quantize_state(rest, config, curvatures), level=3))
    search, finest = RateSearch(tensors, others), finest_factor(config.clip)
    tried: list[tuple[float, int]] = []
    for _ in range(ATTEMPTS):
        aim = next_aim(tried, target) if tried else target
        with timed(planning, "plan"):
            factor = search.factor(config.clip, aim)
            clip = scaled(config.clip, factor)
            tell(intent(clip, search.predicted_bytes(clip), frame_limit))
        artifact = packed(state, replace(config, clip=clip), curvatures)
        size = len(artifact.frame)
        tried.append((aim, size))
        spent = {phase: spent.get(phase, 0.0) + seconds for phase, seconds in artifact.seconds.items()}
        if size <= frame_limit and (best is None or size > len(best.frame)):
            best = artifact
        if size <= frame_limit and (size >= (1 - CLOSE) * frame_limit or factor == finest):
            break
    if best is None and not config.prune_to_fit:
        raise BudgetError(f"no grid fits {frame_limit:,} bytes; the last one tried took {size:,}: shrink the model")
    if best and len(best.frame) < (1 - CLOSE) * frame_limit:
        why = "no finer grid is tried" if factor == finest else f"{ATTEMPTS} grids were tried"
        tell(f"{frame_limit - len(best.frame):,} of {frame_limit:,} bytes stay free: {why}")
    return replace(best or artifact, seconds=spent | planning)


def pruned(artifact: Artifact, config: QuantizationConfig, frame_limit: int) -> Artifact:
    """Drop the cheapest codes of ±1 until the frame fits; raises BudgetError where dropping all of them does not do."""

    def fits(weights: Weights) -> bool:
        return len(pack(weights, config.codec, config.codec_level)) <= frame_limit

    smaller = smallest_pruning(artifact.weights, fits)
    if smaller is None:
        raise BudgetError(
            f"the frame takes {len(artifact.frame):,} of {frame_limit:,} bytes, and does not fit without its codes of "
            "±1 either: take a coarser grid or shrink the model"
        )
    return framed(smaller, replace(config, clip=artifact.clip), dict(artifact.seconds))


def stored_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the parameters by name, a tied head left out."""
    return {name: p.detach().cpu() for name, p in model.named_parameters(remove_duplicate=True)}


def quantize_state(
    state: dict[str, Tensor], config: QuantizationConfig, curvatures: Curvatures | None = None
) -> Weights:
    """Put each tensor on the grid that the assignment gives it."""
    known = curvatures or {}
    return {name: quantize_tensor(name, tensor, config, known.get(name)) for name, tensor in sorted(state.items())}


def quantize_tensor(
    name: str, tensor: Tensor, config: QuantizationConfig, curve: Curvature | None
) -> GridTensor | Tensor:
    """Quantise one named tensor, by GPTQ where there is ``curve``; or round it to float16."""
    role, clip = assign(name, tensor, config.small_tensor_elements), config.clip
    if role is Role.FLOAT16:
        return finite(tensor).to(torch.float16)
    if config.gptq is not None and curve is None and role.is_matrix:
        raise RecipeError(f"GPTQ has no second moments for '{name}': it is no linear layer that calibration reaches")
    bits = bits_of(role, clip)
    if curve is None and role is Role.TABLE and isinstance(clip, PercentileClip):
        return quantize_table(tensor, bits, clip.table_scale_floor)
    weight = finite(tensor)
    if weight.ndim < 2:
        return quantize_vector(weight, bits)
    if isinstance(clip, PercentileClip):
        floor = clip.matrix_scale_floor if role.is_matrix else clip.table_scale_floor
        scales = percentile_scales(weight, bits, floor)
    else:
        scales = [scale_of(row_width(weight, clip), role, clip)]
    if curve is None:
        return least_error(weight, scales, bits, lambda scale: encode(weight, scale, bits))
    return by_columns(weight, scales, bits, curve)


def by_columns(weight: Tensor, scales: list[Tensor], bits: int, curve: Curvature) -> GridTensor:
    """Round by GPTQ on the device of ``curve``; returns the grid tensor on the CPU."""
    device = curve.factor.device
    placed = [scale.to(device) for scale in scales]
    rounded = least_error(
        curve.alive(weight.to(device)),
        placed,
        bits,
        lambda scale: round_columns(weight.to(device), scale, bits, curve),
    )
    return GridTensor(rounded.codes.cpu(), rounded.scale.cpu(), bits)


def dequantized(weights: Weights) -> dict[str, Tensor]:
    """Return the float32 weights that a loader of the artifact sees."""
    return {name: w.decode() if isinstance(w, GridTensor) else w.float() for name, w in weights.items()}


@contextmanager
def timed(seconds: dict[str, float], phase: str) -> Iterator[None]:
    """Add the seconds of the context to ``phase``."""
    started = time.perf_counter()
    yield
    seconds[phase] = seconds.get(phase, 0.0) + time.perf_counter() - started
