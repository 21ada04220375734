"""The SP8192 line's forward passes of golden/8192, loop off and on: logits, loss, every visit, every gradient."""

import json

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from evaluation.bytecount import ByteTable
from evaluation.config import EvaluationConfig
from evaluation.scorer import score
from evaluation.windows import ValidationTokens
from modeling_pgolf.modeling_pgolf import PGolfForCausalLM
from modeling_pgolf.program import layer_program, skip_rows, visiting_order
from pgolf.convert import convert, load_exactly, model_state
from pgolf.reference_systems import configuration

# The meta files' own tolerances: activations 2e-5 absolute and relative, gradients 2e-5 and 1e-4.
VALUES, GRADIENTS = {"atol": 2e-5, "rtol": 2e-5}, {"atol": 2e-5, "rtol": 1e-4}
CASES = [
    ("fwd_1394_loop", "1394"),
    ("fwd_1394_variants", "1394"),
    ("fwd_1493", "1493"),
    ("fwd_1423_as_shipped", "1423"),
    ("fwd_1477_lane_merge", "1477"),
    ("fwd_1285_two_lane_routing", "1285"),
]


@pytest.fixture(scope="module")
def golden(golden_8192):
    return golden_8192


def section(tensors, prefix):
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def converted(golden, case, system, folder):
    meta, tensors = json.loads((golden / f"{case}.meta.json").read_text()), load_file(golden / f"{case}.safetensors")
    save_file(section(tensors, "w/"), folder / "reference.safetensors")
    settings = meta["config"] | {name.lower(): int(value) for name, value in meta.get("env", {}).items()}
    convert(folder / "reference.safetensors", system, settings, folder / "hf")
    model = AutoModelForCausalLM.from_pretrained(folder / "hf", trust_remote_code=True, attn_implementation="eager")
    return meta, tensors, model


@pytest.mark.parametrize(("case", "system"), CASES)
def test_forward(golden, case, system, tmp_path):
    meta, tensors, model = converted(golden, case, system, tmp_path)
    for mode in [m for m in ("off", "on") if f"{m}/logits" in tensors]:
        order = model.config.order if mode == "on" else list(range(model.config.num_blocks))
        assert order == published_order(meta, mode)
        model.model.program = model.config.program_of(order)
        compare(model, tensors, mode)


def published_order(meta, mode):
    """The meta files name the same list in three ways; those of the lanes name the looped one only."""
    if "virtual_order" in meta:
        return meta["virtual_order"][mode]
    looped = meta.get("virtual_layers_on") or meta["encoder_indices"] + meta["decoder_indices"]
    return looped if mode == "on" else sorted(set(looped))


def compare(model, tensors, mode):
    model.zero_grad()
    seen = []
    hooks = [b.register_forward_hook(lambda m, args, out: seen.append((args[0], out))) for b in model.model.layers]
    out = model(tensors["input_ids"], shift_labels=tensors["target_ids"], use_cache=False)
    out.loss.backward()
    for hook in hooks:
        hook.remove()
    assert torch.allclose(out.logits, tensors[f"{mode}/logits"], **VALUES)
    assert torch.allclose(out.loss, tensors[f"{mode}/loss"], **VALUES)
    shown = len({name.split("/")[1] for name in tensors if name.startswith(f"{mode}/vlayer")})
    assert shown == (0 if model.config.lanes else len(seen))  # the fixtures of lanes show no visits
    for visit, (given, returned) in enumerate(seen[:shown]):
        assert torch.allclose(given, tensors[f"{mode}/vlayer{visit:02d}/input"], **VALUES), visit
        assert torch.allclose(returned, tensors[f"{mode}/vlayer{visit:02d}/output"], **VALUES), visit
    gradients = model_state(section(tensors, f"{mode}/grad/"), model.config.lanes_from)
    named = dict(model.named_parameters())
    assert set(gradients) == set(named)
    for name, expected in gradients.items():
        assert torch.allclose(named[name].grad, expected, **GRADIENTS), (mode, name)


def test_index_lists(golden):
    """Every list of numbers.json: order, halves, skip rows and the encoder position each skip comes from."""
    entries = json.loads((golden / "numbers.json").read_text())["index_lists"]
    assert len(entries) >= 3
    for entry in entries:
        blocks = entry["num_layers"]
        on = visiting_order(blocks, entry["loop_start"], entry["loop_end"], entry["num_loops"])
        assert skip_rows(on) == entry["num_skip_weights"]
        for mode, order in (("on", on), ("off", list(range(blocks)))):
            encoder = entry[f"encoder_{mode}"]
            assert order == encoder + entry[f"decoder_{mode}"]
            program = layer_program(order, skip_rows(on))
            assert skip_sources(program, len(encoder)) == entry[f"skip_source_position_{mode}"]


def skip_sources(program, encoder):
    """Which encoder position each decoder visit blends in, or None."""
    kept = [place for place, visit in enumerate(program) if visit.keep]
    assert kept == list(range(encoder))
    return [kept.pop() if visit.skip is not None else None for visit in program[encoder:]]


def test_published_orders():
    """SPEC-8192 1.4: PR 1394 runs 15 visits, PR 1493 runs 17."""
    assert visiting_order(11, 4, 5, 2) == [0, 1, 2, 3, 4, 5, 4, 5, 4, 5, 6, 7, 8, 9, 10][:15]
    assert visiting_order(11, 3, 5, 2) == [0, 1, 2, 3, 4, 5, 3, 4, 5, 3, 4, 5, 6, 7, 8, 9, 10]


@pytest.mark.parametrize(
    ("system", "count"),
    [
        ("1394", 35_943_512),
        ("1413", 35_943_512),
        ("1493", 35_944_536),
        ("1423", 35_941_976),
        ("1477", 35_943_513),
        ("1285", 34_401_371),
    ],
)
def test_parameter_counts(system, count):
    with torch.device("meta"):
        model = PGolfForCausalLM(configuration(system, {}))
    assert sum(p.numel() for p in model.parameters()) == count


@pytest.mark.parametrize("case", ["sliding_1394_exact", "sliding_1394_ragged"])
def test_sliding(golden, case):
    meta, tensors = json.loads((golden / f"{case}.meta.json").read_text()), load_file(golden / f"{case}.safetensors")
    model = PGolfForCausalLM(configuration("1394", meta["config"]))
    load_exactly(model, model_state(section(tensors, "w/")))
    tokens = ValidationTokens(tensors["val_tokens"].long())
    config = EvaluationConfig(
        meta["config"]["eval_seq_len"], meta["stride"], batch_windows=4, compile=False, precision="fp32"
    )
    ledger = score(model, tokens, config, Accelerator(cpu=True))
    expected = tensors["nll_per_target"].double()
    scored = ~torch.isnan(expected)
    assert (ledger.nats[scored] - expected[scored]).abs().max() < 3e-5
    table = ByteTable(*(tensors[f"lut/{name}"] for name in ("base_bytes", "has_leading_space", "is_boundary")))
    assert torch.equal(table.count(tokens.ids[:-1], tokens.ids[1:]), tensors["bytes_per_target"].long())
    if scored.all():
        result = ledger.score(table)
        assert abs(result.nats_per_token - meta["results"]["val_loss"]) < 1e-5
        assert abs(result.bits_per_byte - meta["results"]["val_bpb"]) < 1e-5
