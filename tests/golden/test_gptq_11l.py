"""Full GPTQ, its calibration and ±1 pruning of PR 1019's line: every code, every scale and every sampled token."""

import json
import math

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from evaluation.bytecount import ByteTable
from evaluation.config import EvaluationConfig
from evaluation.scorer import score
from evaluation.windows import ValidationTokens
from modeling_pgolf.grid import FakeGrid, GridTensor
from modeling_pgolf.modeling_pgolf import PGolfForCausalLM
from pgolf.convert import load_exactly, model_state, translate
from pgolf.corpus.shards import open_split
from pgolf.reference_systems import configuration
from quantization.calibration import own_samples
from quantization.clipping import least_error, percentile_scales
from quantization.compress import calibrate, compress, dequantized
from quantization.config import GptqConfig, QuantizationConfig, SelfGenerated, TrainBatches
from quantization.gptq import curvature, round_columns
from quantization.hessian import collect_hessians, damped
from quantization.pruning import count_ones, zero_cheapest
from training.batches import TrainTokens
from training.config import FineTuneConfig, TrainingConfig
from training.fine_tune import fine_tune

# golden/11l/README.md: metrics 2e-5. Hessians: 10 times what an initial perturbation of 1e-7 changes.
METRIC, HESSIAN = 2e-5, 2e-5
# golden/11l/README.md: weights behind AdamW, which normalises tiny gradients.
TUNED = 5e-4


def by_percentiles(weight, hessian, damping):
    curve = curvature(hessian, damping)
    scales = percentile_scales(weight, 6, 1 / 31)
    return least_error(curve.alive(weight), scales, 6, lambda scale: round_columns(weight, scale, 6, curve))


@pytest.mark.parametrize(("variant", "damping"), [("1019", 0.01), ("fork", 0.005)])
def test_gptq(golden_11l, variant, damping):
    golden = load_file(golden_11l / "gptq_full.safetensors")
    for case in ("case0", "case1", "case2"):
        inputs, stored = golden[f"{case}.X"], golden[f"{case}.{variant}.hessian"]
        config = GptqConfig(damping=damping, damp_twice=True)
        hessian = damped(inputs.T @ inputs / 4, config)  # the collector read them as four batches
        assert torch.allclose(hessian, stored, rtol=1e-5, atol=1e-6 * stored.abs().max()), case
        found = by_percentiles(golden[f"{case}.W"], stored, damping)
        assert torch.equal(found.codes, golden[f"{case}.{variant}.q"]), case
        assert torch.equal(found.scale, golden[f"{case}.{variant}.scale"]), case
        assert torch.equal(found.decode(), golden[f"{case}.{variant}.dequant"]), case


def test_dead_columns(golden_11l):
    golden = load_file(golden_11l / "gptq_full.safetensors")
    found = by_percentiles(golden["dead.W"], golden["dead.hessian"], 0.01)
    assert (golden["dead.hessian"].diagonal() == 0).sum() == 2
    assert torch.equal(found.codes, golden["dead.q"]) and torch.equal(found.scale, golden["dead.scale"])


def test_pruning(golden_11l):
    facts = json.loads((golden_11l / "quant.meta.json").read_text())
    golden, export = (
        load_file(golden_11l / "prune_pm1.safetensors"),
        load_file(golden_11l / "mixed_export_414.safetensors"),
    )
    weights = {
        name: GridTensor(export[f"export.{name}.q"], export[f"export.{name}.scale"], int(kind[3:]))
        for name, kind in facts["mixed_export"]["kinds"].items()
        if kind.startswith("int")
    }
    assert count_ones(weights) == facts["prune"]["candidates"]
    for count in facts["prune"]["ns"]:
        for name, pruned in zero_cheapest(weights, count).items():
            assert torch.equal(pruned.codes, golden[f"n{count}.{name}.q"]), (count, name)


