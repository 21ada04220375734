"""The whole road in minutes on two cores: a tiny 11-layer-line model on prose harvested from Python itself."""

from evaluation.config import EvaluationConfig
from pgolf.corpus.build import CorpusConfig, TrainBpe
from pgolf.corpus.embedded import EmbeddedProse
from pgolf.recipe import ModelConfig, Recipe
from quantization.config import PercentileClip, QuantizationConfig
from training.config import TrainingConfig

recipe = Recipe(
    name="demo",
    corpus=CorpusConfig(EmbeddedProse(), TrainBpe(vocab_size=1024), validation_tokens=30_000),
    model=ModelConfig(
        hidden_size=192,
        intermediate_size=576,
        num_blocks=5,
        num_attention_heads=6,
        num_key_value_heads=3,
        rotary_length=256,
        max_position_embeddings=256,
        xsa_layers=[3, 4],
        value_embed_layers=[3, 4],
        value_embed_dim=48,
        bigram_buckets=1024,
        bigram_dim=48,
        table_proj_init_gain=10**-0.5,
    ),
    training=TrainingConfig(
        iterations=150,
        seconds=None,
        sequence_length=256,
        span_sequences=4,
        spans_per_step=4,
        micro_batch_sequences=8,
        warmdown_steps=80,
        momentum_warmup_steps=100,
        precision="fp32",
        compile=False,
        checkpoint_every=50,
    ),
    # A tiny model has bytes to spare: a finer grid than the record's 1/31 costs it nothing.
    quantization=QuantizationConfig(small_tensor_elements=4096, clip=PercentileClip(1 / 127, 1 / 508)),
    evaluation=EvaluationConfig(window=256, stride=64, batch_windows=16, compile=False, precision="fp32"),
)
