"""Seed 1, ranked, on one GPU and a local folder of text: 600 s of training clock, replay inside them.

The schedule is PR 445's in proportion: about 1,000 steps fit where 8 GPUs take 7,000. Scored without and with
score-first adaptation.
"""

from evaluation.adaptation.score_first import ScoreFirstConfig
from evaluation.config import EvaluationConfig
from pgolf.corpus.build import CorpusConfig, SentencePieceModel
from pgolf.corpus.local import LocalFolder
from pgolf.recipe import ModelConfig, Recipe
from quantization.config import QuantizationConfig
from training.config import QatConfig, ReplayConfig, TrainingConfig

recipe = Recipe(
    name="seed1_600s",
    corpus=CorpusConfig(LocalFolder("data"), SentencePieceModel("tokenizers/fineweb_1024_bpe.model")),
    model=ModelConfig(),
    training=TrainingConfig(
        seconds=600.0,
        warmdown_steps=500,
        momentum_warmup_steps=220,
        validate_every=200,
        qat=QatConfig(),
        replay=ReplayConfig(reserve_seconds=20.0),
        checkpoint_every=400,
        keep_checkpoints=1,
    ),
    evaluation=EvaluationConfig(batch_windows=128, adaptation=ScoreFirstConfig()),
    quantization=QuantizationConfig(codec="ans", fill_budget=True),
)
