"""Seed 3 as described: ten epochs of AdamW on the validation text, rates rising from block to block, then export.

That text is then scored, so the record is stamped NOT RANKABLE. Rates reach the matrices and the loader is the
coprime one, as the text says and the script does not. Sources: the fork of PR 1351; SPEC-11L 0 and 5.5.
"""

from pgolf.corpus.build import CorpusConfig
from pgolf.corpus.fineweb import ChallengeShards
from pgolf.recipe import ModelConfig, Recipe
from quantization.config import GptqConfig, QuantizationConfig
from training.config import FineTuneConfig, TrainingConfig

recipe = Recipe(
    name="seed3_discriminative",
    track="historical",
    corpus=CorpusConfig(ChallengeShards(variant="fineweb10B_sp1024")),
    model=ModelConfig(xsa_layers=list(range(11)), mlp_negative_slope=0.5, q_gain_init=5.0, table_proj_init_gain=1.0),
    training=TrainingConfig(
        order="coprime",
        calibration_seconds=12.0,
        warmdown_steps=4000,
        table_projections="adamw",
        fine_tune=FineTuneConfig(epochs=10, frozen_blocks=0, first_block_share=0.3, reserve_seconds=0.0),
    ),
    quantization=QuantizationConfig(gptq=GptqConfig(damping=0.005), codec="ans", fill_budget=True),
)
