"""The plots of a record's scores: over the stream, by chunk, by context, by the bytes of a token.

All are drawn from the nats of every target, so they add up to the published score: nats above the line and bytes
below it are summed over the same targets. ``N`` targets, in stream order.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray
from torch import Tensor

from .plots import PALETTE, STYLE, count_along, label_right, new_figure

# Points of a curve over the stream: two to a pixel of the page.
POINTS = 1400
# Numbers along the stream: five of eight digits are as many as fit.
NUMBERS = 5
# The first share of the stream is not drawn: a mean of few targets jumps, and presses the rest flat.
UNSETTLED = 0.05
# Chunks from which on single ones are dots around their running mean, and the share of them that it takes in.
MANY_CHUNKS, SMOOTHED = 60, 0.05
# Tokens of this many bytes and more share a bar: few are longer (1024 and 8192 pieces).
LONG_TOKEN = 10
# Tokens of at most this many bytes are the short ones of the title.
SHORT_TOKEN = 2

Numbers = NDArray[np.float64]


def running_figure(nats: dict[str, Tensor], target_bytes: Tensor) -> Figure:
    """Draw BPB from the beginning of the stream to each place of it.

    nats: one or two scorings, the published one last, float64 (N,) each. target_bytes: int16 (N,).
    """
    edges = np.unique(np.linspace(0, len(target_bytes), POINTS + 1).round().astype(np.int64))
    size = np.cumsum(segment_sums(target_bytes, edges))
    drawn, places = (size > 0) & (edges[1:] >= UNSETTLED * edges[-1]), edges[1:]
    curves = {name: np.cumsum(segment_sums(n, edges))[drawn] / size[drawn] / math.log(2) for name, n in nats.items()}
    with rc_context(STYLE):
        figure = new_figure(3.4, _running_title(curves))
        axes = figure.subplots()
        labels = []
        for colour, (name, curve) in zip(("first", "second"), curves.items(), strict=False):
            axes.plot(places[drawn], curve, color=PALETTE[colour], linewidth=1.6)
            labels.append((curve[-1], f"{name} {curve[-1]:.4f}", colour))
        label_right(axes, labels)
        axes.set_xlim(0, places[-1] * 1.01)
        axes.set_ylabel("bits per byte\nfrom the beginning to here")
        axes.set_xlabel("targets scored")
        count_along(axes, NUMBERS)
    return figure


def segment_sums(values: Tensor, edges: NDArray[np.int64]) -> Numbers:
    """Sum values (N,) between consecutive edges, the first of them 0 and the last N; float64 (len(edges) - 1,)."""
    sums: Numbers = np.add.reduceat(values.double().numpy(), edges[:-1])
    return sums


def _running_title(curves: dict[str, Numbers]) -> str:
    """Say what the scorings come to."""
    ends = [curve[-1] for curve in curves.values()]
    if len(ends) > 1:
        return f"Adapting takes the score from {ends[0]:.4f} to {ends[-1]:.4f} bits per byte"
    return f"The score is {ends[0]:.4f} bits per byte over the whole text"


def gains_figure(frozen: Tensor, adapted: Tensor, target_bytes: Tensor, chunks: list[int]) -> Figure:
    """Draw what adapting gained in each chunk, in BPB of the chunk.

    frozen, adapted: nats, float64 (N,). target_bytes: int16 (N,). chunks: the first target of each.
    """
    edges = np.array([*chunks, len(frozen)], dtype=np.int64)
    size = np.maximum(segment_sums(target_bytes, edges), 1)
    gains = segment_sums(frozen - adapted, edges) / math.log(2) / size
    number, total = np.arange(1, len(gains) + 1), float((frozen - adapted).sum()) / math.log(2) / size.sum()
    # The first chunk is scored before anything is learnt.
    better = (gains[1:] > 0).mean() if len(gains) > 1 else 0.0
    with rc_context(STYLE):
        verb = "gains" if total >= 0 else "loses"
        title = f"Adapting {verb} {abs(total):.4f} bits per byte; {better:.0%} of the chunks behind the first gain"
        figure = new_figure(3.2, title)
        axes = figure.subplots()
        axes.axhline(0, color=PALETTE["muted"], linewidth=0.9)
        if len(gains) < MANY_CHUNKS:
            axes.bar(number, gains, color=PALETTE["first"], width=0.7)
        else:
            axes.plot(number, gains, linestyle="", marker="o", markersize=2, color=PALETTE["rest"])
            width = max(3, round(SMOOTHED * len(gains)))
            smooth = np.convolve(gains, np.ones(width) / width, mode="valid")
            axes.plot(number[width // 2 : width // 2 + len(smooth)], smooth, color=PALETTE["first"], linewidth=1.8)
        axes.set_ylabel("bits per byte gained\n(frozen less adapted)")
        axes.margins(x=0.01)
        axes.set_xlabel(f"chunk of {np.median(np.diff(edges)):,.0f} targets")
        count_along(axes, NUMBERS)
    return figure


def token_figure(nats: Tensor, target_bytes: Tensor) -> Figure:
    """Draw nats per token, and the shares of tokens and nats, by the bytes that a token stands for.

    nats: float64 (N,). target_bytes: int16 (N,); 0 are document boundaries.
    """
    group = target_bytes.clamp(max=LONG_TOKEN).long()
    count, total = torch.bincount(group).numpy(), torch.bincount(group, weights=nats.double()).numpy()
    sizes = np.flatnonzero(count)
    short = [part[: SHORT_TOKEN + 1].sum() / part.sum() for part in (count, total)]
    names = [f"{size}+" if size == LONG_TOKEN else str(size) for size in sizes]
    title = f"Tokens of up to {SHORT_TOKEN} bytes are {short[0]:.0%} of all and carry {short[1]:.0%} of the nats"
    with rc_context(STYLE):
        figure = new_figure(3.4, title)
        mean, share = figure.subplots(1, 2, width_ratios=[1, 1.25])
        place = np.arange(len(sizes))
        mean.bar(place, total[sizes] / count[sizes], color=PALETTE["first"], width=0.7)
        mean.set_ylabel("nats per token")
        share.bar(place - 0.2, count[sizes] / count.sum(), color=PALETTE["rest"], width=0.38, label="of the tokens")
        share.bar(place + 0.2, total[sizes] / total.sum(), color=PALETTE["first"], width=0.38, label="of the nats")
        share.set_ylabel("share")
        share.yaxis.set_major_formatter(PercentFormatter(1))
        share.legend(frameon=False, ncols=2, loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0)
        for axes in (mean, share):
            axes.set_xticks(place, names)
            axes.set_xlabel("bytes of the token")
    return figure


def position_figure(nats: Tensor, window: int, bytes_per_token: float, sliding_bpb: float) -> Figure:
    """Draw BPB over the position in the window.

    nats: of every target of plain scoring, float64 (N,), in stream order. window: tokens.
    bytes_per_token: mean over the same targets; it stands for the bytes of the tokens at each position.
    sliding_bpb: the published score, for comparison.
    """
    scale = 1 / (math.log(2) * bytes_per_token)
    mean, error, edges = position_bins(nats, window)
    mean, error = mean * scale, error * scale
    centre = np.sqrt(edges[:-1] * (edges[1:] - 1))
    plain = float(nats.mean()) * scale
    with rc_context(STYLE):
        figure = new_figure(3.6, _position_title(nats, window, scale))
        axes = figure.subplots()
        axes.fill_between(centre, mean - error, mean + error, color=PALETTE["first"], alpha=0.2, linewidth=0)
        axes.plot(centre, mean, color=PALETTE["first"], linewidth=1.6, marker="o", markersize=3.5)
        means = [(plain, f"plain {plain:.4f}", "muted"), (sliding_bpb, f"sliding {sliding_bpb:.4f}", "second")]
        # The dashes of one line lie in the gaps of the other, so both are seen where they coincide.
        for number, (value, _, colour) in enumerate(means):
            axes.axhline(value, color=PALETTE[colour], linewidth=1.1, linestyle=(6 * number, (5, 7)))
        label_right(axes, means)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.set_xlabel("tokens of context inside the window (logarithmic)")
        axes.set_ylabel(f"bits per byte, counting every\ntoken as {bytes_per_token:.3f} bytes, the mean")
    return figure


def position_bins(nats: Tensor, window: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Average nats over bins of positions, two to a doubling of the context.

    Returns mean nats and their standard errors (bins,), and the edges (bins + 1,) in tokens of context, the last
    one excluded. Target ``i`` has ``i % window + 1`` tokens of context.
    """
    count, total, square = _position_sums(nats, window)
    reached = int(np.count_nonzero(count))
    edges = np.unique(np.geomspace(1, reached + 1, num=2 + round(2 * math.log2(reached + 1))).round().astype(np.int64))
    count, total, square = (np.add.reduceat(part[:reached], edges[:-1] - 1) for part in (count, total, square))
    mean = total / count
    variance = np.maximum(square / count - mean**2, 0)
    return mean, np.sqrt(variance / count), edges


def _position_sums(nats: Tensor, window: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return count, sum and sum of squares of the nats at each position, each (window,)."""
    whole = len(nats) // window * window
    rows, rest = nats[:whole].view(-1, window), nats[whole:]
    count = torch.full((window,), float(len(rows)), dtype=torch.float64)
    total, square = rows.sum(0), rows.square().sum(0)
    count[: len(rest)] += 1
    total[: len(rest)] += rest
    square[: len(rest)] += rest.square()
    return count.numpy(), total.numpy(), square.numpy()


def _position_title(nats: Tensor, window: int, scale: float) -> str:
    """Say what the first sixteenth and the second half of the window cost, as far as the text fills it."""
    count, total, _ = _position_sums(nats, window)
    filled = int(np.count_nonzero(count))
    few, half = max(filled // 16, 1), filled // 2
    early = total[:few].sum() / count[:few].sum() * scale
    late = total[half:].sum() / count[half:].sum() * scale
    first = f"{few:,} tokens" if few > 1 else "one token"
    return f"{early:.2f} BPB with up to {first} of context, {late:.2f} with more than {half:,}"
