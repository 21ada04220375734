"""A tiny artifact as the exporter writes it: code, compressed weights, tokenizer and generation settings."""

import random

from model.architectures import alive, tiny

from pgolf.artifact import write_artifact
from pgolf.corpus.tokenizer import save_tokenizer, train_bpe
from quantization.compress import compress, dequantized
from quantization.config import QuantizationConfig

# The smallest vocabulary with a few merges: 260 fixed ids, characters, pieces.
VOCABULARY = 320
WINDOW = 64


def words():
    """Sixty made-up words, the same ones every time."""
    draw = random.Random(0)
    return ["".join(draw.choices("abcdefghijklmnop", k=draw.randint(2, 7))) for _ in range(60)]


def prose(count, seed=0):
    """A text of ``count`` of those words."""
    return " ".join(random.Random(seed).choices(words(), k=count))


def small_tokenizer():
    return train_bpe([prose(60, seed) for seed in range(20)], vocab_size=VOCABULARY)


def write_tiny_artifact(folder, system="414", **fields):
    """Write an artifact of a tiny system below ``folder``; returns its path and the model that the exporter saw."""
    model = alive(tiny(system, vocab_size=VOCABULARY, **fields))
    save_tokenizer(small_tokenizer(), folder / "tokenizer")
    artifact = compress(model, QuantizationConfig(small_tensor_elements=64, codec_level=3), 10**9)
    (folder / "artifact").mkdir()
    write_artifact(folder / "artifact", model, artifact, folder / "tokenizer")
    model.load_state_dict(dequantized(artifact.weights), strict=False)  # what the file does not hold is tied
    return folder / "artifact", model
