"""Plots: the same bytes every time, and true to the numbers they are drawn from."""

import numpy as np
import pytest
import torch

from pgolf.plots import bytes_figure, history, loss_figure, save_figure
from pgolf.score_plots import gains_figure, position_bins, position_figure, running_figure, segment_sums, token_figure

WINDOW = 16
SIZES = {
    "total_bytes": 1000,
    "code_bytes": 300,
    "groups": [
        {"group": "attention", "bytes": 600, "bits_per_weight": 4.5, "entropy_bits": 4.25},
        {"group": "controls", "bytes": 100, "bits_per_weight": 16.0, "entropy_bits": 0.0},
    ],
}


def training_log(steps):
    events = [
        {"event": "step", "step": s, "train_loss": 4 / s + 2, "lr_scale": 1 - s / steps} for s in range(1, steps + 1)
    ]
    return [*events, {"event": "validation", "step": steps, "validation_loss": 2.5}]


@pytest.mark.parametrize(
    ("steps", "chunks", "drawn"),
    [(400, 100, {"loss", "bytes", "position", "running", "gains", "tokens"}), (1, 1, {"loss", "gains"})],
    ids=["long", "shortest"],
)
def test_plots_are_the_same_twice(steps, chunks, drawn, tmp_path):
    events = training_log(steps)
    generator = torch.Generator().manual_seed(2)
    nats = torch.rand(200, dtype=torch.float64, generator=generator)
    target_bytes = torch.randint(0, 20, (200,), dtype=torch.int16, generator=generator)
    draw = {
        "loss": lambda: loss_figure(events),
        "bytes": lambda: bytes_figure(SIZES),
        "position": lambda: position_figure(nats, WINDOW, 2.5, 0.3),
        "running": lambda: running_figure({"sliding": nats, "adapted": 0.9 * nats}, target_bytes),
        "gains": lambda: gains_figure(nats, 0.9 * nats, target_bytes, list(range(0, 200, 200 // chunks))),
        "tokens": lambda: token_figure(nats, target_bytes),
    }
    for name in drawn:
        for turn in ("one", "two"):
            (tmp_path / turn).mkdir(exist_ok=True)
            save_figure(draw[name](), tmp_path / turn, name)
        for kind in ("svg", "png"):
            one, two = ((tmp_path / turn / f"{name}.{kind}").read_bytes() for turn in ("one", "two"))
            assert one == two
        assert b"date" not in one.lower()


def test_figures_state_their_finding():
    assert "from 6.00 to 2.10" in loss_figure(training_log(40)).get_suptitle()
    assert bytes_figure(SIZES).get_suptitle() == "Attention takes 60% of the artifact's 1,000 bytes"
    nats = torch.full((64,), 0.6931471805599453, dtype=torch.float64)
    figure = position_figure(nats, WINDOW, 2.0, 0.5)
    assert figure.get_suptitle() == "0.50 BPB with up to one token of context, 0.50 with more than 8"
    assert "2.000 bytes" in figure.axes[0].get_ylabel()


def test_a_text_shorter_than_the_window_is_described_as_far_as_it_goes():
    """Nobody scored a target with more context than there is: no figure may stand for it."""
    nats = torch.full((5,), 0.6931471805599453, dtype=torch.float64)
    title = position_figure(nats, WINDOW, 2.0, 0.5).get_suptitle()
    assert title == "0.50 BPB with up to one token of context, 0.50 with more than 2"


@pytest.mark.parametrize("steps", [1, 2, 3, 999])
def test_whole_numbers_stand_along_the_bottom_once_each(steps):
    chunks = list(range(0, 2000, 2000 // min(steps, 100)))
    nats, target_bytes = torch.ones(2000, dtype=torch.float64), torch.ones(2000, dtype=torch.int16)
    for figure in (loss_figure(training_log(steps)), gains_figure(nats, 0.9 * nats, target_bytes, chunks)):
        axes = figure.axes[-1]
        figure.draw_without_rendering()
        places = [place for place in axes.get_xticks() if axes.get_xlim()[0] <= place <= axes.get_xlim()[1]]
        assert places and all(place == round(place) for place in places)


def test_history_keeps_the_last_account_of_a_resumed_run():
    steps = [10, 20, 30, 20, 30, 40]
    events = [{"event": "step", "step": step, "turn": turn} for turn, step in enumerate(steps)]
    assert [(event["step"], event["turn"]) for event in history(events, "step")] == [(10, 0), (20, 3), (30, 4), (40, 5)]


@pytest.mark.parametrize("targets", [3, 16, 17, 165])
def test_position_bins_hold_every_target(targets):
    nats = torch.rand(targets, dtype=torch.float64)
    mean, _, edges = position_bins(nats, WINDOW)
    place = torch.arange(targets) % WINDOW + 1
    for value, first, end in zip(mean, edges[:-1], edges[1:], strict=True):
        assert abs(value - float(nats[(place >= int(first)) & (place < int(end))].mean())) < 1e-12
    assert edges[0] == 1 and edges[-1] == min(targets, WINDOW) + 1


LN2 = 0.6931471805599453


def heights(axes):
    return [bar.get_height() for bar in axes.patches]


def test_the_running_score_ends_at_the_score():
    """Bytes are not spread evenly: the curve must divide sums by sums, not average quotients."""
    nats, target_bytes = torch.rand(5000, dtype=torch.float64), torch.arange(5000, dtype=torch.int16) % 7
    figure = running_figure({"sliding": nats, "adapted": 0.5 * nats}, target_bytes)
    frozen, adapted = (line.get_ydata() for line in figure.axes[0].lines)
    score = float(nats.sum()) / LN2 / float(target_bytes.sum())
    assert frozen[-1] == pytest.approx(score) and adapted[-1] == pytest.approx(score / 2)
    assert figure.axes[0].lines[0].get_xdata()[-1] == 5000
    halfway = len(frozen) // 2
    place = figure.axes[0].lines[0].get_xdata()[halfway]
    assert frozen[halfway] == pytest.approx(float(nats[:place].sum()) / LN2 / float(target_bytes[:place].sum()))
    assert f"from {score:.4f} to {score / 2:.4f}" in figure.get_suptitle()


def test_a_stream_that_begins_without_bytes():
    nats, target_bytes = torch.ones(10, dtype=torch.float64), torch.tensor([0, 0] + [1] * 8, dtype=torch.int16)
    curve = running_figure({"sliding": nats}, target_bytes).axes[0].lines[0]
    assert curve.get_xdata()[0] == 3 and curve.get_ydata()[-1] == pytest.approx(10 / LN2 / 8)


def test_gains_add_up():
    frozen, target_bytes = torch.full((10,), 2.0, dtype=torch.float64), torch.full((10,), 2, dtype=torch.int16)
    adapted = frozen.clone()
    adapted[4:8] -= 1.0
    adapted[8:] += 0.5
    figure = gains_figure(frozen, adapted, target_bytes, [0, 4, 8])
    assert heights(figure.axes[0]) == pytest.approx([0.0, 0.5 / LN2, -0.25 / LN2])
    title = f"Adapting gains {3 / LN2 / 20:.4f} bits per byte; 50% of the chunks behind the first gain"
    assert figure.get_suptitle() == title


def test_a_loss_is_called_one():
    frozen, target_bytes = torch.ones(4, dtype=torch.float64), torch.ones(4, dtype=torch.int16)
    title = gains_figure(frozen, 2 * frozen, target_bytes, [0, 2]).get_suptitle()
    assert title == f"Adapting loses {1 / LN2:.4f} bits per byte; 0% of the chunks behind the first gain"


def test_tokens_by_their_bytes():
    target_bytes = torch.tensor([0, 1, 1, 3, 12, 30], dtype=torch.int16)
    nats = torch.tensor([1.0, 2.0, 4.0, 5.0, 2.0, 6.0], dtype=torch.float64)
    figure = token_figure(nats, target_bytes)
    assert heights(figure.axes[0]) == pytest.approx([1.0, 3.0, 5.0, 4.0])
    assert heights(figure.axes[1]) == pytest.approx([1 / 6, 2 / 6, 1 / 6, 2 / 6, 1 / 20, 6 / 20, 5 / 20, 8 / 20])
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["0", "1", "3", "10+"]
    assert figure.get_suptitle() == "Tokens of up to 2 bytes are 50% of all and carry 35% of the nats"


def test_segment_sums():
    assert segment_sums(torch.arange(6), np.array([0, 1, 4, 6])).tolist() == [0.0, 6.0, 9.0]
