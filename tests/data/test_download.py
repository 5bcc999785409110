"""A data set is whole at its place or absent, wherever it comes from."""

import io
import json
import shutil
import threading

import pytest
from rich.console import Console

import sanflow.data.download as module
from sanflow.data.download import MARKER, dataset_folder, download
from sanflow.data.fetch import Patience
from sanflow.data.registry import load_registry
from sanflow.errors import ConfigError, DataError, IntegrityError, StorageError
from sanflow.files import sha256_of_file
from tests.helpers.miniatures import mvtec, tarred

HASTY = Patience(attempts=2, connect_seconds=1, stall_seconds=1, first_wait=0.001, longest_wait=0.01)


@pytest.fixture
def archive(tmp_path, monkeypatch):
    """An archive of MVTec AD's miniature, whose hash the registry now expects."""
    mvtec(tmp_path / "source")
    path = tarred(tmp_path / "source", tmp_path / "mvtec_anomaly_detection.tar.xz")
    expect(monkeypatch, sha256=sha256_of_file(path), size=path.stat().st_size, unpacked_bytes=None)
    return path


def expect(monkeypatch, name: str = "mvtec_ad", **facts) -> None:
    monkeypatch.setitem(load_registry(), name, load_registry()[name].model_copy(update=facts))


def quiet() -> Console:
    return Console(file=io.StringIO(), width=200)


def tree(folder) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} - {MARKER}


def test_an_archive_is_unpacked_once_and_its_licence_shown_once(archive, tmp_path):
    console = quiet()
    marker = download("mvtec_ad", tmp_path / "data", mirrors=[str(archive)], console=console)
    assert marker == tmp_path / "data/mvtec_ad" / MARKER
    assert tree(marker.parent) == tree(tmp_path / "source")
    assert json.loads(marker.read_text())["sha256"] == sha256_of_file(archive)
    assert dataset_folder("mvtec_ad", tmp_path / "data") == marker.parent
    archive.unlink()
    before = marker.stat().st_mtime_ns
    download("mvtec_ad", tmp_path / "data", mirrors=[str(archive)], console=console)
    assert marker.stat().st_mtime_ns == before
    text = console.file.getvalue()
    assert text.count("licence: CC BY-NC-SA 4.0") == 1
    assert text.count("please cite: P. Bergmann") == 1


def test_over_http_with_a_dead_mirror_first(archive, tmp_path):
    from tests.data.test_fetch import Handler

    with module_server(Handler) as httpd:
        httpd.scripts["/mvtec.tar.xz"] = lambda handler, n: handler.serve(archive.read_bytes())
        httpd.scripts["/dead"] = lambda handler, n: handler.answer(404)
        base = f"http://127.0.0.1:{httpd.server_port}"
        mirrors = [f"{base}/dead", f"{base}/mvtec.tar.xz"]
        marker = download("mvtec_ad", tmp_path / "data", mirrors=mirrors, patience=HASTY, console=quiet())
    assert tree(marker.parent) == tree(tmp_path / "source")
    kept = tmp_path / "data/.archives/mvtec_anomaly_detection.tar.xz"
    assert kept.read_bytes() == archive.read_bytes()
    # A second data root finds nothing; the same one unpacks the kept archive again without a connection.
    shutil.rmtree(marker.parent)
    download("mvtec_ad", tmp_path / "data", offline=True, console=quiet())
    assert tree(marker.parent) == tree(tmp_path / "source")


def module_server(handler):
    import http.server

    class Server(http.server.ThreadingHTTPServer):
        daemon_threads = True

        def __enter__(self):
            threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
            return self

        def __exit__(self, *_):
            self.shutdown()
            self.server_close()

    server = Server(("127.0.0.1", 0), handler)
    server.scripts, server.requests = {}, {}
    return server


