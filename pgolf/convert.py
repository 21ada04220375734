"""Bring a checkpoint of a reference script into a Hugging Face folder.

A script saved a state dict under its own names, one matrix per layer or four stacked banks, and its settings lived in
environment variables. Here both become a ``PGolfConfig`` and a folder that ``AutoModelForCausalLM`` loads.
Which settings build which architecture is in ``reference_systems``. Source: SPEC-11L 1.1 (names, banks).
"""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from modeling_pgolf.errors import FormatError, RecipeError
from modeling_pgolf.modeling_pgolf import PGolfForCausalLM

from .reference_systems import Settings, configuration

# Reference name (a pattern) to ours; {i} is a block index.
NAMES = {
    r"tok_emb\.weight": "model.embed_tokens.weight",
    r"bigram\.(embed\.weight|proj\.weight|scale)": r"model.bigram.\1",
    r"smear\.gate": "model.smear.gate",
    r"embed_proj\.weight": "model.embed_proj.weight",
    r"head_proj\.weight": "head_proj.weight",
    r"skip_(weights|gates)": r"model.skips.\1",
    r"lane_merge": "model.lanes.merge",
    r"blocks\.(\d+)\.(lane_retention|lane_routing)": r"model.layers.\1.\2",
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

# Tables with a row for every block, and what a block calls its row.
LANE_TABLES = {"parallel_post_lambdas": "lane_routing", "parallel_resid_lambdas": "lane_retention"}


def convert(checkpoint: Path, system: str, settings: Settings, out: Path) -> None:
    """Write the reference ``checkpoint`` of ``system`` as a Hugging Face folder.

    settings: the script's hyper-parameters by lower-case name; absent ones take the system's values.
    Raises RecipeError on unknown settings, FormatError where names or shapes are not the system's.
    """
    config = configuration(system, settings)
    state = model_state(read_checkpoint(checkpoint), config.lanes_from)
    model = PGolfForCausalLM(config)
    load_exactly(model, state)
    model.save_pretrained(out)


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Read a state dict from ``.safetensors``, or from ``.pt`` without running any pickled code."""
    if not path.is_file():
        raise FormatError(f"there is no checkpoint {path}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        if not zipfile.is_zipfile(path):
            raise FormatError(f"{path.name} is no checkpoint: give the .safetensors or the .pt that a script saved")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, SafetensorError, RuntimeError, ValueError) as error:
        raise FormatError(f"the checkpoint {path.name} cannot be read: {error}") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise FormatError(f"{path.name} does not hold a state dict of tensors")
    return state


def model_state(reference: dict[str, Tensor], lanes_from: int | None = None) -> dict[str, Tensor]:
    """Rename a reference state dict, banked or by layer, to this model's names.

    lanes_from: the first block on two lanes; the script stores lane weights for those below it too, and uses none.
    """
    state, scales = {}, {}
    for name, tensor in unbank(unroll_lanes(reference, lanes_from)).items():
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


def unroll_lanes(state: dict[str, Tensor], lanes_from: int | None) -> dict[str, Tensor]:
    """Give every block on two lanes its row of the lane tables of PR 1204 (SPEC-8192 1.9)."""
    flat = {name: tensor for name, tensor in state.items() if name not in LANE_TABLES}
    for table, ours in LANE_TABLES.items():
        if table in state and lanes_from is not None:
            rows = enumerate(state[table])
            flat |= {f"blocks.{block}.{ours}": row.clone() for block, row in rows if block >= lanes_from}
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
