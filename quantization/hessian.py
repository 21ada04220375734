"""Second moments of what each matrix multiplies: ``H = Σ xᵀ x`` over calibration text, divided by the batches.

Inputs are caught by forward hooks while the model reads the batches, so a block that is visited several times adds
up all its visits. The head's table gets the moments of the normed last stream. Sums are float32 and go over all
processes. Source: SPEC-8192 4.2, 4.7; SPEC-11L 4.5.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from modeling_pgolf.attention import fastest_attention
from modeling_pgolf.errors import TrainingError
from modeling_pgolf.linear import CastLinear
from modeling_pgolf.modeling_pgolf import PGolfForCausalLM

from .config import GptqConfig

# Under the mean diagonal of an input that is always 0. Source: PR 1019.
LEAST_MEAN = 1e-6


class Moments:
    """Running sums of second moments by parameter name, each (C, C)."""

    def __init__(self, columns: dict[str, int], device: torch.device) -> None:
        self.sums = {name: torch.zeros(count, count, device=device) for name, count in columns.items()}
        self.batches = torch.zeros((), device=device)
        self.reached: set[str] = set()
        self._last: tuple[Tensor, Tensor] | None = None

    def add(self, name: str, inputs: Tensor) -> None:
        """Add the second moments of ``inputs`` (..., C); layers in a row that read one tensor share its product."""
        if self._last is None or self._last[0] is not inputs:
            flat = inputs.flatten(0, -2).float()
            self._last = (inputs, flat.T @ flat)
        self.sums[name] += self._last[1]
        self.reached.add(name)

    def means(self) -> dict[str, Tensor]:
        """Return the sums of all processes over all their batches.

        Raises TrainingError where no process has a batch, or where none reached a matrix.
        """
        reached = self.batches.new_tensor([name in self.reached for name in self.sums])
        if dist.is_available() and dist.is_initialized():
            for tensor in (*self.sums.values(), self.batches, reached):
                dist.all_reduce(tensor)
        if not self.batches:
            raise TrainingError("calibration got no text: gptq.calibration asks for no batch, or the corpus is empty")
        if missed := sorted(name for name, processes in zip(self.sums, reached.tolist(), strict=True) if not processes):
            raise TrainingError(f"calibration saw no input of {missed[:3]}: GPTQ would round all of it to zero")
        return {name: total / self.batches for name, total in self.sums.items()}


@torch.no_grad()
def collect_hessians(
    model: PGolfForCausalLM, batches: Iterable[Tensor], config: GptqConfig, wanted: Callable[[str], bool]
) -> dict[str, Tensor]:
    """Let ``model`` read the batches of token ids (B, T); returns second moments (C, C) by parameter name.

    wanted: whether a parameter of this name is to be rounded by its moments.
    Raises TrainingError where there are no batches in any process.
    """
    device = model.device
    autocast = torch.autocast(device.type, dtype=torch.bfloat16, enabled=config.precision == "bf16")
    moments = Moments({name: count for name, count in input_widths(model).items() if wanted(name)}, device)
    for batch in batches:  # which the model may write itself: it is watched while it reads, and only then
        with reading(model, config), hooked(model, moments), fast_products(), autocast, fastest_attention():
            model.model(input_ids=batch.to(device), use_cache=False)
        moments.batches += 1
    return {name: damped(mean, config) for name, mean in moments.means().items()}


def damped(mean: Tensor, config: GptqConfig) -> Tensor:
    """Add the first damping of PR 1019's line, if the configuration has it."""
    if not config.damp_twice:
        return mean
    more = config.damping * mean.diagonal().mean().clamp_min(LEAST_MEAN)
    return mean + more * torch.eye(len(mean), device=mean.device)


def linear_layers(model: PGolfForCausalLM) -> dict[str, CastLinear]:
    """Return the linear layers by the names of their weights."""
    return {f"{name}.weight": layer for name, layer in model.named_modules() if isinstance(layer, CastLinear)}


def input_widths(model: PGolfForCausalLM) -> dict[str, int]:
    """Return the columns of every linear layer's weight, and of the head's table, by name."""
    columns = {name: layer.in_features for name, layer in linear_layers(model).items()}
    return columns | {head_name(model): model.lm_head.in_features}


@contextmanager
def hooked(model: PGolfForCausalLM, moments: Moments) -> Iterator[None]:
    """Add the inputs of the linear layers, and of the head, that ``moments`` has while the context lasts."""
    head, layers = head_name(model), linear_layers(model)

    def catch_inputs(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        return lambda layer, inputs: moments.add(name, inputs[0])

    def catch_stream(base: nn.Module, inputs: Any, output: Any) -> None:
        projected = model.head_input(output.last_hidden_state)  # whose own inputs are caught on the way
        if head in moments.sums:
            moments.add(head, projected)

    caught = [layers[name].register_forward_pre_hook(catch_inputs(name)) for name in moments.sums if name in layers]
    caught.append(model.model.register_forward_hook(catch_stream))
    try:
        yield
    finally:
        for handle in caught:
            handle.remove()


@contextmanager
def reading(model: PGolfForCausalLM, config: GptqConfig) -> Iterator[None]:
    """Hold the model in evaluation mode, and without its skip gates where the configuration says so."""
    training, skips = model.training, model.model.skips
    gates = skips.gates if skips else None
    model.eval()
    if skips and config.additive_skips:
        skips.gates = None
    try:
        yield
    finally:
        if skips:
            skips.gates = gates
        model.train(training)


def head_name(model: PGolfForCausalLM) -> str:
    """Return the name under which the head's table is stored: the token table's where they are tied."""
    names = (name for name, parameter in model.named_parameters() if parameter is model.lm_head.weight)
    return str(next(names))


@contextmanager
def fast_products() -> Iterator[None]:
    """Let float32 products take TF32 while the context lasts: of bfloat16 inputs they lose nothing."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
