"""Seed 1 as committed (PR 445): 17 s of replay after the 600 s are over, so its record is stamped NOT RANKABLE.

Also the published number formats (bfloat16 tables), the published EMA from the initial weights and the published QAT
grid of -32..31 without float16 scales. Source: PR 445; SPEC-11L 1.3, 2.5-2.7.
"""

from pgolf.corpus.build import CorpusConfig
from pgolf.corpus.fineweb import ChallengeShards
from pgolf.recipe import ModelConfig, Recipe
from training.config import EmaConfig, QatConfig, ReplayConfig, TrainingConfig

recipe = Recipe(
    name="seed1_replay_as_committed",
    corpus=CorpusConfig(ChallengeShards(variant="fineweb10B_sp1024")),
    model=ModelConfig(),
    training=TrainingConfig(
        table_dtype="bf16",
        ema=EmaConfig(warm_up=None),
        qat=QatConfig(lowest_code=-32, half_scale=False),
        replay=ReplayConfig(after_clock=True),
    ),
)