@pytest.mark.parametrize("as_address", [False, True])
def test_a_local_folder_is_used_where_it_lies(tmp_path, as_address):
    mirror = tmp_path / "somewhere else, 100%25"
    mvtec(mirror / "mvtec")
    marker = download(
        "mvtec_ad", tmp_path / "data", mirrors=[mirror.as_uri() if as_address else str(mirror)], console=quiet()
    )
    assert tree(marker.parent) == set()
    assert dataset_folder("mvtec_ad", tmp_path / "data") == mirror


def test_a_local_folder_that_holds_the_archive(archive, tmp_path):
    marker = download("mvtec_ad", tmp_path / "data", mirrors=[str(tmp_path)], console=quiet())
    assert tree(marker.parent) == tree(tmp_path / "source")


def test_a_folder_with_other_data_is_refused(tmp_path):
    mvtec(tmp_path / "source", category="bolt")
    with pytest.raises(DataError, match=r"a path bottle/train/good \(or 14 more\) in it"):
        download("mvtec_ad", tmp_path / "data", mirrors=[str(tmp_path / "source")], console=quiet())
    assert not (tmp_path / "data/mvtec_ad").exists()


def test_a_local_archive_with_another_hash_is_refused(archive, tmp_path):
    archive.write_bytes(archive.read_bytes() + b"x")
    with pytest.raises(DataError, match=r"(?s)correct `mirrors` .*has sha256 [0-9a-f]{64}, not"):
        download("mvtec_ad", tmp_path / "data", mirrors=[archive.as_uri()], console=quiet())
    assert not (tmp_path / "data/mvtec_ad").exists()


def test_offline_opens_no_connection_and_says_what_to_do(tmp_path):
    with pytest.raises(DataError, match="offline, so nothing is fetched") as caught:
        download("mvtec_ad", tmp_path, offline=True, console=quiet())
    assert f"put the archive at {tmp_path}/.archives/mvtec_anomaly_detection.tar.xz" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "source"),
    [("mpdd", "vutbr-my.sharepoint.com"), ("shanghaitech_campus", "svip-lab.github.io/dataset/campus_dataset.html")],
)
def test_a_manual_data_set_says_from_where_and_where_to(name, source, tmp_path):
    entry = load_registry()[name]
    with pytest.raises(DataError, match=source) as caught:
        download(name, tmp_path, console=quiet())
    assert f"unpack it into {tmp_path}/{name} (so that {tmp_path}/{name}/{entry.probes[0]} exists)" in str(caught.value)
    assert f"put the archive at {tmp_path}/.archives/{entry.archive_name}" in str(caught.value)


def test_a_tree_that_its_owner_put_there_is_taken(tmp_path):
    mvtec(tmp_path / "data/mpdd/MPDD", "bracket_black")
    marker = download("mpdd", tmp_path / "data", offline=True, console=quiet())
    assert json.loads(marker.read_text())["files"] == 3 + 2 + 2 + 2
    assert dataset_folder("mpdd", tmp_path / "data") == tmp_path / "data/mpdd"


