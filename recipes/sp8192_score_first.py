"""PR 1413: the looped model of PR 1394, a higher query gain, scored while it learns from what it has scored.

Source: PR 1413; SPEC-8192 6.
"""

from evaluation.adaptation.score_first import ScoreFirstConfig
from evaluation.config import EvaluationConfig
from pgolf.corpus.build import CorpusConfig
from pgolf.corpus.fineweb import ChallengeShards
from pgolf.recipe import ModelConfig, Recipe
from quantization.config import GptqConfig, QuantizationConfig, SdClip
from training.config import TrainingConfig

recipe = Recipe(
    name="sp8192_score_first",
    corpus=CorpusConfig(ChallengeShards("kevclark/parameter-golf", "fineweb10B_sp8192")),
    model=ModelConfig(
        vocab_size=8192,
        intermediate_size=2048,
        mlp_negative_slope=0.5,
        rotary_trained_length=2048,
        q_gain_init=5.0,
        xsa_layers=list(range(11)),
        bigram_buckets=0,
        smear_gate=False,
        value_embed_layers=[],
        skip_gates=True,
        loop_start=4,
        loop_end=5,
        loop_passes=2,
        table_proj_init_gain=1.0,
    ),
    training=TrainingConfig(
        order="shuffled",
        calibration_seconds=12.0,
        warmdown_fraction=0.667,
        loop_from=0.5,
        token_lr=0.03,
        matrix_lr=0.02,
        scalar_lr=0.02,
        token_decay=0.085,
        matrix_decay=0.085,
        scalar_decay=0.02,
        row_normalized_muon=True,
    ),
    quantization=QuantizationConfig(clip=SdClip(), gptq=GptqConfig(), codec="ans", fill_budget=True),
    evaluation=EvaluationConfig(adaptation=ScoreFirstConfig(lr=0.005)),
)
