"""A stage that is started by a verb hears what its starter hears, and its end is the verb's end."""

import signal
import subprocess
import sys
import time

import pytest

from pgolf import launch

# Stands for a launcher that ends at once when it is asked to, and a training process below it that saves first.
LAUNCHER = """
import signal, subprocess, sys
child = '''
import pathlib, signal, sys, time
def save(number, frame):
    pathlib.Path(sys.argv[1], "saved").write_text(str(number))
    sys.exit(1)
signal.signal(signal.SIGTERM, save)
signal.signal(signal.SIGINT, save)
pathlib.Path(sys.argv[1], "ready").touch()
time.sleep(30)
'''
sys.exit(subprocess.run([sys.executable, "-c", child, sys.argv[1]]).returncode)
"""
STARTER = """
import sys
from pgolf import launch
launch.launch_command = lambda stage, arguments: [sys.executable, "-c", *arguments]
launch.run_and_wait("train", sys.argv[1:])
"""


def start(*arguments):
    return subprocess.Popen([sys.executable, "-c", STARTER, *arguments], stdout=subprocess.PIPE, text=True)


def waited_for(path, text=""):
    for _ in range(600):
        if path.exists() and text in path.read_text():
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGINT], ids=lambda kind: kind.name)
def test_a_signal_reaches_the_processes_of_a_stage(tmp_path, kind):
    verb = start(LAUNCHER, str(tmp_path))
    assert waited_for(tmp_path / "ready")
    verb.send_signal(kind)
    assert verb.wait(30) not in (0, None)
    assert waited_for(tmp_path / "saved", str(int(kind)))


@pytest.mark.parametrize(("gpus", "processes"), [(0, 1), (1, 1), (4, 4)])
def test_there_is_one_process_a_gpu(monkeypatch, gpus, processes):
    monkeypatch.setattr(launch.torch.cuda, "device_count", lambda: gpus)
    command = launch.launch_command("train", ["RECIPE"])
    assert command[command.index("--num_processes") + 1] == str(launch.process_count()) == str(processes)
    assert ("--multi_gpu" in command, "--cpu" in command) == (gpus > 1, gpus == 0)


@pytest.mark.parametrize("status", [0, 3])
def test_the_status_of_a_stage_is_the_verbs(status):
    verb = start(f"import sys; sys.exit({status})")
    assert verb.wait(30) == status
    assert verb.stdout.read().startswith("$ ")
