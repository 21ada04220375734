"""Start a stage the way a person would: print the exact launch command, then run it.

Stages go through ``accelerate launch``, one process a GPU; export needs no launcher for one.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence

import torch

from .siblings import ROOT

DOORS = {"train": "training/train.py", "export": "quantization/export.py", "score": "evaluation/score.py"}


def process_count() -> int:
    """Return how many processes train and score: one a GPU of this machine, one where it has none."""
    return max(torch.cuda.device_count(), 1)


def launch_command(stage: str, arguments: Sequence[str]) -> list[str]:
    """Return the command that runs a stage with ``arguments`` on every GPU of this machine, or on its CPU."""
    door = str(ROOT / DOORS[stage])
    gpus = torch.cuda.device_count()
    if stage == "export" and gpus <= 1:
        return [sys.executable, door, *arguments]
    threads = ["--num_cpu_threads_per_process", str(os.cpu_count() or 1)]
    placement = ["--multi_gpu"] if gpus > 1 else [] if gpus else ["--cpu", *threads]
    plain = [
        "--num_processes",
        str(process_count()),
        "--num_machines",
        "1",
        "--mixed_precision",
        "no",
        "--dynamo_backend",
        "no",
        "--quiet",  # the stage has said what is wrong; a traceback of the launcher would hide it
    ]
    return [sys.executable, "-m", "accelerate.commands.launch", *placement, *plain, door, *arguments]


def run_and_wait(stage: str, arguments: Sequence[str]) -> None:
    """Print and run the launch command of a stage; exits with its status where it fails.

    The launcher would leave its processes behind when it is ended, so they are a group, and all of them get SIGTERM
    and SIGINT: a training process saves its state then.
    """
    command = launch_command(stage, arguments)
    print("$", shlex.join(command), flush=True)
    stages = subprocess.Popen(command, start_new_session=True)
    kinds = (signal.SIGTERM, signal.SIGINT)
    before = [signal.signal(kind, lambda number, frame: os.killpg(stages.pid, number)) for kind in kinds]
    status = stages.wait()
    for kind, handler in zip(kinds, before, strict=True):
        signal.signal(kind, handler)
    if status:
        sys.exit(status if status > 0 else 128 - status)
