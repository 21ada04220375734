"""The reference's sliding evaluation: nats of each target, and its score without the targets it counts twice."""

import json

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from evaluation.bytecount import ByteTable
from evaluation.config import EvaluationConfig
from evaluation.scorer import score
from evaluation.windows import ValidationTokens
from modeling_pgolf.modeling_pgolf import PGolfForCausalLM
from pgolf.convert import load_exactly, model_state
from pgolf.reference_systems import configuration

NLL, BPB = 1e-5, 1e-6  # golden/11l/eval.meta.json, "suggested_tolerance"


@pytest.fixture(scope="module")
def fixtures(golden_11l):
    meta = json.loads((golden_11l / "eval.meta.json").read_text())
    tensors = load_file(golden_11l / "eval_sliding.safetensors")
    model = PGolfForCausalLM(configuration("414", meta["gpt_constructor"]))
    load_exactly(model, model_state({n[2:]: t for n, t in tensors.items() if n.startswith("w.")}))
    lut = load_file(golden_11l / "byte_lut.safetensors")
    table = ByteTable(lut["lut.base_bytes"], lut["lut.has_leading_space"], lut["lut.is_boundary"])
    return meta, tensors, model, table


def scored(model, tokens, window, stride, batch_windows=4):
    config = EvaluationConfig(window, stride, batch_windows=batch_windows, compile=False, precision="fp32")
    return score(model, tokens, config, Accelerator(cpu=True))


def test_sliding(fixtures):
    meta, tensors, model, table = fixtures
    assert len(meta["sliding"]["cases"]) == 7
    for case in meta["sliding"]["cases"]:
        key = f"slide{case['case']}"
        tokens = ValidationTokens(tensors[f"{key}.tokens"])
        ledger = scored(model, tokens, case["seq_len"], case["stride"])
        # The reference scores some tail targets again with less context: its first score of each is ours.
        first = {}
        for position, nll in zip(tensors[f"{key}.scored_position"].tolist(), tensors[f"{key}.scored_nll"], strict=True):
            first.setdefault(position, nll)
        expected = torch.stack([first[i] for i in range(tokens.targets)])
        assert (ledger.nats - expected).abs().max() < NLL, key
        result = ledger.score(table)
        assert result.targets == case["without_duplicates"]["count"]
        assert abs(result.nats_per_token - case["without_duplicates"]["val_loss"]) < BPB, key
        assert abs(result.bits_per_byte - case["without_duplicates"]["val_bpb"]) < BPB, key


def test_plain(fixtures):
    meta, tensors, model, table = fixtures
    tokens = ValidationTokens(tensors["plain.tokens"])
    length = meta["plain_eval"]["seq_len"]
    result = scored(model, tokens, length, length).score(table)
    assert result.targets == meta["plain_eval"]["tokens"]
    assert abs(result.bits_per_byte - meta["plain_eval"]["val_bpb"]) < BPB
