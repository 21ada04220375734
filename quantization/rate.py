"""Rate control: the finest grid whose file still fits.

One factor widens or narrows what all roles of the clip reach, so their proportions stay the recipe's: nothing that can
be measured on weights alone says what a role's bits are worth to the score. The factor is found by bisection on a
prediction, the entropy of the codes, and checked against the real file, whose size corrects the prediction.
Source: FRONTIER 0.4 (the step decides the size), 1.5 (so does k).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from modeling_pgolf.grid import GridTensor, encode
from modeling_pgolf.quantization_pgolf import Weights

from .assign import MATRIX_BITS, Role, assign
from .budget import order0_entropy
from .clipping import bits_of, row_width, scale_of
from .config import PercentileClip, QuantizationConfig, SdClip

# The search aims this far below the limit; the check against the real file makes up for what the prediction misses.
MARGIN = 0.0015
# A file that leaves no more than this share of its budget is full.
CLOSE = 0.005
# Factors searched: a floor may shrink to a thousandth, and rows that reach under 4 standard deviations lose more by
# clipping than the finer grid gives back.
FINEST_FLOOR, LEAST_SIGMAS, COARSEST = 1e-3, 4.0, 8.0
# 14 halvings leave the factor known to a tenth of a percent.
BISECTIONS = 14
# How often a frame that misses the limit is aimed anew.
ATTEMPTS = 6


@dataclass(frozen=True)
class RolePlan:
    """One line of the plan: what the codes of a role are worth before they are packed.

    reach: what rows of this role are clipped at, in words. bits: entropy of one code. bytes: of all codes.
    """

    role: str
    grid_bits: int
    reach: str
    weights: int
    bits: float
    bytes: float


@dataclass(frozen=True)
class RateSearch:
    """What a prediction needs of a model: the tensors whose grid may change, and the bytes of everything else."""

    tensors: dict[str, tuple[Role, Tensor, Tensor]]
    fixed_bytes: int

    def factor(self, clip: PercentileClip | SdClip, frame_bytes: float) -> float:
        """Return the smallest factor on ``clip`` whose predicted frame is under ``frame_bytes``."""
        low, high = finest_factor(clip), COARSEST
        if self.predicted_bytes(scaled(clip, low)) <= frame_bytes:
            return low
        for _ in range(BISECTIONS):
            middle = (low * high) ** 0.5
            too_fine = self.predicted_bytes(scaled(clip, middle)) > frame_bytes
            low, high = (middle, high) if too_fine else (low, middle)
        return high

    def predicted_bytes(self, clip: PercentileClip | SdClip) -> float:
        """Predict the frame from the order-0 entropy of codes to the nearest, tensor by tensor."""
        total = float(self.fixed_bytes)
        for role, weight, width in self.tensors.values():
            codes = encode(weight, scale_of(width, role, clip), bits_of(role, clip))
            total += weight.numel() * order0_entropy(codes) / 8
        return total


def intent(clip: PercentileClip | SdClip, predicted: float, limit: int) -> str:
    """Say what is about to be packed, and what the entropy of its codes predicts."""
    reaches = ", ".join(
        f"{role.value} {_reach(role, clip)}" for role in (Role.ATTENTION, Role.FEED_FORWARD, Role.TABLE)
    )
    return f"plan: {reaches}; {predicted:,.0f} of {limit:,} bytes predicted"


def next_aim(tried: list[tuple[float, int]], target: float) -> float:
    """Return the prediction to aim at, from the (prediction, real bytes) tried so far.

    The real size follows the predicted one, though not always as steeply: in proportion at first, then along the
    line through the last two.
    """
    aim, size = tried[-1]
    if len(tried) > 1:
        before, size_before = tried[-2]
        if (aim - before) * (size - size_before) > 0:
            return max(aim + (target - size) * (aim - before) / (size - size_before), 0.0)
    return aim * target / size


def searchable(
    state: dict[str, Tensor], config: QuantizationConfig, device: torch.device
) -> dict[str, tuple[Role, Tensor, Tensor]]:
    """Return role, float32 weight and row widths of the tensors whose grid the factor changes, on ``device``.

    The percentile rule's factor is on the floor of the matrices, SDClip's on every k.
    """
    found = {}
    for name, tensor in state.items():
        role = assign(name, tensor, config.small_tensor_elements)
        if tensor.ndim == 2 and (role.is_matrix or (role is Role.TABLE and isinstance(config.clip, SdClip))):
            weight = tensor.to(device, torch.float32)
            found[name] = (role, weight, row_width(weight, config.clip))
    return found


def scaled(clip: PercentileClip | SdClip, factor: float) -> PercentileClip | SdClip:
    """Return ``clip`` with everything that the search may change multiplied by ``factor``."""
    if isinstance(clip, PercentileClip):
        return replace(clip, matrix_scale_floor=clip.matrix_scale_floor * factor)
    return replace(
        clip,
        attention_sigmas=clip.attention_sigmas * factor,
        feed_forward_sigmas=clip.feed_forward_sigmas * factor,
        table_sigmas=clip.table_sigmas * factor,
    )


def finest_factor(clip: PercentileClip | SdClip) -> float:
    """Return the smallest factor that the search tries."""
    if isinstance(clip, PercentileClip):
        return FINEST_FLOOR
    return LEAST_SIGMAS / min(clip.attention_sigmas, clip.feed_forward_sigmas, clip.table_sigmas)


def plan_of(weights: Weights, clip: PercentileClip | SdClip) -> list[RolePlan]:
    """Plan the file of weights that are on their grids: a line for each role that has codes."""
    roles: dict[Role, list[GridTensor]] = {}
    for name, weight in weights.items():
        if isinstance(weight, GridTensor):
            roles.setdefault(_stored_role(name, weight), []).append(weight)
    return [_line(role, members, clip) for role, members in roles.items()]


def plan_text(plan: list[RolePlan], frame_bytes: int) -> str:
    """Lay a plan out for a terminal, with the bytes of the frame that came of it."""
    lines = [
        f"{line.role:<13} int{line.grid_bits}  {line.reach:<28} {line.weights:>12,} codes of {line.bits:.3f} bits "
        f"{line.bytes:>13,.0f} bytes"
        for line in plan
    ]
    total = sum(line.bytes for line in plan)
    return "\n".join([*lines, f"entropy of all codes {total:,.0f} bytes, packed file {frame_bytes:,} bytes"])


def _stored_role(name: str, weight: GridTensor) -> Role:
    if weight.bits != MATRIX_BITS:
        return Role.TABLE
    return assign(name, weight.codes, small_tensor_elements=0)


def _line(role: Role, members: list[GridTensor], clip: PercentileClip | SdClip) -> RolePlan:
    count = sum(member.codes.numel() for member in members)
    size = sum(member.codes.numel() * order0_entropy(member.codes) / 8 for member in members)
    return RolePlan(role.value, members[0].bits, _reach(role, clip), count, 8 * size / max(count, 1), size)


def _reach(role: Role, clip: PercentileClip | SdClip) -> str:
    if isinstance(clip, PercentileClip):
        return f"step at least {clip.matrix_scale_floor if role.is_matrix else clip.table_scale_floor:.5f}"
    sigmas = (clip.attention_sigmas, clip.feed_forward_sigmas, clip.table_sigmas)
    return f"k = {sigmas[(Role.ATTENTION, Role.FEED_FORWARD, Role.TABLE).index(role)]:.3f}"
