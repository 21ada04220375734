"""Rotary tables, hashed bigrams and parameter counts of the reference, exactly."""

import re

import pytest
import torch
from safetensors.torch import load_file

from modeling_pgolf.configuration_pgolf import PGolfConfig
from modeling_pgolf.embeddings import bigram_ids
from modeling_pgolf.modeling_pgolf import PGolfForCausalLM
from modeling_pgolf.rotary import rotary_tables, stretched_base
from pgolf.reference_systems import configuration


def test_rotary_tables(golden_11l):
    tables = load_file(golden_11l / "rotary_tables.safetensors")
    cases = [m for m in map(lambda n: re.fullmatch(r"rd(\d+)_base(\d+)_T(\d+)\.positions", n), tables) if m]
    assert len(cases) >= 10
    for case in cases:
        dims, base, length = map(int, case.groups())
        key = case.string.removesuffix(".positions")
        cos, sin = rotary_tables(tables[case.string][None], stretched_base(base, length, 1024, dims), dims)
        assert torch.equal(cos[0], tables[key + ".cos"]), key
        assert torch.equal(sin[0], tables[key + ".sin"]), key


def test_bigram_ids(golden_11l):
    tables = load_file(golden_11l / "bigram_hash_ids.safetensors")
    for name in [n for n in tables if n.endswith(".tokens")]:
        buckets = int(re.search(r"_b(\d+)", name)[1])
        tokens = tables[name]
        before = torch.nn.functional.pad(tokens, (1, 0))[:, :-1]
        follows = torch.arange(tokens.shape[1]) > 0
        ids = bigram_ids(tokens, before, follows.expand(tokens.shape), buckets)
        assert torch.equal(ids, tables[name.replace("tokens", "bigram_ids")]), name


@pytest.mark.parametrize(("system", "count"), [("414", 26_993_756), ("549", 26_928_220), ("1019", 27_067_484)])
def test_parameter_counts(system, count):
    with torch.device("meta"):
        model = PGolfForCausalLM(configuration(system, {}))
    assert sum(p.numel() for p in model.parameters()) == count


def test_default_configuration_is_pr_414():
    assert PGolfConfig(rotary_length=None).to_dict() == configuration("414", {}).to_dict()
