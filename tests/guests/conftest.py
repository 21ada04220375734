"""Artifacts for the guests: what a stranger downloads, and nothing else of ours is used to load it."""

import pytest
import torch
from model.artifact_folder import write_tiny_artifact


@pytest.fixture(scope="session", params=["414", "1493"], ids=["11-layer", "looped"])
def artifact(request, tmp_path_factory):
    """The folder of a tiny artifact of either line."""
    return write_tiny_artifact(tmp_path_factory.mktemp("artifact"), request.param)[0]


@pytest.fixture(scope="session")
def eleven(tmp_path_factory):
    """The folder of a tiny artifact of the 11-layer line, for guests that take long."""
    shallow = {"num_blocks": 5, "xsa_layers": [3, 4], "value_embed_layers": [3, 4]}
    return write_tiny_artifact(tmp_path_factory.mktemp("artifact"), "414", **shallow)[0]


@pytest.fixture(scope="session")
def tokens():
    return torch.randint(3, 320, (4, 24), generator=torch.Generator().manual_seed(1))
