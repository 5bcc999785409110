"""Runs in MLflow are what the files say, whatever happens to the server or to the job."""

import contextlib
import http.server
import json
import logging
import multiprocessing
import os
import shutil
import signal
import threading
import time
from pathlib import Path

import mlflow.exceptions
import numpy as np
import pytest
from typer.testing import CliRunner

from sanflow.benchmark_json import claim, read_outline
from sanflow.cli import app
from sanflow.errors import StorageError
from sanflow.files import write_json
from sanflow.tracking import Tracker, job_tracker, masked, mirror
from sanflow.tracking.contents import flattened, of_benchmark, of_job
from sanflow.tracking.job_file import JobFile
from sanflow.tracking.mirror import Mirror, ServerAwayError
from sanflow.tracking.tracker import LiveTracker
from sanflow.tracking.uris import unreachable
from tests.helpers.tracking import CATEGORY, artifacts, history, jobs_of, make_results, runs_of, send, waiting

UNIT = f"{CATEGORY}/sanflow/seed0"
DEAD = "http://ada:secret@127.0.0.1:9"


def record(epochs=0, settings="s", **more):
    """train.json after some epochs, with all that is sent."""
    history = [{"epoch": number, "loss": 1 / number, "nll": None} for number in range(1, epochs + 1)]
    return {
        "job": {"seed": 0, "settings": {"epochs": 2, "taps": ["a", "b"], "input_size": {"default": 64}}},
        "digests": {"config": settings, "data": "f" * 64, "code": "c"},
        "versions": {"git_commit": "abc", "packages": {"torch": "2.15.0"}},
        "device": "none",
        "training_images": 5,
        "history": history,
    } | more


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory):
    """A database with its tables: making them takes seconds, copying it none."""
    folder = tmp_path_factory.mktemp("mlflow")
    Mirror(f"sqlite:///{folder}/mlflow.db", folder, "other")
    return folder / "mlflow.db"


@pytest.fixture
def uri(empty_database, tmp_path):
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path}/mlflow.db"


@pytest.fixture
def results(tmp_path):
    return make_results(tmp_path / "results" / "bench")


def live(uri, results, unit=UNIT):
    return LiveTracker(uri, results / "tracking", unit, read_outline(results))


def train(uri, results, epochs=2):
    """A training that finishes: it logs each epoch, and its train.json is in its folder."""
    with live(uri, results) as tracker:
        for epoch in range(epochs + 1):
            tracker.log(record(epoch))
        write_json(results / UNIT / "train.json", record(epochs, seconds={"steps": 1.5, "total": 2.0}, attempts=1))


def fail(uri, results, error):
    """A training that ends with an exception or a signal."""
    tracker = live(uri, results)
    tracker.log(record(1))
    tracker.__exit__(error, error(), None)


def check_training(uri):
    """All of `train` is there, and once."""
    (run,) = jobs_of(uri)
    assert run.data.params == {
        "seed": "0", "settings.epochs": "2", "settings.taps": "a, b", "settings.input_size.default": "64"
    }  # fmt: skip
    expected = {
        "device": "none", "versions.packages.torch": "2.15.0", "versions.git_commit": "abc", "digests.code": "c",
        "sanflow.unit": f"bench/{UNIT}",
    }  # fmt: skip
    assert expected.items() <= run.data.tags.items()
    assert history(uri, run, "train/loss") == [(1, 1.0), (2, 0.5)]
    assert [step for step, value in history(uri, run, "train/nll") if np.isnan(value)] == [1, 2]
    assert history(uri, run, "cost/seconds_total") == [(2, 2.0)]
    (dataset,) = run.inputs.dataset_inputs
    assert (dataset.dataset.name, dataset.dataset.digest) == (CATEGORY, "f" * 32)
    assert "/data/mvtec_ad" in dataset.dataset.source
    assert [tag.value for tag in dataset.tags] == ["train"]
    assert artifacts(uri, run) == ["train.json"]
    assert run.info.status == "FINISHED"


def test_a_training_is_logged_while_it_runs(uri, results):
    with live(uri, results) as tracker:
        tracker.log(record(1))
        (run,) = jobs_of(uri)
        assert (run.info.status, run.data.metrics["train/loss"]) == ("RUNNING", 1.0)
        tracker.log(record(2))
        assert history(uri, run, "train/loss") == [(1, 1.0), (2, 0.5)]
    assert jobs_of(uri)[0].info.status == "FINISHED"
    train(uri, results)
    check_training(uri)
    assert waiting(results) == [], "a job file is left though all arrived"


