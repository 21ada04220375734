"""Fixtures shared by all tests."""

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"


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
