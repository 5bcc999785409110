"""The wait policy of threads: OpenMP reads it, and a user's own comes first."""

import os
import subprocess
import sys

import pytest

from sanflow.cli.threads import SPIN_COUNT, WAIT_VARIABLES, let_waiting_threads_sleep


@pytest.fixture(autouse=True)
def _unset(monkeypatch):
    for name in WAIT_VARIABLES:
        # Set before it is deleted, so that monkeypatch also undoes what the function sets.
        monkeypatch.setenv(name, "x")
        monkeypatch.delenv(name)


def test_it_is_set_where_the_user_sets_nothing():
    let_waiting_threads_sleep()
    assert os.environ["GOMP_SPINCOUNT"] == SPIN_COUNT


@pytest.mark.parametrize("name", WAIT_VARIABLES)
def test_a_users_own_policy_comes_first(monkeypatch, name):
    monkeypatch.setenv(name, "17")
    let_waiting_threads_sleep()
    assert [os.environ.get(other) for other in WAIT_VARIABLES] == [
        "17" if other == name else None for other in WAIT_VARIABLES
    ]


def run(code: str) -> str:
    """Output and errors of a Python process in which OpenMP prints its settings as it is loaded."""
    environment = os.environ | {"OMP_DISPLAY_ENV": "VERBOSE"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


def test_the_command_line_sets_it_before_torch_loads_openmp():
    found = run(
        "import sys; sys.argv = ['sanflow', '--version']; from sanflow.cli import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "assert 'torch' not in sys.modules\nimport torch"
    )
    if "GOMP_SPINCOUNT" not in found:
        pytest.skip("torch has another OpenMP than GNU's here")
    assert f"GOMP_SPINCOUNT = '{SPIN_COUNT}'" in found


def test_importing_sanflow_leaves_the_environment_alone():
    run("import os; before = dict(os.environ); import sanflow, sanflow.cli; assert dict(os.environ) == before")
