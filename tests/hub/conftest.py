"""Fixtures of the Hub's tests: a Hub on this machine, a client of it, and records to publish."""

import shutil
import subprocess
import time
from pathlib import Path

import huggingface_hub.constants
import pytest
from endpoints import TOKEN
from finished import finish
from huggingface_hub import HfApi
from loopback import LoopbackHub

from evaluation.adaptation.score_first import ScoreFirstConfig
from pgolf.hub_verbs import Asked
from pgolf.stranger import answer


@pytest.fixture
def hub():
    with LoopbackHub() as running:
        yield running


@pytest.fixture
def api(hub, monkeypatch, tmp_path):
    """The real client, pointed at the Hub of this test; it finds nothing of this machine's own login."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    return HfApi(hub.url, TOKEN)


@pytest.fixture
def hasty(monkeypatch):
    """The client's pauses between its attempts, left out."""
    monkeypatch.setattr(time, "sleep", lambda seconds: None)


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory):
    """A real run with its record; not to be changed."""
    return finish(tmp_path_factory.mktemp("finished"))


@pytest.fixture(scope="session")
def historical_run(tmp_path_factory):
    """A real run on the historical track: its record is stamped, and fails the audit."""
    return finish(tmp_path_factory.mktemp("historical"), track="historical")


@pytest.fixture(scope="session")
def adapting_run(tmp_path_factory):
    """A real run whose published scoring learns from what it has scored; not to be changed."""
    rule = ScoreFirstConfig(chunk_tokens=256, epochs=1)
    return finish(tmp_path_factory.mktemp("adapting"), adaptation=rule)


@pytest.fixture
def stranger_at_home(monkeypatch):
    """The stranger's work in this process: starting one takes seconds, and test_other_processes does it."""

    def run(command, **options):
        answer(Path(command[-1]))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", run)


@pytest.fixture
def own_record(finished_run, tmp_path):
    """A copy of the record that a test may damage."""
    return shutil.copytree(finished_run.record, tmp_path / "record")


@pytest.fixture
def asked(finished_run):
    """What verifying is asked: to draw two blocks of a scoring, where a test says nothing else."""

    def ask(**settings):
        return Asked(root=finished_run.path.parents[1], **{"blocks": 2, **settings})

    return ask
