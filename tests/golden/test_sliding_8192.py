"""PR 1423's sliding evaluation, whose windows overrun the stream and count its last stride again and again.

The ledger takes one score of each target: the reference's first. The published sum is rebuilt from it and from the
nats that the overrunning windows, each scored as a short stream of its own, give the last targets.
"""

import json
import math

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from evaluation.bytecount import ByteTable
from evaluation.config import EvaluationConfig
from evaluation.scorer import score
from evaluation.windows import ValidationTokens, sliding_windows
from modeling_pgolf.modeling_pgolf import PGolfForCausalLM
from pgolf.convert import load_exactly, model_state
from pgolf.reference_systems import configuration

NLL, LOSS = 3e-5, 1e-5  # sliding_1423_tail_rescored.meta.json, "tolerance"


@pytest.fixture(scope="module")
def golden(golden_8192):
    meta = json.loads((golden_8192 / "sliding_1423_tail_rescored.meta.json").read_text())
    tensors = load_file(golden_8192 / "sliding_1423_tail_rescored.safetensors")
    model = PGolfForCausalLM(configuration("1423", meta["config"]))
    load_exactly(model, model_state({n[2:]: t for n, t in tensors.items() if n.startswith("w/")}))
    return meta, tensors, model


def nats_of(model, ids, meta):
    config = EvaluationConfig(meta["seq_len"], meta["stride"], batch_windows=4, compile=False, precision="fp32")
    return score(model, ValidationTokens(ids), config, Accelerator(cpu=True)).nats


def test_each_target_has_the_references_first_score(golden):
    meta, tensors, model = golden
    windows = tensors["windows_start_from_to"].tolist()
    targets = [start + place for start, first, last in windows for place in range(first, last)]
    assert len(targets) == meta["results"]["scored_tokens"]
    assert torch.bincount(torch.tensor(targets)).tolist() == tensors["times_scored"].tolist()
    ours = list(sliding_windows(meta["results"]["total_targets"], meta["seq_len"], meta["stride"]))
    assert [[w.start, w.first, w.length] for w in ours] == windows[: len(ours)]

    expected = tensors["nll_scored_flat"][: meta["results"]["total_targets"]]
    assert sorted(targets[: len(expected)]) == list(range(len(expected)))
    found = nats_of(model, tensors["val_tokens"].long(), meta)
    assert (found - expected).abs().max() < NLL


def test_the_published_score_counts_the_tail_again(golden):
    meta, tensors, model = golden
    ids, published, stride = tensors["val_tokens"].long(), meta["results"], meta["stride"]
    windows = tensors["windows_start_from_to"].tolist()
    overrunning = [start for start, _, length in windows if length < meta["seq_len"]]
    assert len(overrunning) == 3
    again = torch.cat([nats_of(model, ids[start:], meta)[-stride:] for start in overrunning])
    assert (again - tensors["nll_scored_flat"][-len(again) :]).abs().max() < NLL

    once = nats_of(model, ids, meta)
    table = ByteTable(*(tensors[f"lut/{name}"] for name in ("base_bytes", "has_leading_space", "is_boundary")))
    counted = int((table.of_targets(ids) * tensors["times_scored"]).sum())
    loss = float(torch.cat((once, again)).mean())
    assert len(once) + len(again) == published["scored_tokens"]
    assert abs(loss - published["val_loss"]) < LOSS
    bits = loss * published["scored_tokens"] / math.log(2) / counted
    assert abs(bits - published["val_bpb"]) < LOSS
    # The bias that the ledger's rule removes is no rounding error on a short stream.
    assert abs(float(once.mean()) - published["val_loss"]) > 100 * LOSS
