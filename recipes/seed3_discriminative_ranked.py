"""The ranked twin of seed 3: ten epochs of AdamW on training text, rates rising from block to block, then export.

Four million training tokens inside the clock: what the procedure itself is worth.
Sources: the fork of PR 1351; SPEC-11L 0 and 5.5.
"""

from pgolf.corpus.build import CorpusConfig
from pgolf.corpus.fineweb import ChallengeShards
from pgolf.recipe import ModelConfig, Recipe
from quantization.config import GptqConfig, QuantizationConfig
from training.config import FineTuneConfig, TrainingConfig

recipe = Recipe(
    name="seed3_discriminative_ranked",
    track="ranked",
    corpus=CorpusConfig(ChallengeShards(variant="fineweb10B_sp1024")),
    model=ModelConfig(xsa_layers=list(range(11)), mlp_negative_slope=0.5, q_gain_init=5.0, table_proj_init_gain=1.0),
    training=TrainingConfig(
        order="coprime",
        calibration_seconds=12.0,
        warmdown_steps=4000,
        table_projections="adamw",
        fine_tune=FineTuneConfig(epochs=10, frozen_blocks=0, first_block_share=0.3, reserve_seconds=50.0),
    ),
    quantization=QuantizationConfig(gptq=GptqConfig(damping=0.005), codec="ans", fill_budget=True),
)