def test_a_dead_server_never_fails_a_job_and_sync_sends_all_of_it_once(uri, results, caplog):
    started = time.monotonic()
    train(DEAD, results)
    assert time.monotonic() - started < 10
    assert "http://***@127.0.0.1:9 cannot be reached" in caplog.text
    assert "sanflow track sync" in caplog.text
    assert "secret" not in caplog.text
    assert waiting(results) == ["seed0.json", "seed0.lock"]
    kept = JobFile(results / "tracking", UNIT).read()
    assert [delivery.sent for delivery in send(uri, results)] == [True]
    check_training(uri)
    assert waiting(results) == []
    assert [delivery.sent for delivery in send(uri, results)] == [False]
    # As if the machine had died after all arrived and before that was written down, at the server and here.
    mlflow.MlflowClient(uri).set_tag(jobs_of(uri)[0].info.run_id, mirror.SENT_TAG, "")
    write_json(results / f"tracking/{UNIT}.json", kept)
    assert [delivery.sent for delivery in send(uri, results)] == [True]
    check_training(uri)


def test_the_server_comes_back_during_a_training(uri, results, monkeypatch):
    with live(DEAD, results) as tracker:
        tracker.log(record(1))
        tracker._uri, tracker._silent_until = uri, 0.0
        tracker.log(record(2))
        assert history(uri, jobs_of(uri)[0], "train/loss") == [(1, 1.0), (2, 0.5)]


def _log_and_hang(uri, results, started):
    tracker = live(uri, results)
    tracker.log(record(1))
    started.set()
    signal.pause()


def killed_job(uri, results):
    context = multiprocessing.get_context("fork")
    started = context.Event()
    process = context.Process(target=_log_and_hang, args=(uri, results, started))
    process.start()
    assert started.wait(60)
    running = [] if uri == DEAD else send(uri, results)
    process.kill()
    process.join()
    return running


def test_a_killed_job_ends_as_killed_and_resumes_its_run(uri, results):
    assert [delivery.running for delivery in killed_job(uri, results)] == [True], "a live job is left alone"
    assert [run.info.status for run in jobs_of(uri)] == ["RUNNING"]
    send(uri, results)
    assert [run.info.status for run in jobs_of(uri)] == ["KILLED"]
    with live(uri, results) as tracker:
        # The next attempt trains epoch 1 again, because its state was saved before.
        tracker.log(record(0))
        assert [run.info.status for run in jobs_of(uri)] == ["RUNNING"]
        tracker.log(record(1))
        tracker.log(record(2))
    (run,) = jobs_of(uri)
    assert run.info.status == "FINISHED"
    assert history(uri, run, "train/loss") == [(1, 1.0), (2, 0.5)]


def test_epochs_of_a_job_that_was_killed_without_a_server_are_sent(uri, results):
    killed_job(DEAD, results)
    send(uri, results)
    (run,) = jobs_of(uri)
    assert (run.info.status, history(uri, run, "train/loss")) == ("KILLED", [(1, 1.0)])


@pytest.mark.parametrize(
    ("error", "status"), [(ValueError, "FAILED"), (KeyboardInterrupt, "KILLED"), (SystemExit, "KILLED")]
)
def test_a_run_ends_with_its_true_status(uri, results, error, status):
    fail(uri, results, error)
    assert jobs_of(uri)[0].info.status == status


def test_an_attempt_that_failed_does_not_overrule_a_later_one(uri, results):
    fail(DEAD, results, ValueError)
    write_json(results / UNIT / "train.json", record(2))  # of a training without tracking
    send(uri, results)
    assert [run.info.status for run in jobs_of(uri)] == ["FINISHED"]


def test_other_settings_data_or_code_are_another_run(uri, results):
    for settings in "ab":
        write_json(results / UNIT / "train.json", record(settings=settings))
        send(uri, results)
    assert len(jobs_of(uri)) == 2


