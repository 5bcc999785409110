"""The wait policy of threads: OpenMP reads it, and a user's own comes first."""

import os
import re
import subprocess
import sys

import psutil
import pytest
import typer

from sanflow.cli import app
from sanflow.cli.threads import COMPUTING, WAIT_VARIABLES, let_waiting_threads_sleep, threads_have_cores


@pytest.fixture(autouse=True)
def _unset(monkeypatch):
    for name in WAIT_VARIABLES:
        # Set before it is deleted, so that monkeypatch also undoes what the function sets.
        monkeypatch.setenv(name, "x")
        monkeypatch.delenv(name)


@pytest.fixture
def others(monkeypatch):
    """Sets how busy, in percent, other processes keep each of four cores, all of which this process may use."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2, 3}, raising=False)
    return lambda *percents: monkeypatch.setattr(psutil, "cpu_percent", lambda interval, percpu: list(percents))


@pytest.mark.parametrize(("busy", "turns"), [((0, 9, 0, 5), "16000"), ((0, 100, 0, 0), "100")])
def test_threads_wait_longer_where_nobody_else_wants_the_cores(others, busy, turns):
    others(*busy)
    let_waiting_threads_sleep("train")
    assert os.environ["GOMP_SPINCOUNT"] == turns


def test_a_core_for_each_thread_is_enough(others, monkeypatch):
    others(100, 20, 0, 90)  # 1.9 cores are free
    assert not threads_have_cores()
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert threads_have_cores()
    monkeypatch.setenv("OMP_NUM_THREADS", "3,1")
    assert not threads_have_cores()


def test_cores_that_the_process_may_not_use_do_not_count(others, monkeypatch):
    others(100, 0, 100, 0)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {1, 3}, raising=False)
    assert threads_have_cores()


@pytest.mark.parametrize("command", ["gpu-exec", "make-maps", "evaluate", ""])
def test_a_command_that_hands_its_environment_on_sets_nothing(command):
    let_waiting_threads_sleep(command)
    assert "GOMP_SPINCOUNT" not in os.environ


def test_the_computing_commands_exist():
    assert set(COMPUTING) <= set(typer.main.get_command(app).commands)


@pytest.mark.parametrize("name", WAIT_VARIABLES)
def test_a_users_own_policy_comes_first(monkeypatch, name):
    monkeypatch.setenv(name, "17")
    let_waiting_threads_sleep("train")
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
        "import sys; sys.argv = ['sanflow', 'train', '--help']; from sanflow.cli import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "assert 'torch' not in sys.modules\nimport torch"
    )
    if "GOMP_SPINCOUNT" not in found:
        pytest.skip("torch has another OpenMP than GNU's here")
    assert re.search("GOMP_SPINCOUNT = '(100|16000)'", found)


def test_importing_sanflow_leaves_the_environment_alone():
    run("import os; before = dict(os.environ); import sanflow, sanflow.cli; assert dict(os.environ) == before")
