"""PR 1493: three blocks run three times from 35 % of the run on, parallel branches from block 7, score-first SGD.

Source: PR 1493; SPEC-8192 1, 2 and 6.
"""

from evaluation.adaptation.score_first import ScoreFirstConfig
from evaluation.config import EvaluationConfig
from pgolf.corpus.build import CorpusConfig
from pgolf.corpus.fineweb import ChallengeShards
from pgolf.recipe import ModelConfig, Recipe
from quantization.config import GptqConfig, QuantizationConfig, SdClip
from training.config import EmaConfig, TrainingConfig

recipe = Recipe(
    name="sp8192_parallel",
    corpus=CorpusConfig(ChallengeShards("kevclark/parameter-golf", "fineweb10B_sp8192")),
    model=ModelConfig(
        vocab_size=8192,
        intermediate_size=2048,
        mlp_negative_slope=0.5,
        rotary_trained_length=2048,
        q_gain_init=5.25,
        xsa_layers=list(range(11)),
        bigram_buckets=0,
        smear_gate=False,
        value_embed_layers=[],
        skip_gates=True,
        loop_start=3,
        loop_end=5,
        loop_passes=2,
        parallel_from=7,
        table_proj_init_gain=1.0,
    ),
    training=TrainingConfig(
        order="shuffled",
        calibration_seconds=12.0,
        warmdown_fraction=0.72,
        loop_from=0.35,
        token_lr=0.03,
        matrix_lr=0.022,
        scalar_lr=0.02,
        token_decay=0.085,
        matrix_decay=0.095,
        scalar_decay=0.02,
        ema=EmaConfig(decay=0.9965),
        row_normalized_muon=True,
    ),
    quantization=QuantizationConfig(clip=SdClip(), gptq=GptqConfig(), codec="ans", fill_budget=True),
    evaluation=EvaluationConfig(adaptation=ScoreFirstConfig(lr=0.005)),
)
