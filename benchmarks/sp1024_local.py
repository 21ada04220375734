"""The real 11-layer recipe on a local folder of text: the recipe of the figures in ``benchmarks/results/``.

The text has FineWeb's columns but is not FineWeb, and the run is short: its figures rank variants, no more.
Schedule and techniques are those of PR 445 (late QAT, replay), but for the EMA's warm-up and the size of the grid.
"""

from evaluation.config import EvaluationConfig
from pgolf.corpus.build import CorpusConfig, SentencePieceModel
from pgolf.corpus.local import LocalFolder
from pgolf.recipe import ModelConfig, Recipe
from quantization.config import QuantizationConfig
from training.config import QatConfig, ReplayConfig, TrainingConfig

recipe = Recipe(
    name="sp1024_local",
    corpus=CorpusConfig(LocalFolder("data"), SentencePieceModel("tokenizers/fineweb_1024_bpe.model")),
    model=ModelConfig(),
    training=TrainingConfig(
        iterations=500,
        seconds=None,
        warmdown_steps=200,
        momentum_warmup_steps=250,
        validate_every=100,
        qat=QatConfig(),
        replay=ReplayConfig(),
        checkpoint_every=100,
    ),
    # A short run leaves small weights: the published grid of 1/31 would leave a quarter of the file empty.
    evaluation=EvaluationConfig(batch_windows=128),
    quantization=QuantizationConfig(codec="ans", fill_budget=True),
)
