"""Options and fixtures of the model's tests."""

from pathlib import Path

import pytest
import torch


def pytest_addoption(parser):
    parser.addoption(
        "--transformers-path",
        metavar="DIR",
        help="a folder with another transformers (pip install --target DIR): artifacts are loaded with it as well, "
        "and the tests of the model and of its guests run with it; given together with tests/model",
    )


def pytest_generate_tests(metafunc):
    if "transformers_path" in metafunc.fixturenames:
        other = metafunc.config.getoption("--transformers-path", default=None)
        folders = [None, *([Path(other).resolve()] if other else [])]
        names = ["installed", "other"][: len(folders)]
        metafunc.parametrize("transformers_path", folders, ids=names, scope="module")
    if "other_transformers" in metafunc.fixturenames:
        other = metafunc.config.getoption("--transformers-path", default=None)
        skipped = pytest.param(None, marks=pytest.mark.skip(reason="no --transformers-path is given"))
        metafunc.parametrize("other_transformers", [Path(other).resolve() if other else skipped], ids=["other"])


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """At these sizes a second thread only waits for the first, seconds when another process holds its core."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
