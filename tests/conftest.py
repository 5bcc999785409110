"""What all tests share: where the optional reference data lies, and one thread per test process."""

import os
from collections.abc import Generator
from pathlib import Path

import pytest

# Two test processes share two cores; more threads than that would only wait for each other. Set before torch loads.
for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

ROOT = Path(__file__).resolve().parents[1]
# Made the arrays beside it once, with a package that the tests do not need.
collect_ignore = ["reference/neighbours_from_anomalib.py"]


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


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Where $SANFLOW_REQUIRE names markers, a test of theirs that is skipped has failed: CI shall not pass over it."""
    report = yield
    required = os.environ.get("SANFLOW_REQUIRE", "").split()
    if report.skipped and not hasattr(report, "wasxfail") and any(item.get_closest_marker(name) for name in required):
        report.outcome = "failed"
        report.longrepr = f"skipped, but required here: {report.longrepr}"
    return report


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The workflow's tests first: they share one long run, beside which another process can do all the rest."""
    items.sort(key=lambda item: "test_workflow.py" not in item.nodeid)
