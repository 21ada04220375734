"""Bring a checkpoint of a reference script into a Hugging Face folder.

A script saved a state dict under its own names, one matrix per layer or four stacked banks, and its settings lived in
environment variables. Here both become a ``PGolfConfig`` and a folder that ``AutoModelForCausalLM`` loads.
Sources: SPEC-11L 1.1 (names, banks) and 0 (what differs between the scripts).
"""

from __future__ import annotations

import difflib
import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from modeling_pgolf.configuration_pgolf import PGolfConfig
from modeling_pgolf.errors import FormatError, RecipeError
from modeling_pgolf.modeling_pgolf import PGolfForCausalLM

Settings = dict[str, Any]

# Architecture settings of PR 414's script, under their lower-case names, with the values of its published run.
PR414: Settings = {
    "vocab_size": 1024, "num_layers": 11, "model_dim": 512, "num_heads": 8, "num_kv_heads": 4, "mlp_mult": 3.0,
    "tie_embeddings": True, "tied_embed_init_std": 0.005, "logit_softcap": 30.0, "rope_base": 10000.0,
    "qk_gain_init": 1.5, "bigram_vocab_size": 2048, "bigram_dim": 128, "xsa_last_n": 4, "rope_dims": 16,
    "ln_scale": True, "ve_enabled": True, "ve_dim": 128, "ve_layers": "9,10", "negative_slope": 0.0,
    "table_proj_init_gain": 22**-0.5,
    # Switches that no published run turned on, and that this model does not have.
    "dtg": False, "mtp_num_heads": 0, "mtp_loss_weight": 0.2, "gated_attention": False, "value_residual": False,
}  # fmt: skip
PR549: Settings = PR414 | {"bigram_vocab_size": 1536, "negative_slope": 0.5, "table_proj_init_gain": 1.0}
SYSTEMS: dict[str, Settings] = {
    "414": PR414,
    "445": PR414,
    "691": PR414,
    "549": PR549,
    "1019": PR549 | {"bigram_vocab_size": 3072, "bigram_dim": 112, "xsa_last_n": 11},
    "1364": PR549 | {"bigram_vocab_size": 2048, "xsa_last_n": 11},
    "fork": PR549 | {"bigram_vocab_size": 2048, "xsa_last_n": 11, "qk_gain_init": 5.0},
}
UNSUPPORTED = ("dtg", "mtp_num_heads", "gated_attention", "value_residual")

# Settings of the scripts that shape no weight: accepted, so that a whole dump can be given.
NOT_ARCHITECTURE = """
    adam_eps adam_wd beta1 beta2 data_path ema_decay ema_enabled embed_lr eval_seq_len eval_stride
    grad_clip_norm head_lr iterations late_qat_threshold lawa_enabled lawa_freq lawa_k matrix_lr
    max_wallclock_seconds muon_backend_steps muon_beta2 muon_momentum muon_momentum_warmup_start
    muon_momentum_warmup_steps muon_wd qat_enabled run_id scalar_lr seed swa_enabled swa_every tied_embed_lr
    tokenizer_path train_batch_tokens train_files train_log_every train_seq_len ttt_batch_seqs ttt_burst_enabled
    ttt_burst_epochs ttt_burst_lr_factor ttt_burst_steps ttt_burst_trigger ttt_chunk_tokens ttt_enabled
    ttt_epochs ttt_freeze_blocks ttt_grad_clip ttt_lr ttt_momentum val_batch_size val_files val_loss_every
    warmdown_iters warmup_steps gptq_calib_batches gptq_block_size target_mb compressor
"""

# Reference name (a pattern) to ours; {i} is a block index.
NAMES = {
    r"tok_emb\.weight": "model.embed_tokens.weight",
    r"bigram\.(embed\.weight|proj\.weight|scale)": r"model.bigram.\1",
    r"smear\.gate": "model.smear.gate",
    r"skip_(weights|gates)": r"model.skip_\1",
    r"ve_shared\.(embed\.weight|proj\.weight|scale)": r"model.value_embed.\1",
    r"blocks\.(\d+)\.(attn_scale|mlp_scale|resid_mix)": r"model.layers.\1.\2",
    r"blocks\.(\d+)\.attn\.q_gain": r"model.layers.\1.self_attn.q_gain",
    r"blocks\.(\d+)\.attn\.c_(q|k|v)\.weight": r"model.layers.\1.self_attn.\2_proj.weight",
    r"blocks\.(\d+)\.attn\.proj\.weight": r"model.layers.\1.self_attn.o_proj.weight",
    r"blocks\.(\d+)\.mlp\.fc\.weight": r"model.layers.\1.mlp.up_proj.weight",
    r"blocks\.(\d+)\.mlp\.proj\.weight": r"model.layers.\1.mlp.down_proj.weight",
    r"lm_head\.weight": "lm_head.weight",
}
BANKS = {
    "qo_bank": ("attn.c_q", "attn.proj"),
    "kv_bank": ("attn.c_k", "attn.c_v"),
    "mlp_up_bank": ("mlp.fc",),
    "mlp_down_bank": ("mlp.proj",),
}


