"""The architecture of every published system at a size that runs in milliseconds.

Depth and features are those of the published systems: which blocks have XSA and value embeddings, which segment is
repeated, from which block the branches are parallel. Only widths, tables and lengths are small.
"""

import torch

from modeling_pgolf.configuration_pgolf import PGolfConfig
from modeling_pgolf.modeling_pgolf import PGolfForCausalLM
from pgolf.reference_systems import SYSTEMS, configuration

VOCABULARY = 64
SIZES = {"vocab_size": VOCABULARY, "model_dim": 32, "num_heads": 4, "num_kv_heads": 2, "rope_dims": 4}
TABLES = {"bigram_vocab_size": 61, "bigram_dim": 12, "ve_dim": 12}
# A base that is stretched, as in the recipes, and fixed for every call, which is what a cache needs.
ROTARY = {"rotary_trained_length": 16, "rotary_length": 64, "max_position_embeddings": 64}


def tiny(system: str, **fields) -> PGolfConfig:
    """A published system at a tiny size; ``fields`` change its configuration."""
    tables = {name: value for name, value in TABLES.items() if SYSTEMS[system].get(name)}
    published = configuration(system, SIZES | tables)
    return PGolfConfig(**{**published.to_dict(), **ROTARY, **fields})


def distinct() -> dict[str, PGolfConfig]:
    """The tiny configurations that differ in more than initial values, each under its first system's name."""
    found: dict[str, PGolfConfig] = {}
    for system in SYSTEMS:
        config, kinds = tiny(system), [shape(other) for other in found.values()]
        if shape(config) not in kinds:
            found[system] = config
    return found


def shape(config: PGolfConfig) -> dict:
    """What the weights of a configuration do, whatever values they start from."""
    return {name: value for name, value in config.to_dict().items() if "_init" not in name}


# PR 1285's own run left its lanes off.
ARCHITECTURES = distinct() | {"1285 routed": tiny("1285", lanes="routed", lanes_from=7)}


def alive(config: PGolfConfig, seed: int = 0) -> PGolfForCausalLM:
    """A model that uses every feature: no weight is 0, no gain 1, no gate in the middle."""
    torch.manual_seed(seed)
    model = PGolfForCausalLM(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model


def apart(logits: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference, as a share of the largest logit."""
    assert logits.shape == expected.shape
    return ((logits - expected).abs().max() / expected.abs().max()).item()
