"""Start a stage the way a person would: print the exact launch command, then run it.

Training and scoring go through ``accelerate launch``, one process a GPU; export is one process.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Sequence

import torch

from .siblings import ROOT

DOORS = {"train": "training/train.py", "export": "quantization/export.py", "score": "evaluation/score.py"}


def launch_command(stage: str, arguments: Sequence[str]) -> list[str]:
    """Return the command that runs a stage with ``arguments`` on every GPU of this machine, or on its CPU."""
    door = str(ROOT / DOORS[stage])
    if stage == "export":
        return [sys.executable, door, *arguments]
    gpus = torch.cuda.device_count()
    threads = ["--num_cpu_threads_per_process", str(os.cpu_count() or 1)]
    placement = ["--multi_gpu"] if gpus > 1 else [] if gpus else ["--cpu", *threads]
    plain = [
        "--num_processes",
        str(max(gpus, 1)),
        "--num_machines",
        "1",
        "--mixed_precision",
        "no",
        "--dynamo_backend",
        "no",
    ]
    return [sys.executable, "-m", "accelerate.commands.launch", *placement, *plain, door, *arguments]


def replace_process(stage: str, arguments: Sequence[str]) -> None:
    """Print the launch command of a stage and become it."""
    command = launch_command(stage, arguments)
    print("$", shlex.join(command), flush=True)
    os.execv(command[0], command)


def run_and_wait(stage: str, arguments: Sequence[str]) -> None:
    """Print and run the launch command of a stage; exits with its status where it fails."""
    command = launch_command(stage, arguments)
    print("$", shlex.join(command), flush=True)
    status = subprocess.run(command, check=False).returncode
    if status:
        sys.exit(status)
