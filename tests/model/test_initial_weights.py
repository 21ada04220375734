"""One seed gives the initial weights of the published scripts, draw for draw.

``initial_weights.json`` holds numbers only. They were read off the scripts of PR 414 and PR 1394 themselves, each
loaded as a module without its GPU imports: ``torch.manual_seed(seed)``, then the script's own model class built on the
CPU (torch 2.13, x86-64) at the settings of the case, and of every tensor that starts random the first, the last and
three values evenly between. Cases with a recipe have the settings of the published run.
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from modeling_pgolf.modeling_pgolf import PGolfForCausalLM
from pgolf.convert import model_state
from pgolf.recipe import load_recipe
from pgolf.reference_systems import configuration

CASES = json.loads(Path(__file__).with_name("initial_weights.json").read_text())
RECIPES = Path(__file__).resolve().parents[2] / "recipes"
# Draws are the same everywhere, the QR of an orthogonal start is not: over three instruction sets and two numbers of
# threads no value of the two real models moved by more than 1.2e-5. Other draws differ by the size of the values.
CLOSE = 1e-4


def config_of(case):
    if case["recipe"]:
        return load_recipe(RECIPES / f"{case['recipe']}.py").model_config()
    return configuration(case["system"], case["settings"])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["recipe"] or f"small-{case['system']}")
def test_one_seed_gives_the_published_weights(case):
    torch.manual_seed(case["seed"])
    weights = {name: p.detach().flatten() for name, p in PGolfForCausalLM(config_of(case)).named_parameters()}
    published = model_state({name: torch.tensor(values) for name, values in case["values"].items()})
    assert {name for name, values in weights.items() if len(values[:64].unique()) > 1} == set(published)
    for name, expected in published.items():
        places = [place * (len(weights[name]) - 1) // 4 for place in range(5)]
        error = (weights[name][places] - expected).abs().max().item()
        assert error < CLOSE, f"{name} is off by {error:.2g}"


def test_matrices_that_a_checkpoint_lacks_start_as_in_a_new_model(tmp_path):
    """Every module below has parameters that were loaded, which keeps transformers from asking it for more."""
    model = PGolfForCausalLM(config_of(CASES[0]))
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    saved = load_file(file)
    save_file({n: t for n, t in saved.items() if not n.endswith(".weight")}, file, metadata={"format": "pt"})
    for name, weight in PGolfForCausalLM.from_pretrained(tmp_path).named_parameters():
        if name.endswith(".weight"):
            # Of 6,144 values and more: their sample deviation is within 2 % of the true one.
            assert weight.std().item() == pytest.approx(saved[name].std().item(), rel=0.04), name
            assert weight.mean().item() == pytest.approx(0, abs=0.01), name
        else:
            assert torch.equal(weight, saved[name]), name
