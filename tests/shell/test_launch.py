"""A stage that is started by a verb hears what its starter hears, and its end is the verb's end."""

import os
import signal
import subprocess
import sys
import time

import pytest

from pgolf import launch

# Stands for a launcher that ends at once when it is asked to, and a training process below it that takes a while to
# save, and another while if it is asked again.
STAGE = """
import signal, subprocess, sys
child = '''
import pathlib, signal, sys, time
def save(number, frame):
    pathlib.Path(sys.argv[1], "asked").touch()
    time.sleep(float(sys.argv[2]))
    pathlib.Path(sys.argv[1], "saved").write_text(str(number))
    sys.exit(1)
signal.signal(signal.SIGTERM, save)
pathlib.Path(sys.argv[1], "ready").touch()
time.sleep(30)
'''
sys.exit(subprocess.run([sys.executable, "-c", child, *sys.argv[1:]]).returncode)
"""
STARTER = """
import sys
from pgolf import launch
launch.launch_command = lambda stage, arguments: [sys.executable, "-c", *arguments]
launch.run_and_wait("train", sys.argv[1:])
"""


def start(*arguments, ignored=()):
    """Start a verb with the signals of a terminal, whatever those are that the tests were started with."""

    def like_a_terminal():
        for kind in launch.ENDING:
            signal.signal(kind, signal.SIG_IGN if kind in ignored else signal.SIG_DFL)

    command = [sys.executable, "-c", STARTER, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, preexec_fn=like_a_terminal)


def waited_for(path, text=""):
    for _ in range(600):
        if path.exists() and text in path.read_text():
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP], ids=lambda kind: kind.name)
def test_a_verb_that_is_asked_to_end_waits_for_what_its_stage_saves(tmp_path, kind):
    verb = start(STAGE, str(tmp_path), "1", launch.LAUNCHER)
    assert waited_for(tmp_path / "ready")
    verb.send_signal(kind)
    assert verb.wait(30) == 128 + kind
    assert (tmp_path / "saved").read_text() == str(int(signal.SIGTERM)), "the verb ended before its stage"


def test_a_signal_before_there_is_a_stage_is_not_lost(monkeypatch):
    """It arrives while the process is being made."""
    make = launch.subprocess.Popen

    def slow(*arguments, **options):
        os.kill(os.getpid(), signal.SIGTERM)
        return make(*arguments, **options)

    monkeypatch.setattr(launch.subprocess, "Popen", slow)
    monkeypatch.setattr(launch, "launch_command", lambda stage, arguments: ["sleep", "60"])
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended:
        launch.run_and_wait("train", [])
    assert ended.value.code == 128 + signal.SIGTERM and signal.getsignal(signal.SIGTERM) is before


def test_what_the_caller_ignores_stays_ignored(tmp_path):
    """As nohup ignores the end of a terminal."""
    verb = start(STAGE, str(tmp_path), "0", launch.LAUNCHER, ignored=[signal.SIGHUP])
    assert waited_for(tmp_path / "ready")
    verb.send_signal(signal.SIGHUP)
    time.sleep(1)
    assert verb.poll() is None and not (tmp_path / "asked").exists()
    verb.terminate()
    assert verb.wait(30) == 128 + signal.SIGTERM


def test_a_stage_without_a_launcher_is_asked_itself(tmp_path):
    waiting = f"import pathlib, time; pathlib.Path({str(tmp_path / 'ready')!r}).touch(); time.sleep(60)"
    verb = start(waiting)
    assert waited_for(tmp_path / "ready")
    verb.terminate()
    assert verb.wait(30) == 128 + signal.SIGTERM


def test_asked_twice_a_verb_does_not_wait(tmp_path):
    verb = start(STAGE, str(tmp_path), "60", launch.LAUNCHER)
    assert waited_for(tmp_path / "ready")
    verb.send_signal(signal.SIGINT)
    assert waited_for(tmp_path / "asked")
    verb.send_signal(signal.SIGINT)
    assert verb.wait(30) == 128 + signal.SIGINT
    assert not (tmp_path / "saved").exists()


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
