"""Rescore: some blocks of the validation text, scored again by a process that knows nothing of pgolf.

Blocks are drawn after the record was made, so its author could not know which. Each is scored with the context that
the scoring gave it, and its mean must be the record's. Where weights change during a scoring, only what was scored
before the first change can be checked this way.

``T`` window, ``n`` windows.
"""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from evaluation.config import EvaluationConfig
from evaluation.windows import ValidationTokens, Window, sliding_windows, window_batch
from modeling_pgolf.errors import FormatError

from .block_nats import BlockNats
from .integrity import Finding
from .siblings import ROOT

STRANGER = ROOT / "pgolf" / "stranger.py"
# Windows of one forward pass: the logits of 4 windows of 2,048 tokens over 8,192 pieces are 268 MB.
BATCH = 4
# Root mean square of the difference that other kernels make to the nats of one token. bf16: 0.022 was measured between
# bf16 and fp32 on the demo's artifact (16,384 targets); fp32: room for matrix products of reduced precision, measured
# between runs of one machine was 0.
NOISE = {"fp32": 1e-3, "bf16": 0.022}
# Means over n targets may be off by this many times NOISE / sqrt(n). On the demo 2.3 was the most of 64 blocks.
SIGMAS = 7


@dataclass(frozen=True)
class Draw:
    """The blocks of one scoring that are scored again, and the windows that score their targets."""

    name: str
    blocks: list[int]
    eligible: int
    windows: list[Window]


def rescore(
    record: Path, tokens: ValidationTokens, passes: dict[str, EvaluationConfig], recorded: BlockNats, draws: list[Draw]
) -> list[Finding]:
    """Score the drawn blocks again; one finding a scoring. Raises FormatError where the record does not load."""
    config = passes[draws[0].name]
    windows = [window for draw in draws for window in draw.windows]
    inputs, targets = window_batch(tokens, windows, config.window)
    nats = iter(ask_stranger(record, inputs, targets, config.precision))
    findings = []
    for draw in draws:
        found = dict.fromkeys(draw.blocks, 0.0)
        for window in draw.windows:
            row = next(nats)
            for target in window.scored:
                if target // recorded.size in found:
                    found[target // recorded.size] += float(row[target - window.start])
        findings.append(compare(draw, found, recorded, config.precision))
    return findings


def compare(draw: Draw, found: dict[int, float], recorded: BlockNats, precision: str) -> Finding:
    """Compare sums of nats by block with the record's: each block, and all of them together."""
    counts = {block: recorded.count(block) for block in found}
    away = {block: total - float(recorded.sums[draw.name][block]) for block, total in found.items()}
    noise = SIGMAS * NOISE[precision]
    excess = {block: abs(away[block]) / (noise * math.sqrt(counts[block])) for block in found}
    worst, targets = max(found, key=lambda block: excess[block]), sum(counts.values())
    mean, allowed = abs(sum(away.values())) / targets, noise / math.sqrt(targets)
    text = (
        f"{len(found)} of {len(recorded.sums[draw.name]):,} blocks, drawn from {draw.eligible:,}: nats per token off "
        f"by {mean:.1e} (allowed {allowed:.1e}), in block {worst} by {abs(away[worst]) / counts[worst]:.1e} (allowed "
        f"{noise / math.sqrt(counts[worst]):.1e})"
    )
    # Written so that a NaN fails.
    return Finding(f"scores, {draw.name}", "PASS" if mean <= allowed and excess[worst] <= 1 else "FAIL", text)


def draw_blocks(
    name: str, config: EvaluationConfig, recorded: BlockNats, frozen: int, dice: random.Random, count: int
) -> Draw:
    """Draw ``count`` blocks among those that are complete within the first ``frozen`` targets."""
    blocks = len(recorded.sums[name])
    eligible = blocks if frozen == recorded.targets else frozen // recorded.size
    chosen = sorted(dice.sample(range(eligible), min(count, eligible)))
    wanted = set(chosen)

    def scores_a_block(window: Window) -> bool:
        scored = window.scored
        return not wanted.isdisjoint(range(scored.start // recorded.size, (scored.stop - 1) // recorded.size + 1))

    plan = sliding_windows(recorded.targets, config.window, config.stride)
    return Draw(name, chosen, eligible, [window for window in plan if scores_a_block(window)])


def ask_stranger(record: Path, inputs: Tensor, targets: Tensor, precision: str) -> Tensor:
    """Have windows (n, T) scored in a clean process; nats float64 (n, T)."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        asked = {"record": str(record.resolve()), "precision": precision, "batch": BATCH}
        (folder / "request.json").write_text(json.dumps(asked), encoding="utf-8")
        save_file({"inputs": inputs, "targets": targets}, folder / "request.safetensors")
        command = [sys.executable, "-P", str(STRANGER), str(folder)]
        run = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        if run.returncode != 0:
            last = run.stderr.strip().splitlines()[-1:] or ["no word"]
            raise FormatError(f"asked a clean process to load {record.name} and score with it; found: {last[0]}")
        nats: Tensor = load_file(folder / "reply.safetensors")["nats"]
    if nats.shape != targets.shape or not torch.isfinite(nats).all():
        raise FormatError(f"asked for finite nats {tuple(targets.shape)}; the record's code gave {tuple(nats.shape)}")
    return nats
