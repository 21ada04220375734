"""Step time of the real recipe on random tokens, one line a variant, and a profile of one step by kernel.

    python benchmarks/step_time.py --out FOLDER [--steps 30]
    accelerate launch --num_processes 4 benchmarks/step_time.py --out FOLDER --micro-batches 48

The median over the last two thirds of the steps is reported; the first third warms up. The work of a step is the same
for any number of processes.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import torch
import tyro
from accelerate import Accelerator
from torch.profiler import ProfilerActivity, profile

from modeling_pgolf.attention import fastest_attention
from modeling_pgolf.configuration_pgolf import PGolfConfig
from modeling_pgolf.modeling_pgolf import PGolfForCausalLM
from pgolf.processes import leave_process_group
from training.batches import TrainTokens
from training.config import TrainingConfig
from training.telemetry import Telemetry
from training.trainer import Trainer


@dataclass(frozen=True)
class Arguments:
    """out: folder for results. steps: steps of each variant. micro_batches: sequences of one pass, each tried."""

    out: Path
    steps: int = 30
    micro_batches: tuple[int, ...] = (48, 96, 192)


def measure(config: TrainingConfig, steps: int, accelerator: Accelerator) -> tuple[Trainer, list[float], float]:
    """Run ``steps`` steps; returns the trainer, seconds of each step and seconds of compilation."""
    torch.manual_seed(config.seed)
    torch._dynamo.reset()
    tokens = TrainTokens([np.random.default_rng(0).integers(0, 1024, 5_000_000).astype(np.uint16)])
    trainer = Trainer(
        PGolfForCausalLM(PGolfConfig()), tokens, config, accelerator, Telemetry(lambda e: None, steps, 1, False)
    )
    started = time.perf_counter()
    trainer.warm_up()
    torch.cuda.synchronize()
    compiled = time.perf_counter() - started
    seconds = []
    for _ in range(steps):
        started = time.perf_counter()
        trainer.step()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return trainer, seconds, compiled


def kernels(trainer: Trainer) -> str:
    """Profile two steps and return the table of kernels by device time."""
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as recorded:
        trainer.step()
        trainer.step()
        torch.cuda.synchronize()
    return str(recorded.key_averages().table(sort_by="self_cuda_time_total", row_limit=60, max_name_column_width=90))


def main() -> None:
    """Measure every variant and write the results."""
    arguments = tyro.cli(Arguments)
    accelerator = Accelerator()
    arguments.out.mkdir(parents=True, exist_ok=True)
    base = TrainingConfig(seconds=None, iterations=10_000)
    lines = []
    with fastest_attention():
        for micro in arguments.micro_batches:
            trainer, seconds, compiled = measure(
                replace(base, micro_batch_sequences=micro), arguments.steps, accelerator
            )
            line = {
                "processes": accelerator.num_processes,
                "micro_batch_sequences": micro,
                "median_ms": 1000 * statistics.median(seconds[arguments.steps // 3 :]),
                "compile_s": compiled,
                "peak_gb": torch.cuda.max_memory_allocated() / 1e9,
                "device": torch.cuda.get_device_name(),
                "torch": torch.__version__,
            }
            accelerator.print(json.dumps(line), flush=True)
            lines.append(line)
            if micro == arguments.micro_batches[0]:
                table = kernels(trainer)
                if accelerator.is_main_process:
                    (arguments.out / "kernels.txt").write_text(table)
            del trainer
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
    if accelerator.is_main_process:
        (arguments.out / "step_time.json").write_text(json.dumps(lines, indent=2) + "\n")


if __name__ == "__main__":
    main()
    leave_process_group()
