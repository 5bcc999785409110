"""The mirror in MLflow: what a job tells arrives once, whatever happens to the server or to the job."""

import json
import logging
import multiprocessing
import os
import shutil
import signal
import time

import pytest
from typer.testing import CliRunner

from sanflow.cli import app
from sanflow.errors import StorageError
from sanflow.tracking import MlflowTracker, NullTracker, Tracker, job_tracker, masked, mirror, open_tracker
from sanflow.tracking.outbox import Outbox, pending
from sanflow.tracking.sync import sync
from sanflow.tracking.tracker import flattened
from sanflow.tracking.uris import unreachable

UNIT = "mvtec_ad/metal nut's/sanflow/seed0"
DEAD = "http://ada:secret@127.0.0.1:9"


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory):
    """A database with its tables: making them takes seconds, copying it none."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    assert mirror.initialise(f"sqlite:///{path}", path.parent) is None
    return path


@pytest.fixture
def uri(empty_database, tmp_path):
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path}/mlflow.db"


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "results" / "bench" / "tracking"


def tracker_of(uri, folder, **changes):
    return open_tracker(uri, **{"folder": folder, "unit": UNIT, "digest": "d" * 64, "stage": "train"} | changes)


def runs_of(uri):
    client = mirror._client(uri)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    return client.search_runs(experiments, order_by=["attributes.start_time ASC"])


def history(uri, run, metric):
    return [(point.step, point.value) for point in mirror._client(uri).get_metric_history(run.info.run_id, metric)]


def tell(tracker, artifact):
    tracker.log_params({"epochs": 2, "taps": ["a", "b"], "input_size": {"default": 64}})
    tracker.log_tags({"gpu.name": "none", "versions": {"torch": "2.15.0"}})
    tracker.log_dataset("mvtec_ad/metal nut's", "f" * 64, "/data/mvtec_ad", "train")
    for epoch in range(2):
        tracker.log_metrics({"train/loss": 1.0 / (epoch + 1), "train/nll": float("nan")}, step=epoch)
    tracker.log_artifact(artifact, "curves")


def check_told(uri):
    """All of `tell` is there, and once."""
    (run,) = runs_of(uri)
    assert run.data.params == {"epochs": "2", "taps": "a, b", "input_size.default": "64"}
    assert run.data.tags["gpu.name"] == "none"
    assert run.data.tags["versions.torch"] == "2.15.0"
    assert run.data.tags["sanflow.unit"] == f"bench/{UNIT}/{'d' * 12}"
    assert history(uri, run, "train/loss") == [(0, 1.0), (1, 0.5)]
    (dataset,) = run.inputs.dataset_inputs
    assert (dataset.dataset.name, dataset.dataset.digest) == ("mvtec_ad/metal nut's", "f" * 32)
    assert [tag.value for tag in dataset.tags] == ["train"]
    artifacts = mirror._client(uri).list_artifacts(run.info.run_id, "curves")
    assert [artifact.path for artifact in artifacts] == ["curves/curve.csv"]
    return run


@pytest.fixture
def artifact(folder):
    folder.parent.mkdir(parents=True)
    path = folder.parent / "curve.csv"
    path.write_text("x,y\n")
    return path


def test_a_job_is_mirrored_whole(uri, folder, artifact):
    with tracker_of(uri, folder) as tracker:
        assert runs_of(uri)[0].info.status == "RUNNING"
        tell(tracker, artifact)
    assert check_told(uri).info.status == "FINISHED"
    assert list(folder.iterdir()) == [], "an outbox stays behind though all arrived"


def test_a_dead_server_never_fails_a_job_and_sync_sends_all_of_it_once(uri, folder, artifact, caplog):
    started = time.monotonic()
    with tracker_of(DEAD, folder) as tracker:
        tell(tracker, artifact)
    assert time.monotonic() - started < 10
    assert "http://***@127.0.0.1:9 cannot be reached" in caplog.text
    assert "sanflow track sync" in caplog.text
    assert "secret" not in caplog.text
    (name,) = pending(folder)
    kept = (folder / f"{name}.jsonl").read_bytes(), (folder / f"{name}.run.json").read_bytes()

    assert [delivery.problem for delivery in sync(uri, folder)] == [None]
    assert check_told(uri).info.status == "FINISHED"
    assert pending(folder) == []

    # As if the machine had died after the last event arrived and before the outbox was removed.
    (folder / f"{name}.jsonl").write_bytes(kept[0])
    (folder / f"{name}.run.json").write_bytes(kept[1])
    mirror._run_ids.clear()
    assert [delivery.problem for delivery in sync(uri, folder)] == [None]
    assert check_told(uri).info.status == "FINISHED"


def test_results_may_move_before_they_are_sent(uri, folder, artifact, tmp_path):
    with tracker_of(DEAD, folder) as tracker:
        tell(tracker, artifact)
    (tmp_path / "results").rename(tmp_path / "elsewhere")
    list(sync(uri, tmp_path / "elsewhere" / "bench" / "tracking"))
    check_told(uri)


def _log_and_hang(uri, folder, started):
    tracker = tracker_of(uri, folder)
    tracker.log_metrics({"train/loss": 1.0}, step=0)
    started.set()
    signal.pause()


def killed_job(uri, folder):
    context = multiprocessing.get_context("fork")
    started = context.Event()
    process = context.Process(target=_log_and_hang, args=(uri, folder, started))
    process.start()
    assert started.wait(60)
    running = list(sync(uri, folder))
    process.kill()
    process.join()
    return running


def test_a_killed_job_is_told_as_killed_and_resumes_its_run(uri, folder):
    running = killed_job(uri, folder)
    assert [delivery.running for delivery in running] == [True], "the outbox of a live job is left alone"
    assert [run.info.status for run in runs_of(uri)] == ["RUNNING"]
    list(sync(uri, folder))
    assert [run.info.status for run in runs_of(uri)] == ["KILLED"]
    with tracker_of(uri, folder) as tracker:
        assert [run.info.status for run in runs_of(uri)] == ["RUNNING"]
        tracker.log_metrics({"train/loss": 0.5}, step=1)
    (run,) = runs_of(uri)
    assert run.info.status == "FINISHED"
    assert history(uri, run, "train/loss") == [(0, 1.0), (1, 0.5)]


def test_epochs_that_are_trained_again_after_a_kill_are_told_once(uri, folder):
    for first, last in ((0, 3), (1, 5)):  # the second attempt goes on from the state after epoch 0
        mirror._run_ids.clear()
        mirror._told.clear()
        with tracker_of(uri, folder) as tracker:
            for epoch in range(first, last):
                tracker.log_metrics({"train/loss": 1 / (1 + epoch)}, step=epoch)
    (run,) = runs_of(uri)
    assert history(uri, run, "train/loss") == [(epoch, 1 / (1 + epoch)) for epoch in range(5)]


def test_the_next_attempt_sends_what_the_killed_one_could_not(uri, folder):
    killed_job(DEAD, folder)
    with tracker_of(uri, folder) as tracker:
        tracker.log_metrics({"train/loss": 0.5}, step=1)
    (run,) = runs_of(uri)
    assert history(uri, run, "train/loss") == [(0, 1.0), (1, 0.5)]
    assert run.info.status == "FINISHED"


@pytest.mark.parametrize(
    ("error", "status"), [(ValueError, "FAILED"), (KeyboardInterrupt, "KILLED"), (SystemExit, "KILLED")]
)
def test_a_run_ends_with_the_truth(uri, folder, error, status):
    with pytest.raises(error), tracker_of(uri, folder):
        raise error
    assert runs_of(uri)[0].info.status == status


def test_an_old_outbox_does_not_overrule_a_later_attempt(uri, folder, tmp_path):
    with pytest.raises(ValueError), tracker_of(DEAD, folder):
        raise ValueError
    old = tmp_path / "old"
    folder.rename(old)
    time.sleep(0.01)
    with tracker_of(uri, folder):
        pass
    list(sync(uri, old))
    assert [run.info.status for run in runs_of(uri)] == ["FINISHED"]


def test_steps_of_a_unit_share_a_run_and_another_configuration_is_another_run(uri, folder):
    for stage, digest in [("train", "a" * 64), ("evaluate", "a" * 64), ("train", "b" * 64)]:
        with tracker_of(uri, folder, stage=stage, digest=digest):
            pass
    assert len(runs_of(uri)) == 2


def test_a_job_may_only_keep_its_events_for_later(uri, folder):
    with tracker_of(uri, folder, stage="evaluate", send=False) as tracker:
        tracker.log_metrics({"test/aupro": 0.75}, step=0)
    assert runs_of(uri) == []
    list(sync(uri, folder))
    (run,) = runs_of(uri)
    assert (run.data.metrics, run.info.status) == ({"test/aupro": 0.75}, "FINISHED")


def test_parameters_that_changed_are_refused_with_a_warning_and_block_nothing(uri, folder, caplog):
    for epochs in (1, 2):
        with tracker_of(uri, folder) as tracker:
            tracker.log_params({"epochs": epochs})
    assert "parameters refused" in caplog.text
    assert runs_of(uri)[0].data.params == {"epochs": "1"}
    assert pending(folder) == []


def test_more_values_than_one_request_may_hold(uri, folder):
    with tracker_of(uri, folder) as tracker:
        tracker.log_params({f"p{number}": "x" * 9000 for number in range(150)})
        tracker.log_metrics({f"m/{number}": number for number in range(900)}, step=0)
    (run,) = runs_of(uri)
    assert (len(run.data.params), len(run.data.metrics)) == (150, 900)


def test_a_missing_artifact_warns(uri, folder, tmp_path, caplog):
    with tracker_of(uri, folder) as tracker:
        tracker.log_artifact(tmp_path / "gone.png")
    assert "gone.png is gone and cannot be mirrored" in caplog.text
    assert runs_of(uri)[0].info.status == "FINISHED"


def test_a_full_disk_warns(folder, monkeypatch, caplog):
    def full(self, event):
        raise StorageError("No space left on the device")

    monkeypatch.setattr(Outbox, "append", full)
    with tracker_of(DEAD, folder) as tracker:
        tracker.log_metrics({"train/loss": 1.0}, step=0)
    assert "an event could not be kept: No space left" in caplog.text


def test_a_folder_that_cannot_be_made_turns_tracking_off(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="Not a directory"):
        Outbox(tmp_path / "file" / "tracking", "x", {})
    assert isinstance(tracker_of(DEAD, tmp_path / "file" / "tracking"), NullTracker)
    assert "Tracking is off for this job" in caplog.text


def test_two_live_jobs_cannot_share_an_outbox(folder, caplog):
    first = Outbox(folder, "x", {"key": "k"})
    with pytest.raises(StorageError, match=r"x\.lock to be free, but a running process holds it"):
        Outbox(folder, "x", {"key": "k"})
    first.close(empty=True)
    with tracker_of(DEAD, folder, send=False):
        assert isinstance(tracker_of(DEAD, folder), NullTracker)
    assert "Tracking is off for this job" in caplog.text


def test_half_a_line_of_a_killed_job_spoils_nothing(folder):
    outbox = Outbox(folder, "x", {"key": "k"})
    outbox.append({"kind": "tags", "values": {"a": "1"}})
    with open(outbox.path, "a") as file:
        file.write('{"kind": "tags", "val')
    outbox.append({"kind": "tags", "values": {"b": "2"}})
    assert [event["values"] for event in outbox.read()] == [{"a": "1"}, {"b": "2"}]


def test_a_damaged_outbox_is_named_and_the_others_are_sent(uri, folder):
    with tracker_of(uri, folder, send=False):
        pass
    (folder / "0.run.json").write_text("{")
    deliveries = {delivery.name: delivery.problem for delivery in sync(uri, folder)}
    assert "0.run.json" in deliveries.pop("0")
    assert list(deliveries.values()) == [None]


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


def test_unreachable_knows_files_from_servers():
    assert unreachable("sqlite:////tmp/x.db") is None
    assert unreachable("databricks") is None
    assert "127.0.0.1:9 does not answer" in unreachable("http://127.0.0.1:9")


def test_an_address_that_is_none_warns_and_shows_no_password(folder, caplog):
    uri = "postgresql://ada:se/cr@et@db/runs"
    assert "no valid address" in unreachable(uri)
    with tracker_of(uri, folder) as tracker:
        tracker.log_metrics({"train/loss": 1.0}, step=0)
    assert "no valid address" in caplog.text
    assert "cr@et" not in caplog.text
    assert "no valid address" in mirror.initialise(uri, folder)


def test_settings_are_flattened():
    assert flattened({"a": {"b": {"c": None}}, "d": [[1, 2], "x"]}) == {"a.b.c": "None", "d": "[1, 2], x"}


def test_without_a_uri_nothing_happens(tmp_path, monkeypatch):
    monkeypatch.delenv("SANFLOW_TRACKING_URI", raising=False)
    assert isinstance(job_tracker(tmp_path / "t", unit=UNIT, digest="d", stage="train"), NullTracker)
    monkeypatch.setenv("SANFLOW_TRACKING_URI", "")
    assert isinstance(job_tracker(tmp_path / "t", unit=UNIT, digest="d", stage="train"), NullTracker)
    monkeypatch.setenv("SANFLOW_TRACKING_URI", DEAD)
    assert isinstance(job_tracker(None, unit=UNIT, digest="d", stage="train"), NullTracker)
    with job_tracker(tmp_path / "t", unit=UNIT, digest="d", stage="train", send=False) as tracker:
        assert isinstance(tracker, MlflowTracker)
    nothing = NullTracker()
    nothing.log_model(tmp_path / "x", tmp_path / "y", "d", (64, 64))
    tell(nothing, tmp_path / "x")
    nothing.finish()
    assert not (tmp_path / "x").exists()


def test_the_null_tracker_takes_all_that_a_tracker_takes():
    public = {name for name in vars(Tracker) if name.startswith(("log_", "finish", "__enter__", "__exit__"))}
    assert public <= set(vars(NullTracker))
    assert public <= set(vars(MlflowTracker))


def test_no_telemetry_and_no_inherited_run(uri, monkeypatch):
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)
    mirror._client.cache_clear()
    mirror._client(uri)
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert "MLFLOW_RUN_ID" not in os.environ


@pytest.fixture
def benchmark_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # Restored after the test: the commands set it for their own process.
    monkeypatch.setenv("SANFLOW_TRACKING_URI", "")
    path = tmp_path / "bench.yaml"
    path.write_text(
        "title: a title\ndatasets: {photo_textures: {categories: [brick]}}\n"
        "experiments: {sanflow: {method: sanflow, encoder: timm/resnet18.tv_in1k}}\n"
    )
    return path


def track(*arguments):
    result = CliRunner().invoke(app, ["track", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_jobs_nest_in_the_benchmark_and_publish_ends_it(uri, folder, benchmark_file):
    track("init", benchmark_file, "--uri", uri)
    (parent,) = runs_of(uri)
    assert (parent.info.run_name, parent.info.status) == ("bench", "RUNNING")
    assert parent.data.params["experiments"] == "sanflow"
    with tracker_of(uri, folder):
        pass
    run_folder = folder.parent / "photo_textures" / "brick" / "sanflow" / "seed0"
    run_folder.mkdir(parents=True)
    (run_folder / "metrics.json").write_text(json.dumps({"image_auroc": 0.5, "pixel_auroc": 0.75, "aupro": None}))
    for file in ("tables/overview.csv", "figures/grid/brick.png"):
        (folder.parent / file).parent.mkdir(parents=True)
        (folder.parent / file).write_text("x")
    track("publish", benchmark_file, "--uri", uri)
    parent, child = runs_of(uri)
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert parent.info.status == "FINISHED"
    assert parent.data.metrics == {"sanflow/image_auroc": 0.5, "sanflow/pixel_auroc": 0.75}
    client = mirror._client(uri)
    assert [item.path for item in client.list_artifacts(parent.info.run_id, "tables")] == ["tables/overview.csv"]
    assert [item.path for item in client.list_artifacts(parent.info.run_id, "figures/grid")] == [
        "figures/grid/brick.png"
    ]
    track("init", benchmark_file, "--uri", uri)
    assert [run.info.status for run in runs_of(uri)] == ["RUNNING", "FINISHED"]
    track("publish", benchmark_file, "--uri", uri, "--failed")
    assert [run.info.status for run in runs_of(uri)] == ["FAILED", "FINISHED"]


def test_init_and_sync_survive_a_dead_server(uri, folder, benchmark_file):
    output = track("init", benchmark_file, "--uri", DEAD)
    assert "http://***@127.0.0.1:9 cannot be reached" in output
    with tracker_of(DEAD, folder):
        pass
    assert "2 outboxes wait in" in track("sync", benchmark_file, "--uri", DEAD)
    assert "2 outboxes wait in" in track("publish", benchmark_file, "--uri", DEAD)
    assert "Sent 3 outboxes to sqlite" in track("sync", benchmark_file, "--uri", uri)
    assert [run.info.status for run in runs_of(uri)] == ["FINISHED", "FINISHED"]


def test_sync_says_that_nothing_waits(uri, benchmark_file):
    assert "Nothing waits to be sent" in track("sync", benchmark_file, "--uri", uri)


def test_results_without_their_outline_can_be_published(uri, folder, benchmark_file):
    track("publish", benchmark_file, "--uri", uri)
    (parent,) = runs_of(uri)
    assert (parent.info.run_name, parent.info.status) == ("bench", "FINISHED")
    track("init", benchmark_file, "--uri", uri)
    assert [run.info.status for run in runs_of(uri)] == ["RUNNING"]


def test_a_benchmarks_own_run_needs_its_outline(uri, folder, caplog):
    assert isinstance(tracker_of(uri, folder, unit=""), NullTracker)
    assert "Expected benchmark.json in" in caplog.text
    assert "Run `sanflow track init`" in caplog.text


def test_sync_says_that_the_mirror_is_off(benchmark_file):
    assert "The mirror is off" in track("sync", benchmark_file)


def test_warnings_are_logged_not_printed(folder, caplog, capsys):
    with caplog.at_level(logging.WARNING), tracker_of(DEAD, folder):
        pass
    assert caplog.records
    assert capsys.readouterr().out == ""
