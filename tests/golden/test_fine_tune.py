"""Fine-tuning before compression against the scripts that did it on validation text: PR 1364, its fork, PR 1423."""

import json

import pytest
from accelerate import Accelerator
from safetensors.torch import load_file

from modeling_pgolf.modeling_pgolf import PGolfForCausalLM
from pgolf.convert import load_exactly, model_state
from pgolf.reference_systems import configuration
from training.batches import TrainTokens
from training.config import FineTuneConfig, TrainingConfig
from training.fine_tune import epoch_rate, fine_tune, parameter_groups

# golden/11l/README.md: weights 5e-4; golden/8192: 2e-4 and losses 2e-5 relative. AdamW normalises tiny gradients.
WEIGHTS_11L, WEIGHTS_8192, LOSS = 5e-4, 2e-4, 2e-5


def tuned(model, tokens, config, length):
    stream = TrainTokens([tokens.numpy().astype("uint16")])
    training = TrainingConfig(sequence_length=length, precision="fp32", fine_tune=config)
    return fine_tune(model, stream, training, Accelerator(cpu=True))


def compare(model, final, tolerance):
    state = dict(model.named_parameters())
    assert set(final) == set(state)
    for name, expected in final.items():
        assert (state[name] - expected).abs().max() < tolerance, name
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("case", ["1364_flat", "fork_discriminative", "fork_discriminative_freeze"])
def test_11_layer_scripts(golden_11l, case):
    meta = json.loads((golden_11l / "eval.meta.json").read_text())
    entry = next(c for c in meta["prequant_adamw_ttt"] if c["case"] == case)
    initial, tensors = load_file(golden_11l / entry["init_tensors_in"]), load_file(golden_11l / entry["file"])
    settings = entry["params"]
    model = PGolfForCausalLM(configuration("1364", meta["gpt_constructor"]))
    load_exactly(model, model_state({n[5:]: t for n, t in initial.items() if n.startswith("init.")}))
    config = FineTuneConfig(
        epochs=settings["epochs"],
        lr=settings["lr"],
        rows=settings["bs"],
        grad_clip=settings["clip"],
        frozen_blocks=settings["freeze_blocks"],
        first_block_share=0.3 if "discriminative" in case else 1.0,
        reach_matrices=False,
    )
    groups = [group["peak_lr"] for group in parameter_groups(model, config)]
    for epoch, expected in enumerate(entry["lr_used_in_epoch_per_group"]):
        ours = [epoch_rate(peak, config, epoch) for peak in groups]
        assert ours[-len(expected) :] == pytest.approx(expected, rel=1e-12)
    epochs = tuned(model, tensors.get("tokens", initial.get("tokens")), config, settings["seq"])
    assert [epoch.train_loss for epoch in epochs] == pytest.approx(entry["epoch_mean_loss"], rel=LOSS)
    compare(model, model_state({n[6:]: t for n, t in tensors.items() if n.startswith("final.")}), WEIGHTS_11L)


SP8192 = [("prequant_ttt_1423_as_shipped", "1423", False), ("prequant_ttt_on_1394_model", "1394", True)]


@pytest.mark.parametrize(("case", "system", "reach"), SP8192)
def test_sp8192_scripts(golden_8192, case, system, reach):
    meta = json.loads((golden_8192 / f"{case}.meta.json").read_text())
    tensors = load_file(golden_8192 / f"{case}.safetensors")
    settings = meta["ttt"]
    model = PGolfForCausalLM(configuration(system, meta["config"]))
    load_exactly(model, model_state({n[3:]: t for n, t in tensors.items() if n.startswith("w0/")}))
    config = FineTuneConfig(
        epochs=settings["epochs"],
        lr=settings["lr"],
        rows=settings["batch_seqs"],
        grad_clip=settings["grad_clip"],
        frozen_blocks=settings["freeze_blocks"],
        reach_matrices=reach,
    )
    moved = sum(p.numel() for group in parameter_groups(model, config) for p in group["params"])
    assert f"trainable={moved} " in meta["reference_log"][0]
    (stream,) = [t for n, t in tensors.items() if "tokens" in n]
    epochs = tuned(model, stream, config, settings["seq_len"])
    assert [epoch.train_loss for epoch in epochs] == pytest.approx(meta["epoch_mean_losses"], rel=LOSS)
    compare(model, model_state({n[8:]: t for n, t in tensors.items() if n.startswith("w_final/")}), WEIGHTS_8192)


def test_cosine_of_the_real_run(golden_8192):
    for case in json.loads((golden_8192 / "numbers.json").read_text())["prequant_cosine"]:
        config = FineTuneConfig(epochs=case["epochs"], lr=case["base_lr"])
        ours = [epoch_rate(config.lr, config, epoch) for epoch in range(config.epochs)]
        assert ours == pytest.approx(case["lr_per_epoch"], rel=1e-12)
