"""Occupancy: one stage at a time works in a run's folder on a machine, and a second one is refused.

A training that lost its starter (``pgolf`` was killed) goes on by itself; the same command given again would write the
same log and the same states beside it. The operating system releases the lock of a process that dies.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch.distributed as dist
from filelock import FileLock, Timeout

from modeling_pgolf.errors import RecipeError


@contextmanager
def occupied(run: Path) -> Iterator[None]:
    """Hold a run's folder while the block lasts; the first process of this machine does, for all of them.

    Raises RecipeError where another process holds it.
    """
    if dist.is_available() and dist.get_node_local_rank(fallback_rank=0):
        yield
        return
    lock = FileLock(lock_of(run))
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise RecipeError(
            f"asked to work in {run}; another process is at work there; wait for it or end it, or give this run its "
            "own --run NAME"
        ) from error
    try:
        yield
    finally:
        lock.release()


def lock_of(run: Path) -> Path:
    """Return the file that is locked, beside the run's folder: it stays, and is no file of the run."""
    return run.with_name(f".{run.name}.lock")


def check_free(run: Path) -> None:
    """Raise RecipeError where another process holds a run's folder; writes nothing."""
    if lock_of(run).exists():
        with occupied(run):
            pass
