"""Write the folder that is shipped: configuration, code, tokenizer and the one compressed file.

The folder is an ordinary Hub repository; ``AutoModelForCausalLM.from_pretrained`` reads it with the code it carries.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from transformers import PreTrainedModel
from transformers.dynamic_module_utils import custom_object_save

from modeling_pgolf.modeling_pgolf import AUTO_MAP
from modeling_pgolf.quantization_pgolf import write_frame_file
from quantization.assign import MATRIX_BITS
from quantization.compress import Artifact

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
WEIGHTS = "model.safetensors"
# What the file has beside the frame as it was packed: the outer safetensors header, whose exact length depends on
# digits, and the track in the frame's own. Together never more than this.
OUTER_BYTES = 256


def write_artifact(folder: Path, model: PreTrainedModel, artifact: Artifact, tokenizer_folder: Path) -> None:
    """Write a whole artifact; the tokenizer is copied from ``tokenizer_folder``."""
    write_loader(folder, model, tokenizer_folder)
    write_frame_file(folder / WEIGHTS, artifact.frame)


def write_loader(folder: Path, model: PreTrainedModel, tokenizer_folder: Path) -> None:
    """Write everything that loading needs besides the weights."""
    config = model.config.__class__.from_dict(model.config.to_dict())
    config.architectures = [type(model).__name__]
    config.dtype = "float32"  # the one uint8 tensor of the file cannot tell the type of the weights
    config.quantization_config = {"quant_method": "pgolf", "bits": MATRIX_BITS}
    custom_object_save(model, folder)
    config.auto_map = dict(AUTO_MAP)
    config.save_pretrained(folder)
    if model.generation_config is not None:
        model.generation_config.save_pretrained(folder)
    for name in TOKENIZER_FILES:
        if (tokenizer_folder / name).exists():
            shutil.copy(tokenizer_folder / name, folder / name)


def code_bytes(folder: Path) -> int:
    """Count the bytes of code and configuration that loading the artifact reads; the tokenizer is not counted.

    Source: LEGALITY B1.
    """
    return sum(p.stat().st_size for p in folder.iterdir() if p.suffix == ".py" or p.name == "config.json")
