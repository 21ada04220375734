"""What loading a record reads: files of known names, which are counted, and settings that pgolf itself writes.

A configuration can send ``from_pretrained`` to other files, other code and other attention; a folder can hold what
loading picks up by its name. So both are compared with the list of what a record is made of, before anything is loaded.
Source: LEGALITY B1, D4; docs/FORMAT.md 1 and 7.
"""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

from modeling_pgolf.errors import FormatError, RecipeError
from modeling_pgolf.modeling_pgolf import AUTO_MAP

from ..artifact import TOKENIZER_FILES, WEIGHTS
from ..recipe import load_recipe
from ..siblings import ROOT
from ..workdir import MANIFEST
from .facts import Fact, read_json

# What config.json has besides the model's own fields, and all that may stand there. Source: ``artifact.write_loader``.
EXPORTED: dict[str, Any] = {
    "architectures": ["PGolfForCausalLM"],
    "auto_map": AUTO_MAP,
    "dtype": "float32",
    "model_type": "pgolf",
}
PACKED, VERSION = "quantization_config", "transformers_version"
# generation_config.json is read by loading and not counted, so it has nothing to say. Source: ``write_loader``.
GENERATION = {"_from_model_config", "bos_token_id", "eos_token_id", "pad_token_id", "use_cache", VERSION}
GENERATION |= {"output_attentions", "output_hidden_states"}

CODE = frozenset(path.name for path in (ROOT / "modeling_pgolf").glob("*.py") if path.name != "__init__.py")
NAMES = CODE.union(
    (WEIGHTS, "config.json", "generation_config.json", *TOKENIZER_FILES, "bytes.json", "recipe.json"),
    (f"manifests/{stage}.json" for stage in ("training", "quantization", "evaluation")),
    ("scores.json", "block_nats.safetensors", "stages.json", "submission.json", "README.md", "report.html"),
    ("log.jsonl", "audit.json", MANIFEST),
    (".gitattributes",),  # the Hub's own
)
PATTERNS = re.compile(
    r"ledger\.(plain|sliding|adapted)\.jsonl|plots/(loss|bytes|running|position|tokens|gains)\.(svg|png)"
)


def loading_fact(record: Path) -> Fact:
    """Say whether loading reads the counted files alone."""
    wrong = loading_findings(record)
    found = "; ".join(wrong[:4]) if wrong else "no setting and no file that pgolf does not write"
    return Fact("B1", "loading reads what is counted", not wrong, found)


def loading_findings(record: Path) -> list[str]:
    """List what stands against loading a record, before it is loaded; empty where nothing does."""
    wrong = strange_files(record)
    try:
        return [*wrong, *strange_settings(record), *strange_generation(record)]
    except (FormatError, RecipeError) as error:
        return [*wrong, str(error)]


def strange_files(record: Path) -> list[str]:
    """Name the files that no record has; a link is one, whatever it is called."""
    wrong = []
    for path in sorted(record.rglob("*")):
        name = path.relative_to(record).as_posix()
        if path.is_symlink():
            wrong.append(f"{name} is a link")
        elif not path.is_dir() and not (path.is_file() and (name in NAMES or PATTERNS.fullmatch(name))):
            wrong.append(f"{name} is no file of a record")
    return wrong


def strange_settings(record: Path) -> list[str]:
    """Compare config.json with the recipe's model and with what the exporter writes beside it."""
    config, model = read_json(record / "config.json"), asdict(load_recipe(record / "recipe.json").model)
    packed = config.get(PACKED)
    wrong = [f"config.json has {key!r}" for key in config if key not in {*model, *EXPORTED, PACKED, VERSION}]
    wrong += [f"{key} of config.json is not pgolf's" for key, value in EXPORTED.items() if config.get(key) != value]
    if not isinstance(packed, dict) or packed.keys() != {"quant_method", "bits"} or packed["quant_method"] != "pgolf":
        wrong.append(f"{PACKED} of config.json is not pgolf's")
    return wrong + [
        f"{key} of config.json is {config[key]!r}, the recipe's is {value!r}"
        for key, value in model.items()
        if key in config and config[key] != value
    ]


def strange_generation(record: Path) -> list[str]:
    """Compare the settings of generation with those that an exported model has."""
    path = record / "generation_config.json"
    settings = read_json(path) if path.is_file() else {}
    plain = (str, int, float, type(None))
    return [
        f"generation_config.json has {key!r}"
        for key, value in settings.items()
        if key not in GENERATION or not isinstance(value, plain) or len(str(value)) > 40
    ]
