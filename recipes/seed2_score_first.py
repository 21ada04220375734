"""Seed 2: PR 691, the 11-layer system of PR 414 scored while it learns from what it has scored.

As committed it took 617 of its 600 evaluation seconds and adapted with late QAT's rounding left on; here the deadline
keeps it inside and rounding is off whenever a model is scored. Source: PR 691 and PR 461; SPEC-11L 5.4.
"""

from evaluation.adaptation.score_first import ScoreFirstConfig
from evaluation.config import EvaluationConfig
from pgolf.corpus.build import CorpusConfig
from pgolf.corpus.fineweb import ChallengeShards
from pgolf.recipe import ModelConfig, Recipe
from training.config import QatConfig, TrainingConfig

recipe = Recipe(
    name="seed2_score_first",
    corpus=CorpusConfig(ChallengeShards(variant="fineweb10B_sp1024")),
    model=ModelConfig(),
    training=TrainingConfig(qat=QatConfig()),
    evaluation=EvaluationConfig(adaptation=ScoreFirstConfig()),
)
