"""The pgolf language model as a transformers model.

Embedding stage (token, hashed bigram, norm, smear), the blocks in the order of the layer program with U-Net skips,
a final norm and a soft-capped tied head. Master weights keep their type; the stream runs in the autocast type.

``B`` batch, ``T`` time, ``D`` width, ``V`` vocabulary. Source: SPEC-11L 1; SPEC-8192 1.
"""

import os
from typing import Any, Unpack

import torch
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.cache_utils import Cache, DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .attention import Attention
from .blocks import Block
from .configuration_pgolf import PGolfConfig
from .embeddings import BIGRAM_SCALE, VALUE_SCALE, VALUE_TABLE_STD, ProjectedTable, bigram_ids
from .gates import SmearGate, previous
from .initial_weights import init_module
from .lanes import LANES, blocks_of
from .linear import CastLinear, compute_dtype
from .masks import causal_mask, positions
from .norms import rms_norm
from .quantization_pgolf import register_quantizer
from .rotary import rotary_tables, stretched_base
from .skips import Skips

register_quantizer()


class PGolfPreTrainedModel(PreTrainedModel):
    """Initialisation, saving, and what transformers asks of every model."""

    config: PGolfConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["Block", "MergedBlock", "RoutedBlock"]  # noqa: RUF012
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {"hidden_states": Block, "attentions": Attention}  # noqa: RUF012

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        init_module(module, self.config)
        if module is self.get_input_embeddings():
            init.normal_(module.weight, std=self.config.embed_init_std if self.config.tie_word_embeddings else 1.0)
        elif module is self.get_output_embeddings() and not self.config.tie_word_embeddings:
            init.zeros_(module.weight)
        elif isinstance(module, PGolfModel):
            module.init_stream_weights()
        elif isinstance(module, nn.Embedding) and module not in self.modules():
            init.normal_(module.weight, std=self.config.embed_init_std)  # rows that resizing adds

    def _resize_token_embeddings(
        self, new_num_tokens: int | None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> nn.Embedding:
        # The table of value embeddings is read by token id too.
        table: nn.Embedding = super()._resize_token_embeddings(new_num_tokens, pad_to_multiple_of, mean_resizing)
        if self.base_model.value_embed is not None:
            values = self.base_model.value_embed.embed
            self._get_resized_embeddings(values, table.num_embeddings, mean_resizing=mean_resizing)
        return table

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> Any:
        """Save an ordinary float model with its code, loadable by every Auto class named in ``AUTO_MAP``."""
        self.config.auto_map = dict(AUTO_MAP)
        return super().save_pretrained(save_directory, **kwargs)


class PGolfModel(PGolfPreTrainedModel):
    """Token ids to the normed stream behind the last block."""

    def __init__(self, config: PGolfConfig) -> None:
        super().__init__(config)
        self.program = config.program
        width, kv_width = config.hidden_size, config.num_key_value_heads * config.head_dim
        self.embed_tokens = nn.Embedding(config.vocab_size, config.embedding_size or width)
        self.embed_proj = CastLinear(config.embedding_size, width) if config.embedding_size else None
        self.bigram = (
            ProjectedTable(config.bigram_buckets, config.bigram_dim, config.embedding_size or width, 0.0, BIGRAM_SCALE)
            if config.bigram_buckets
            else None
        )
        self.smear = SmearGate(width) if config.smear_gate else None
        self.skips = Skips(config.num_skip_rows, width, config.skip_gates) if config.num_skip_rows else None
        self.lanes = LANES[config.lanes]() if config.lanes else None
        self.layers = nn.ModuleList(blocks_of(config))
        self.value_embed = (
            ProjectedTable(config.vocab_size, config.value_embed_dim, kv_width, VALUE_TABLE_STD, VALUE_SCALE)
            if config.value_embed_layers
            else None
        )
        self.value_embed_scales = (
            nn.Parameter(torch.empty(len(config.value_embed_layers))) if self.value_embed else None
        )
        self.gradient_checkpointing = False
        self.post_init()

    def init_stream_weights(self) -> None:
        """Give the parameters of the whole stream their neutral values."""
        if self.value_embed_scales is not None:
            init.ones_(self.value_embed_scales)

    def get_input_embeddings(self) -> nn.Embedding:
        """Return the token table."""
        return self.embed_tokens

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the token table."""
        self.embed_tokens = value

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        queries: slice | None = None,
        **kwargs: Unpack[TransformersKwargs],  # type: ignore[misc]  # untyped for mypy
    ) -> BaseModelOutputWithPast:
        """Return the normed last stream (B, T, D) and the cache.

        queries: the only positions to return, without padding and cache; the last block computes no others.
        input_ids: (B, T). position_ids: (B, T), 0 at a position without predecessor (a document of a packed row).
        inputs_embeds: (B, T, width of the token table) in place of ids, where nothing else is read by token id.
        attention_mask: 2-D masks have their padding before the text or behind it, not inside: what stands before a
        position is read by bigram and gate, masked or not.

        Without a fixed ``rotary_length`` the rotary base follows the length of the call, cached positions and padding
        included, once it exceeds ``rotary_trained_length``. What is cached was turned, and mixed by attention, with
        the base of its own call, so from there on a cached call differs from one over the whole text, and depends on
        how the text was cut into calls. Set ``config.rotary_length`` to the length that generation is to reach:
        every call then has one base, and the two agree.
        """
        self._check_inputs(input_ids, inputs_embeds)
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        past = past_key_values.get_seq_length() if past_key_values is not None else 0
        x = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        packed = position_ids  # positions that the caller gives may describe packed documents
        if position_ids is None:
            position_ids = positions(attention_mask, x, past)
        x = self._embed(x, input_ids, position_ids > 0, past_key_values)
        mask = causal_mask(self.config, attention_mask, x, past_key_values, packed)
        rotary = self._rotary(position_ids, self.config.rotary_length or past + x.shape[1])
        kwargs |= {"attention_mask": mask, "past_key_values": past_key_values}
        x = self._run(x, input_ids, rotary, queries, **kwargs)
        return BaseModelOutputWithPast(last_hidden_state=x, past_key_values=past_key_values)

    def _check_inputs(self, input_ids: Tensor | None, inputs_embeds: Tensor | None) -> None:
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("a pgolf model needs input_ids, or inputs_embeds in their place, and not both")
        if input_ids is None and (self.bigram is not None or self.value_embed is not None):
            raise ValueError(
                "this pgolf model needs input_ids: its hashed bigram and value embeddings read token ids, "
                "which inputs_embeds do not carry"
            )

    def _embed(self, x: Tensor, input_ids: Tensor | None, follows: Tensor, cache: Cache | None) -> Tensor:
        """Add the bigram to the token's row, norm and smear: the stream x0 (B, T, D) in the compute type.

        follows: bool (B, T), False where a position has no predecessor.
        """
        x = x.to(compute_dtype(self.embed_tokens.weight))
        state = 0  # of the states that the cache's first slot carries
        if self.bigram is not None and input_ids is not None:
            before = previous(input_ids[..., None], cache, state)[..., 0]
            x = x + self.bigram(bigram_ids(input_ids, before, follows, self.config.bigram_buckets), x.dtype)
            state += 1
        x = rms_norm(x, self.config.rms_norm_eps)
        if self.embed_proj is not None:
            x = self.embed_proj(x)
        if self.smear is not None:
            before = previous(x, cache, state)
            x = self.smear(x, torch.where(follows[..., None], before, torch.zeros_like(before)))
        return x

    def _rotary(self, position_ids: Tensor, length: int | Tensor) -> tuple[Tensor, Tensor]:
        config = self.config
        base = stretched_base(config.rotary_base, length, config.rotary_trained_length, config.rotary_width)
        return rotary_tables(position_ids, base, config.rotary_width)

    def _run(
        self, x: Tensor, input_ids: Tensor | None, rotary: tuple[Tensor, Tensor], queries: slice | None, **kwargs: Any
    ) -> Tensor:
        """Visit the blocks in program order; returns the normed stream (B, T, D) of ``queries``, or of all."""
        config, x0 = self.config, x
        kept: list[Tensor] = []
        values = self.value_embed(input_ids, x.dtype) if self.value_embed is not None else None
        for slot, visit in enumerate(self.program):
            if visit.skip is not None:
                x = self._blend_skip(x, kept.pop(), visit.skip)
            if visit.opens:
                x = torch.stack((x, x))
            value = None
            if values is not None and self.value_embed_scales is not None and visit.block in config.value_embed_layers:
                place = config.value_embed_layers.index(visit.block)
                value = values * self.value_embed_scales[place].to(x.dtype)
            asked = queries if slot == len(self.program) - 1 else None
            x = self.layers[visit.block](x, x0, value, rotary, asked, cache_idx=slot, **kwargs)
            if visit.keep:
                kept.append(x)
        if self.lanes is not None:
            x = self.lanes(x)
        return rms_norm(x, config.rms_norm_eps)

    def _blend_skip(self, x: Tensor, skip: Tensor, row: int) -> Tensor:
        assert self.skips is not None
        if self.lanes is not None and x.dim() > skip.dim():
            return self.lanes.blend(self.skips, x, skip, row)
        blended: Tensor = self.skips(x, skip, row)
        return blended


class PGolfForCausalLM(PGolfPreTrainedModel, GenerationMixin):
    """The model with its soft-capped head: logits = C · tanh(x Eᵀ / C)."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: PGolfConfig) -> None:
        super().__init__(config)
        self.model = PGolfModel(config)
        self.vocab_size = config.vocab_size
        self.head_proj = CastLinear(config.hidden_size, config.embedding_size) if config.embedding_size else None
        self.lm_head = nn.Linear(config.embedding_size or config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Unpack[TransformersKwargs],  # type: ignore[misc]  # untyped for mypy
    ) -> CausalLMOutputWithPast:
        """Return logits (B, T', V) and, with labels, the mean loss in nats per token.

        labels: (B, T), shifted inside; pass ``shift_labels`` (B, T) instead for targets that are shifted already.
        logits_to_keep: how many last positions (or which, as indices) get logits; 0 for all. Others are never made.
        """
        outputs: BaseModelOutputWithPast = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **{key: value for key, value in kwargs.items() if key not in ("shift_labels", "num_items_in_batch")},
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.logits(outputs.last_hidden_state[:, kept])
        loss = None
        if labels is not None or kwargs.get("shift_labels") is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.vocab_size, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def logits(self, hidden: Tensor) -> Tensor:
        """Project a normed stream (..., D) to soft-capped logits (..., V), in the stream's type."""
        cap = self.config.logit_softcap
        return cap * torch.tanh(self.lm_head(self.head_input(hidden)) / cap)

    def head_input(self, hidden: Tensor) -> Tensor:
        """Project a normed stream (..., D) to the width of the head's table, where that is another."""
        return hidden if self.head_proj is None else self.head_proj(hidden)


AUTO_MAP = {
    "AutoConfig": "configuration_pgolf.PGolfConfig",
    "AutoModel": "modeling_pgolf.PGolfModel",
    "AutoModelForCausalLM": "modeling_pgolf.PGolfForCausalLM",
}
PGolfModel.register_for_auto_class("AutoModel")
PGolfForCausalLM.register_for_auto_class("AutoModelForCausalLM")
