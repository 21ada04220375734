"""What the clock decides, on a clock that the test moves: when a run ends, what it replays, when late QAT begins."""

import math
import time
from contextlib import suppress

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from modeling_pgolf.configuration_pgolf import PGolfConfig
from modeling_pgolf.errors import TrainingError
from modeling_pgolf.modeling_pgolf import PGolfForCausalLM
from pgolf.checkpoint import FolderCheckpoints
from training import trainer as trainers
from training.batches import TrainTokens
from training.config import QatConfig, ReplayConfig, TrainingConfig
from training.loop import fit
from training.state import restore_run, run_state
from training.telemetry import Telemetry
from training.trainer import Trainer

TOKENS = TrainTokens([np.random.default_rng(0).integers(0, 320, 900).astype(np.uint16)])


def config(**fields):
    return TrainingConfig(
        **{
            "iterations": 1000,
            "seconds": 20.0,
            "sequence_length": 16,
            "span_sequences": 2,
            "spans_per_step": 1,
            "micro_batch_sequences": 2,
            "warmdown_steps": 0,
            "ema": None,
            "precision": "fp32",
            "compile": False,
            "log_every": 1,
            **fields,
        }
    )


@pytest.fixture
def clock(monkeypatch):
    """Every gradient takes the seconds that ``clock[1]`` says of it: by default one."""
    clock = [100.0, lambda trainer: 1.0]
    genuine = Trainer._gradients

    def gradients(self, *arguments, **named):
        clock[0] += clock[1](self)
        return genuine(self, *arguments, **named)

    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(Trainer, "_gradients", gradients)
    return clock


def run(model_config, training, **named):
    torch.manual_seed(0)
    events = []
    trained = fit(PGolfForCausalLM(model_config), TOKENS, training, Accelerator(cpu=True), log=events.append, **named)
    return trained, events


def looped(tiny_config):
    keys = {k: v for k, v in tiny_config.to_dict().items() if k in PGolfConfig.__annotations__}
    return PGolfConfig(**{**keys, "loop_start": 1, "loop_end": 2, "loop_passes": 1, "skip_gates": True})


@pytest.mark.parametrize("seconds", [5.0, 5.5, 20.0])
def test_a_run_ends_before_the_step_that_would_be_over_the_limit(clock, tiny_config, seconds):
    trained, _ = run(tiny_config, config(seconds=seconds))
    assert trained.steps == math.floor(seconds) and trained.seconds["step"] == trained.steps


def test_longer_steps_of_a_loop_do_not_overrun(clock, tiny_config):
    """Ten steps of a second, then two seconds each: by the mean so far one more would seem to fit into 19.5."""
    clock[1] = lambda trainer: 2.0 if trainer.loop.on else 1.0
    trained, _ = run(looped(tiny_config), config(seconds=19.5, loop_from=0.5))
    assert trained.steps == 10 + 4 and trained.seconds["step"] == 18.0


def test_one_slow_step_does_not_end_a_run(clock, tiny_config):
    clock[1] = lambda trainer: 6.0 if trainer.steps == 48 else 1.0
    trained, _ = run(tiny_config, config(seconds=59.0))
    assert trained.steps == 53  # 58 of 59 seconds, and a mean of 1.1


def test_a_finished_loop_takes_no_step_when_it_is_resumed(clock, tiny_config, tmp_path):
    """Its longer steps are remembered, and the state of its end is not written again."""
    clock[1] = lambda trainer: 2.0 if trainer.loop.on else 1.0
    states, saved = FolderCheckpoints(tmp_path, keep=2), []
    for _ in range(2):
        trained, _ = run(looped(tiny_config), config(seconds=19.5, loop_from=0.5), checkpoints=states)
        assert trained.steps == 14 and trained.seconds["step"] == 18.0
        saved.append([(path.name, path.stat().st_ino) for path in sorted(tmp_path.iterdir())])
    assert saved[0] == saved[1] and saved[0][0][0] == "step-00000014"


def test_steps_that_only_seemed_late_are_not_replayed(clock, tiny_config):
    """Behind a slow first step the end of the clock looks near, and a few early spans are remembered for nothing."""
    clock[1] = lambda trainer: 8.0 if trainer.steps == 0 else 0.25
    replay = ReplayConfig(below_scale=0.5, spans=1000, epochs=1, reserve_seconds=1.0)
    trained, events = run(tiny_config, config(seconds=40.0, warmdown_steps=40, replay=replay))
    late = [event["step"] for event in events if event["event"] == "step" and event["lr_scale"] < 0.5]
    assert late[0] < 5 and trained.steps - late[-1] == 0
    behind = [step for step in late if step > late[0] + 40]
    assert trained.replay["spans"] == len(behind) == trained.steps - behind[0] + 1


