"""Files are written whole or not at all, and a full or read-only disk is told in plain words."""

import errno

import pytest

from sanflow import files
from sanflow.errors import IntegrityError, StorageError
from sanflow.files import (
    atomic_path,
    read_json,
    require_free_space,
    resource,
    sha256_of_file,
    storage_errors,
    write_json,
)


def test_json_survives_the_round_trip_and_nan_becomes_null(tmp_path):
    path = tmp_path / "new folder" / "ä.json"
    write_json(path, {"a": [1, float("nan"), (2,)], 3: "ü"})
    assert read_json(path) == {"a": [1, None, [2]], "3": "ü"}


def test_a_failed_write_leaves_the_old_file_and_no_temporary(tmp_path):
    path = tmp_path / "value.json"
    write_json(path, 1)

    def write_half():
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write_half()
    assert read_json(path) == 1
    assert [file.name for file in tmp_path.iterdir()] == ["value.json"]


def test_the_temporary_keeps_the_suffix(tmp_path):
    with atomic_path(tmp_path / "scores.npz") as temporary:
        assert temporary.suffix == ".npz"
        temporary.touch()


@pytest.mark.parametrize(
    ("code", "message"), [(errno.ENOSPC, "No space left"), (errno.EROFS, "Expected to be able to write")]
)
def test_disk_faults_name_the_file(tmp_path, code, message):
    with pytest.raises(StorageError, match=f"{message}.*checkpoint.pt"), storage_errors(tmp_path / "checkpoint.pt"):
        raise OSError(code, "as the system says it")


def test_other_faults_pass_through(tmp_path):
    with pytest.raises(FileNotFoundError), storage_errors(tmp_path):
        (tmp_path / "absent").read_text()


def test_damaged_json_is_named(tmp_path):
    (tmp_path / "metrics.json").write_text('{"image_auroc": 0.9')
    with pytest.raises(IntegrityError, match=r"metrics\.json, but it is damaged.*Delete it"):
        read_json(tmp_path / "metrics.json")


def test_free_space_is_checked_where_the_folder_will_be(tmp_path):
    require_free_space(tmp_path / "not" / "yet", 1, "nothing much")
    with pytest.raises(StorageError, match=r"1000000\.00 GB free in .* for the archive of x"):
        require_free_space(tmp_path, 10**15, "the archive of x")


def test_sha256_of_the_empty_file_is_the_known_one(tmp_path):
    (tmp_path / "empty").touch()
    assert sha256_of_file(tmp_path / "empty").startswith("e3b0c44298fc1c149afbf4c8996fb924")


def test_resources_are_found_in_the_checkout_and_in_the_wheel(tmp_path, monkeypatch):
    package = tmp_path / "site-packages" / "sanflow"
    (package / "resources").mkdir(parents=True)
    (package / "resources" / "datasets.yaml").touch()
    monkeypatch.setattr(files, "__file__", str(package / "files.py"))
    assert resource("datasets.yaml") == package / "resources" / "datasets.yaml"
    assert resource("other.yaml") == tmp_path / "site-packages" / "resources" / "other.yaml"