def test_an_interrupted_unpacking_is_redone(archive, tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    def killed(archive, folder, **_):
        (folder / "bottle/train/good").mkdir(parents=True)
        (folder / "bottle/train/good/000.png").write_bytes(b"half")
        raise Killed

    with monkeypatch.context() as context:
        context.setattr(module, "unpack", killed)
        with pytest.raises(Killed):
            download("mvtec_ad", tmp_path / "data", mirrors=[str(archive)], console=quiet())
    assert (tmp_path / "data/.mvtec_ad.unpacking").exists()  # as after SIGKILL
    assert not (tmp_path / "data/mvtec_ad").exists()
    marker = download("mvtec_ad", tmp_path / "data", mirrors=[str(archive)], console=quiet())
    assert tree(marker.parent) == tree(tmp_path / "source")
    assert not (tmp_path / "data/.mvtec_ad.unpacking").exists()


def test_a_tree_that_lost_files_is_made_anew(archive, tmp_path):
    marker = download("mvtec_ad", tmp_path / "data", mirrors=[str(archive)], console=quiet())
    (marker.parent / "bottle/test/good/000.png").unlink()
    download("mvtec_ad", tmp_path / "data", mirrors=[str(archive)], console=quiet())
    assert tree(marker.parent) == tree(tmp_path / "source")
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == [".mvtec_ad.lock", "mvtec_ad"]


def test_an_archive_of_other_content_leaves_nothing(tmp_path, monkeypatch):
    mvtec(tmp_path / "source", category="bolt")
    path = tarred(tmp_path / "source", tmp_path / "a.tar")
    expect(monkeypatch, sha256=sha256_of_file(path))
    with pytest.raises(DataError, match="a path bottle/train/good"):
        download("mvtec_ad", tmp_path / "data", mirrors=[str(path)], console=quiet())
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == [".mvtec_ad.lock"]


def test_the_built_in_set_is_made_and_made_anew_without_its_marker(tmp_path, monkeypatch):
    made = []
    monkeypatch.setitem(module.BUILTIN, "photo_textures", lambda root: (mvtec(root, "brick"), made.append(root)))
    marker = download("photo_textures", tmp_path)
    download("photo_textures", tmp_path)
    assert len(made) == 1
    marker.unlink()  # as Snakemake does before it runs a rule again
    (marker.parent / "brick/train/good/000.png").write_bytes(b"spoilt")
    download("photo_textures", tmp_path)
    assert len(made) == 2
    assert (marker.parent / "brick/train/good/000.png").read_bytes() != b"spoilt"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".photo_textures.lock", "photo_textures"]


def test_several_jobs_at_once_make_it_once(archive, tmp_path, monkeypatch):
    calls, unpack = [], module.unpack
    monkeypatch.setattr(module, "unpack", lambda *a, **k: (calls.append(1), unpack(*a, **k))[1])
    jobs = [
        threading.Thread(
            target=download,
            args=("mvtec_ad", tmp_path / "data"),
            kwargs={"mirrors": [str(archive)], "console": quiet()},
        )
        for _ in range(4)
    ]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    assert calls == [1]


def test_unknown_and_missing_data_sets(tmp_path):
    with pytest.raises(ConfigError, match="Did you mean 'mvtec_ad'"):
        download("mvtec-ad", tmp_path)
    with pytest.raises(DataError, match="Run `sanflow download visa`"):
        dataset_folder("visa", tmp_path)


def test_a_damaged_marker_is_named(tmp_path):
    (tmp_path / "visa").mkdir()
    (tmp_path / "visa" / MARKER).write_text("[]")
    with pytest.raises(IntegrityError, match=r"Expected `root` and `files` in .*\.sanflow\.json, but got \[\]"):
        download("visa", tmp_path)


def test_no_space_is_told_before_fetching(tmp_path, monkeypatch):
    expect(monkeypatch, size=10**18)
    with pytest.raises(StorageError, match="for the archive mvtec_anomaly_detection"):
        download("mvtec_ad", tmp_path, mirrors=["http://127.0.0.1:9/x"], patience=HASTY, console=quiet())


def test_a_part_that_its_owner_put_there_is_never_replaced(archive, tmp_path):
    """It lost a file since it was taken: the archive at hand is not unpacked over it."""
    mvtec(tmp_path / "data/mvtec_ad", "screw")
    download("mvtec_ad", tmp_path / "data", mirrors=[str(archive)], console=quiet())
    (tmp_path / "data/mvtec_ad/screw/test/good/000.png").unlink()
    (tmp_path / "data/mvtec_ad/mine.txt").write_text("keep")
    marker = download("mvtec_ad", tmp_path / "data", mirrors=[str(archive)], console=quiet())
    assert (marker.parent / "mine.txt").read_text() == "keep"
    assert json.loads(marker.read_text())["files"] == 3 + 1 + 2 + 2 + 1
    assert sorted(path.name for path in marker.parent.iterdir()) == [".sanflow.json", "mine.txt", "screw"]
