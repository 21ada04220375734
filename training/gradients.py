"""Clipping and averaging of gradients over processes, in the two orders that records used.

``global``: average first, then clip the norm of what all processes share. ``per_rank``: each process clips its own
gradient, then they are averaged, so the step depends on the number of processes. Sources: PR 414 (global), PR 549
(per rank); SPEC-11L 2.2.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor
from torch.nn import Parameter

# Clips the gradients of parameters to a norm, on all processes, and returns the norm before the clip.
Clip = Callable[[Accelerator, Sequence[Parameter], float], Tensor]


def clip_global(accelerator: Accelerator, parameters: Sequence[Parameter], limit: float) -> Tensor:
    """Clip gradients that are averaged already."""
    norm: Tensor = accelerator.clip_grad_norm_(parameters, limit)
    return norm


def clip_per_rank(accelerator: Accelerator, parameters: Sequence[Parameter], limit: float) -> Tensor:
    """Clip this process's own gradients, then average them; the norm is this process's."""
    norm = torch.nn.utils.clip_grad_norm_(parameters, limit)
    average_over_processes(accelerator, parameters)
    return norm


def average_over_processes(accelerator: Accelerator, parameters: Sequence[Parameter]) -> None:
    """Average the gradients of ``parameters``, which all processes must have, in place."""
    if accelerator.num_processes == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    for pending in [dist.all_reduce(gradient, async_op=True) for gradient in gradients]:
        pending.wait()
    torch._foreach_div_(gradients, accelerator.num_processes)


CLIPS: dict[str, Clip] = {"global": clip_global, "per_rank": clip_per_rank}
