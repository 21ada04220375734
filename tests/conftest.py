"""Fixtures shared by all tests."""

import resource
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
# The same examples in every run, however busy the machine; `pytest --hypothesis-profile default` looks for new ones.
settings.register_profile("repeatable", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("repeatable")


def golden_folder(name: str) -> Path:
    """The folder of reference fixtures ``name``; skips where the fixtures are not beside the checkout."""
    folder = SHARED / "golden" / name
    if not folder.is_dir():
        pytest.skip(f"reference fixtures golden/{name} are not beside this checkout")
    return folder


@pytest.fixture(scope="session")
def golden_11l() -> Path:
    return golden_folder("11l")


@pytest.fixture(scope="session")
def shared() -> Path:
    if not SHARED.is_dir():
        pytest.skip("the shared reference data are not beside this checkout")
    return SHARED


@pytest.fixture
def full_disk():
    """A block in which the operating system refuses every file that grows over a number of bytes."""

    @contextmanager
    def limited(most):
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limited


@pytest.fixture
def tiny_config():
    """Every feature of the 11-layer system at a size that trains in milliseconds."""
    from modeling_pgolf.configuration_pgolf import PGolfConfig

    return PGolfConfig(
        vocab_size=320,
        hidden_size=32,
        intermediate_size=96,
        num_blocks=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        rotary_dims=4,
        rotary_length=64,
        max_position_embeddings=64,
        xsa_layers=[2, 3],
        value_embed_layers=[2, 3],
        value_embed_dim=12,
        bigram_buckets=61,
        bigram_dim=12,
    )


@pytest.fixture(scope="session")
def golden_8192() -> Path:
    return golden_folder("8192")


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Tiny products are slower on several threads, and two test processes share two cores."""
    import torch

    torch.set_num_threads(1)
