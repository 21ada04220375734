"""The pgolf language model as a transformers model.

Embedding stage (token, hashed bigram, norm, smear), the blocks in the order of the layer program with U-Net skips,
a final norm and a soft-capped tied head. Master weights keep their type; the stream runs in the autocast type.

``B`` batch, ``T`` time, ``D`` width, ``V`` vocabulary. Source: SPEC-11L 1; SPEC-8192 1.
"""

import os
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.cache_utils import Cache, DynamicCache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .attention import Attention
from .blocks import Block
from .configuration_pgolf import PGolfConfig
from .embeddings import BIGRAM_SCALE, VALUE_SCALE, VALUE_TABLE_STD, ProjectedTable, bigram_ids
from .gates import SmearGate, previous
from .initial_weights import init_module
from .norms import rms_norm
from .program import layer_program, skip_rows
from .quantization_pgolf import register_quantizer
from .rotary import rotary_tables, stretched_base

register_quantizer()


class PGolfPreTrainedModel(PreTrainedModel):
    """Initialisation, saving, and what transformers asks of every model."""

    config: PGolfConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["Block"]  # noqa: RUF012
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

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> Any:
        """Save an ordinary float model with its code, loadable by every Auto class named in ``AUTO_MAP``."""
        self.config.auto_map = dict(AUTO_MAP)
        return super().save_pretrained(save_directory, **kwargs)


