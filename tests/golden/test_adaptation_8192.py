"""Legal score-first adaptation of PR 1413 and PR 1493, loop on: every nat, every step, the weights on the way."""

import json

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from evaluation.adaptation.score_first import ScoreFirst, ScoreFirstConfig
from evaluation.bytecount import ByteTable
from evaluation.config import EvaluationConfig
from evaluation.ledger import Posted
from evaluation.scorer import chunks, run_rule
from evaluation.windows import ValidationTokens
from modeling_pgolf.modeling_pgolf import PGolfForCausalLM
from pgolf.convert import load_exactly, model_state
from pgolf.reference_systems import configuration

# The meta files' "tolerance": weights absolute, chunk sums relative. They give none for single nats and the scores,
# which take those of the sliding files, nor for losses and gradient norms, which take that of the sums.
WEIGHTS, SUMS, NATS, SCORE = 5e-5, 1e-5, 3e-5, 1e-5
CASES = [("ttt_legal_1413_freeze", "1413"), ("ttt_legal_1493", "1493")]


class Watched:
    """The rule under test, with the rate of each chunk and the weights after the first."""

    def __init__(self, rule, model):
        self.rule, self.model, self.chunk_tokens = rule, model, rule.chunk_tokens
        self.rates, self.after_first = [], {}

    def learn(self, posted, progress):
        self.rule.learn(posted, progress)
        self.rates.append(self.rule.optimizer.param_groups[0]["lr"])
        self.after_first = self.after_first or {n: p.detach().clone() for n, p in self.model.named_parameters()}


class Adapted:
    """One fixture run through our scorer and our rule."""

    def __init__(self, folder, case, system):
        self.meta = json.loads((folder / f"{case}.meta.json").read_text())
        self.tensors, settings = load_file(folder / f"{case}.safetensors"), self.meta["ttt"]
        self.model = PGolfForCausalLM(configuration(system, self.meta["config"]))
        load_exactly(self.model, self.weights("w0"))
        self.losses, self.norms = [], []
        rule = ScoreFirstConfig(
            chunk_tokens=settings["chunk_tokens"],
            epochs=settings["epochs"],
            lr=settings["lr"],
            momentum=settings["momentum"],
            grad_clip=settings["grad_clip"],
            rows=settings["batch_seqs"],
            frozen_blocks=settings["freeze_blocks"],
        )
        window, stride = self.meta["config"]["eval_seq_len"], self.meta["eval_stride"]
        config = EvaluationConfig(window, stride, rule, settings["batch_seqs"], compile=False, precision="fp32")
        accelerator, self.tokens = Accelerator(cpu=True), ValidationTokens(self.tensors["val_tokens"].long())
        self.rule = Watched(ScoreFirst(self.model, rule, window, accelerator, compiled=False), self.model)
        self.model.register_forward_hook(lambda m, args, out: self.losses.append(out.loss.item()))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.nn.utils, "clip_grad_norm_", self.clip(torch.nn.utils.clip_grad_norm_))
            *_, self.ledger = run_rule(self.model, self.rule, self.tokens, config, accelerator)

    def clip(self, clip):
        """``clip`` itself, with a note of the norm that it found."""

        def noted(parameters, limit):
            norm = clip(parameters, limit)
            self.norms.append(norm.item())
            return norm

        return noted

    def weights(self, stage):
        return model_state(
            {n.removeprefix(f"{stage}/"): t for n, t in self.tensors.items() if n.startswith(f"{stage}/")}
        )


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case[0])
def adapted(golden_8192, request):
    return Adapted(golden_8192, *request.param)


def test_nats(adapted):
    tensors, nats = adapted.tensors, adapted.ledger.nats
    assert (nats - tensors["nll_per_target"]).abs().max() < NATS
    scores = [event for event in adapted.ledger.events if event["event"] == "SCORE"]
    assert [event["count"] for event in scores] == tensors["chunk_tokens"].tolist()
    sums = [chunk.sum().item() for chunk in nats.split(tensors["chunk_tokens"].tolist())]
    assert sums == pytest.approx(tensors["chunk_nll_sum"].tolist(), rel=SUMS)


def test_score(adapted):
    tensors, published = adapted.tensors, adapted.meta["results"]
    table = ByteTable(*(tensors[f"lut/{name}"] for name in ("base_bytes", "has_leading_space", "is_boundary")))
    counted = table.of_targets(adapted.tokens.ids).split(tensors["chunk_tokens"].tolist())
    assert [int(chunk.sum()) for chunk in counted] == tensors["chunk_bytes"].tolist()
    score = adapted.ledger.score(table)
    assert abs(score.nats_per_token - published["val_loss"]) < SCORE
    assert abs(score.bits_per_byte - published["val_bpb"]) < SCORE


def test_steps(adapted):
    tensors = adapted.tensors
    # The last chunk is scored and never learnt from; the reference notes a rate of 0 for it.
    assert adapted.rule.rates == pytest.approx(tensors["chunk_lr"].tolist()[:-1], rel=1e-12)
    assert tensors["chunk_lr"][-1] == 0
    assert adapted.losses == pytest.approx(tensors["train_losses"].tolist(), rel=SUMS)
    assert adapted.norms == pytest.approx(tensors["grad_norms_before_clip"].tolist(), rel=SUMS)


def test_weights(adapted):
    final = dict(adapted.model.named_parameters())
    for stage, found in (("w_after_chunk0", adapted.rule.after_first), ("w_final", final)):
        expected = adapted.weights(stage)
        assert set(expected) == set(found)
        for name, tensor in expected.items():
            assert (found[name] - tensor).abs().max() < WEIGHTS, (stage, name)


def test_frozen_blocks_stand_still(adapted):
    initial, final = adapted.weights("w0"), dict(adapted.model.named_parameters())
    still = {name for name, tensor in initial.items() if torch.equal(tensor, final[name])}
    assert still == set(model_state({name: torch.ones(1) for name in adapted.meta["parameters_unchanged"]}))


def test_windows_and_rates_of_the_real_runs(golden_8192):
    """PR 1394's windows and chunks over FineWeb's 40,540,160 targets, and the rate of each chunk."""
    numbers = json.loads((golden_8192 / "numbers.json").read_text())
    counts = numbers["real_run_counts"]
    config = EvaluationConfig(2048, 64, ScoreFirstConfig(lr=0.005))
    plan = chunks(counts["val_targets"], config, config.adaptation.chunk_tokens)
    assert sum(map(len, plan)) == counts["stride64_windows_1394"]
    assert len(plan) == counts["ttt_chunks"]
    assert sum(len(window.scored) for window in plan[-1]) <= counts["last_chunk_tokens"]
    assert counts["val_targets"] % config.adaptation.chunk_tokens == counts["last_chunk_tokens"]
    # PR 1423's windows overrun the end by 31, each of which counts the last 64 targets again.
    overrun = counts["stride64_windows_1423"] - counts["stride64_windows_1394"]
    assert counts["val_targets"] + overrun * 64 == counts["scored_tokens_1423"]

    model = torch.nn.Linear(2, 2)
    for case in numbers["legal_ttt_cosine"]:
        rule = ScoreFirst(model, ScoreFirstConfig(lr=case["base_lr"]), 2048, Accelerator(cpu=True), compiled=False)
        for chunk, rate in case["chunk_and_lr"]:
            rule.learn(Posted(0, torch.zeros(1, dtype=torch.int64)), chunk / max(case["num_chunks"] - 1, 1))
            assert rule.optimizer.param_groups[0]["lr"] == pytest.approx(rate, rel=1e-9, abs=1e-12)
