"""A real MLflow server on PostgreSQL, on loopback: twelve jobs at once, the server killed under them, nothing lost."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from sanflow.tracking.mirror import Mirror
from tests.helpers.tracking import artifacts, history, jobs_of, make_results, runs_of, send, waiting
from tests.helpers.workflow import snakemake, write_benchmark

pytestmark = [pytest.mark.server, pytest.mark.timeout(900)]
N_JOBS = 12
N_EPOCHS = 8
JOB = """
import sys, time
from pathlib import Path
from sanflow.files import write_json
from sanflow.tracking import job_tracker
folder, number, pause = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
unit = f"set/category/experiment/seed{number}"
digests = {"config": "d", "data": "e" * 64, "code": "c"}
record = {"job": {"seed": number}, "digests": digests, "training_images": 1, "history": []}
with job_tracker(folder, unit) as run:
    for epoch in range(8):
        record["history"].append({"epoch": epoch, "loss": number + epoch, "rate": epoch})
        run.log(record)
        time.sleep(pause)
    write_json(folder.parent / unit / "train.json", record)
"""


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture(scope="module")
def postgres():
    """URI of an empty PostgreSQL database; the server runs as the user `postgres`, since it refuses root."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not programs:
        pytest.skip("needs PostgreSQL: apt-get install postgresql")
    if os.geteuid() != 0:
        pytest.skip("needs root, to run PostgreSQL as the user postgres")
    pytest.importorskip("psycopg2")
    folder = Path(tempfile.mkdtemp(prefix="sanflow-postgres-", dir="/tmp"))
    shutil.chown(folder, "postgres")
    port = free_port()

    def run(program, *arguments):
        line = [programs[-1].with_name(program), *map(str, arguments)]
        subprocess.run(
            line, user="postgres", group="postgres", cwd=folder, check=True, capture_output=True, timeout=120
        )

    run("initdb", "--pgdata", folder / "data", "--auth", "trust", "--username", "mlflow")
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder} -c fsync=off"
    line = [
        programs[-1].with_name("pg_ctl"),
        "--pgdata",
        folder / "data",
        "--log",
        folder / "log",
        "--options",
        options,
        "start",
    ]
    # Not `capture_output`: the server keeps the pipes open and the call would never return.
    subprocess.run(
        line, user="postgres", group="postgres", cwd=folder, check=True, stdout=subprocess.DEVNULL, timeout=120
    )
    run("createdb", "--host", "127.0.0.1", "--port", port, "--username", "mlflow", "mlflow")
    yield f"postgresql://mlflow@127.0.0.1:{port}/mlflow"
    run("pg_ctl", "--pgdata", folder / "data", "--mode", "immediate", "stop")
    shutil.rmtree(folder)


class Server:
    """`mlflow server` on a port of its own, to be started, killed and started again."""

    def __init__(self, database: str, folder: Path) -> None:
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self._log = folder / "server.log"
        self._line = [
            str(Path(sys.executable).parent / "mlflow"),
            "server",
            "--host",
            "127.0.0.1",
            "--port",
            str(self.port),
        ]
        self._line += [
            "--workers",
            "1",
            "--backend-store-uri",
            database,
            "--artifacts-destination",
            str(folder / "artifacts"),
        ]

    def start(self) -> None:
        quiet = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true"}
        with open(self._log, "ab") as log:
            self._process = subprocess.Popen(self._line, stdout=log, stderr=log, env=quiet)
        for _ in range(600):
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                assert self._process.poll() is None, self._log.read_text()[-3000:]
                time.sleep(0.2)
        raise AssertionError(f"the server did not start:\n{self._log.read_text()[-3000:]}")

    def kill(self) -> None:
        """SIGKILL to the server and its workers."""
        tree = [*psutil.Process(self._process.pid).children(recursive=True), self._process]
        for process in tree:
            process.send_signal(signal.SIGKILL)
        self._process.wait()


@pytest.fixture(scope="module")
def server(postgres, tmp_path_factory):
    server = Server(postgres, tmp_path_factory.mktemp("server"))
    server.start()
    yield server
    server.kill()


