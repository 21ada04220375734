"""PR 445's settings for 500 steps on a local folder of text, with its number formats: column and ablation of seed 1.

Initial weights, data order, schedules and formats are the script's, so the raw weights compare with its own. Averages
change no step: both kinds are kept beside the weights.
"""

from evaluation.config import EvaluationConfig
from pgolf.corpus.build import CorpusConfig, SentencePieceModel
from pgolf.corpus.local import LocalFolder
from pgolf.recipe import ModelConfig, Recipe
from quantization.config import QuantizationConfig
from training.config import QatConfig, ReplayConfig, SwaConfig, TrainingConfig

recipe = Recipe(
    name="seed1_ablation",
    corpus=CorpusConfig(LocalFolder("data"), SentencePieceModel("tokenizers/fineweb_1024_bpe.model")),
    model=ModelConfig(),
    training=TrainingConfig(
        iterations=500,
        seconds=None,
        warmdown_steps=200,
        momentum_warmup_steps=250,
        table_dtype="bf16",
        validate_every=100,
        qat=QatConfig(),
        replay=ReplayConfig(),
        swa=SwaConfig(every=5),  # 40 steps are under the scale of 0.2, and PR 374's 50 would give one snapshot
    ),
    # A short run leaves small weights: the published grid of 1/31 would leave a quarter of the file empty.
    evaluation=EvaluationConfig(batch_windows=128),
    quantization=QuantizationConfig(codec="ans", fill_budget=True),
)
