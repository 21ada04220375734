"""Score a model on a token stream by sliding windows.

Windows of one geometry are batched, and the head sees only the positions that a window scores. Windows are dealt to
the processes by a fixed rule, and nats stay on the device until the end, so no batch waits for the host.

``N`` targets, ``T`` window, ``S`` scored positions, ``B`` windows of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import groupby

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm import tqdm
from transformers import PreTrainedModel

from modeling_pgolf.attention import fastest_attention

from .config import EvaluationConfig
from .ledger import Ledger
from .windows import ValidationTokens, Window, sliding_windows, window_batch


class ScoredNats(nn.Module):
    """Nats of the targets behind positions ``first … last - 1`` of each window."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor, targets: Tensor, first: int, last: int) -> Tensor:
        """Inputs and targets int64 (B, T) to float32 nats (B, last - first)."""
        hidden = self.model.model(input_ids=inputs, use_cache=False).last_hidden_state[:, first:last]
        logits = self.model.logits(hidden).float()
        nats = F.cross_entropy(logits.flatten(0, 1), targets[:, first:last].flatten(), reduction="none")
        # A nat is never negative; where a target is all but certain, float32 rounds to as little as -1e-6.
        return nats.clamp_min(0.0).view(len(inputs), -1)


def score(
    model: PreTrainedModel,
    tokens: ValidationTokens,
    config: EvaluationConfig,
    accelerator: Accelerator,
    title: str = "score",
) -> Ledger:
    """Score every target of ``tokens`` once; the model's weights stand still. Shows a progress bar ``title``."""
    model.eval()
    scored = ScoredNats(model)
    forward = torch.compile(scored, dynamic=False) if config.compile else scored
    ledger = Ledger(tokens.targets)
    bar = tqdm(total=tokens.targets, desc=title, unit="tok", disable=not accelerator.is_main_process)
    pending: list[tuple[int, Tensor]] = []
    with torch.inference_mode(), autocast(accelerator, config.precision), fastest_attention():
        for batch in batches(tokens.targets, config, accelerator.num_processes):
            # The first and the last window have shapes of their own, not worth a compilation.
            run = forward if is_regular(batch[0], config) else scored
            pending.append((batch[0].scored.start, batch_nats(run, tokens, batch, config, accelerator)))
            bar.update(sum(len(window.scored) for window in batch))
    for first, nats in pending:
        ledger.post(first, nats.double().cpu())
    bar.close()
    return ledger


def is_regular(window: Window, config: EvaluationConfig) -> bool:
    """Say whether a window has the shape that nearly all have: full, with one stride of new targets."""
    return window.length == config.window and len(window.scored) == config.stride


def batches(targets: int, config: EvaluationConfig, processes: int) -> Iterator[list[Window]]:
    """Group windows of one geometry into batches of at most ``batch_windows`` for each process, in stream order."""
    windows = sliding_windows(targets, config.window, config.stride)
    for _, alike in groupby(windows, key=lambda window: (window.length, window.first)):
        group = list(alike)
        size = config.batch_windows * processes
        yield from (group[i : i + size] for i in range(0, len(group), size))


def batch_nats(
    forward: Callable[..., Tensor],
    tokens: ValidationTokens,
    batch: list[Window],
    config: EvaluationConfig,
    accelerator: Accelerator,
) -> Tensor:
    """Return the nats of all windows of a batch in stream order, float32 (Σ scored,), the same on every process."""
    share = -(-len(batch) // accelerator.num_processes)
    own = batch[accelerator.process_index * share :][:share]
    padded = (own + batch[:1] * share)[:share]
    inputs, targets = window_batch(tokens, padded, config.window)
    nats = forward(inputs.to(accelerator.device), targets.to(accelerator.device), batch[0].first, batch[0].length)
    gathered: Tensor = accelerator.gather(nats)
    return gathered[: len(batch)].flatten()


def autocast(accelerator: Accelerator, precision: str) -> torch.autocast:
    """Return the autocast context of a precision: "bf16", or "fp32" for none."""
    return torch.autocast(accelerator.device.type, dtype=torch.bfloat16, enabled=precision == "bf16")
