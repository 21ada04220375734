"""Fine-tuning behind the average: AdamW epochs over a fixed stretch of tokens, before the weights are compressed.

Rows of the training length in stream order, each process its own contiguous share, a cosine over epochs, rates that
may rise from block to block, frozen first blocks. Which tokens these are is the shell's business: training text on the
ranked track; seeds 3 and 4 took the validation text, which is the historical track.

Sources: PR 1364, PR 1416, PR 1423; rates by block, the fork of PR 1351; SPEC-11L 5.5, SPEC-8192 5.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import Parameter
from transformers import PreTrainedModel

from modeling_pgolf.errors import TrainingError
from modeling_pgolf.linear import CastLinear

from .batches import TrainTokens
from .config import FineTuneConfig, TrainingConfig
from .gradients import average_over_processes

# AdamW's constants in all of these scripts; there is no weight decay.
BETAS, EPS = (0.9, 0.999), 1e-8
# The cosine ends, beyond the last epoch, at this share of the base rate.
LOWEST_SHARE = 0.1


@dataclass(frozen=True)
class Epoch:
    """What one epoch came to: its base rate, the mean training loss in nats per token, steps taken and planned."""

    lr: float
    train_loss: float
    steps: int
    planned: int


def fine_tune(
    model: PreTrainedModel,
    tokens: TrainTokens,
    training: TrainingConfig,
    accelerator: Accelerator,
    another: Callable[[], bool] = lambda: True,
) -> list[Epoch]:
    """Train ``model`` in place on rows of the training length of ``tokens``; returns the epochs in order.

    another: asked before every step, by all processes; a no ends the epoch, and it is the last one.
    Raises TrainingError where the tokens make no row, or once the loss of an epoch is not finite.
    """
    config, length = training.fine_tune, training.sequence_length
    if config is None or len(tokens) <= length:
        raise TrainingError(
            f"fine-tuning needs training.fine_tune and at least {length + 1:,} tokens, a row and its targets; found "
            f"{len(tokens):,}: raise training.fine_tune.tokens or take a larger corpus"
        )
    groups = parameter_groups(model, config)
    optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=BETAS, eps=EPS, weight_decay=0.0)
    frozen = standing_still(model, [p for group in groups for p in group["params"]])
    planned = steps_of_epoch(tokens, config, length, accelerator)
    model.train()
    done = []
    for epoch in range(config.epochs):
        for group in optimizer.param_groups:
            group["lr"] = epoch_rate(group["peak_lr"], config, epoch)
        batches = takewhile(lambda batch: another(), rows(tokens, config, length, accelerator))
        loss, steps = one_epoch(model, optimizer, batches, training, accelerator)
        if not steps:
            break
        if not math.isfinite(loss):
            raise TrainingError(f"the loss is {loss} in epoch {epoch + 1} of fine-tuning; lower training.fine_tune.lr")
        done.append(Epoch(epoch_rate(config.lr, config, epoch), loss, steps, planned))
        if steps < planned:
            break
    for parameter in frozen:
        parameter.requires_grad_(True)
    return done


def one_epoch(
    model: PreTrainedModel,
    optimizer: torch.optim.Optimizer,
    batches: Iterable[tuple[Tensor, Tensor]],
    training: TrainingConfig,
    accelerator: Accelerator,
) -> tuple[float, int]:
    """Take a step on each batch; returns the mean loss of all processes in nats per token, and the steps."""
    assert training.fine_tune is not None
    moved = [p for group in optimizer.param_groups for p in group["params"]]
    sums, steps = torch.zeros(2, device=accelerator.device), 0
    for inputs, targets in batches:
        with torch.autocast(accelerator.device.type, dtype=torch.bfloat16, enabled=training.precision == "bf16"):
            loss = model(input_ids=inputs, shift_labels=targets, use_cache=False).loss
        mean = step(optimizer, moved, loss, training.fine_tune.grad_clip, accelerator)
        sums += torch.stack([mean * len(inputs), mean.new_tensor(len(inputs))])
        steps += 1
    nats, count = accelerator.reduce(sums).tolist()
    return nats / max(count, 1.0), steps


def standing_still(model: PreTrainedModel, moved: list[Parameter]) -> list[Parameter]:
    """Freeze the trainable parameters that are not among ``moved``; returns them."""
    moving = {id(parameter) for parameter in moved}
    frozen = [p for p in model.parameters() if p.requires_grad and id(p) not in moving]
    for parameter in frozen:
        parameter.requires_grad_(False)
    return frozen


def step(
    optimizer: torch.optim.Optimizer, parameters: list[Parameter], loss: Tensor, limit: float, accelerator: Accelerator
) -> Tensor:
    """Take one step: gradients averaged over processes, then clipped; returns the loss."""
    loss.backward()  # type: ignore[no-untyped-call]
    average_over_processes(accelerator, parameters)
    torch.nn.utils.clip_grad_norm_(parameters, limit)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.detach()


def epoch_rate(peak: float, config: FineTuneConfig, epoch: int) -> float:
    """Return the rate of a group of that ``peak`` in epoch ``epoch`` (from 0)."""
    lowest = LOWEST_SHARE * config.lr
    return lowest + (peak - lowest) * 0.5 * (1 + math.cos(math.pi * epoch / config.epochs))


def parameter_groups(model: PreTrainedModel, config: FineTuneConfig) -> list[dict[str, Any]]:
    """Group the trained parameters by rate: one group a block that is not frozen, and one for everything else."""
    blocks = list(model.model.layers)
    first, last = config.frozen_blocks, len(blocks) - 1
    inside = [block_parameters(block, config.reach_matrices) for block in blocks]
    owned = {id(p) for members in inside for p in members}
    groups: list[dict[str, Any]] = []
    for i in range(first, len(blocks)):
        share = config.first_block_share + (1 - config.first_block_share) * (i - first) / max(last - first, 1)
        groups.append({"params": inside[i], "peak_lr": config.lr * share})
    rest = [p for p in model.parameters() if p.requires_grad and id(p) not in owned]
    return [*groups, {"params": rest, "peak_lr": config.lr}]


def block_parameters(block: nn.Module, matrices: bool) -> list[Parameter]:
    """List a block's trainable parameters, its matrices only where they follow the block's rule."""
    inner = {id(m.weight) for m in block.modules() if isinstance(m, CastLinear)}
    return [p for p in block.parameters() if p.requires_grad and (matrices or id(p) not in inner)]


def rows(
    tokens: TrainTokens, config: FineTuneConfig, length: int, accelerator: Accelerator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield this process's rows, inputs and targets int64 (at most ``rows``, length), in order.

    Every process gets as many batches as any other, or the collectives of a step would wait for ever: where the rows
    do not come out even, a process repeats its last row.
    """
    total, world, rank = (len(tokens) - 1) // length, accelerator.num_processes, accelerator.process_index
    first, last = total * rank // world, total * (rank + 1) // world
    for batch in range(steps_of_epoch(tokens, config, length, accelerator)):
        start = min(first + batch * config.rows, max(last - 1, first))
        count = max(min(config.rows, last - start), 1)
        read = torch.from_numpy(tokens.read(start * length, count * length + 1)).to(accelerator.device)
        yield read[:-1].view(count, length), read[1:].view(count, length)


def steps_of_epoch(tokens: TrainTokens, config: FineTuneConfig, length: int, accelerator: Accelerator) -> int:
    """Return the steps of a whole epoch: those of the process with the most rows."""
    share: int = math.ceil((len(tokens) - 1) // length / accelerator.num_processes)
    return math.ceil(share / config.rows)
