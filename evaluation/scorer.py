"""Score a model on a token stream by sliding windows, chunk by chunk, adapting only to what is posted.

Windows of one geometry are batched, and the last block and the head see only the positions that a window scores.
Windows are dealt to the processes by a fixed rule; nats stay on the device until their chunk is posted. The order of
calls (score, post, learn) is here, not in the rule.

``N`` targets, ``T`` window, ``S`` scored positions, ``B`` windows of a batch. Source: SPEC-11L 5.3, 5.4.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import groupby
from typing import Protocol

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor, nn
from tqdm import tqdm
from transformers import PreTrainedModel

from modeling_pgolf.attention import fastest_attention

from .config import EvaluationConfig
from .deadline import Deadline
from .ledger import Ledger, Posted, fingerprint
from .windows import ValidationTokens, Window, sliding_windows, window_batch


class Adaptation(Protocol):
    """A rule that changes the model from scored text. It sees nothing but what it is handed."""

    chunk_tokens: int | None

    def learn(self, posted: Posted, progress: float) -> None:
        """Change the model; ``progress`` runs from 0 at the first chunk to 1 at the last."""


class ScoredNats(nn.Module):
    """Nats of the targets behind positions ``first … last - 1`` of each window."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor, targets: Tensor, first: int, last: int) -> Tensor:
        """Inputs and targets int64 (B, T) to float32 nats (B, last - first)."""
        asked = slice(first, last) if first > 0 else None
        hidden = self.model.model(input_ids=inputs, use_cache=False, queries=asked).last_hidden_state
        logits = self.model.logits(hidden if asked else hidden[:, first:last]).float()
        nats = F.cross_entropy(logits.flatten(0, 1), targets[:, first:last].flatten(), reduction="none")
        # A nat is never negative, but where a target is all but certain float32 may round it below 0.
        return nats.clamp_min(0.0).view(len(inputs), -1)


