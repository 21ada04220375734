"""Plots: the same bytes every time, and true to the numbers they are drawn from."""

import pytest
import torch

from pgolf.plots import bytes_figure, history, loss_figure, position_bins, position_figure, save_figure

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


@pytest.mark.parametrize("steps", [1, 400])
def test_plots_are_the_same_twice(steps, tmp_path):
    events = training_log(steps)
    nats = torch.rand(200, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    draw = {
        "loss": lambda: loss_figure(events),
        "bytes": lambda: bytes_figure(SIZES),
        "position": lambda: position_figure(nats, WINDOW, 2.5, 0.3),
    }
    for name, figure in draw.items():
        for turn in ("one", "two"):
            (tmp_path / turn).mkdir(exist_ok=True)
            save_figure(figure(), tmp_path / turn, name)
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
