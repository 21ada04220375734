"""PR 1019: exclusive self-attention in every block, leaky squared ReLU, a wider bigram, longer warm-down.

Clipping is per process before averaging, as its script does. Its exporter calibrates on the model's own samples.
Source: PR 1019; SPEC-11L 0, 2 and 4.4-4.6.
"""

from pgolf.corpus.build import CorpusConfig
from pgolf.corpus.fineweb import ChallengeShards
from pgolf.recipe import ModelConfig, Recipe
from quantization.config import GptqConfig, QuantizationConfig, SelfGenerated
from training.config import TrainingConfig

recipe = Recipe(
    name="sp1024_self_calibrated",
    corpus=CorpusConfig(ChallengeShards(variant="fineweb10B_sp1024")),
    model=ModelConfig(
        xsa_layers=list(range(11)),
        mlp_negative_slope=0.5,
        bigram_buckets=3072,
        bigram_dim=112,
        table_proj_init_gain=1.0,
    ),
    training=TrainingConfig(warmdown_steps=4000, table_projections="adamw", clip="per_rank"),
    quantization=QuantizationConfig(
        gptq=GptqConfig(calibration=SelfGenerated(), damp_twice=True, token_table=False), prune_to_fit=True
    ),
)
