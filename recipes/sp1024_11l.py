"""The 11-layer system of PR 414 at the challenge's scale: 1,024 tokens, 27 M parameters, 600 s on 8 GPUs.

EMA with a warm-up of its decay instead of the published start from the initial weights: the same in a long run,
right in a short one (docs/LOG.md). Late QAT rounds to the exporter's grid. Source: SPEC-11L.
"""

from pgolf.corpus.build import CorpusConfig
from pgolf.corpus.fineweb import ChallengeShards
from pgolf.recipe import ModelConfig, Recipe
from training.config import QatConfig, TrainingConfig

recipe = Recipe(
    name="sp1024_11l",
    corpus=CorpusConfig(ChallengeShards(variant="fineweb10B_sp1024")),
    model=ModelConfig(),
    training=TrainingConfig(qat=QatConfig()),
)
