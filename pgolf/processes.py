"""The processes of one launch: how they find one another, end together, and which of them says why."""

from __future__ import annotations

import gc
import time
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator

# Seconds. A launcher ends the other processes of its machine within a second or two of the first that ends.
PATIENCE = 10.0


def join_processes(**settings: Any) -> Accelerator:
    """Join the processes of this launch, on their GPUs where the machine has any, else on its CPU."""
    return Accelerator(cpu=not torch.cuda.is_available(), **settings)


def leave_process_group() -> None:
    """Leave the group of processes, where there is one; call it last, once nothing holds an accelerator or a model.

    A thread of gloo drops the tensors of a collective a moment after the collective returned, and needs the
    interpreter for it. A process that ends within that moment is aborted by the C++ runtime ("terminate called
    without an active exception"; seen in 2 of 30 runs of four processes on two busy cores), so the group goes first:
    it waits for its threads. It must not go by the hand of a model wrapped for several processes, which holds the
    interpreter while it lets go of its group, and then both wait for ever (seen too): hence the collection first.
    """
    gc.collect()
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def leave_first_the_word() -> None:
    """Wait, unless this is the first process of its machine, before this process says why it ends.

    What is refused is mostly refused by all of them at once: the first says so and ends, and the launcher ends the
    others while they wait. One that is alone with what it found says it after the wait, so nothing is lost.
    """
    if dist.is_available() and dist.get_node_local_rank(fallback_rank=0):
        time.sleep(PATIENCE)