METRICS = {"image_auroc": 0.5, "aupro": None, "counts": {"test_images": 3}, "input_size": [64, 64]}
PROVENANCE = {
    "dataset": "mvtec_ad", "category": "metal nut's", "seed": 0, "experiment_name": "maps",
    "experiment": {"method": "external"}, "config_digest": "s", "index_digest": "f" * 64,
    "steps": {"score": {"code_digest": "c", "versions": {"python": "3.11"}}},
}  # fmt: skip


def test_an_evaluated_run_is_rebuilt_from_its_files(uri, results):
    write_json(results / UNIT / "train.json", record(2))
    write_json(results / UNIT / "metrics.json", METRICS)
    (results / UNIT / "images.csv").write_text("image,label\n")
    write_json(results / f"{CATEGORY}/maps/seed0/metrics.json", METRICS | {"provenance": PROVENANCE})
    assert [delivery.problem for delivery in send(uri, results)] == [None, None]
    maps, trained = sorted(jobs_of(uri), key=lambda run: run.info.run_name)
    assert artifacts(uri, trained) == ["images.csv", "metrics.json", "train.json"]
    assert history(uri, trained, "test/image_auroc") == [(2, 0.5)]
    assert [tag.value for one in trained.inputs.dataset_inputs for tag in one.tags] == ["train"]
    assert "test/aupro" not in trained.data.metrics
    assert maps.data.metrics == {"test/image_auroc": 0.5}
    assert maps.data.params["settings.method"] == "external"
    assert [tag.value for one in maps.inputs.dataset_inputs for tag in one.tags] == ["test"]


def test_a_train_json_of_an_earlier_version_waits_for_its_metrics(uri, results):
    write_json(results / UNIT / "train.json", {"history": []})
    assert [(delivery.sent, delivery.problem) for delivery in send(uri, results)] == [(False, None)]


def test_copied_files_are_not_sent_again(uri, results):
    train(uri, results)
    os.utime(results / UNIT / "train.json", (1, 1))
    assert [delivery.sent for delivery in send(uri, results)] == [False]


def test_more_values_than_one_request_may_hold(uri, results):
    settings = {f"p{number}": "x" * 9000 for number in range(150)}
    epoch = {"epoch": 1} | {f"m{number}": number for number in range(1100)}
    write_json(results / UNIT / "train.json", record() | {"job": settings, "history": [epoch]})
    assert [delivery.problem for delivery in send(uri, results)] == [None]
    (run,) = jobs_of(uri)
    assert (len(run.data.params), len(run.data.metrics)) == (150, 1100)


# Whose runs they are


def test_two_users_of_one_server_do_not_share_a_run(uri, results, tmp_path, monkeypatch):
    train(uri, results)
    monkeypatch.setattr("getpass.getuser", lambda: "eve")
    train(uri, make_results(tmp_path / "eve/bench"))
    assert len(jobs_of(uri)) == 2
    assert len({run.data.tags["mlflow.user"] for run in jobs_of(uri)}) == 2


def test_a_copy_of_a_results_folder_has_runs_of_its_own_and_a_moved_one_keeps_them(results, tmp_path, monkeypatch):
    owner = claim(results)["owner"]
    assert claim(make_results(results))["owner"] == owner
    shutil.copytree(results, tmp_path / "copy")
    assert claim(tmp_path / "copy")["owner"]["id"] != owner["id"]
    results.rename(tmp_path / "moved")
    assert claim(tmp_path / "moved")["owner"] == owner | {"folder": str(tmp_path / "moved")}
    (tmp_path / "linked").symlink_to(tmp_path / "moved")
    assert claim(tmp_path / "linked")["owner"]["id"] == owner["id"]
    # Nodes of a cluster share the folder under one path.
    monkeypatch.setattr("socket.gethostname", lambda: "node2")
    assert claim(tmp_path / "moved")["owner"]["id"] == owner["id"]
    (tmp_path / "moved").rename(tmp_path / "on_another_machine")
    assert claim(tmp_path / "on_another_machine")["owner"]["id"] != owner["id"]
    monkeypatch.setattr("getpass.getuser", lambda: "eve")
    assert claim(tmp_path / "on_another_machine")["owner"]["user"] == "eve"


def test_a_user_without_a_name_has_a_number(results, monkeypatch):
    def nobody():
        raise OSError("no entry")

    monkeypatch.setattr("getpass.getuser", nobody)
    assert claim(results)["owner"]["user"] == str(os.getuid())


