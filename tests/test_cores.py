"""Threads of OpenMP on cores of their own: seen from outside, in processes that load torch anew."""

import json
import os
import platform
import re
import subprocess
import sys

import psutil
import pytest
import torch
import typer

from sanflow import cores
from sanflow.cli import COMPUTING, app
from sanflow.cores import PLACE_VARIABLES, WAIT_VARIABLES, on_own_core, openmp_variables

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)

SEEN = """
import ctypes, json, os, platform, struct, subprocess, sys, threading
import sanflow.cores as cores
before = dict(os.environ)
cores.load_torch()
found = {"environment": dict(os.environ) == before}
import threadpoolctl, torch
threads = lambda: {int(name) for name in os.listdir("/proc/self/task")}
others = threads()
torch.ones(2000, 2000) @ torch.ones(2000, 2000)  # starts those of OpenMP
places = lambda: sorted(os.sched_getaffinity(0))
found |= {
    "threads": torch.get_num_threads(),
    "main": places(),
    "others": [sorted(os.sched_getaffinity(thread)) for thread in threads() - others],
    "of numpy": [pool["num_threads"] for pool in threadpoolctl.threadpool_info() if "numpy" in pool["filepath"]],
}
with cores.on_own_core(torch.device("cpu")):
    found["computing"] = places()
with cores.on_own_core(torch.device("cuda", 0)):
    found["on a GPU"] = places()
found["afterwards"] = places()
thread = threading.Thread(target=lambda: found.update(thread=places()))
thread.start()
thread.join()
code = "import os; print(sorted(os.sched_getaffinity(0)))"
attributes = ctypes.create_string_buffer(48)
sched_getattr = cores.SCHED_SETATTR.get(platform.machine(), -2) + 1
if ctypes.CDLL(None).syscall(sched_getattr, 0, attributes, 48, 0) == 0:
    _, policy, _, niceness, _, found["slice"], _, _ = struct.unpack("=IIQiIQQQ", attributes.raw)
    assert (policy, niceness) == (os.SCHED_OTHER, os.getpriority(os.PRIO_PROCESS, 0))
found["child"] = json.loads(subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True).stdout)
print(json.dumps(found))
"""


def run(code: str, **variables: str) -> tuple[str, str]:
    """Output and errors of a Python process in which OpenMP prints its settings as it is loaded."""
    ours = {*WAIT_VARIABLES, *PLACE_VARIABLES, "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"}
    environment = {name: value for name, value in os.environ.items() if name not in ours}
    environment |= {"OMP_DISPLAY_ENV": "VERBOSE", **variables}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return done.stdout, done.stderr


def seen(**variables: str) -> dict:
    printed, settings = run(SEEN, **variables)
    if "GOMP_SPINCOUNT" not in settings:
        pytest.skip("torch has another OpenMP than GNU's here")
    return {**json.loads(printed), "settings": settings}


several_cores = pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity") or min(len(os.sched_getaffinity(0)), psutil.cpu_count(logical=False) or 1) < 2,
    reason="needs Linux and two cores",
)


@several_cores
def test_each_thread_has_a_core_and_what_is_started_from_the_main_one_has_all():
    usable = sorted(os.sched_getaffinity(0))
    found = seen()
    assert "GOMP_SPINCOUNT = '16000'" in found["settings"]
    assert found["environment"]
    taken = [*found["others"], found["computing"]]
    assert len(taken) == found["threads"]
    assert sorted({core for places in taken for core in places}) == usable
    assert all(len(places) < len(usable) for places in taken)
    assert all(number == len(usable) for number in found["of numpy"])
    if "slice" in found and tuple(map(int, re.findall(r"\d+", platform.release())[:2])) >= (6, 12):
        assert found["slice"] == cores.SLICE
    for where in ("main", "on a GPU", "afterwards", "thread", "child"):
        assert found[where] == usable, where


@several_cores
@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "MKL_NUM_THREADS"])
def test_a_single_thread_may_use_all_cores(name):
    usable = sorted(os.sched_getaffinity(0))
    found = seen(**{name: "1"})
    assert found["computing"] == found["main"] == usable


@pytest.fixture
def _no_variables(monkeypatch):
    for name in (*WAIT_VARIABLES, *PLACE_VARIABLES, "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)


WAITS = {"GOMP_SPINCOUNT": "16000"}
BOUND = {"OMP_PROC_BIND": "true", "OMP_PLACES": "cores"}


@pytest.mark.usefixtures("_no_variables")
@pytest.mark.parametrize(
    ("threads", "bound"), [("", True), ("2", False), ("4", True), ("4,1", True), ("3,4", False), ("many", True)]
)
def test_threads_are_bound_only_if_there_is_one_for_each_core(monkeypatch, threads, bound):
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    assert openmp_variables({0, 1, 2, 3}) == WAITS | (BOUND if bound else {})
    assert openmp_variables({3}) == openmp_variables(set()) == WAITS


@pytest.mark.usefixtures("_no_variables")
@pytest.mark.parametrize("name", [*WAIT_VARIABLES, *PLACE_VARIABLES])
def test_a_users_own_choice_comes_first(monkeypatch, name):
    monkeypatch.setenv(name, "17")
    assert openmp_variables({0, 1}) == (BOUND if name in WAIT_VARIABLES else WAITS)


@several_cores
def test_cores_chosen_from_outside_are_kept(monkeypatch):
    usable = os.sched_getaffinity(0)
    one, other, *_ = usable
    monkeypatch.setattr(cores, "_own_core", {one})
    try:
        with on_own_core(CPU), on_own_core(CPU):
            assert os.sched_getaffinity(0) == {one}
        assert os.sched_getaffinity(0) == usable
        with on_own_core(GPU):
            assert os.sched_getaffinity(0) == usable
        os.sched_setaffinity(0, {other})
        with on_own_core(CPU):
            assert os.sched_getaffinity(0) == {other}
        assert os.sched_getaffinity(0) == {other}
    finally:
        os.sched_setaffinity(0, usable)


def test_the_computing_commands_exist():
    assert set(COMPUTING) <= set(typer.main.get_command(app).commands)


@pytest.mark.parametrize(
    ("arguments", "loads"), [(["train"], True), (["train", "--help"], False), (["evaluate"], False)], ids=str
)
def test_only_a_command_that_computes_loads_torch_before_it_starts(arguments, loads):
    code = (
        f"import sys; sys.argv = ['sanflow', *{arguments}]; from sanflow.cli import main\n"
        "try: main()\nexcept SystemExit: pass\nprint('torch' in sys.modules)"
    )
    assert run(code)[0].splitlines()[-1] == str(loads)


def test_importing_sanflow_leaves_the_environment_alone():
    run("import os; before = dict(os.environ); import sanflow, sanflow.cli; assert dict(os.environ) == before")
