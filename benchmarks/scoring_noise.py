"""How far a target's nats move with the number of windows of a batch, and with the number of processes.

    python benchmarks/scoring_noise.py --artifact FOLDER --validation FILE --out FOLDER [--targets 65536]
    accelerate launch --num_processes 2 benchmarks/scoring_noise.py ...

Each run keeps its nats; the one with the most processes compares itself with what it finds. Nothing is compiled: one
graph a batch size would take minutes.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
import tyro
from safetensors.torch import load_file, save_file

from evaluation.config import EvaluationConfig
from evaluation.scorer import score
from evaluation.windows import ValidationTokens
from pgolf.corpus.shards import open_shard
from pgolf.processes import join_processes, leave_process_group
from pgolf.run import load_artifact


@dataclass(frozen=True)
class Arguments:
    """artifact: folder. validation: shard. out: folder for results. batches: windows of a batch, each tried."""

    artifact: Path
    validation: Path
    out: Path
    targets: int = 65_536
    batches: tuple[int, ...] = (1, 7, 32)
    window: int = 2048
    precision: str = "bf16"


def main() -> None:
    """Score the first targets with every batch size and write the differences."""
    a = tyro.cli(Arguments)
    accelerator = join_processes()
    model = load_artifact(a.artifact).to(accelerator.device)
    tokens = ValidationTokens(torch.from_numpy(open_shard(a.validation)[: a.targets + 1].astype("int64")))
    found = {}
    for batch in a.batches:
        config = EvaluationConfig(a.window, batch_windows=batch, compile=False, precision=a.precision)
        found[f"processes {accelerator.num_processes}, batch {batch}"] = score(model, tokens, config, accelerator).nats
    if accelerator.is_main_process:
        a.out.mkdir(parents=True, exist_ok=True)
        save_file(found, a.out / f"nats-{accelerator.num_processes}.safetensors")
        for file in sorted(a.out.glob("nats-*.safetensors")):
            found |= load_file(file)
        (a.out / "noise.json").write_text(json.dumps(differences(found), indent=2) + "\n")
        print((a.out / "noise.json").read_text())


def differences(found: dict[str, torch.Tensor]) -> dict[str, dict[str, float]]:
    """Compare every scoring with the first: nats a target at most, nats a token in the mean."""
    first, *others = sorted(found)
    return {
        f"{other} against {first}": {
            "largest_nats_of_a_target": (found[other] - found[first]).abs().max().item(),
            "mean_nats_per_token": (found[other] - found[first]).mean().item(),
        }
        for other in others
    }


if __name__ == "__main__":
    main()
    leave_process_group()
