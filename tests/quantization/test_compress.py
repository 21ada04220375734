"""Compression as a whole: equal bytes twice, the byte ledger adds up, and rate control stays under its limit."""

import hashlib
import re
from dataclasses import replace

import pytest
import torch

from modeling_pgolf.configuration_pgolf import PGolfConfig
from modeling_pgolf.errors import BudgetError, FormatError, RecipeError
from modeling_pgolf.grid import GridTensor, encode
from modeling_pgolf.modeling_pgolf import PGolfForCausalLM
from modeling_pgolf.quantization_pgolf import pack, unpack
from quantization.assign import Role
from quantization.budget import check_budget
from quantization.clipping import row_width, scale_of
from quantization.compress import calibrate, compress, dequantized, stored_state
from quantization.config import GptqConfig, PercentileClip, QuantizationConfig, SdClip
from quantization.gptq import curvature, round_columns
from quantization.pruning import count_ones, zero_cheapest
from quantization.rate import RateSearch, plan_text, searchable

# All matrices on the grid; a weak codec keeps the test short.
CONFIG = QuantizationConfig(small_tensor_elements=4096, codec_level=3)
GPTQ = replace(CONFIG, clip=SdClip(), gptq=GptqConfig(precision="fp32"), codec="ans")


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


@pytest.fixture(scope="module")
def text():
    return torch.randint(320, (2, 4, 64), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("config", [CONFIG, GPTQ], ids=["nearest", "gptq"])
def test_equal_weights_give_equal_bytes(model, text, config):
    one, two = (compress(model, config, 10**9, calibrate(model, config, text)) for _ in range(2))
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
@pytest.mark.parametrize(("clip", "codec"), [(PercentileClip(), "zstd"), (SdClip(), "ans")])
def test_rate_control_fills_the_budget(model, share, clip, codec):
    """Limits around the size that the published grid gives: within half a percent below, never above."""
    config = replace(CONFIG, clip=clip, codec=codec)
    limit = int(share * len(compress(model, config, 10**9).frame))
    artifact = compress(model, replace(config, fill_budget=True), limit)
    assert 0.995 * limit <= len(artifact.frame) <= limit


@pytest.mark.parametrize(("codec", "most"), [("ans", 1.02), ("zstd", 1.2)])
def test_the_prediction_is_near_the_file(model, codec, most):
    """A little under it: ANS writes levels of rows and columns as well, zstd's Huffman codes have whole bits."""
    config = replace(CONFIG, clip=SdClip(), codec=codec)
    tensors = searchable(stored_state(model), config, torch.device("cpu"))
    artifact = compress(model, config, 10**9)
    others = {name: weight for name, weight in artifact.weights.items() if name not in tensors}
    predicted = RateSearch(tensors, len(pack(others, level=3))).predicted_bytes(config.clip)
    assert predicted < len(artifact.frame) < most * predicted


def test_rate_control_tells_its_plan_before_it_packs(model):
    config, told = replace(CONFIG, clip=SdClip(), codec="ans", fill_budget=True), []
    limit = int(0.9 * len(compress(model, replace(config, fill_budget=False), 10**9).frame))
    artifact = compress(model, config, limit, tell=told.append)
    shown = (
        rf"plan: attention k = [\d.]+, feed-forward k = [\d.]+, table k = [\d.]+; [\d,]+ of {limit:,} bytes predicted"
    )
    assert told and all(re.fullmatch(shown, line) for line in told)
    assert f"k = {artifact.clip.attention_sigmas:.3f}" in told[-1]


def test_rate_control_says_why_bytes_stay_free(model):
    told = []
    artifact = compress(model, replace(CONFIG, clip=SdClip(), codec="ans", fill_budget=True), 10**7, tell=told.append)
    assert told[-1] == f"{10**7 - len(artifact.frame):,} of 10,000,000 bytes stay free: no finer grid is tried"


def test_groups_cost_what_their_codes_are_worth(model):
    """Gaussian codes have nothing but their entropy, so no group is charged for another."""
    artifact = compress(model, replace(CONFIG, clip=SdClip(), codec="ans"), 10**9)
    large = [line for line in artifact.ledger if line.weights > 50_000]
    assert len(large) == 3
    for line in large:
        assert line.bits_per_weight == pytest.approx(line.entropy_bits, rel=0.03)


@pytest.mark.parametrize("share", [0.85, 1.1])
def test_rate_control_counts_what_gptq_rounds(model, text, share):
    limit = int(share * len(compress(model, GPTQ, 10**9, calibrate(model, GPTQ, text)).frame))
    artifact = compress(model, replace(GPTQ, fill_budget=True), limit, calibrate(model, GPTQ, text))
    assert 0.995 * limit <= len(artifact.frame) <= limit
    # One factor: the roles keep the proportions that the recipe gave them.
    assert artifact.clip.table_sigmas / artifact.clip.attention_sigmas == pytest.approx(20 / 12.85)
    assert set(artifact.seconds) == {"calibration", "plan", "round", "pack"}


def test_the_plan_tells_what_codes_are_worth(model):
    artifact = compress(model, replace(CONFIG, clip=SdClip(attention_sigmas=10.0, table_bits=7), codec="ans"), 10**9)
    plan = {line.role: line for line in artifact.plan}
    # 2.047 + log2(c / k) bits for Gaussian rows, whatever their size (FRONTIER 1.5).
    assert plan["attention"].bits == pytest.approx(2.047 + 1.632, abs=0.02)
    assert plan["feed-forward"].bits == pytest.approx(2.047 + 1.270, abs=0.02)
    assert plan["table"].bits == pytest.approx(2.047 + 1.655, abs=0.02)
    assert plan["table"].grid_bits == 7
    shown = plan_text(artifact.plan, len(artifact.frame))
    assert "k = 10.000" in shown and f"{len(artifact.frame):,} bytes" in shown


def test_gptq_loses_less_than_the_nearest_codes(model, text):
    """By what a layer gives for the inputs it was calibrated on."""
    seen = []
    layer = model.model.layers[1].mlp.down_proj
    handle = layer.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach().flatten(0, -2)))
    rounded = [
        compress(model, config, 10**9, calibrate(model, config, text)).weights
        for config in (GPTQ, replace(GPTQ, gptq=None))
    ]
    handle.remove()
    inputs = torch.cat(seen[:2])
    name = "model.layers.1.mlp.down_proj.weight"
    by_gptq, nearest = ((inputs @ (w[name].decode() - layer.weight).T).square().sum() for w in rounded)
    assert by_gptq < 0.9 * nearest
    # The head's table is rounded by the inputs of the head; the bigram's table has none.
    assert not torch.equal(*(w["model.embed_tokens.weight"].codes for w in rounded))


