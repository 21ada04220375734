"""A tracker sees what the log sees: tensorboard's own reader reads a run's numbers back."""

import json
import random
import signal

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pgolf.job import parse_job
from pgolf.run import train
from pgolf.workdir import open_run

RECIPE = """
from evaluation.config import EvaluationConfig
from pgolf.corpus.build import CorpusConfig, TrainBpe
from pgolf.corpus.local import LocalFolder
from pgolf.recipe import ModelConfig, Recipe
from training.config import TrainingConfig

recipe = Recipe(
    name="tiny",
    corpus=CorpusConfig(LocalFolder({text!r}), TrainBpe(270)),
    model=ModelConfig(
        vocab_size=270, hidden_size=32, intermediate_size=64, num_blocks=2, num_attention_heads=4,
        num_key_value_heads=2, rotary_dims=4, rotary_length=16, max_position_embeddings=16, xsa_layers=[1],
        bigram_buckets=0, value_embed_layers=[],
    ),
    training=TrainingConfig(
        iterations=6, seconds=None, sequence_length=16, span_sequences=2, spans_per_step=2, micro_batch_sequences=2,
        precision="fp32", compile=False, log_every=2, validate_every=3,
    ),
    evaluation=EvaluationConfig(window=16, stride=16, compile=False, precision="fp32"),
)
"""


@pytest.fixture
def recipe(tmp_path):
    draw = random.Random(0)
    (tmp_path / "text").mkdir()
    for name, count in (("train", 30), ("validation", 4)):
        texts = (" ".join("".join(draw.choices("abcdefgh", k=5)) for _ in range(9)) for _ in range(count))
        (tmp_path / "text" / f"{name}.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    (tmp_path / "tiny.py").write_text(RECIPE.format(text=str(tmp_path / "text")))
    return tmp_path / "tiny.py"


def test_tensorboard_reads_the_numbers_of_the_log(recipe, tmp_path):
    job = parse_job(recipe, ["--root", str(tmp_path), "--trackers", "tensorboard"])
    run, before = open_run(tmp_path, None, job.recipe), signal.getsignal(signal.SIGTERM)
    train(job, run)
    signal.signal(signal.SIGTERM, before)
    reader = EventAccumulator(str(run.path / "tiny"))
    reader.Reload()
    logged = [json.loads(line) for line in run.log.read_text().splitlines()]
    for name, steps in (("train_loss", [1, 2, 4, 6]), ("validation_bpb", [3, 6])):
        expected = {event["step"]: event[name] for event in logged if name in event}
        assert [*expected] == steps
        seen = {scalar.step: scalar.value for scalar in reader.Scalars(name)}
        assert seen == pytest.approx(expected, rel=1e-6)  # tensorboard keeps float32