class Run:
    """One end-to-end run of the reference, from the weights that it exported."""

    def __init__(self, golden, system, exported):
        self.golden = golden
        self.facts = json.loads((golden / "e2e.meta.json").read_text())["runs"][system]
        self.env = self.facts["env"]
        names = [name for name in self.env if name not in ("MUON_MOMENTUM_WARMUP_STEPS", "TTT_LR")]
        settings = {name.lower(): self.env[name] for name in names}
        self.model = PGolfForCausalLM(configuration("1019", settings))
        load_exactly(self.model, model_state(self.section(exported)))

    def section(self, name):
        tensors = load_file(self.golden / self.facts["section_to_file"][name])
        return {n.removeprefix(f"{name}/"): t for n, t in tensors.items() if n.startswith(f"{name}/")}

    def check_export(self, gptq, text):
        text = list(text)
        hessians = collect_hessians(self.model, text, gptq, lambda name: True)
        for name, hessian in self.section("hessian").items():
            assert (hessians[translate(name)] - hessian).abs().max() < HESSIAN * hessian.abs().max(), name
        config = QuantizationConfig(self.facts["small_tensor_threshold"], gptq=gptq, codec_level=3)
        weights = compress(self.model, config, 10**9, calibrate(self.model, config, text)).weights
        stored, compared = self.section("export"), 0
        for name in (n.removesuffix(".q") for n in stored if n.endswith(".q")):
            ours = weights[translate(name)]
            assert torch.equal(ours.codes, stored[f"{name}.q"]), name
            assert torch.equal(ours.scale, stored[f"{name}.scale"]), name
            compared += ours.codes.numel()
        assert compared > 20_000
        return dequantized(weights)

    def check_scores(self, floats):
        expected = model_state(self.section("dequant"))
        assert expected.keys() == floats.keys()
        assert all(torch.equal(floats[name], tensor) for name, tensor in expected.items())
        load_exactly(self.model, floats)
        lut = load_file(self.golden / "byte_lut.safetensors")
        table = ByteTable(lut["lut.base_bytes"], lut["lut.has_leading_space"], lut["lut.is_boundary"])
        ids = self.validation()
        self.check_metric("final_int6_roundtrip_exact", self.nats(ids, 16), table.of_targets(ids))
        # The reference's windows overrun the stream and count its last stride again, from shorter and shorter ones.
        stride, targets = self.env["EVAL_STRIDE"], len(ids) - 1
        again = [start for start in range(0, targets, stride) if targets - start < 16]
        nats = [self.nats(ids, stride), *(self.nats(ids[start:], stride)[-stride:] for start in again)]
        counted = [table.of_targets(ids), *(table.of_targets(ids[start:])[-stride:] for start in again)]
        self.check_metric("final_int6_sliding_window_exact", torch.cat(nats), torch.cat(counted))

    def validation(self):
        stream = np.concatenate([part[:] for part in open_split(self.golden / "shards", "validation")]).astype(np.int64)
        return torch.from_numpy(stream[: (len(stream) - 1) // 16 * 16 + 1])

    def nats(self, ids, stride):
        config = EvaluationConfig(16, stride, batch_windows=8, compile=False, precision="fp32")
        return score(self.model, ValidationTokens(ids), config, Accelerator(cpu=True)).nats

    def check_metric(self, name, nats, counted):
        line = next(line for line in self.facts["log"] if line.startswith(name))
        logged = {key: float(value) for key, value in (part.split(":") for part in line.split()[1:])}
        assert abs(float(nats.mean()) - logged["val_loss"]) < METRIC
        assert abs(float(nats.sum()) / math.log(2) / int(counted.sum()) - logged["val_bpb"]) < METRIC


def test_self_calibrated_export(golden_11l):
    run = Run(golden_11l, "1019", "ema")
    asked = SelfGenerated(sequences=64, tokens=16)
    text = torch.cat(list(own_samples(run.model, asked, run.env["SEED"], batch_sequences=8)))
    assert torch.equal(text, run.section("calibration")["tokens"][:, :-1].long())
    gptq = GptqConfig(asked, damp_twice=True, token_table=False, precision="fp32")
    run.check_scores(run.check_export(gptq, text.split(1)))


def test_export_calibrated_on_train_text(golden_11l):
    """The fork exports the weights that it adapted to validation text; its calibration goes on in the training text."""
    run = Run(golden_11l, "dttt", "after_prequant_ttt")
    span, used = 2 * run.env["TRAIN_SEQ_LEN"] + 1, 8 * run.env["ITERATIONS"]
    tokens = TrainTokens(open_split(golden_11l / "shards", "train"))
    batches = run.env["GPTQ_CALIB_BATCHES"]
    spans = [torch.from_numpy(tokens.read((used + call) * span, span)) for call in range(batches)]
    gptq = GptqConfig(TrainBatches(batches, 2), damping=0.005, damp_twice=True, token_table=False, precision="fp32")
    run.check_scores(run.check_export(gptq, [read[:-1].view(2, -1) for read in spans]))


def test_fine_tuning_of_the_fork(golden_11l):
    """From its averaged weights to those that it exports, on validation text; ours never adapts through a rounding."""
    run = Run(golden_11l, "dttt", "ema")
    left_on = FakeGrid(6, 1 / 31, -32, torch.float32)  # SPEC-11L 5.5: late QAT, which reaches these two alone
    for table in (run.model.model.bigram, run.model.model.value_embed):
        table.proj.fake_grid = left_on
    config = FineTuneConfig(
        epochs=2,
        lr=run.env["TTT_LR"],
        rows=run.env["TTT_BATCH_SEQS"],
        frozen_blocks=0,
        first_block_share=0.3,
        reach_matrices=False,
    )
    training = TrainingConfig(sequence_length=16, precision="fp32", fine_tune=config)
    tokens = TrainTokens([run.validation().numpy().astype(np.uint16)])
    epochs = fine_tune(run.model, tokens, training, Accelerator(cpu=True))
    logged = [float(line.split("loss:")[1]) for line in run.facts["log"] if line.startswith("dttt:epoch")]
    assert [round(epoch.train_loss, 4) for epoch in epochs] == pytest.approx(logged, abs=1.01e-4)  # its last digit
    state = dict(run.model.named_parameters())
    for name, tensor in model_state(run.section("after_prequant_ttt")).items():
        assert (state[name] - tensor).abs().max() < TUNED, name
