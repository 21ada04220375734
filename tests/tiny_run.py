"""A tiny recipe as a file, and text for it: for tests that start stages as their user does."""

import json
import random

RECIPE = """
from evaluation.config import EvaluationConfig
from pgolf.corpus.build import CorpusConfig, TrainBpe
from pgolf.corpus.local import LocalFolder
from pgolf.corpus.stream import StreamConfig
from pgolf.recipe import ModelConfig, Recipe
from training.config import ReplayConfig, TrainingConfig

recipe = Recipe(
    name="tiny",
    corpus=CorpusConfig(LocalFolder({text!r}), TrainBpe(270), streaming={streaming}),
    model=ModelConfig(
        vocab_size=270, hidden_size=32, intermediate_size=64, num_blocks=2, num_attention_heads=4,
        num_key_value_heads=2, rotary_dims=4, rotary_length=16, max_position_embeddings=16, xsa_layers=[1],
        bigram_buckets=61, bigram_dim=8, value_embed_layers=[1], value_embed_dim=8,
    ),
    training=TrainingConfig(
        seconds=None, sequence_length=16, span_sequences=2, spans_per_step=2, micro_batch_sequences=2,
        precision="fp32", compile=False, {training},
    ),
    evaluation=EvaluationConfig(window=16, stride=16, compile=False, precision="fp32"),
)
"""


def write_text(folder, documents, words=8):
    """Write documents of random words, {name: how many}, a file a name; returns the folder."""
    draw = random.Random(0)
    known = ["".join(draw.choices("abcdefghijklmnop", k=draw.randint(2, 7))) for _ in range(60)]
    folder.mkdir()
    for name, count in documents.items():
        lines = (json.dumps({"text": f"{name} {i} {' '.join(draw.choices(known, k=words))}"}) for i in range(count))
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    return folder


def write_recipe(file, text, training, streaming=None):
    """Write the recipe over the folder ``text``; ``training`` and ``streaming`` are Python. Returns the file."""
    file.write_text(RECIPE.format(text=str(text), training=training, streaming=streaming))
    return file
