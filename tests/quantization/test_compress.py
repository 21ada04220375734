"""Compression as a whole: equal bytes twice, the byte ledger adds up, and rate control stays under its limit."""

import hashlib
from dataclasses import replace

import pytest
import torch

from modeling_pgolf.configuration_pgolf import PGolfConfig
from modeling_pgolf.errors import BudgetError, FormatError
from modeling_pgolf.modeling_pgolf import PGolfForCausalLM
from modeling_pgolf.quantization_pgolf import unpack
from quantization.budget import check_budget
from quantization.compress import compress, dequantized
from quantization.config import QuantizationConfig

# All matrices on the grid; a weak codec keeps the test short.
CONFIG = QuantizationConfig(small_tensor_elements=4096, codec_level=3)
FILLING = replace(CONFIG, fill_budget=True)


@pytest.fixture(scope="module")
def model():
    """Matrices of trained size and spread: rows of 256 with a standard deviation of 0.17 (SPEC-11L 4.2)."""
    torch.manual_seed(0)
    config = PGolfConfig(
        vocab_size=320, hidden_size=256, intermediate_size=512, num_blocks=2, num_attention_heads=4,
        num_key_value_heads=2, xsa_layers=[1], value_embed_layers=[1], value_embed_dim=32, bigram_buckets=64,
        bigram_dim=32, rotary_length=64,
    )  # fmt: skip
    model = PGolfForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.17 * torch.randn_like(parameter))
    return model


def test_equal_weights_give_equal_bytes(model):
    one, two = (compress(model, CONFIG, 10**9) for _ in range(2))
    assert hashlib.sha256(one.frame).digest() == hashlib.sha256(two.frame).digest()
    floats = dequantized(unpack(one.frame))
    assert all(torch.equal(floats[name], tensor) for name, tensor in dequantized(one.weights).items())


def test_the_ledger_adds_up(model):
    artifact = compress(model, CONFIG, 10**9)
    assert sum(line.weights for line in artifact.ledger) == sum(p.numel() for p in model.parameters())
    # Each group's share is rounded to whole bytes.
    assert abs(sum(line.bytes for line in artifact.ledger) - len(artifact.frame)) <= len(artifact.ledger)
    matrices = next(line for line in artifact.ledger if line.group == "feed-forward")
    # A Gaussian of 0.17 on steps of 1/31 has 4.44 bits; shares by a weak codec are off by a few percent.
    assert matrices.entropy_bits == pytest.approx(4.44, abs=0.05)
    assert matrices.bits_per_weight == pytest.approx(matrices.entropy_bits, rel=0.08)


@pytest.mark.parametrize("share", [0.6, 0.75, 0.9, 1.05, 1.15])
def test_rate_control_fills_the_budget(model, share):
    """Limits around the size that the published step of 1/31 gives."""
    limit = int(share * len(compress(model, CONFIG, 10**9).frame))
    artifact = compress(model, FILLING, limit)
    assert 0.98 * limit < len(artifact.frame) <= limit


def test_no_grid_fits_a_tiny_budget(model):
    with pytest.raises(BudgetError, match="shrink the model"):
        compress(model, FILLING, 60_000)


def test_the_limit_is_checked():
    assert check_budget(15_900_000, 90_000) == 15_990_000
    with pytest.raises(BudgetError, match="10 over the limit of 16,000,000"):
        check_budget(15_900_000, 100_010)


def test_a_diverged_model_is_refused(model):
    spoilt = PGolfForCausalLM(model.config)
    with torch.no_grad():
        spoilt.model.layers[0].mlp.up_proj.weight[0, 0] = float("nan")
    with pytest.raises(FormatError, match="diverged"):
        compress(spoilt, CONFIG, 10**9)
