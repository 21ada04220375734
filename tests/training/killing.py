"""Kills at random moments: a run dies in the middle of any call of the product's own code."""

import gc
import inspect
import random
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator

from modeling_pgolf.configuration_pgolf import PGolfConfig
from modeling_pgolf.modeling_pgolf import PGolfForCausalLM
from pgolf.checkpoint import FolderCheckpoints
from training.config import EmaConfig, QatConfig, ReplayConfig, SwaConfig, TrainingConfig
from training.loop import fit

ROOT = Path(__file__).resolve().parents[2]
VOCABULARY = 280

# Everything that has state is on: the rate falls from step 3, remembering starts at 4, rounding at 5.
CONFIG = TrainingConfig(
    iterations=8,
    seconds=None,
    sequence_length=16,
    span_sequences=2,
    spans_per_step=2,
    micro_batch_sequences=4,
    warmdown_steps=6,
    momentum_warmup_steps=5,
    ema=EmaConfig(decay=0.9),
    swa=SwaConfig(below_scale=0.9, every=2),
    qat=QatConfig(below_scale=0.6, more_elements_than=0),
    replay=ReplayConfig(below_scale=0.8, spans=3, epochs=1),
    precision="fp32",
    compile=False,
    checkpoint_every=2,
)


class Killed(BaseException):
    """Stands for a kill: nothing in the product may catch it."""


@contextmanager
def killed_in_call(number, places=("training", "pgolf")):
    """Raise Killed in call ``number`` (from 1) of functions below these places; yields the count in a list of one.

    Python swallows what is raised while it closes a forgotten generator. So a generator that goes on is no call, and
    nothing is collected meanwhile: which call comes when would be the collector's choice.
    """
    paths, calls = tuple(str(ROOT / place) for place in places), [0]

    def watch(frame, event, argument):
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(paths) and not code.co_flags & inspect.CO_GENERATOR:
            calls[0] += 1
            if calls[0] == number:
                raise Killed

    gc.collect()
    gc.disable()
    sys.setprofile(watch)
    try:
        yield calls
    finally:
        sys.setprofile(None)
        gc.enable()


def moments(calls, count, seed):
    """Random calls to die in."""
    return sorted(random.Random(seed).sample(range(1, calls + 1), count))


def random_tokens():
    return np.random.default_rng(0).integers(0, VOCABULARY, 700).astype(np.uint16)


def train(tokens, config, folder, writer=True):
    """Train a fresh model from the seed, or go on with what ``folder`` keeps; returns its weights and what happened."""
    torch.manual_seed(7)
    model = PGolfForCausalLM(
        PGolfConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=48,
            num_blocks=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            rotary_dims=4,
            rotary_length=16,
            max_position_embeddings=16,
            xsa_layers=[1],
            value_embed_layers=[1],
            value_embed_dim=8,
            bigram_buckets=31,
            bigram_dim=8,
        )
    )
    events = []
    states = FolderCheckpoints(Path(folder), keep=2, writer=writer)
    fit(model, tokens, config, Accelerator(cpu=True), checkpoints=states, log=events.append)
    return {name: p.detach().clone() for name, p in model.named_parameters()}, events


def resumed_step(events):
    """The step from which a run went on; 0 for one that began."""
    return max([0, *(event["step"] for event in events if event["event"] == "resumed")])
