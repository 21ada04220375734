"""Rescore: some blocks of the validation text, scored again by a process that knows nothing of pgolf.

Blocks are drawn after the record was made, so its author could not know which; to them come those where a claim would
pay most. Each is scored with the context that the scoring gave it, and its mean must be the record's. Where weights
change during a scoring, only what was scored before the first change can be checked this way.

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
from .causality import Probe, draw_probe
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
# What a mean over any number of targets may be off by besides. bf16: 3.9e-4 was measured between bf16 and fp32 on the
# demo's artifact (30,197 targets); kernels of one precision have less between them.
BIAS = {"fp32": 0.0, "bf16": 4e-4}
# The same as SIGMAS where all blocks together are off in the record's favour: noise has no favourite, a claim has.
FAVOUR_SIGMAS = 4
# Besides the blocks drawn at random, one of so many twice: lowest nats, and lowest beside another scoring's.
SUSPECT_EVERY = 4
# How sure the printed share of altered blocks is to be met.
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Draw:
    """The blocks of one scoring that are scored again, and the windows that score their targets.

    drawn: how many of the blocks come by chance, out of ``eligible``; the others are the suspects.
    """

    name: str
    blocks: list[int]
    drawn: int
    eligible: int
    windows: list[Window]


@dataclass(frozen=True)
class Sample:
    """What goes to the clean process: blocks of every scoring, and pairs of windows that probe for causality."""

    draws: list[Draw]
    probe: Probe


def draw_sample(
    scorings: dict[str, EvaluationConfig],
    recorded: BlockNats,
    tokens: ValidationTokens,
    dice: random.Random,
    count: int,
) -> Sample:
    """Draw ``count`` blocks of every scoring, the suspects beside them, and windows to probe for causality."""
    draws = [draw_blocks(name, config, recorded, dice, count) for name, config in scorings.items()]
    windows = [window for draw in draws for window in draw.windows]
    return Sample(draws, draw_probe(tokens, windows, recorded.size, dice))


def rescore(
    record: Path, tokens: ValidationTokens, precision: str, recorded: BlockNats, sample: Sample
) -> list[Finding]:
    """Score the sample again; a finding on causality and one a scoring.

    Raises FormatError where the record does not load.
    """
    windows, probe = [window for draw in sample.draws for window in draw.windows], sample.probe
    inputs, targets = window_batch(tokens, windows, recorded.size)
    nats = ask_stranger(record, torch.cat((probe.inputs, inputs)), torch.cat((probe.targets, targets)), precision)
    findings = [probe.finding(nats[: len(probe.inputs)], precision)]
    rows = iter(nats[len(probe.inputs) :])
    for draw in sample.draws:
        found = dict.fromkeys(draw.blocks, 0.0)
        for window in draw.windows:
            row = next(rows)
            for target in window.scored:
                if target // recorded.size in found:
                    found[target // recorded.size] += float(row[target - window.start])
        if found:  # weights may change before one block is complete
            findings.append(compare(draw, found, recorded, precision))
    return findings


def compare(draw: Draw, found: dict[int, float], recorded: BlockNats, precision: str) -> Finding:
    """Compare the drawn blocks with the record's."""
    agree, told = judge_blocks(draw.name, found, recorded, (NOISE[precision], BIAS[precision]))
    met = 1 - (1 - CONFIDENCE) ** (1 / max(draw.drawn, 1))
    text = (
        f"{len(found)} of {len(recorded.sums[draw.name]):,} blocks, {draw.drawn} of them drawn from {draw.eligible:,}: "
        f"{told}, or {met:.0%} of the blocks by more"
    )
    return Finding(f"scores, {draw.name}", "PASS" if agree else "FAIL", text)


def judge_blocks(
    name: str, found: dict[int, float], recorded: BlockNats, arithmetic: tuple[float, float]
) -> tuple[bool, str]:
    """Compare sums of nats by block with the record's: each block, and all of them together, in its favour and not.

    arithmetic: noise and bias of the precision, nats. Returns whether they agree, and what was found beside what is
    allowed.
    """
    noise, bias = arithmetic
    counts = {block: recorded.count(block) for block in found}
    away = {block: total - float(recorded.sums[name][block]) for block, total in found.items()}
    targets = sum(counts.values())
    excess = {block: abs(away[block]) / (SIGMAS * noise * math.sqrt(counts[block])) for block in found}
    worst, mean = max(found, key=lambda block: excess[block]), sum(away.values()) / targets
    allowed, favour = (bias + sigmas * noise / math.sqrt(targets) for sigmas in (SIGMAS, FAVOUR_SIGMAS))
    told = (
        f"nats per token off by {mean:+.1e} (allowed {-allowed:.1e} to {favour:+.1e}), in block {worst} by "
        f"{away[worst] / counts[worst]:+.1e} (allowed {SIGMAS * noise / math.sqrt(counts[worst]):.1e}); sees all nats "
        f"too low by {favour:.1e}"
    )
    # Written so that a NaN fails.
    return -allowed <= mean <= favour and excess[worst] <= 1, told


def draw_blocks(name: str, config: EvaluationConfig, recorded: BlockNats, dice: random.Random, count: int) -> Draw:
    """Draw ``count`` blocks among those that are complete before weights change, and add the suspects among them."""
    blocks, chunk = len(recorded.sums[name]), config.adaptation.chunk_tokens
    eligible = blocks if chunk is None or chunk >= recorded.targets else chunk // recorded.size
    chosen = dice.sample(range(eligible), min(count, eligible))
    wanted = {*chosen, *suspects(name, recorded, eligible, -(-count // SUSPECT_EVERY))}

    def scores_a_block(window: Window) -> bool:
        scored = window.scored
        return not wanted.isdisjoint(range(scored.start // recorded.size, (scored.stop - 1) // recorded.size + 1))

    plan = sliding_windows(recorded.targets, config.window, config.stride)
    windows = [window for window in plan if scores_a_block(window)]
    return Draw(name, sorted(wanted), len(chosen), eligible, windows)


def suspects(name: str, recorded: BlockNats, eligible: int, count: int) -> set[int]:
    """Choose the blocks where a false claim would show: lowest nats per target, and lowest beside another scoring's."""
    counts = torch.tensor([recorded.count(block) for block in range(eligible)])
    own = recorded.sums[name][:eligible] / counts
    others = [sums[:eligible] / counts for other, sums in recorded.sums.items() if other != name]
    gaps = [torch.stack([own - other for other in others]).amin(0)] if others else []
    return {block for low in (own, *gaps) for block in low.argsort(stable=True)[:count].tolist()}


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
