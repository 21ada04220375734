"""A run that is asked to stop keeps its state, and a run's batches can be listed from its record."""

import hashlib
import os
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from modeling_pgolf.errors import TrainingError
from modeling_pgolf.modeling_pgolf import PGolfForCausalLM
from pgolf.checkpoint import FolderCheckpoints
from pgolf.run import asked_to_stop
from training.batches import TrainTokens
from training.config import EmaConfig, ReplayConfig, TrainingConfig
from training.loop import fit
from training.orders import FINGERPRINT_STEPS, step_batches, stream_facts
from training.trainer import Trainer

CONFIG = TrainingConfig(
    iterations=8,
    seconds=None,
    sequence_length=16,
    span_sequences=2,
    spans_per_step=2,
    micro_batch_sequences=2,
    warmdown_steps=4,
    ema=EmaConfig(decay=0.9),
    precision="fp32",
    compile=False,
)


def tokens(vocabulary):
    return TrainTokens([np.random.default_rng(0).integers(0, vocabulary, 700).astype(np.uint16)])


def trained(config, folder, stop=lambda: False):
    torch.manual_seed(0)
    model = PGolfForCausalLM(config)
    states = FolderCheckpoints(folder, keep=2)
    fit(model, tokens(config.vocab_size), CONFIG, Accelerator(cpu=True), checkpoints=states, stop=stop)
    return dict(model.named_parameters())


def test_a_stopped_run_goes_on_to_the_same_bits(tiny_config, tmp_path):
    whole = trained(tiny_config, tmp_path / "whole")
    asked = iter([False] * 4 + [True])
    with pytest.raises(TrainingError, match="stopped as asked after step 5; start the same command"):
        trained(tiny_config, tmp_path / "cut", stop=lambda: next(asked))
    assert [p.name for p in (tmp_path / "cut").iterdir()] == ["step-00000005"]
    resumed = trained(tiny_config, tmp_path / "cut")
    assert all(torch.equal(resumed[name], tensor) for name, tensor in whole.items())


@pytest.fixture
def like_a_terminal():
    """Signals as a terminal gives them, whatever those are that the tests were started with."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGINT], ids=lambda kind: kind.name)
def test_a_signal_asks_to_stop(kind, like_a_terminal):
    before = signal.getsignal(kind)
    with asked_to_stop() as asked:
        assert not asked()
        os.kill(os.getpid(), kind)
        assert asked()
    assert signal.getsignal(kind) is before


def test_an_ignored_interrupt_asks_nothing():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with asked_to_stop() as asked:
            os.kill(os.getpid(), signal.SIGINT)
            assert not asked()
            os.kill(os.getpid(), signal.SIGTERM)
            assert asked() and signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_second_interrupt_does_not_wait(like_a_terminal):
    with asked_to_stop() as asked:
        os.kill(os.getpid(), signal.SIGINT)
        assert asked()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_the_recorded_stream_is_the_one_that_was_read(tiny_config, monkeypatch):
    seen = []
    gradients = Trainer._gradients

    def spy(self, inputs, targets, share):
        seen.append((inputs.clone(), targets.clone()))
        return gradients(self, inputs, targets, share)

    monkeypatch.setattr(Trainer, "_gradients", spy)
    stream = tokens(tiny_config.vocab_size)
    fit(PGolfForCausalLM(tiny_config), stream, CONFIG, Accelerator(cpu=True))
    listed = list(step_batches(stream, CONFIG, CONFIG.iterations))
    assert len(seen) == len(listed) == CONFIG.iterations
    for (x, y), (inputs, targets) in zip(seen, listed, strict=True):
        assert torch.equal(x, inputs) and torch.equal(y, targets)
    digest = hashlib.sha256()
    for x, y in seen[:FINGERPRINT_STEPS]:
        digest.update(x.numpy().tobytes() + y.numpy().tobytes())
    facts = stream_facts(stream, CONFIG)
    assert facts["fingerprint"] == digest.hexdigest()[:16]


def test_another_text_has_another_fingerprint(tiny_config):
    one, other = tokens(320), TrainTokens([np.random.default_rng(1).integers(0, 320, 700).astype(np.uint16)])
    assert stream_facts(one, CONFIG)["fingerprint"] != stream_facts(other, CONFIG)["fingerprint"]


def test_replayed_batches_are_listed_too(tiny_config, monkeypatch):
    """By what a run says of its replay: the last spans that were read, oldest first, as often as steps were taken."""
    seen, genuine = [], Trainer.replay_step

    def replay_step(self, inputs, targets):
        seen.append(inputs.clone())
        return genuine(self, inputs, targets)

    monkeypatch.setattr(Trainer, "replay_step", replay_step)
    config = replace(CONFIG, replay=ReplayConfig(below_scale=0.8, spans=5, epochs=2))
    stream = tokens(tiny_config.vocab_size)
    trained = fit(PGolfForCausalLM(tiny_config), stream, config, Accelerator(cpu=True))
    assert trained.replay == {"spans": 5, "steps": 10, "planned": 10, "after_clock": False}
    read = [span for inputs, _ in step_batches(stream, config, trained.steps) for span in inputs.split(2)]
    listed = read[-trained.replay["spans"] :] * config.replay.epochs
    assert len(seen) == len(listed) and all(map(torch.equal, seen, map(torch.Tensor.int, listed)))
