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

from sanflow.tracking import mirror
from sanflow.tracking.sync import sync
from tests.helpers.workflow import snakemake, write_benchmark

pytestmark = [pytest.mark.server, pytest.mark.timeout(900)]
N_JOBS = 12
N_EPOCHS = 8
JOB = """
import sys, time
from pathlib import Path
from sanflow.tracking import open_tracker
uri, folder, number, pause = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
unit = f"set/category/experiment/seed{number}"
with open_tracker(uri, folder=folder, unit=unit, digest="d" * 64, stage="train") as run:
    run.log_params({"seed": number})
    for epoch in range(8):
        run.log_metrics({"train/loss": number + epoch, "train/rate": epoch}, step=epoch)
        time.sleep(pause)
    run.log_dataset("set/category", "e" * 64, "/data", "train")
    artifact = folder.parent / f"history{number}.json"
    artifact.write_text("{}")
    run.log_artifact(artifact)
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


def start_jobs(uri: str, folder: Path, pause: float = 0.0) -> list[subprocess.Popen]:
    return [
        subprocess.Popen(
            [sys.executable, "-c", JOB, uri, str(folder), str(number), str(pause)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        for number in range(N_JOBS)
    ]


def finish(jobs: list[subprocess.Popen]) -> str:
    """All end well; what they said."""
    said = [job.communicate(timeout=600)[1] for job in jobs]
    assert [job.returncode for job in jobs] == [0] * N_JOBS, "\n".join(said)[-3000:]
    return "\n".join(said)


def runs_of(uri: str, benchmark: str):
    client = mirror._client(uri)
    experiment = client.get_experiment_by_name(f"sanflow/{benchmark}")
    return client, client.search_runs([experiment.experiment_id])


def check_all_once(uri: str, benchmark: str) -> None:
    """Every job has one run, and every value in it is there once."""
    client, runs = runs_of(uri, benchmark)
    assert len(runs) == N_JOBS
    for run in runs:
        number = int(run.data.params["seed"])
        assert run.info.run_name == f"set/category/experiment/seed{number}"
        assert run.info.status == "FINISHED"
        points = client.get_metric_history(run.info.run_id, "train/loss")
        assert [(point.step, point.value) for point in points] == [(epoch, number + epoch) for epoch in range(N_EPOCHS)]
        assert len(run.inputs.dataset_inputs) == 1
        assert [item.path for item in client.list_artifacts(run.info.run_id)] == [f"history{number}.json"]


def test_twelve_jobs_at_once_on_a_server(server, tmp_path):
    assert "Tracking" not in finish(start_jobs(server.uri, tmp_path / "twelve/tracking"))
    check_all_once(server.uri, "twelve")
    assert list((tmp_path / "twelve/tracking").glob("*.jsonl")) == []


def test_twelve_jobs_at_once_on_sqlite(tmp_path):
    folder = tmp_path / "sqlite/tracking"
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    assert mirror.initialise(uri, folder) is None
    finish(start_jobs(uri, folder))
    # A database that was busy for long is a server that was away for a while.
    waiting = len(list(folder.glob("*.run.json")))
    assert [delivery.problem for delivery in sync(uri, folder)] == [None] * waiting
    check_all_once(uri, "sqlite")


def test_twelve_jobs_start_on_a_database_that_is_not_there(tmp_path):
    """Without `sanflow track init`: the lock beside the database lets one of them make it."""
    folder = tmp_path / "fresh/tracking"
    uri = f"sqlite:///{tmp_path}/new/mlflow.db"
    finish(start_jobs(uri, folder))
    list(sync(uri, folder))
    check_all_once(uri, "fresh")


def test_the_server_is_killed_under_twelve_jobs(server, tmp_path):
    folder = tmp_path / "killed/tracking"
    jobs = start_jobs(server.uri, folder, pause=2.0)
    for _ in range(600):
        experiment = mirror._client(server.uri).get_experiment_by_name("sanflow/killed")
        if experiment and len(runs_of(server.uri, "killed")[1]) >= N_JOBS // 2:
            break
        time.sleep(0.2)
    server.kill()
    said = finish(jobs)
    assert "sanflow track sync" in said
    assert len(list(folder.glob("*.jsonl"))) == N_JOBS
    server.start()
    deliveries = list(sync(server.uri, folder))
    assert [delivery.problem for delivery in deliveries] == [None] * N_JOBS
    check_all_once(server.uri, "killed")
    assert list(sync(server.uri, folder)) == []


def test_a_server_that_hangs_delays_a_job_by_its_timeout_only(tmp_path, monkeypatch):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(50)
        limits = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "2", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
        for name, value in limits.items():
            monkeypatch.setenv(name, value)
        started = time.monotonic()
        job = subprocess.run(
            [sys.executable, "-c", JOB, f"http://127.0.0.1:{listener.getsockname()[1]}", str(tmp_path / "t"), "0", "0"],
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        )
    assert "did not take the events" in job.stderr
    # Twice at most: at the first event and at the end; the rest is imports.
    assert time.monotonic() - started < 60


def test_a_benchmark_is_mirrored_as_parent_and_children(server, root, tmp_path):
    write_benchmark(tmp_path, experiments=("maps",), categories=("nut", "cap"))
    snakemake(root, tmp_path, tracking={"uri": server.uri})
    client, runs = runs_of(server.uri, "small")
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    children = [run for run in runs if run is not parent]
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    assert sorted(run.info.run_name for run in children) == ["parts/cap/maps/seed0", "parts/nut/maps/seed0"]
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert parent.data.metrics["maps/image_auroc"] == 1.0
    assert all(run.data.metrics["test/image_auroc"] == 1.0 for run in children)
    tables = [item.path for item in client.list_artifacts(parent.info.run_id, "tables")]
    assert "tables/overview.csv" in tables
