"""One trunk of training, and what each technique at its end is worth: QAT, averages, replay switched one at a time.

    python benchmarks/ablation.py train RECIPE --out FOLDER [--root DIR] [overrides]
    python benchmarks/ablation.py score RECIPE --out FOLDER [--sliding NAME]... [--root DIR] [overrides]

The trunk ends where late QAT would begin; from there the run goes on twice, with it and without it, over the same
batches. ``train`` keeps the weights of every variant, ``score`` exports and scores them plainly, in float and in
integers, and may run beside the next ``train``.
"""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

sys.path[0] = str(Path(__file__).resolve().parents[1])

import tyro
from accelerate.utils import set_seed
from safetensors.torch import load_file, save_file
from torch import Tensor
from tyro.conf import UseAppendAction

from evaluation.scorer import score
from modeling_pgolf.attention import fastest_attention
from modeling_pgolf.errors import RecipeError
from modeling_pgolf.modeling_pgolf import PGolfForCausalLM
from pgolf.convert import load_exactly
from pgolf.job import Job, open_job_corpus, parse_job, validation_tokens
from pgolf.processes import join_processes
from pgolf.run import counted_score, events_to, plain_score
from pgolf.stages import passes
from quantization.compress import compress, dequantized
from training.batches import TrainTokens
from training.config import TrainingConfig
from training.loop import Validate, run_replay, run_steps
from training.schedules import learning_rate_scale
from training.state import restore_run
from training.telemetry import Telemetry
from training.trainer import Trainer

Weights = dict[str, Tensor]
# Left free for the code that travels with an artifact: all of the model package, rounded up.
CODE_BYTES = 110_000


@dataclass(frozen=True)
class Arguments:
    """out: the folder of the variants. sliding: variants that are scored by sliding windows too, once exported."""

    out: Path
    sliding: Annotated[tuple[str, ...], UseAppendAction] = ()