def test_utilisation_is_that_of_the_steps_since_the_last_report(clock, tiny_config, tmp_path, monkeypatch):
    """With the loop on a token is more work: it is not charged to steps before, and not to those before a resume."""
    monkeypatch.setattr(trainers, "peak_flops", lambda device, processes: 1e6)
    model, states = looped(tiny_config), FolderCheckpoints(tmp_path, keep=2)
    asked = iter([False] * 12 + [True])
    training, seen = config(loop_from=0.25), []
    for stop in (lambda: next(asked), lambda: False):
        torch.manual_seed(0)
        with suppress(TrainingError):
            fit(PGolfForCausalLM(model), TOKENS, training, Accelerator(cpu=True),
                checkpoints=states, log=seen.append, stop=stop)  # fmt: skip
    steps = [event for event in seen if event["event"] == "step"]
    assert [event["step"] for event in steps] == list(range(1, 21))
    plain, with_loop = steps[2]["mfu"], steps[8]["mfu"]
    assert with_loop > 1.2 * plain
    for event in steps:
        assert event["mfu"] == pytest.approx(plain if event["step"] <= 5 else with_loop, rel=1e-6), event["step"]


def test_a_resumed_run_has_the_seconds_that_are_left(clock, tiny_config, tmp_path):
    states, asked = FolderCheckpoints(tmp_path, keep=2), iter([False] * 7 + [True])
    with pytest.raises(Exception, match="stopped as asked after step 8"):
        run(tiny_config, config(), checkpoints=states, stop=lambda: next(asked))
    clock[0] += 5000.0  # between the two
    trained, _ = run(tiny_config, config(), checkpoints=states)
    assert trained.steps == 20 and trained.seconds["step"] == 20.0


@pytest.mark.parametrize(("after_clock", "replayed"), [(False, 5), (True, 24)])
def test_a_ranked_replay_has_its_reserve_and_ends_with_the_clock(clock, tiny_config, after_clock, replayed):
    replay = ReplayConfig(below_scale=2.0, spans=12, epochs=2, reserve_seconds=5.0, after_clock=after_clock)
    trained, events = run(tiny_config, config(replay=replay))
    (event,) = [event for event in events if event["event"] == "replay"]
    assert (event["steps"], event["planned"]) == (replayed, 24)
    assert trained.steps == (20 if after_clock else 15)
    assert trained.seconds["replay_after_clock" if after_clock else "replay"] == float(replayed)


def test_a_slow_first_step_does_not_leave_the_rounding_on(clock, tiny_config):
    """Its seconds, taken for the mean, make the warm-down by the clock seem near; it is not once steps are fast."""
    clock[1] = lambda trainer: 8.0 if trainer.steps == 0 else 0.05
    rounded = []

    def watch(event):
        if event["event"] == "step":
            rounded.append((event["step"], event["lr_scale"]))

    qat = QatConfig(below_scale=0.5, more_elements_than=0)
    torch.manual_seed(0)
    quiet = Telemetry(watch, 1000, 32, visible=False)
    training = config(seconds=40.0, warmdown_steps=40, qat=qat)
    trainer = Trainer(PGolfForCausalLM(tiny_config), TOKENS, training, Accelerator(cpu=True), quiet)
    on = []
    with trainer.clock.phase("step"):
        while not trainer.finished():
            trainer.step()
            on.append(trainer.qat.on)
    assert on[1] and not on[60], "the second step sees the slow one as the mean, later ones do not"
    assert on == [scale < 0.5 for _, scale in rounded]
    assert on[-1]


def test_the_random_generator_goes_on_where_it_was(tiny_config):
    def fresh():
        quiet = Telemetry(lambda event: None, 10, 32, visible=False)
        torch.manual_seed(0)
        return Trainer(PGolfForCausalLM(tiny_config), TOKENS, config(seconds=None), Accelerator(cpu=True), quiet)

    trainer = fresh()
    torch.rand(17)
    state = run_state(trainer)
    expected = torch.rand(5)
    other = fresh()
    torch.manual_seed(99)
    restore_run(other, state)
    assert torch.equal(torch.rand(5), expected)
