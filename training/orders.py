"""Orders: which batches a run reads, and what it has read, from its configuration and its tokens alone.

The orders of stored tokens are in one table by ``TrainingConfig.order``; a stream of text brings its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from .batches import Batches, SequentialBatches, TrainTokens
from .config import TrainingConfig
from .coprime import CoprimeBatches
from .shuffled import ShuffledBatches
from .streamed import TokenStream

ORDERS: dict[str, Callable[[TrainTokens, TrainingConfig, int, int], Batches]] = {
    "sequential": SequentialBatches,
    "coprime": CoprimeBatches,
    "shuffled": ShuffledBatches,
}

# Steps whose tokens a stream's fingerprint covers: enough to tell orders apart, read again in milliseconds.
FINGERPRINT_STEPS = 4


def open_batches(
    tokens: TrainTokens | TokenStream, config: TrainingConfig, rank: int = 0, processes: int = 1
) -> Batches:
    """Open the batches of one process; raises TrainingError where tokens, configuration and processes do not fit."""
    if isinstance(tokens, TrainTokens):
        return ORDERS[config.order](tokens, config, rank, processes)
    return tokens.batches(config, rank, processes)


def step_batches(
    tokens: TrainTokens | TokenStream, config: TrainingConfig, steps: int, processes: int = 1
) -> Iterator[tuple[Tensor, Tensor]]:
    """List the inputs and targets of every step of a run, all processes together, from what its manifest says.

    Spans come call by call, in a call by process: that is the order of the stream, whatever the number of processes,
    where the order does not depend on it.
    """
    members = [open_batches(tokens, config, rank, processes) for rank in range(processes)]
    for _ in range(steps):
        shares = [member.next_step() for member in members]
        inputs, targets = (_merged([share[part] for share in shares], config.span_sequences) for part in (0, 1))
        yield inputs, targets


def _merged(shares: list[Tensor], span_sequences: int) -> Tensor:
    """Join the rows (sequences, T) of all processes, call by call."""
    return torch.stack([share.reshape(-1, span_sequences, share.size(1)) for share in shares], dim=1).flatten(0, 2)


def stream_facts(tokens: TrainTokens | TokenStream, config: TrainingConfig, processes: int = 1) -> dict[str, Any]:
    """Describe the stream that a run reads, with a SHA-256 over its first batches.

    It reads them, so a run asks before it trains: behind the last step the source may be gone.
    """
    stored, digest = isinstance(tokens, TrainTokens), hashlib.sha256()
    members = processes if stored else 1  # a stream is the same for any number, and opens workers for each
    for inputs, targets in step_batches(tokens, config, min(config.iterations, FINGERPRINT_STEPS), members):
        digest.update(inputs.numpy().tobytes() + targets.numpy().tobytes())
    return {
        "order": config.order if stored else "streamed",
        "processes": processes,
        "corpus_tokens": len(tokens) if isinstance(tokens, TrainTokens) else None,
        "fingerprint": digest.hexdigest()[:16],
    }