class PGolfModel(PGolfPreTrainedModel):
    """Token ids to the normed stream behind the last block."""

    def __init__(self, config: PGolfConfig) -> None:
        super().__init__(config)
        self.program = layer_program(config.order)
        width, kv_width = config.hidden_size, config.num_key_value_heads * config.head_dim
        rows = skip_rows(config.order)
        self.embed_tokens = nn.Embedding(config.vocab_size, width)
        self.bigram = (
            ProjectedTable(config.bigram_buckets, config.bigram_dim, width, std=0.0, scale=BIGRAM_SCALE)
            if config.bigram_buckets
            else None
        )
        self.smear = SmearGate(width) if config.smear_gate else None
        self.value_embed = (
            ProjectedTable(config.vocab_size, config.value_embed_dim, kv_width, std=VALUE_TABLE_STD, scale=VALUE_SCALE)
            if config.value_embed_layers
            else None
        )
        self.value_embed_scales = (
            nn.Parameter(torch.empty(len(config.value_embed_layers))) if self.value_embed else None
        )
        self.skip_weights = nn.Parameter(torch.empty(rows, width)) if rows else None
        self.skip_gates = nn.Parameter(torch.empty(rows, width)) if rows and config.skip_gates else None
        self.layers = nn.ModuleList([Block(config, layer) for layer in range(config.num_blocks)])
        self.gradient_checkpointing = False
        self.post_init()

    def init_stream_weights(self) -> None:
        """Give the parameters of the whole stream their neutral values."""
        if self.value_embed_scales is not None:
            init.ones_(self.value_embed_scales)
        if self.skip_weights is not None:
            init.ones_(self.skip_weights)
        if self.skip_gates is not None:
            init.zeros_(self.skip_gates)

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
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Return the normed last stream (B, T, D) and the cache.

        queries: the only positions to return, without padding and cache; the last block computes no others.
        input_ids: (B, T). position_ids: (B, T), 0 at a position without predecessor (a document of a packed row).
        Without a fixed ``rotary_length`` the rotary base follows the length of the call once it exceeds
        ``rotary_trained_length``: keys cached at a shorter length keep the base they were made with.
        """
        if input_ids is None or inputs_embeds is not None:
            raise ValueError(
                "a pgolf model needs input_ids: its hashed bigram and value embeddings read token ids, "
                "which inputs_embeds do not carry"
            )
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        past = past_key_values.get_seq_length() if past_key_values is not None else 0
        packed = position_ids  # positions that the caller gives may describe packed documents
        if position_ids is None:
            position_ids = self._positions(attention_mask, input_ids, past)
        x = self._embed(input_ids, position_ids, past_key_values)
        mask = self._causal_mask(attention_mask, x, past_key_values, packed)
        length = self.config.rotary_length or int(past) + x.shape[1]
        rotary = self._rotary(position_ids, length)
        kwargs |= {"attention_mask": mask, "past_key_values": past_key_values}
        x = self._run(x, input_ids, rotary, queries, **kwargs)
        return BaseModelOutputWithPast(last_hidden_state=x, past_key_values=past_key_values)

    def _positions(self, attention_mask: Tensor | None, input_ids: Tensor, past: int | Tensor) -> Tensor:
        T = input_ids.shape[1]
        if isinstance(attention_mask, Tensor) and attention_mask.ndim == 2:
            return (attention_mask.cumsum(-1) - 1).clamp(min=0)[:, -T:]
        return (torch.arange(T, device=input_ids.device) + past)[None].expand(input_ids.shape[0], T)

    def _causal_mask(self, attention_mask: Any, x: Tensor, cache: Cache | None, packed: Tensor | None) -> Tensor | None:
        if isinstance(attention_mask, dict):
            full: Tensor | None = attention_mask["full_attention"]
            return full
        plain = attention_mask is None and packed is None and cache is None
        if plain and self.config._attn_implementation != "flex_attention":
            # Every back-end but flex is causal by itself. Under torch.compile transformers 5.17 would write a mask
            # out all the same, and a training step takes 1.5 times as long (docs/LOG.md).
            return None
        mask: Tensor | None = create_causal_mask(
            config=self.config,
            inputs_embeds=x,
            attention_mask=attention_mask,
            past_key_values=cache,
            position_ids=packed,
        )
        return mask

    def _embed(self, input_ids: Tensor, position_ids: Tensor, cache: Cache | None) -> Tensor:
        """Token, bigram, norm and smear: the stream x0 (B, T, D) in the compute type."""
        dtype = compute_dtype(self.embed_tokens.weight)
        follows = position_ids > 0
        x = F.embedding(input_ids, self.embed_tokens.weight).to(dtype)
        if self.bigram is not None:
            before = previous(input_ids[..., None], cache, 0)[..., 0]
            x = x + self.bigram(bigram_ids(input_ids, before, follows, self.config.bigram_buckets), dtype)
        x = rms_norm(x, self.config.rms_norm_eps)
        if self.smear is not None:
            before = previous(x, cache, 1)
            x = self.smear(x, torch.where(follows[..., None], before, torch.zeros_like(before)))
        return x

    def _rotary(self, position_ids: Tensor, length: int) -> tuple[Tensor, Tensor]:
        config = self.config
        base = stretched_base(config.rotary_base, length, config.rotary_trained_length, config.rotary_width)
        return rotary_tables(position_ids, base, config.rotary_width)

    def _run(
        self, x: Tensor, input_ids: Tensor, rotary: tuple[Tensor, Tensor], queries: slice | None, **kwargs: Any
    ) -> Tensor:
        """Visit the blocks in program order; returns the normed stream (B, T, D) of ``queries``, or of all."""
        config, x0 = self.config, x
        kept: list[Tensor] = []
        shared = self.value_embed(input_ids, x.dtype) if self.value_embed is not None else None
        for slot, visit in enumerate(self.program):
            if visit.skip is not None:
                x = self._blend_skip(x, kept.pop(), visit.skip)
            value = None
            if shared is not None and self.value_embed_scales is not None and visit.block in config.value_embed_layers:
                place = config.value_embed_layers.index(visit.block)
                value = shared * self.value_embed_scales[place].to(x.dtype)
            asked = queries if slot == len(self.program) - 1 else None
            x = self.layers[visit.block](x, x0, rotary, asked, value_embedding=value, cache_idx=slot, **kwargs)
            if visit.keep:
                kept.append(x)
        return rms_norm(x, config.rms_norm_eps)

    def _blend_skip(self, x: Tensor, skip: Tensor, row: int) -> Tensor:
        assert self.skip_weights is not None
        weighted = self.skip_weights[row].to(x.dtype) * skip
        if self.skip_gates is None:
            return x + weighted
        gate = torch.sigmoid(self.skip_gates[row]).to(x.dtype)
        return gate * x + (1 - gate) * weighted


def compute_dtype(weight: Tensor) -> torch.dtype:
    """Return the type the stream runs in: autocast's where it is on, else the weights'."""
    kind = weight.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype


class PGolfForCausalLM(PGolfPreTrainedModel, GenerationMixin):
    """The model with its soft-capped head: logits = C · tanh(x Eᵀ / C)."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: PGolfConfig) -> None:
        super().__init__(config)
        self.model = PGolfModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
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
        **kwargs: Any,
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
        return cap * torch.tanh(F.linear(hidden, self.lm_head.weight.to(hidden.dtype)) / cap)


AUTO_MAP = {
    "AutoConfig": "configuration_pgolf.PGolfConfig",
    "AutoModel": "modeling_pgolf.PGolfModel",
    "AutoModelForCausalLM": "modeling_pgolf.PGolfForCausalLM",
}
PGolfModel.register_for_auto_class("AutoModel")
PGolfForCausalLM.register_for_auto_class("AutoModelForCausalLM")