def test_a_moved_mirror_keeps_its_artifacts(results, tmp_path):
    database = results.parent / "mlflow.db"
    # In a process of its own, because MLflow remembers where a run's artifacts are.
    process = multiprocessing.get_context("fork").Process(target=train, args=(f"sqlite:///{database}", results))
    process.start()
    process.join()
    results.parent.rename(tmp_path / "elsewhere")
    results, uri = tmp_path / "elsewhere/bench", f"sqlite:///{tmp_path}/elsewhere/mlflow.db"
    write_json(results / UNIT / "metrics.json", METRICS)
    assert [delivery.problem for delivery in send(uri, results)] == [None]
    (run,) = jobs_of(uri)
    assert artifacts(uri, run) == ["metrics.json", "train.json"]
    assert run.info.artifact_uri.startswith((tmp_path / "elsewhere/mlflow-artifacts").as_uri())
    assert not (tmp_path / "results").exists()


# Refusals and servers


def test_a_refused_part_blocks_neither_its_run_nor_the_others(uri, results, monkeypatch):
    def refuse(self, run, path, folder):
        if path.parent.name == "seed0":
            raise mlflow.exceptions.MlflowException("413: too large\nmore")

    monkeypatch.setattr(Mirror, "_log_artifact", refuse)
    for seed in range(2):
        write_json(results / UNIT.replace("seed0", f"seed{seed}") / "train.json", record(1))
    first, second = send(uri, results)
    assert "seed0: MlflowException: 413: too large" in first.problem
    assert (second.sent, second.problem) == (True, None)
    assert [history(uri, run, "train/loss") for run in jobs_of(uri)] == [[(1, 1.0)], [(1, 1.0)]]
    monkeypatch.undo()
    assert [(delivery.sent, delivery.problem) for delivery in send(uri, results)] == [(True, None), (False, None)]


def test_a_run_that_the_server_does_not_make_is_refused(uri, results, monkeypatch):
    train(DEAD, results)
    monkeypatch.setattr(Mirror, "_find_or_make", lambda self, contents: 1 / 0)
    assert "ZeroDivisionError" in send(uri, results)[0].problem


def test_parameters_that_changed_are_refused_with_a_warning(uri, results, caplog):
    with live(uri, results) as tracker:
        tracker.log(record())
        tracker.log(record() | {"job": {"seed": 1}})
    assert "parameters cannot be changed: seed" in caplog.text
    assert jobs_of(uri)[0].data.params["seed"] == "0"


def test_a_server_that_dies_during_a_sync_ends_it(uri, results, monkeypatch):
    for seed in range(2):
        write_json(results / UNIT.replace("seed0", f"seed{seed}") / "train.json", record(1))
    monkeypatch.setattr(Mirror, "_log_values", lambda *_: 1 / 0)
    answers = iter([None, "it is away"])  # when the sync begins, and after a request failed
    monkeypatch.setattr(mirror, "unreachable", lambda uri: next(answers))
    with pytest.raises(ServerAwayError, match="cannot be reached: it is away"):
        send(uri, results)


def test_a_damaged_file_is_named_and_the_others_are_sent(uri, results):
    train(DEAD, results)
    other = UNIT.replace("seed0", "seed1")
    write_json(results / other / "train.json", record(1))
    (results / f"tracking/{UNIT}.json").write_text("{")
    first, second = send(uri, results)
    assert "seed0.json, but it is damaged" in first.problem
    assert (second.unit, second.problem) == (other, None)


def test_a_large_upload_has_time(results, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "15")
    with open(tmp_path / "large", "wb") as file:
        file.truncate(500_000_000)
    with mirror._time_for(tmp_path / "large"):
        assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "1015"
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "15"


