"""The ranked twin of seed 4: PR 1394's looped model, then six epochs of AdamW on training text before export.

Four million training tokens inside the clock: what the procedure itself is worth.
Sources: PR 1423 (text), PR 1394 (model); SPEC-8192 0, 1 and 5.
"""

from pgolf.corpus.build import CorpusConfig
from pgolf.corpus.fineweb import ChallengeShards
from pgolf.recipe import ModelConfig, Recipe
from quantization.config import GptqConfig, QuantizationConfig, SdClip
from training.config import FineTuneConfig, TrainingConfig

recipe = Recipe(
    name="seed4_prequant_ranked",
    track="ranked",
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
        fine_tune=FineTuneConfig(reserve_seconds=30.0),
    ),
    quantization=QuantizationConfig(clip=SdClip(), gptq=GptqConfig(), codec="ans", fill_budget=True),
)
