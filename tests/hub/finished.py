"""A finished run that is real from end to end and takes seconds: its record loads, and can be verified."""

import json

from evaluation.adaptation.frozen import FrozenConfig
from evaluation.config import EvaluationConfig
from pgolf import run as stages
from pgolf.corpus.build import CorpusConfig, TrainBpe
from pgolf.corpus.local import LocalFolder
from pgolf.job import Job
from pgolf.place import Place
from pgolf.recipe import ModelConfig, Recipe
from pgolf.workdir import open_run
from quantization.config import QuantizationConfig
from training.config import TrainingConfig

WINDOW, FROZEN = 16, FrozenConfig()
SOUNDS = ["ba", "de", "gi", "lo", "mu", "na", "pe", "ri", "so", "tu", "va", "we", "xi", "yo", "zu"]


def write_documents(folder):
    """Write made-up words: nine documents to train on, three of validation."""
    folder.mkdir()
    texts = []
    for n in range(12):
        texts.append(" ".join(SOUNDS[(7 * i + n * i * i) % 15] + SOUNDS[(i + n) % 15] for i in range(150)))
    for split, part in (("train", texts[:9]), ("validation", texts[9:])):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in part))
    return folder


def recipe_on(documents, track, adaptation):
    return Recipe(
        name="tiny",
        track=track,
        corpus=CorpusConfig(LocalFolder(str(documents)), TrainBpe(vocab_size=300)),
        model=ModelConfig(
            vocab_size=300,
            hidden_size=32,
            intermediate_size=64,
            num_blocks=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            rotary_dims=4,
            rotary_length=WINDOW,
            max_position_embeddings=WINDOW,
            xsa_layers=[1],
            bigram_buckets=32,
            bigram_dim=8,
            value_embed_layers=[1],
            value_embed_dim=8,
        ),
        training=TrainingConfig(
            iterations=20,
            seconds=None,
            sequence_length=WINDOW,
            span_sequences=4,
            spans_per_step=1,
            micro_batch_sequences=4,
            warmdown_steps=5,
            momentum_warmup_steps=5,
            ema=None,
            precision="fp32",
            compile=False,
        ),
        quantization=QuantizationConfig(small_tensor_elements=64),
        evaluation=EvaluationConfig(
            window=WINDOW, stride=4, batch_windows=16, compile=False, precision="fp32", adaptation=adaptation
        ),
    )


def finish(root, track="ranked", adaptation=FROZEN):
    """Go the whole road and return the run; its corpus lies under ``root/corpora``."""
    recipe = recipe_on(write_documents(root / "documents"), track, adaptation)
    job, run = Job(recipe, Place(root)), open_run(root, None, recipe)
    stages.train(job, run)
    stages.export(job, run)
    stages.score_artifact(job, run)
    stages.record(job)
    return run