@contextlib.contextmanager
def proxy(code):
    """An HTTP proxy that answers every request with one code."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(code)
            self.end_headers()

        def log_message(self, *arguments):
            pass

    asked = []
    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(("code", "reason"), [(200, None), (401, None), (404, None), (503, "it answers with code 503")])
def test_a_server_behind_a_proxy_is_asked_through_it(monkeypatch, code, reason):
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with proxy(code) as (address, asked):
        monkeypatch.setenv("http_proxy", address)
        assert unreachable("http://tracking.invalid:5000/path/") == reason
    assert asked == ["http://tracking.invalid:5000/path/health"]


def test_unreachable_knows_files_from_servers():
    assert unreachable("sqlite:////tmp/x.db") is None
    assert unreachable("databricks") is None
    assert "it does not answer" in unreachable("http://127.0.0.1:9")
    assert "127.0.0.1:9 does not answer" in unreachable("postgresql://ada@127.0.0.1:9/runs")


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("http://ada:p%40ss@host:5000/x", "http://***@host:5000/x"),
        ("postgresql://ada:se/cr@et@db/runs", "postgresql://***@db/runs"),
        ("postgresql+psycopg2://u:p@db/runs", "postgresql+psycopg2://***@db/runs"),
        ("mssql://db/runs?user=ada&password=secret&x=1", "mssql://db/runs?user=***&password=***&x=1"),
        ("sqlite:///results/mlflow.db", "sqlite:///results/mlflow.db"),
        ("http://host:5000", "http://host:5000"),
    ],
)
def test_credentials_are_masked(uri, shown):
    assert masked(uri) == shown
    assert masked(f"cannot reach {uri} now") == f"cannot reach {shown} now"


def test_an_address_that_is_none_warns_and_shows_no_password(results, caplog):
    with live("postgresql://ada:se/cr@et@db/runs", results) as tracker:
        tracker.log(record())
    assert "no valid address" in caplog.text
    assert "cr@et" not in caplog.text


def test_no_telemetry_and_no_inherited_run(uri, results, monkeypatch):
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)
    Mirror(uri, results, "bench")
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert "MLFLOW_RUN_ID" not in os.environ


def test_a_deleted_experiment_is_restored(uri, results):
    experiment = Mirror(uri, results, "bench")._experiment
    mlflow.MlflowClient(uri).delete_experiment(experiment)
    assert Mirror(uri, results, "bench")._experiment == experiment


# What a job needs


def test_a_full_disk_warns(results, monkeypatch, caplog):
    def full(*arguments):
        raise StorageError("No space left on the device")

    monkeypatch.setattr("sanflow.tracking.job_file.write_json", full)
    with live(DEAD, results) as tracker:
        tracker.log(record())
    assert "No space left on the device" in caplog.text


def test_without_a_uri_or_an_outline_nothing_is_logged(results, tmp_path, monkeypatch, caplog):
    monkeypatch.delenv("SANFLOW_TRACKING_URI", raising=False)
    assert type(job_tracker(results / "tracking", UNIT)) is Tracker
    monkeypatch.setenv("SANFLOW_TRACKING_URI", DEAD)
    assert type(job_tracker(None, UNIT)) is Tracker
    assert caplog.records == []
    assert type(job_tracker(results / "tracking", UNIT)) is LiveTracker
    assert type(job_tracker(tmp_path / "no/tracking", UNIT)) is Tracker
    assert "has no benchmark.json" in caplog.text
    (results / "tracking").rename(tmp_path / "aside")
    (results / "tracking").write_text("")
    assert type(job_tracker(results / "tracking", UNIT)) is Tracker
    assert "this training is not logged while it runs" in caplog.text


def test_two_live_jobs_cannot_share_a_unit(results):
    first = JobFile(results / "tracking", UNIT)
    with pytest.raises(StorageError, match=r"seed0\.lock to be free, but a running process holds it"):
        JobFile(results / "tracking", UNIT)
    first.close(remove=True)


def test_warnings_are_logged_not_printed(results, caplog, capsys):
    with caplog.at_level(logging.WARNING), live(DEAD, results) as tracker:
        tracker.log(record())
    assert caplog.records
    assert capsys.readouterr().out == ""


def test_settings_are_flattened():
    assert flattened({"a": {"b": {"c": None}}, "d": [[1, 2], "x"]}) == {"a.b.c": "None", "d": "[1, 2], x"}


def test_a_model_names_only_requirements_that_others_publish(results):
    names = {one.split("==")[0].lower() for one in mirror.requirements()}
    assert "sanflow" not in names
    assert {"torch", "numpy", "timm", "frEIA".lower(), "mlflow"} <= names
    assert not any("+" in one for one in mirror.requirements())
    provenance = {"provenance": PROVENANCE | {"checkpoint_digest": "x"}}
    write_json(results / UNIT / "metrics.json", METRICS | provenance)
    outline = read_outline(results)
    parent = of_benchmark(outline, {"status": "RUNNING", "time": 1}, {})
    assert of_job(results, UNIT, outline, parent).model is None, "its checkpoint is missing"
    (results / UNIT / "checkpoint.pt").write_text("")
    assert of_job(results, UNIT, outline, parent).model.input_size == (64, 64)


# Commands


@pytest.fixture
def benchmark_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "bench.yaml"
    path.write_text(
        "title: a title\ndatasets: {photo_textures: {categories: [brick, grass]}}\nseeds: [0, 1]\n"
        "experiments: {sanflow: {method: sanflow, encoder: timm/resnet18.tv_in1k}}\n"
    )
    return path


def track(*arguments):
    result = CliRunner().invoke(app, ["track", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def evaluated(category, seed, image_auroc):
    folder = Path("results/bench/photo_textures") / category / "sanflow" / f"seed{seed}"
    metrics = METRICS | {"image_auroc": image_auroc, "pixel_auroc": 0.75}
    write_json(folder / "metrics.json", metrics)
    write_json(folder / "train.json", record(1))


def test_jobs_nest_in_the_benchmark_and_publish_ends_it(uri, benchmark_file):
    track("init", benchmark_file, "--uri", uri)
    (parent,) = runs_of(uri)
    assert (parent.info.run_name, parent.info.status) == ("bench", "RUNNING")
    assert (parent.data.params["experiments"], parent.data.params["seeds"]) == ("sanflow", "0, 1")
    assert artifacts(uri, parent) == ["bench.yaml"]
    # The mean is over seeds first, then over categories: ((0.2 + 0.4) / 2 + 0.5) / 2.
    for category, seed, value in [("brick", 0, 0.2), ("brick", 1, 0.4), ("grass", 0, 0.5)]:
        evaluated(category, seed, value)
    for file in ("tables/overview.csv", "figures/grid/brick.png"):
        Path("results/bench", file).parent.mkdir(parents=True)
        Path("results/bench", file).write_text("x")
    assert "Sent 3 runs" in track("sync", benchmark_file, "--uri", uri)
    track("publish", benchmark_file, "--uri", uri)
    parent, *children = sorted(runs_of(uri), key=lambda run: "mlflow.parentRunId" in run.data.tags)
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    assert parent.info.status == "FINISHED"
    assert parent.data.metrics == pytest.approx({"sanflow/image_auroc": 0.4, "sanflow/pixel_auroc": 0.75})
    assert artifacts(uri, parent, "tables") == ["tables/overview.csv"]
    assert artifacts(uri, parent, "figures/grid") == ["figures/grid/brick.png"]
    assert "Sent 0 runs" in track("sync", benchmark_file, "--uri", uri)
    track("init", benchmark_file, "--uri", uri)
    assert [run.info.status for run in runs_of(uri)].count("RUNNING") == 1
    track("publish", benchmark_file, "--uri", uri, "--failed")
    assert sorted(run.info.status for run in runs_of(uri)) == ["FAILED", *3 * ["FINISHED"]]


def test_the_commands_survive_a_dead_server(uri, benchmark_file):
    for command in ("init", "sync", "publish"):
        output = track(command, benchmark_file, "--uri", DEAD)
        assert "http://***@127.0.0.1:9 cannot be reached" in output
        assert "Nothing is lost" in output
    assert "Sent 0 runs" in track("sync", benchmark_file, "--uri", uri)
    assert [run.info.status for run in runs_of(uri)] == ["FINISHED"], "publish said so while the server was away"


def test_refusals_are_shown(uri, benchmark_file, monkeypatch):
    monkeypatch.setattr(Mirror, "_log_artifact", lambda *_: 1 / 0)
    evaluated("brick", 0, 0.5)
    output = track("publish", benchmark_file, "--uri", uri)
    assert output.count("the server refused a part of") == 2
    assert [run.info.status for run in runs_of(uri)] == ["FINISHED"] * 2


def test_commands_without_a_uri_do_nothing(benchmark_file, monkeypatch):
    monkeypatch.setenv("SANFLOW_TRACKING_URI", "")
    assert "Tracking is off" in track("sync", benchmark_file)
    assert track("publish", benchmark_file) == ""
    assert not Path("results").exists()
    track("init", benchmark_file)
    assert json.loads(Path("results/bench/benchmark.json").read_text())["seeds"] == [0, 1]
