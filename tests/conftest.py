"""What all tests share: where the optional reference data lies, and one thread per test process."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout's top folder."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of real data and weights that are not part of the project; $SANFLOW_SHARED or ../shared."""
    folder = Path(os.environ.get("SANFLOW_SHARED", ROOT.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"needs the folder of real data and weights, which is not at {folder} (set SANFLOW_SHARED)")
    return folder