def test_gptq_wants_text(model):
    with pytest.raises(RecipeError, match="what calibrate\\(\\) returns"):
        compress(model, GPTQ, 10**9)


def test_no_grid_fits_a_tiny_budget(model):
    with pytest.raises(BudgetError, match="shrink the model"):
        compress(model, replace(CONFIG, fill_budget=True), 60_000)


def test_pruning_is_the_last_resort(model):
    whole = compress(model, replace(CONFIG, codec="ans"), 10**9)
    config = replace(CONFIG, codec="ans", prune_to_fit=True)
    assert compress(model, config, len(whole.frame)).frame == whole.frame
    limit = int(0.99 * len(whole.frame))
    artifact = compress(model, config, limit)
    assert 0.998 * limit < len(artifact.frame) <= limit
    assert 0 < count_ones(artifact.weights) < count_ones(whole.weights)
    changed = [
        (one.codes, other.codes)
        for name, one in whole.weights.items()
        if isinstance(one, GridTensor) and not torch.equal(one.codes, (other := artifact.weights[name]).codes)
    ]
    assert changed and all(
        (one[one != other].abs() == 1).all() and not other[one != other].any() for one, other in changed
    )
    with pytest.raises(BudgetError, match="coarser grid"):
        compress(model, config, 60_000)


def test_the_cheapest_codes_go_first():
    """By the square of their row's scale; of equals the first. Tables are left alone."""
    codes = torch.tensor([[1, -1, 2], [1, 0, -1]], dtype=torch.int8)
    weights = {
        "a": GridTensor(codes, torch.tensor([0.5, 0.25]).half(), 6),
        "b": GridTensor(codes, torch.tensor([0.125, 1.0]).half(), 6),
        "table": GridTensor(codes, torch.tensor([0.01, 0.01]).half(), 8),
    }
    pruned = zero_cheapest(weights, 5)
    assert pruned["b"].codes.tolist() == [[0, 0, 2], [1, 0, -1]]
    assert pruned["a"].codes.tolist() == [[0, -1, 2], [0, 0, 0]]
    assert torch.equal(pruned["table"].codes, codes)
    assert weights["a"].codes[0, 0] == 1


def test_a_row_without_a_scale_has_codes_of_0():
    """Rows so small that their step is under half of float16's least: zero, and not the largest code."""
    weight = torch.tensor([[1e-9, -1e-9, 0.0], [1.0, -1.0, 0.5]])
    clip = SdClip(attention_sigmas=3.0)
    scale = scale_of(row_width(weight, clip), Role.ATTENTION, clip)
    assert scale[0] == 0
    assert encode(weight, scale, 6)[0].tolist() == [0, 0, 0]
    assert round_columns(weight, scale, 6, curvature(torch.eye(3), 0.01))[0].tolist() == [0, 0, 0]


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
