"""Whole training runs of the reference in float32: weights after the first step and at the end, EMA, replay, BPB."""

import json

import numpy as np
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
from pgolf.corpus.shards import open_split
from pgolf.reference_systems import configuration
from quantization.compress import dequantized, quantize_state
from quantization.config import QuantizationConfig
from training.batches import TrainTokens
from training.config import EmaConfig, QatConfig, ReplayConfig, TrainingConfig
from training.loop import fit, run_replay, run_steps
from training.telemetry import Telemetry
from training.trainer import Trainer

# golden/11l/README.md: weights 2e-4, EMA 1e-5, metrics 2e-5.
WEIGHTS, EMA, METRIC = 2e-4, 1e-5, 2e-5


class Run:
    """The published environment of one end-to-end run, as our configurations."""

    def __init__(self, golden, system):
        self.golden, self.system = golden, system
        self.facts = json.loads((golden / "e2e.meta.json").read_text())["runs"][system]
        env = self.facts["env"]
        settings = {
            name.lower(): value for name, value in env.items() if name.lower() not in ("muon_momentum_warmup_steps",)
        }
        settings = {
            k: v for k, v in settings.items() if k not in ("ttt_burst_epochs", "ttt_burst_steps", "ttt_burst_lr_factor")
        }
        self.config = TrainingConfig(
            iterations=env["ITERATIONS"],
            seconds=None,
            sequence_length=16,
            span_sequences=2,
            spans_per_step=8,
            micro_batch_sequences=2,
            warmdown_steps=env["WARMDOWN_ITERS"],
            momentum_warmup_steps=env["MUON_MOMENTUM_WARMUP_STEPS"],
            table_projections="adamw" if system == "1019" else "muon",
            ema=EmaConfig(warm_up=None),
            qat=QatConfig(more_elements_than=0, lowest_code=-32, half_scale=False),
            replay=ReplayConfig(spans=env["TTT_BURST_STEPS"], after_clock=True) if system == "445" else None,
            precision="fp32",
            compile=False,
        )
        self.model = PGolfForCausalLM(configuration(system, settings))
        load_exactly(self.model, self.section("init"))

    def section(self, name):
        tensors = load_file(self.golden / self.facts["section_to_file"][name])
        return model_state({n.removeprefix(f"{name}/"): t for n, t in tensors.items() if n.startswith(f"{name}/")})

    def trainer(self):
        tokens = TrainTokens(open_split(self.golden / "shards", "train"))
        return Trainer(self.model, tokens, self.config, Accelerator(cpu=True), Telemetry(lambda e: None, 12, 1, False))

    def compare(self, name, state, tolerance):
        expected = self.section(name)
        assert set(expected) == set(state)
        for parameter, tensor in expected.items():
            assert (state[parameter] - tensor).abs().max() < tolerance, f"{name}: {parameter}"


def averages(trainer):
    return trainer.ema.state_dict()["averages"]


@pytest.mark.parametrize("system", ["414", "1019"])
def test_training(golden_11l, system):
    run = Run(golden_11l, system)
    if system == "1019":
        # Late QAT reaches only the two projections outside the banks (SPEC-11L 2.5).
        run.config = TrainingConfig(**{**vars(run.config), "qat": None})
    trainer = run.trainer()
    if system == "1019":
        limit_qat_to_projections(trainer)
    for fact in run.facts["steps"]:
        trainer.step()
        assert abs(trainer.last_loss - fact["train_loss"]) < 1e-5
        if trainer.steps == 1:
            run.compare("after_step1", dict(run.model.named_parameters()), 2e-5)
    run.compare("final_live", dict(run.model.named_parameters()), WEIGHTS)
    run.compare("ema", averages(trainer), EMA)


def limit_qat_to_projections(trainer):
    from training.qat import LateQat

    trainer.qat = LateQat(trainer.model, QatConfig(more_elements_than=0, lowest_code=-32, half_scale=False))
    trainer.qat.layers = [trainer.model.model.bigram.proj, trainer.model.model.value_embed.proj]


def test_replay(golden_11l):
    run = Run(golden_11l, "445")
    trainer = run.trainer()
    run_steps(trainer, None, None)
    run.compare("before_replay", dict(run.model.named_parameters()), WEIGHTS)
    run.compare("ema_before_replay", averages(trainer), EMA)
    golden = load_file(golden_11l / run.facts["section_to_file"]["replay_buffer"])
    names = sorted(n for n in golden if n.startswith("replay_buffer/"))
    assert names
    buffered = torch.stack([torch.stack(span) for span in trainer.replay.spans])
    stored = {n.rsplit("/", 1)[1]: golden[n].int() for n in names}
    assert torch.equal(buffered[:, 0], stored["x"]) and torch.equal(buffered[:, 1], stored["y"])
    run_replay(trainer)
    run.compare("final_live", dict(run.model.named_parameters()), WEIGHTS)
    run.compare("ema", averages(trainer), EMA)


@pytest.mark.parametrize("system", ["414", "445"])
def test_export_and_scores(golden_11l, system):
    run = Run(golden_11l, system)
    trainer = run.trainer()
    fit(run.model, trainer.batches.batches.tokens, run.config, Accelerator(cpu=True))
    state = {name: p.detach() for name, p in run.model.named_parameters()}
    weights = quantize_state(state, QuantizationConfig(small_tensor_elements=run.facts["small_tensor_threshold"]))
    floats = dequantized(weights)
    for name, expected in run.section("dequant").items():
        assert (floats[name] - expected).abs().max() < WEIGHTS, name
    load_exactly(run.model, floats)
    lut = load_file(golden_11l / "byte_lut.safetensors")
    table = ByteTable(lut["lut.base_bytes"], lut["lut.has_leading_space"], lut["lut.is_boundary"])
    stream = np.concatenate(open_split(golden_11l / "shards", "validation")).astype(np.int64)
    tokens = ValidationTokens(torch.from_numpy(stream[: (len(stream) - 1) // 16 * 16 + 1]))
    config = EvaluationConfig(16, 16, batch_windows=8, compile=False, precision="fp32")
    result = score(run.model, tokens, config, Accelerator(cpu=True)).score(table)
    line = next(line for line in run.facts["log"] if line.startswith("final_int6_roundtrip_exact"))
    expected = {k: float(v) for k, v in (part.split(":") for part in line.split()[1:])}
    assert abs(result.nats_per_token - expected["val_loss"]) < METRIC
    assert abs(result.bits_per_byte - expected["val_bpb"]) < METRIC
