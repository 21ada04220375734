"""A little deterministic text, and SentencePiece models trained on it with the challenge's options."""

import io
import random

import sentencepiece

VOCABULARY = """
the a of and to in is that for it was on with as by at from are this be an or had not but what all were when we
there can said which do their time will about out many then them these so some her would make like him into has look
two more write go see number way could people water long find day did get come made may part night river mountain
thunder silver garden window yellow machine signal travel lantern whisper planet
"""
WORDS = VOCABULARY.split()

# Source: data/download_hf_docs_and_tokenize.py, openai/parameter-golf.
CHALLENGE = dict(
    model_type="bpe", character_coverage=0.999, byte_fallback=True, split_digits=True, add_dummy_prefix=False,
    normalization_rule_name="nmt_nfkc", pad_id=0, bos_id=1, eos_id=2, unk_id=3, hard_vocab_limit=False,
)  # fmt: skip


def prose(lines=200):
    """Sentences with digits, line breaks and an indented one."""
    draw = random.Random(0)
    sentences = (" ".join(draw.choices(WORDS, k=12)) for _ in range(lines))
    return [f"{line.capitalize()}, {draw.randrange(10**4)}.\n\n        Then: {line}!" for line in sentences]


def train_sentencepiece(path, **changes):
    """Write a model of 400 pieces to ``path``; ``changes`` override the challenge's options."""
    model = io.BytesIO()
    options = CHALLENGE | {"vocab_size": 400, "minloglevel": 2} | changes
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(prose()), model_writer=model, **options)
    path.write_bytes(model.getvalue())
    return path
