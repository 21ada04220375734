"""PR 1423's model as shipped, without its fine-tuning on validation text, on a local folder of text: 350 steps.

No loop, plain Muon, a smear gate, an average that starts at the initial weights, the published number formats. What
its raw weights score every 50 steps is compared with what the published script scores on the same text. Without a
clock its line warms down over a number of steps (WARMDOWN_ITERS 200), not over a share of the run.
Source: PR 1423; SPEC-8192 1.8 and 2.1.
"""

from evaluation.config import EvaluationConfig
from pgolf.corpus.build import CorpusConfig, SentencePieceModel
from pgolf.corpus.local import LocalFolder
from pgolf.recipe import ModelConfig, Recipe
from quantization.config import GptqConfig, QuantizationConfig, SdClip
from training.config import EmaConfig, TrainingConfig

recipe = Recipe(
    name="sp8192_as_shipped",
    corpus=CorpusConfig(LocalFolder("data"), SentencePieceModel("tokenizers/fineweb_8192_bpe.model")),
    model=ModelConfig(
        vocab_size=8192,
        intermediate_size=2048,
        mlp_negative_slope=0.5,
        rotary_length=None,
        q_gain_init=5.0,
        xsa_layers=list(range(11)),
        bigram_buckets=0,
        value_embed_layers=[],
        skip_gates=True,
        table_proj_init_gain=1.0,
    ),
    training=TrainingConfig(
        iterations=350,
        seconds=None,
        seed=42,
        warmdown_steps=200,
        momentum_warmup_steps=250,
        token_decay=0.085,
        matrix_decay=0.085,
        scalar_decay=0.02,
        table_dtype="bf16",
        clip="per_rank",
        ema=EmaConfig(warm_up=None),
        validate_every=50,
    ),
    evaluation=EvaluationConfig(batch_windows=128),
    quantization=QuantizationConfig(
        clip=SdClip(unit_floor=True),
        gptq=GptqConfig(damp_twice=True, additive_skips=True),
        codec="shuffle-brotli",
    ),
)
