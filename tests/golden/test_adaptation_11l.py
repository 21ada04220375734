"""Legal score-first adaptation of the reference: chunk sums, weights at the end, and the bits per byte."""

import json

import pytest
from accelerate import Accelerator
from safetensors.torch import load_file

from evaluation.adaptation.score_first import ScoreFirst, ScoreFirstConfig
from evaluation.config import EvaluationConfig
from evaluation.scorer import run_rule
from evaluation.windows import ValidationTokens
from modeling_pgolf.modeling_pgolf import PGolfForCausalLM
from pgolf.convert import load_exactly, model_state
from pgolf.reference_systems import configuration
from training.config import QatConfig
from training.qat import LateQat

# golden/11l/README.md: legal TTT weights 2e-5; chunk sums of up to 54 nats at 1e-5 each.
WEIGHTS, SUMS = 2e-5, 6e-4
CASES = ["691_noqat", "691_qat_left_on", "691_freeze1_oddchunk", "549_banked_freeze2"]


@pytest.mark.parametrize("case", CASES)
def test_adaptation(golden_11l, case):
    meta = json.loads((golden_11l / "eval.meta.json").read_text())
    entry = next(c for c in meta["legal_ttt"] if c["case"] == case)
    tensors, initial = load_file(golden_11l / entry["file"]), load_file(golden_11l / entry["init_tensors_in"])
    settings = entry["params"]
    system = "549" if case.startswith("549") else "691"
    model = PGolfForCausalLM(configuration(system, meta["gpt_constructor"]))
    load_exactly(model, model_state({n[5:]: t for n, t in initial.items() if n.startswith("init.")}))
    rule = ScoreFirstConfig(
        chunk_tokens=settings["chunk"],
        epochs=settings["epochs"],
        lr=settings["lr"],
        momentum=settings["mom"],
        grad_clip=settings["clip"],
        rows=settings["bs"],
        frozen_blocks=settings["freeze_blocks"],
        freeze_matrices=system == "691",
    )
    config = EvaluationConfig(settings["seq"], settings["stride"], rule, 4, compile=False, precision="fp32")
    accelerator = Accelerator(cpu=True)
    adaptation = ScoreFirst(model, rule, config.window, accelerator, compiled=False)
    if entry["qat_flag_left_on"]:
        leave_rounding_on(model, adaptation)
    *_, ledger = run_rule(
        model,
        adaptation,
        ValidationTokens((tensors if "tokens" in tensors else initial)["tokens"]),
        config,
        accelerator,
    )

    scores = [event for event in ledger.events if event["event"] == "SCORE"]
    assert len(scores) == len(entry["chunks"])
    # The reference scores targets of the last chunk twice; its other chunks are ours.
    for event, chunk in zip(scores[:-1], entry["chunks"][:-1], strict=True):
        nats = ledger.nats[event["first"] : event["first"] + event["count"]]
        assert event["count"] == chunk["scored"]
        assert abs(float(nats.sum()) - chunk["nll_sum"]) < SUMS
    final = model_state({n[6:]: t for n, t in tensors.items() if n.startswith("final.")})
    state = dict(model.named_parameters())
    assert set(final) == set(state)
    for name, expected in final.items():
        assert (state[name] - expected).abs().max() < WEIGHTS, name


def leave_rounding_on(model, adaptation):
    """PR 691's defect: the rounding of late QAT is on while learning, off while scoring."""
    rounding = LateQat(model, QatConfig(more_elements_than=0, lowest_code=-32, half_scale=False))
    learn = adaptation.learn

    def rounded(posted, progress):
        rounding.switch(True)
        learn(posted, progress)
        rounding.switch(False)

    adaptation.learn = rounded