class Scorer:
    """One scoring of one stream. ``score`` is the way in."""

    def __init__(self, model: PreTrainedModel, config: EvaluationConfig, accelerator: Accelerator) -> None:
        self.model, self.config, self.accelerator = model.eval(), config, accelerator
        self._eager = ScoredNats(model)
        self._compiled = torch.compile(self._eager, dynamic=False) if config.compile else self._eager

    def chunk_nats(self, tokens: ValidationTokens, windows: list[Window], bar: tqdm) -> Tensor:
        """Score windows with the weights as they stand; nats in stream order, float32 (Σ scored,), on every process."""
        nats = []
        with torch.inference_mode(), autocast(self.accelerator, self.config.precision), fastest_attention():
            for batch in batches(windows, self.config.batch_windows * self.accelerator.num_processes):
                nats.append(self._batch_nats(tokens, batch))
                bar.update(sum(len(window.scored) for window in batch))
            return torch.cat(nats).cpu()

    def _batch_nats(self, tokens: ValidationTokens, batch: list[Window]) -> Tensor:
        share = -(-len(batch) // self.accelerator.num_processes)
        regular = is_regular(batch[0], self.config)
        # A full share keeps one compiled shape; the first and the last window have shapes not worth a compilation.
        size = self.config.batch_windows if regular else share
        own = batch[self.accelerator.process_index * share :][:share]
        padded = own + batch[:1] * (size - len(own))
        inputs, targets = window_batch(tokens, padded, self.config.window)
        device, run = self.accelerator.device, self._compiled if regular else self._eager
        nats = run(inputs.to(device), targets.to(device), batch[0].first, batch[0].length)[:share]
        gathered: Tensor = self.accelerator.gather(nats)
        return gathered[: len(batch)].flatten()


def score(
    model: PreTrainedModel,
    tokens: ValidationTokens,
    config: EvaluationConfig,
    accelerator: Accelerator,
    title: str = "score",
    budget_seconds: float = float("inf"),
) -> Ledger:
    """Score every target of ``tokens`` once and return the complete ledger.

    budget_seconds: when the plan no longer fits, adapting stops and scoring goes on. Shows a progress bar ``title``.
    """
    rule = build_rule(model, config, accelerator)
    *_, complete = run_rule(model, rule, tokens, config, accelerator, title, budget_seconds)
    return complete


def build_rule(model: PreTrainedModel, config: EvaluationConfig, accelerator: Accelerator) -> Adaptation:
    """Build the adaptation rule that the configuration names."""
    return config.adaptation.build(model, config.window, accelerator, config.compile)


def run_rule(
    model: PreTrainedModel,
    rule: Adaptation,
    tokens: ValidationTokens,
    config: EvaluationConfig,
    accelerator: Accelerator,
    title: str = "score",
    budget_seconds: float = float("inf"),
) -> Iterator[Ledger]:
    """Score, post, learn, chunk by chunk, in this order; the rule never learns from the last chunk.

    Yields the ledger after each chunk is posted, before anything is learned from it.
    """
    scorer, ledger = Scorer(model, config, accelerator), Ledger(tokens)
    deadline = Deadline(budget_seconds, tokens.targets, lambda: shared_time(accelerator))
    plan = chunks(tokens.targets, config, rule.chunk_tokens)
    adapting, weights = len(plan) > 1, fingerprint(model)
    bar = tqdm(total=tokens.targets, desc=title, unit="tok", disable=not accelerator.is_main_process)
    with bar:
        for number, windows in enumerate(plan):
            started = time.perf_counter()
            first = ledger.scored
            ledger.post(first, scorer.chunk_nats(tokens, windows, bar), weights)
            deadline.scored(time.perf_counter() - started)
            yield ledger
            if adapting and number < len(plan) - 1 and not deadline.allows_learning(ledger.scored):
                adapting = False
                ledger.note("DEADLINE", scored=ledger.scored, budget_seconds=budget_seconds)
            if adapting and number < len(plan) - 1 and rule.chunk_tokens is not None:
                started = time.perf_counter()
                posted = ledger.posted(number * rule.chunk_tokens, rule.chunk_tokens)
                with autocast(accelerator, config.precision), fastest_attention():
                    rule.learn(posted, progress=number / (len(plan) - 1))
                weights = fingerprint(model)
                ledger.update(posted, weights)
                deadline.learned(time.perf_counter() - started)


def chunks(targets: int, config: EvaluationConfig, chunk_tokens: int | None) -> list[list[Window]]:
    """Cut the windows into chunks by their first scored target; one chunk without ``chunk_tokens``."""
    windows = list(sliding_windows(targets, config.window, config.stride))
    if chunk_tokens is None:
        return [windows]
    count = -(-targets // chunk_tokens)
    by_chunk = groupby(windows, key=lambda window: min(window.scored.start // chunk_tokens, count - 1))
    return [list(group) for _, group in by_chunk]


def batches(windows: list[Window], size: int) -> Iterator[list[Window]]:
    """Group windows of one geometry into batches of at most ``size``, in stream order."""
    for _, alike in groupby(windows, key=lambda window: (window.length, window.first)):
        group = list(alike)
        yield from (group[i : i + size] for i in range(0, len(group), size))


def is_regular(window: Window, config: EvaluationConfig) -> bool:
    """Say whether a window has the shape that nearly all have: full, with one stride of new targets."""
    return window.length == config.window and len(window.scored) == config.stride


def shared_time(accelerator: Accelerator) -> float:
    """Return the main process's clock, in seconds, on every process."""
    now = time.perf_counter()
    if accelerator.num_processes == 1:
        return now
    return float(broadcast(torch.tensor(now, dtype=torch.float64, device=accelerator.device)))


def autocast(accelerator: Accelerator, precision: str) -> torch.autocast:
    """Return the autocast context of a precision: "bf16", or "fp32" for none."""
    return torch.autocast(accelerator.device.type, dtype=torch.bfloat16, enabled=precision == "bf16")