def convert(checkpoint: Path, system: str, settings: Settings, out: Path) -> None:
    """Write the reference ``checkpoint`` of ``system`` as a Hugging Face folder.

    settings: the script's hyper-parameters by lower-case name; absent ones take the system's values.
    Raises RecipeError on unknown settings, FormatError where names or shapes are not the system's.
    """
    config = configuration(system, settings)
    state = model_state(read_checkpoint(checkpoint))
    model = PGolfForCausalLM(config)
    load_exactly(model, state)
    model.save_pretrained(out)


def configuration(system: str, settings: Settings) -> PGolfConfig:
    """Translate the settings of a reference script to a model configuration."""
    if system not in SYSTEMS:
        raise RecipeError(f"system {system!r} is not one of {', '.join(SYSTEMS)}")
    for name in settings:
        if name not in PR414 and name not in NOT_ARCHITECTURE.split():
            near = difflib.get_close_matches(name, [*PR414, *NOT_ARCHITECTURE.split()], n=1)
            raise RecipeError(
                f"unknown setting {name!r} of system {system}" + (f"; did you mean {near[0]!r}?" if near else "")
            )
    s = SYSTEMS[system] | {name: value for name, value in settings.items() if name in PR414}
    on = [name for name in UNSUPPORTED if s[name]]
    if on:
        raise RecipeError(f"{', '.join(on)} is switched on; no published run uses it and this model does not have it")
    layers = s["num_layers"]
    ve_layers = s["ve_layers"] if s["ve_enabled"] else ""
    return PGolfConfig(
        vocab_size=s["vocab_size"],
        hidden_size=s["model_dim"],
        intermediate_size=int(s["mlp_mult"] * s["model_dim"]),
        num_blocks=layers,
        num_attention_heads=s["num_heads"],
        num_key_value_heads=s["num_kv_heads"],
        tie_word_embeddings=s["tie_embeddings"],
        logit_softcap=s["logit_softcap"],
        mlp_negative_slope=s["negative_slope"],
        ln_scale=s["ln_scale"],
        rotary_base=s["rope_base"],
        rotary_dims=s["rope_dims"],
        rotary_length=None,
        q_gain_init=s["qk_gain_init"],
        xsa_layers=list(range(max(0, layers - s["xsa_last_n"]), layers)),
        bigram_buckets=s["bigram_vocab_size"],
        bigram_dim=s["bigram_dim"],
        value_embed_layers=[int(layer) for layer in ve_layers.split(",") if layer],
        value_embed_dim=s["ve_dim"],
        embed_init_std=s["tied_embed_init_std"],
        table_proj_init_gain=s["table_proj_init_gain"],
    )


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Read a state dict from ``.safetensors``, or from ``.pt`` without running any pickled code."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, SafetensorError, RuntimeError, ValueError) as error:
        raise FormatError(f"the checkpoint {path.name} cannot be read: {error}") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise FormatError(f"{path.name} does not hold a state dict of tensors")
    return state


def model_state(reference: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename a reference state dict, banked or by layer, to this model's names."""
    state, scales = {}, {}
    for name, tensor in unbank(reference).items():
        if tensor.numel() == 0:  # one block has no skips: the script saves an empty table, this model none
            continue
        if match := re.fullmatch(r"ve_layer_scales\.(\d+)", name):
            scales[int(match[1])] = tensor.reshape(())
            continue
        state[translate(name)] = tensor
    if scales:
        state["model.value_embed_scales"] = torch.stack([scales[place] for place in sorted(scales)])
    return state


def translate(name: str) -> str:
    """Translate one reference parameter name; raises FormatError on a name that no reference script has."""
    for pattern, ours in NAMES.items():
        if re.fullmatch(pattern, name):
            return re.sub(pattern, ours, name)
    raise FormatError(f"the checkpoint has a tensor '{name}' that no supported reference script writes")


def unbank(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Split the stacked banks of PR 549 and later into one matrix per layer (SPEC-11L 1.1)."""
    flat = {name: tensor for name, tensor in state.items() if name not in BANKS}
    for bank, roles in BANKS.items():
        if bank not in state:
            continue
        layers = state[bank].shape[0] // len(roles)
        for row, matrix in enumerate(state[bank]):
            flat[f"blocks.{row % layers}.{roles[row // layers]}.weight"] = matrix.clone()
    return flat


def load_exactly(model: PGolfForCausalLM, state: dict[str, Tensor]) -> None:
    """Load ``state``; raises FormatError unless names and shapes are the model's, tied head aside."""
    wanted = {name: p.shape for name, p in model.named_parameters()}
    missing = sorted(set(wanted) - set(state))
    strange = sorted(set(state) - set(wanted) - {"lm_head.weight"})
    if missing or strange:
        raise FormatError(f"the checkpoint lacks {missing[:4]} and has {strange[:4]} besides; check the settings")
    for name, shape in wanted.items():
        if state[name].shape != shape:
            raise FormatError(f"'{name}' has shape {tuple(state[name].shape)}, the settings give {tuple(shape)}")
    model.load_state_dict(state, strict=False)


def read_settings(path: Path) -> Settings:
    """Read a SETTINGS.json; raises RecipeError where it is not one JSON object."""
    try:
        settings = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise RecipeError(f"the settings {path} cannot be read: {error}") from error
    if not isinstance(settings, dict):
        raise RecipeError(f"{path.name} must hold one JSON object, found {type(settings).__name__}")
    return settings
