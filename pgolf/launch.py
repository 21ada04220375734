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
from contextlib import suppress
from types import FrameType

import psutil
import torch

from .siblings import ROOT

DOORS = {"train": "training/train.py", "export": "quantization/export.py", "score": "evaluation/score.py"}
LAUNCHER = "accelerate.commands.launch"
# Signals that end a verb, and through it its stage.
ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def process_count() -> int:
    """Return how many processes train and score: one a GPU of this machine, one where it has none."""
    return max(torch.cuda.device_count(), 1)


def launch_command(stage: str, arguments: Sequence[str]) -> list[str]:
    """Return the command that runs a stage with ``arguments`` on every GPU of this machine, or on its CPU."""
    door = str(ROOT / DOORS[stage])
    gpus = torch.cuda.device_count()
    if stage == "export" and gpus <= 1:
        return [sys.executable, door, *arguments]
    threads = ["--num_cpu_threads_per_process", str(torch.get_num_threads())]
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
    return [sys.executable, "-m", LAUNCHER, *placement, *plain, door, *arguments]


def run_and_wait(stage: str, arguments: Sequence[str]) -> None:
    """Print and run the launch command of a stage; exits with its status where it fails.

    SIGTERM, Ctrl-C and a closed terminal end it: its processes get SIGTERM, at which training saves its state, and are
    waited for. A second signal does not wait.
    """
    command, asked, launched = launch_command(stage, arguments), list[int](), list[int]()
    print("$", shlex.join(command), flush=True)

    def end(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        for process in launched:
            ask_to_end(process, LAUNCHER in command, at_once=len(asked) > 1)

    # What the caller ignores stays ignored: nohup does not want to hear of a closed terminal.
    heard = [kind for kind in ENDING if signal.getsignal(kind) != signal.SIG_IGN]
    before = {kind: signal.signal(kind, end) for kind in heard}
    started = subprocess.Popen(command, start_new_session=True)
    launched.append(started.pid)
    if asked:  # before there was anything to ask
        ask_to_end(started.pid, LAUNCHER in command)
    status = started.wait()
    for kind, handler in before.items():
        signal.signal(kind, handler)
    if asked:
        sys.exit(128 + asked[0])
    if status:
        sys.exit(status if status > 0 else 128 - status)


def ask_to_end(launched: int, by_launcher: bool, at_once: bool = False) -> None:
    """Send SIGTERM to the processes of a stage, or kill all of them at once.

    A launcher that gets it too would end before them, and the verb with it, while they are still saving: it ends when
    they have. Those who tokenise for a training process have groups of their own and end with it.
    """
    with suppress(psutil.NoSuchProcess, ProcessLookupError):
        if at_once:
            os.killpg(launched, signal.SIGKILL)
        stage = psutil.Process(launched)
        below = [child for child in stage.children() if os.getpgid(child.pid) == launched] if by_launcher else []
        for process in below or [stage]:
            process.send_signal(signal.SIGTERM)