class Fork:
    """The trunk's last state, in memory: the first that is saved."""

    def __init__(self) -> None:
        self.state: dict[str, Any] | None = None

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Copy the state, which is live."""
        self.state = self.state or copy.deepcopy(state)

    def restore(self) -> None:
        """Nothing was there before."""


def last_step_of_trunk(training: TrainingConfig) -> int:
    """Return the step after which late QAT begins; raises RecipeError where no step is known to be the first."""
    if training.qat is None or training.seconds is not None:
        raise RecipeError("the fork needs training.qat, and a schedule by steps: --training.seconds None")
    below = training.qat.below_scale
    first = next((s for s in range(training.iterations) if learning_rate_scale(training, s, None) < below), 0)
    if first == 0:
        raise RecipeError("late QAT begins with the first step, or never: change training.warmdown_steps")
    return first


def train(job: Job, out: Path) -> None:
    """Train the trunk and both its ends, and keep the weights of every variant."""
    recipe, accelerator = job.recipe, join_processes()
    training = replace(recipe.training, checkpoint_every=last_step_of_trunk(recipe.training))
    corpus = open_job_corpus(job)
    set_seed(recipe.training.seed)
    model = PGolfForCausalLM(recipe.model_config())
    tokens = validation_tokens(corpus)

    def plain(current: PGolfForCausalLM) -> dict[str, float]:
        return plain_score(current, tokens, corpus, recipe, accelerator)

    def show(event: dict[str, Any]) -> None:
        if event["event"] != "step" or event["step"] % 50 == 0:
            print(json.dumps(event), flush=True)

    log = events_to(out / "events.jsonl", show)

    telemetry = Telemetry(log, training.iterations, training.step_tokens, False)
    trainer = Trainer(model, TrainTokens(corpus.train), training, accelerator, telemetry)
    with fastest_attention():
        if training.compile:
            trainer.warm_up()
        for name, weights in branches(trainer, plain).items():
            save_file(weights, out / f"{name}.safetensors")


def branches(trainer: Trainer, plain: Validate) -> dict[str, Weights]:
    """Train the trunk and both its ends; returns the weights of every variant."""
    fork = Fork()
    run_steps(trainer, plain, fork)
    assert trainer.qat is not None and fork.state is not None
    found = ended(trainer, "late QAT")
    restore_run(trainer, fork.state)
    trainer.qat.config = replace(trainer.qat.config, below_scale=0.0)
    run_steps(trainer, plain, None)
    return found | ended(trainer, "no QAT")


def ended(trainer: Trainer, name: str) -> dict[str, Weights]:
    """Return the weights of a branch as they stand, and after replay where the recipe has one."""
    found = {f"{name}, {average}": weights for average, weights in variants(trainer).items()}
    if trainer.replay:
        run_replay(trainer)
        found |= {f"{name}, {average}, replayed": weights for average, weights in variants(trainer).items()}
    return found


def variants(trainer: Trainer) -> dict[str, Weights]:
    """Copy the weights a run could publish as it stands: its own, and each average."""
    found = {"own weights": dict(trainer.model.named_parameters())}
    if trainer.ema:
        found["moving average"] = trainer.ema.averages
    if trainer.swa and trainer.swa.snapshots:
        found["tight average of the moving average"] = trainer.swa.mean
    return {name: {key: t.detach().float().cpu().clone() for key, t in w.items()} for name, w in found.items()}


def score_variants(job: Job, out: Path, sliding: tuple[str, ...]) -> None:
    """Score every variant that is there, in float and as exported; writes ``variants.json`` as figures come in.

    Raises RecipeError for a name in ``sliding`` that no variant has.
    """
    there = sorted(file.stem for file in out.glob("*.safetensors"))
    if unknown := set(sliding) - set(there):
        raise RecipeError(f"asked for {sorted(unknown)} by sliding windows; the variants in {out} are {there}")
    recipe, accelerator = job.recipe, join_processes()
    corpus = open_job_corpus(job)
    model, tokens, table = PGolfForCausalLM(recipe.model_config()), validation_tokens(corpus), {}

    def plain(current: PGolfForCausalLM) -> float:
        return plain_score(current.to(accelerator.device), tokens, corpus, recipe, accelerator)["validation_bpb"]

    for name in there:
        table[name] = measured(job, model, load_file(out / f"{name}.safetensors"), plain)
        if name in sliding:
            ledger = score(model, tokens, passes(recipe.evaluation)["sliding"], accelerator, "sliding")
            table[name]["int6 sliding"] = counted_score(ledger, corpus).bits_per_byte
        print(name, json.dumps(table[name]), flush=True)
        facts = {"recipe": recipe.name, "seed": recipe.training.seed, "variants": table}
        (out / "variants.json").write_text(json.dumps(facts, indent=1) + "\n")


def measured(
    job: Job, model: PGolfForCausalLM, weights: Weights, plain: Callable[[PGolfForCausalLM], float]
) -> dict[str, Any]:
    """Score weights in float and as exported, plainly; leaves the exported ones in ``model``."""
    load_exactly(model, weights)
    facts: dict[str, Any] = {"float": plain(model)}
    recipe = job.recipe
    artifact = compress(model.cpu(), recipe.quantization, recipe.budget.artifact_bytes - CODE_BYTES)
    load_exactly(model, dequantized(artifact.weights))
    return facts | {"int6": plain(model), "frame_bytes": len(artifact.frame)}


def main() -> None:
    """Do what the first argument says."""
    verb, recipe = sys.argv[1], Path(sys.argv[2])
    arguments, rest = tyro.cli(Arguments, args=sys.argv[3:], return_unknown_args=True, add_help=False)
    arguments.out.mkdir(parents=True, exist_ok=True)
    job = parse_job(recipe, rest)
    if verb == "train":
        train(job, arguments.out)
    else:
        score_variants(job, arguments.out, arguments.sliding)


if __name__ == "__main__":
    main()
