"""Causality: whether a record's model looks at text that it is about to be scored on.

Windows go to the clean process twice, in one batch: as they are, and with all tokens replaced from a drawn place on.
Nats before that place depend on nothing that was replaced, unless the model reads ahead; the record's code is not told
which windows are which. Source: LEGALITY C1.

``T`` window, ``n`` probes.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from torch import Tensor

from evaluation.windows import ValidationTokens, Window, window_batch

from .integrity import Finding

# Pairs of windows; the rows of all of them fill whole batches of ``rescore.BATCH``.
PROBES = 4
# How far nats before a replaced token may move. Both rows of a pair go through the same kernels in one batch, where the
# rows of a product do not depend on one another and a masked position weighs exactly 0, so nothing should move in any
# precision. Measured on a CPU, fp32 and bf16, windows of 32 and 256 tokens: 0. Room is left for kernels that add up in
# no fixed order: a logit between 8 and 16 is rounded to 2**-20 in fp32 (ten times that) and to 2**-4 in bf16.
ALLOWED = {"fp32": 1e-5, "bf16": 2**-4}


@dataclass(frozen=True)
class Probe:
    """Pairs of windows: inputs and targets int64 (2n, T), even rows as they are; first changes at ``places``."""

    inputs: Tensor
    targets: Tensor
    places: list[int]

    def finding(self, nats: Tensor, precision: str) -> Finding:
        """Judge the pairs' nats (2n, T)."""
        pairs = zip(nats[::2], nats[1::2], self.places, strict=True)
        most = max(float((as_is[:place] - changed[:place]).abs().max()) for as_is, changed, place in pairs)
        told = f"at most {most:.1e} (allowed {ALLOWED[precision]:.0e}), in {len(self.places)} windows"
        if most <= ALLOWED[precision]:
            return Finding("causality", "PASS", f"nats before replaced tokens move by {told}")
        return Finding("causality", "FAIL", f"the model reads ahead: nats before replaced tokens move by {told}")


def draw_probe(tokens: ValidationTokens, windows: list[Window], size: int, dice: random.Random) -> Probe:
    """Draw windows of ``size`` tokens, and in each the place from which on all tokens are others."""
    chosen = dice.choices([window for window in windows if window.length > 1] or windows, k=PROBES)
    inputs, targets = (rows.repeat_interleave(2, 0) for rows in window_batch(tokens, chosen, size))
    ids = int(tokens.ids.max()) + 1
    places = [dice.randrange(1, max(window.length, 2)) for window in chosen]
    for pair, place in enumerate(places):
        row = inputs[2 * pair + 1, place:]
        shifts = torch.tensor(dice.choices(range(1, max(ids, 2)), k=len(row)), dtype=torch.int64)
        row.copy_((row + shifts) % ids)  # none stays what it was
    return Probe(inputs, targets, places)