def start_job(uri: str, results: Path, number: int, pause: float) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", JOB, str(results / "tracking"), str(number), str(pause)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "SANFLOW_TRACKING_URI": uri},
    )


def start_jobs(uri: str, results: Path, pause: float = 0.0) -> list[subprocess.Popen]:
    make_results(results)
    return [start_job(uri, results, number, pause) for number in range(N_JOBS)]


def finish(jobs: list[subprocess.Popen]) -> str:
    """Wait for all; none may fail. Returns what they wrote to stderr."""
    written = [job.communicate(timeout=600)[1] for job in jobs]
    assert [job.returncode for job in jobs] == [0] * N_JOBS, "\n".join(written)[-3000:]
    return "\n".join(written)


def check_all_once(uri: str, results: Path) -> None:
    """Every job has one run, and every value in it is there once."""
    (parent,) = [run for run in runs_of(uri, results.name) if "mlflow.parentRunId" not in run.data.tags]
    jobs = jobs_of(uri, results.name)
    assert len(jobs) == N_JOBS
    for run in jobs:
        number = int(run.data.params["seed"])
        assert run.info.run_name == f"set/category/experiment/seed{number}"
        assert run.info.status == "FINISHED"
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert history(uri, run, "train/loss") == [(epoch, number + epoch) for epoch in range(N_EPOCHS)]
        assert len(run.inputs.dataset_inputs) == 1
        assert artifacts(uri, run) == ["train.json"]


def test_twelve_jobs_at_once_on_a_server(server, tmp_path):
    results = tmp_path / "twelve"
    assert "Tracking" not in finish(start_jobs(server.uri, results))
    check_all_once(server.uri, results)
    assert waiting(results) == []


@pytest.mark.parametrize("made_before", [True, False])
def test_twelve_jobs_at_once_on_sqlite(tmp_path, made_before):
    """Also without `sanflow track init`: the lock beside the database lets one of them make it."""
    results, uri = tmp_path / "sqlite", f"sqlite:///{tmp_path}/new/mlflow.db"
    if made_before:
        Mirror(uri, results / "tracking", results.name)
    finish(start_jobs(uri, results))
    # A database that was busy for long is a server that was away for a while.
    assert [delivery.problem for delivery in send(uri, results)] == [None] * N_JOBS
    check_all_once(uri, results)


def test_the_server_is_killed_under_twelve_jobs(server, tmp_path):
    results = tmp_path / "killed"
    jobs = start_jobs(server.uri, results, pause=2.0)
    for _ in range(600):
        if len(jobs_of(server.uri, results.name)) >= N_JOBS // 2:
            break
        time.sleep(0.2)
    server.kill()
    assert "sanflow track sync" in finish(jobs)
    assert len(waiting(results)) == 2 * N_JOBS, "each has its file and its lock"
    server.start()
    assert [delivery.problem for delivery in send(server.uri, results)] == [None] * N_JOBS
    check_all_once(server.uri, results)
    assert [delivery.sent for delivery in send(server.uri, results)] == [False] * N_JOBS


def test_a_server_that_hangs_delays_a_job_by_its_timeout_only(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    make_results(tmp_path / "hangs")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(50)
        started = time.monotonic()
        job = start_job(f"http://127.0.0.1:{listener.getsockname()[1]}", tmp_path / "hangs", 0, 0.0)
        _, written = job.communicate(timeout=120)
    assert job.returncode == 0
    assert "cannot be reached: it does not answer" in written
    # Twice at most: at the first epoch and at the end; the rest is imports.
    assert time.monotonic() - started < 20


def test_a_benchmark_is_mirrored_as_parent_and_children(server, root, tmp_path):
    write_benchmark(tmp_path, experiments=("maps",), categories=("nut", "cap"))
    snakemake(root, tmp_path, tracking={"uri": server.uri})
    runs = runs_of(server.uri, "small")
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    children = [run for run in runs if run is not parent]
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    assert sorted(run.info.run_name for run in children) == ["parts/cap/maps/seed0", "parts/nut/maps/seed0"]
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert parent.data.metrics["maps/image_auroc"] == 1.0
    assert all(run.data.metrics["test/image_auroc"] == 1.0 for run in children)
    assert "tables/overview.csv" in artifacts(server.uri, parent, "tables")
