"""Seed 1, ranked: PR 445, the 11-layer system with late training replay, the replay inside the training clock.

The last 20 of the 600 s belong to the replay, as committed it ran when they were over. Source: PR 445; SPEC-11L 2.7.
"""

from pgolf.corpus.build import CorpusConfig
from pgolf.corpus.fineweb import ChallengeShards
from pgolf.recipe import ModelConfig, Recipe
from training.config import QatConfig, ReplayConfig, TrainingConfig

recipe = Recipe(
    name="seed1_replay",
    corpus=CorpusConfig(ChallengeShards(variant="fineweb10B_sp1024")),
    model=ModelConfig(),
    training=TrainingConfig(qat=QatConfig(), replay=ReplayConfig(reserve_seconds=20.0)),
)
