"""Fixtures of the Hub's tests: a Hub on this machine, a client of it, and records to publish."""

import shutil
import time

import huggingface_hub.constants
import pytest
from finished import finish
from huggingface_hub import HfApi
from loopback import TOKEN, LoopbackHub


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


@pytest.fixture
def own_record(finished_run, tmp_path):
    """A copy of the record that a test may damage."""
    return shutil.copytree(finished_run.record, tmp_path / "record")
