"""The plots of a record: the loss over training, where the bytes went; those of its scores are in ``score_plots``.

Each function returns a figure; ``save_figure`` writes it as SVG and PNG, the same bytes every time. Colours are
named, so that a page can replace them by those of its own light or dark theme.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

# Distinguishable with every common colour blindness, dark enough for white paper.
PALETTE = {
    "ink": "#1f2328",
    "muted": "#59636e",
    "line": "#d8dee4",
    "first": "#2f6db5",
    "second": "#c2611f",
    "rest": "#9aa2ab",
}

# Inches: 700 pixels wide at the 100 dots an inch of a page, twice as sharp in the PNG.
WIDTH = 7.0
STYLE = {
    "font.family": "DejaVu Sans",  # comes with matplotlib, so the files are the same on every machine
    "font.size": 9.5,
    "text.color": PALETTE["ink"],
    "figure.titlesize": 11.5,
    "figure.titleweight": "bold",
    "axes.labelcolor": PALETTE["muted"],
    "axes.edgecolor": PALETTE["line"],
    "axes.spines.left": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": PALETTE["line"],
    "grid.linewidth": 0.7,
    "xtick.color": PALETTE["line"],
    "ytick.major.size": 0,
    "xtick.labelcolor": PALETTE["muted"],
    "ytick.labelcolor": PALETTE["muted"],
    "svg.hashsalt": "pgolf",
}

# A curve of this many points and more is cut off above what it reached after a fiftieth of them: the fall from
# ln(vocabulary) would press everything else flat.
LONG_CURVE = 100


def loss_figure(events: list[dict[str, Any]]) -> Figure:
    """Draw training loss, validation loss where there is one, and the learning rate over steps.

    events: the training log, in the order in which it was written.
    """
    steps, checks = history(events, "step"), history(events, "validation")
    x, y = [e["step"] for e in steps], [e["train_loss"] for e in steps]
    with rc_context(STYLE):
        figure = new_figure(4.2, f"Training loss went from {y[0]:.2f} to {y[-1]:.2f} nats per token by step {x[-1]:,}")
        loss, rate = figure.subplots(2, 1, sharex=True, height_ratios=[3.2, 1])
        loss.plot(x, y, color=PALETTE["first"], linewidth=1.6, marker="o" if len(x) < 12 else "", markersize=4)
        labels = [(y[-1], f"train {y[-1]:.3f}", "first")]
        if checks:
            at, value = [e["step"] for e in checks], [e["validation_loss"] for e in checks]
            loss.plot(at, value, color=PALETTE["second"], linestyle="", marker="D", markersize=4.5)
            labels.append((value[-1], f"validation {value[-1]:.3f}", "second"))
        if len(y) >= LONG_CURVE:
            start = len(y) // 50
            low, high = min([*y, *(e["validation_loss"] for e in checks)]), max(y[start:])
            loss.set_ylim(low - 0.08 * (high - low), high + 0.05 * (high - low))
            loss.set_title(f"the first {x[start]:,} steps lie above", loc="left", fontsize=8.5, color=PALETTE["muted"])
        label_right(loss, labels)
        loss.set_ylabel("nats per token")
        rate.plot(x, [e["lr_scale"] for e in steps], color=PALETTE["muted"], linewidth=1.6)
        rate.set_ylim(0, 1.05)
        rate.set_ylabel("learning rate,\nshare of peak")
        rate.set_xlabel("optimiser step")
        count_along(rate, 10)
        rate.margins(x=0.02)
    return figure


def history(events: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    """Return the events of one kind by rising step; where a run was resumed or started again, its last account."""
    kept: list[dict[str, Any]] = []
    for event in events:
        if event["event"] == kind:
            while kept and kept[-1]["step"] >= event["step"]:
                kept.pop()
            kept.append(event)
    return kept


def bytes_figure(sizes: dict[str, Any]) -> Figure:
    """Draw what each group of tensors, and the code, costs.

    sizes: the byte ledger, ``bytes.json``.
    """
    total = sizes["total_bytes"]
    code = {"group": "code", "bytes": sizes["code_bytes"], "bits_per_weight": 0.0, "entropy_bits": 0.0}
    rows = sorted([*sizes["groups"], code], key=lambda row: row["bytes"])
    largest = rows[-1]
    with rc_context(STYLE | {"axes.grid.axis": "x", "axes.spines.bottom": False}):
        figure = new_figure(
            1.4 + 0.34 * len(rows),
            f"{largest['group'].capitalize()} takes {largest['bytes'] / total:.0%} of the artifact's {total:,} bytes",
        )
        axes, table = figure.subplots(1, 2, sharey=True, width_ratios=[1.15, 1])
        names, sides = [row["group"] for row in rows], [row["bytes"] / 1000 for row in rows]
        colours = [PALETTE["rest" if name == "code" else "first"] for name in names]
        axes.barh(names, sides, color=colours, height=0.62)
        axes.set_xlim(0, sides[-1] * 1.04)
        axes.set_xlabel("kB (1 kB = 1,000 bytes)")
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.tick_params(axis="y", labelcolor=PALETTE["ink"])
        _columns(table, rows, total)
    return figure


def _columns(axes: Axes, rows: list[dict[str, Any]], total: int) -> None:
    """Write bytes, share and bits at the heights of the bars, aligned like a table."""
    axes.set_axis_off()
    places = (0.22, 0.44, 0.68, 1.0)
    for place, title in zip(places, ("bytes", "share", "bits per\nweight", "entropy of\nthe codes"), strict=True):
        axes.text(place, 1.0, title, transform=axes.transAxes, ha="right", va="bottom", color=PALETTE["muted"])
    for height, row in enumerate(rows):
        bits = [f"{row[key]:.2f}" if row[key] else "–" for key in ("bits_per_weight", "entropy_bits")]
        for place, cell in zip(places, (f"{row['bytes']:,}", f"{row['bytes'] / total:.1%}", *bits), strict=True):
            axes.text(place, height, cell, transform=axes.get_yaxis_transform(), ha="right", va="center")


def new_figure(height: float, title: str) -> Figure:
    """Return an empty figure; height in inches, the title is what it shows."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    figure.suptitle(title, x=0, ha="left")
    return figure


def count_along(axes: Axes, numbers: int) -> None:
    """Mark whole numbers along the bottom of ``axes``, about as many as said; one where there is but one."""
    axes.xaxis.set_major_locator(MaxNLocator(numbers, integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter("{x:,.0f}")


def label_right(axes: Axes, labels: list[tuple[float, str, str]]) -> None:
    """Name one or two lines, as (height, text, colour), at the right edge; the upper label goes up, the lower down."""
    aligns = ["center"] if len(labels) == 1 else ["top", "bottom"]
    for align, (height, text, colour) in zip(aligns, sorted(labels), strict=True):
        axes.annotate(
            text,
            (1, height),
            (4, 0),
            xycoords=axes.get_yaxis_transform(),
            textcoords="offset points",
            va=align,
            color=PALETTE[colour],
            fontweight="bold",
            fontsize=8.5,
        )


def save_figure(figure: Figure, folder: Path, name: str) -> None:
    """Write ``NAME.svg`` (transparent) and ``NAME.png`` (white) into ``folder``, without dates or versions."""
    with rc_context(STYLE):
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(folder / f"{name}.svg", metadata=nothing, transparent=True)
        figure.savefig(folder / f"{name}.png", metadata={"Software": None}, dpi=200)
