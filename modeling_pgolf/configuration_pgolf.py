"""The configuration of a pgolf model: every architectural choice of the challenge's 11-layer and SP8192 systems.

Derived sizes are properties, contradictions and unknown keys are errors: stock configurations accept a misspelt key
in silence. Defaults are the real model of PR 414. Sources: SPEC-11L 1, SPEC-8192 1.
"""

import difflib
from dataclasses import field, fields
from typing import Any

from transformers import PreTrainedConfig

from .errors import ConfigError
from .program import Visit, layer_program, skip_rows, visiting_order

# What transformers itself writes into or takes out of a configuration file.
STOCK_KEYS = {
    "_name_or_path", "name_or_path", "_commit_hash", "architectures", "auto_map", "attn_implementation",
    "experts_implementation", "model_type", "num_labels", "output_attentions", "per_layer_config",
    "quantization_config", "torch_dtype", "transformers_version", "use_cache", "_attn_implementation_internal",
    "_experts_implementation_internal", "_attn_implementation", "tie_last_hidden_states",
}  # fmt: skip


LANE_KINDS = ("merged", "routed")


class PGolfConfig(PreTrainedConfig):
    """Sizes and switches of the model.

    vocab_size: tokens. hidden_size: width D. intermediate_size: feed-forward width. num_blocks: physical blocks.
    num_attention_heads, num_key_value_heads: query and key/value heads. max_position_embeddings: tokens.
    logit_softcap: C in C·tanh(z/C). rms_norm_eps: 2⁻²³, float32's epsilon. mlp_negative_slope: s of the squared ReLU.
    ln_scale: scale branch inputs by 1/sqrt(block + 1). parallel_from: first block with parallel branches.
    rotary_dims: rotated dimensions of a head, 0 for all. rotary_trained_length: tokens above which the base is
    stretched. rotary_length: tokens for which the base is fixed; None follows the length of each call.
    q_gain_init: initial gain of the queries. xsa_layers: blocks with exclusive self-attention.
    bigram_buckets, bigram_dim: hashed bigram table; 0 buckets for none. smear_gate: mix with the previous position.
    value_embed_layers, value_embed_dim: blocks with value embeddings, and the table's width.
    skip_gates: blend U-Net skips by a learnt gate instead of adding them. share_last_skip: rows of skip weights for
    the visits without the loop only; further skips share the last row (PR 1285).
    loop_start, loop_end, loop_passes: the segment of blocks repeated ``loop_passes`` extra times.
    lanes, lanes_from: how two lanes meet, "merged" (PR 1477) or "routed" (PR 1204), and the first block that has them;
    it and those behind it have hidden states (2, B, T, D), and no parallel branches.
    embedding_size: width of the token table, where it is not D: a projection follows it, another comes before the head.
    embed_init_std: standard deviation of the tied table. table_proj_init_gain: gain of the orthogonal bigram and
    value projections (PR 414: 1/sqrt(2 · blocks); PR 549 and later: 1).
    """

    model_type = "pgolf"
    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012 (transformers reads a class attribute)

    vocab_size: int = 1024
    hidden_size: int = 512
    intermediate_size: int = 1536
    num_blocks: int = 11
    num_attention_heads: int = 8
    num_key_value_heads: int = 4
    max_position_embeddings: int = 2048
    tie_word_embeddings: bool = True
    logit_softcap: float = 30.0
    rms_norm_eps: float = 2.0**-23
    mlp_negative_slope: float = 0.0
    ln_scale: bool = True
    parallel_from: int = 1_000_000
    rotary_base: float = 10000.0
    rotary_dims: int = 16
    rotary_trained_length: int = 1024
    rotary_length: int | None = 2048
    q_gain_init: float = 1.5
    xsa_layers: list[int] = field(default_factory=lambda: [7, 8, 9, 10])
    bigram_buckets: int = 2048
    bigram_dim: int = 128
    smear_gate: bool = True
    value_embed_layers: list[int] = field(default_factory=lambda: [9, 10])
    value_embed_dim: int = 128
    skip_gates: bool = False
    share_last_skip: bool = False
    loop_start: int = 0
    loop_end: int = -1
    loop_passes: int = 0
    lanes: str | None = None
    lanes_from: int | None = None
    embedding_size: int | None = None
    embed_init_std: float = 0.005
    table_proj_init_gain: float = 22**-0.5
    use_cache: bool = True
    pad_token_id: int | None = 0
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2

    def __post_init__(self, **kwargs: Any) -> None:
        known = {f.name for f in fields(self)}
        for key in kwargs:
            if key not in STOCK_KEYS:
                near = difflib.get_close_matches(key, known, n=1)
                hint = f"did you mean '{near[0]}'?" if near else "see PGolfConfig for the fields there are"
                raise ConfigError(f"unknown configuration key '{key}'; {hint}")
        super().__post_init__(**kwargs)
        self._check_shapes()
        self._check_layers()

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Build a configuration from what a file holds.

        A file that names every field of ours may carry other keys too (attributes that other tools set, keys of a
        later transformers): nothing can be misspelt in it. In any other a stranger raises ConfigError.
        """
        known, strangers = {f.name for f in fields(cls)}, {}
        if known.intersection(cls.__annotations__) <= config_dict.keys():
            strangers = {key: value for key, value in config_dict.items() if key not in known | STOCK_KEYS}
        built = super().from_dict({key: v for key, v in config_dict.items() if key not in strangers}, **kwargs)
        config = built[0] if isinstance(built, tuple) else built
        for key, value in strangers.items():
            setattr(config, key, value)
        return built

    def _check_shapes(self) -> None:
        if self.num_blocks < 1:
            raise ConfigError(f"num_blocks must be at least 1, found {self.num_blocks}")
        if self.hidden_size % self.num_attention_heads:
            raise ConfigError(
                f"hidden_size {self.hidden_size} must be a multiple of num_attention_heads {self.num_attention_heads}"
            )
        if self.num_attention_heads % self.num_key_value_heads:
            raise ConfigError(
                f"num_attention_heads {self.num_attention_heads} must be a multiple of num_key_value_heads "
                f"{self.num_key_value_heads}"
            )
        if not 0 <= self.rotary_dims <= self.head_dim or self.rotary_width % 2:
            raise ConfigError(
                f"rotary_dims must be even and at most head_dim {self.head_dim}, found {self.rotary_dims}"
            )
        if self.embedding_size is not None and self.embedding_size < 1:
            raise ConfigError(
                f"embedding_size must be at least 1, or None for hidden_size, found {self.embedding_size}"
            )
        if self.logit_softcap <= 0:
            raise ConfigError(f"logit_softcap must be positive, found {self.logit_softcap}")
        if self.bigram_buckets < 0 or self.bigram_buckets == 1:
            raise ConfigError(f"bigram_buckets must be 0 (none) or at least 2, found {self.bigram_buckets}")

    def _check_layers(self) -> None:
        last = self.num_blocks - 1
        if self.share_last_skip and last == 0:
            raise ConfigError("share_last_skip needs at least 2 blocks: with one there is no skip to share")
        for name, layers in (("xsa_layers", self.xsa_layers), ("value_embed_layers", self.value_embed_layers)):
            if strangers := [layer for layer in layers if not 0 <= layer <= last]:
                raise ConfigError(f"{name} names {strangers}, but blocks are 0 to {last}")
        if self.loop_passes < 0:
            raise ConfigError(f"loop_passes must be at least 0, found {self.loop_passes}")
        if self.loop_passes > 0 and not 0 <= self.loop_start <= self.loop_end <= last:
            raise ConfigError(
                f"loop_start {self.loop_start} and loop_end {self.loop_end} must lie in order inside 0 to {last}"
            )
        if self.lanes is not None or self.lanes_from is not None:
            self._check_lanes(last)

    def _check_lanes(self, last: int) -> None:
        if self.lanes not in LANE_KINDS:
            raise ConfigError(f"lanes must be one of {LANE_KINDS}, found {self.lanes!r}")
        # Below the middle the encoder would keep lanes for a decoder that has one stream.
        first = max(self.num_blocks // 2, self.loop_end + 1)
        if self.lanes_from is None or not first <= self.lanes_from <= last:
            raise ConfigError(
                f"lanes_from must lie behind the loop and in the second half, {first} to {last}, "
                f"found {self.lanes_from}"
            )

    @property
    def head_dim(self) -> int:
        """Width h of one head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def rotary_width(self) -> int:
        """Rotated dimensions of a head; 0 in ``rotary_dims`` means all of them."""
        return self.rotary_dims or self.head_dim

    @property
    def order(self) -> list[int]:
        """Blocks in visiting order, with the loop on."""
        return visiting_order(self.num_blocks, self.loop_start, self.loop_end, self.loop_passes)

    @property
    def program(self) -> tuple[Visit, ...]:
        """The visits, with the loop on."""
        return self.program_of(self.order)

    def program_of(self, order: list[int]) -> tuple[Visit, ...]:
        """Return the visits in another order of the same blocks: as training makes them before the loop is on."""
        return layer_program(order, self.num_skip_rows, self.lanes_from)

    @property
    def num_skip_rows(self) -> int:
        """Rows of the skip weights."""
        return skip_rows(list(range(self.num_blocks)) if self.share_last_skip else self.order)

    @property
    def num_hidden_layers(self) -> int:
        """Executed depth: what a cache needs a slot for."""
        return len(self.order)

    @property
    def carries_previous(self) -> bool:
        """Whether a position reads the token or the stream of the position before it."""
        return self.number_of_conv_states > 0

    @property
    def layer_types(self) -> list[str]:
        """Cache kinds by visit: the first also carries the previous token and the previous stream."""
        first = "hybrid" if self.carries_previous else "full_attention"
        return [first] + ["full_attention"] * (self.num_hidden_layers - 1)

    @property
    def number_of_conv_states(self) -> int:
        """States carried by the hybrid slot: the previous token id for the bigram, the previous stream for the gate."""
        return int(self.bigram_buckets > 0) + int(self.smear_gate)


PGolfConfig.register_for_auto_class("AutoConfig")
