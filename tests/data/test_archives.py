"""Hostile and damaged archives: each is refused, and nothing of it is kept."""

import io
import stat
import tarfile
import zipfile

import pytest

from sanflow.data.archives import unpack
from sanflow.errors import DataError, StorageError


def make_tar(path, *members: tuple[str, bytes | dict], mode: str = "w:gz"):
    with tarfile.open(path, mode) as file:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if isinstance(content, dict):
                for key, value in content.items():
                    setattr(info, key, value)
                file.addfile(info)
            else:
                info.size = len(content)
                file.addfile(info, io.BytesIO(content))
    return path


def make_zip(path, *members: tuple[str, bytes], mode: int = 0):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members:
            info = zipfile.ZipInfo("placeholder")
            info.filename = name
            info.external_attr = mode << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            file.writestr(info, content)
    return path


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_a_good_tar_is_unpacked(tmp_path, mode):
    archive = make_tar(tmp_path / "a", ("top", {"type": tarfile.DIRTYPE}), ("top/b/c.txt", b"hello"), mode=mode)
    assert unpack(archive, tmp_path / "out") == 1
    assert (tmp_path / "out/top/b/c.txt").read_bytes() == b"hello"


def test_a_good_zip_is_unpacked_and_progress_reported(tmp_path):
    seen = []
    archive = make_zip(tmp_path / "a", ("top/", b""), ("top/b.txt", b"hello"), ("top/c.txt", b"you"))
    assert unpack(archive, tmp_path / "out", expected_bytes=8, report=lambda *now: seen.append(now)) == 2
    assert (tmp_path / "out/top/b.txt").read_bytes() == b"hello"
    assert seen == [(5, 8), (8, 8)]


OUTSIDE = ["../evil.txt", "a/../../evil.txt", "/tmp/evil.txt", "C:\\evil.txt", "a\\..\\..\\evil.txt", "C:/evil.txt"]


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize("make", [make_tar, make_zip])
def test_a_path_out_of_the_folder_is_refused(tmp_path, make, name):
    archive = make(tmp_path / "a", ("good.txt", b"good"), (name, b"evil"))
    _refused(archive, tmp_path, "points outside of its folder")


@pytest.mark.parametrize(
    "kind",
    [
        {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"},
        {"type": tarfile.SYMTYPE, "linkname": "good.txt"},
        {"type": tarfile.LNKTYPE, "linkname": "good.txt"},
        {"type": tarfile.CHRTYPE},
        {"type": tarfile.FIFOTYPE},
    ],
)
def test_links_and_devices_in_a_tar_are_refused(tmp_path, kind):
    _refused(make_tar(tmp_path / "a", ("good.txt", b"good"), ("link", kind)), tmp_path, "'link', a link or device")


def test_a_symlink_in_a_zip_is_refused(tmp_path):
    archive = make_zip(tmp_path / "a", ("link", b"/etc/passwd"), mode=stat.S_IFLNK | 0o777)
    _refused(archive, tmp_path, "'link', a link or device")


@pytest.mark.parametrize("make", [make_tar, make_zip])
def test_a_bomb_is_refused(tmp_path, make):
    archive = make(tmp_path / "a", ("good.txt", b"good"), ("zeros", bytes(5_000_000)))
    assert archive.stat().st_size < 20_000
    with pytest.raises(DataError, match=r"files of more than 0\.00 GB in all"):
        unpack(archive, tmp_path / "out", most_bytes=1_000_000)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]


def test_a_bomb_that_lies_about_its_size_is_refused(tmp_path):
    archive = make_zip(tmp_path / "a", ("zeros", bytes(5_000_000)))
    data = bytearray(archive.read_bytes())
    # The size stands in the local header and in the directory at the end.
    while (place := data.find((5_000_000).to_bytes(4, "little"))) >= 0:
        data[place : place + 4] = (1000).to_bytes(4, "little")
    archive.write_bytes(data)
    with pytest.raises(DataError):
        unpack(archive, tmp_path / "out", most_bytes=1_000_000)
    assert not (tmp_path / "out").exists()


def test_the_default_limit_allows_masks_but_no_bomb(tmp_path, monkeypatch):
    monkeypatch.setattr("sanflow.data.archives.ALWAYS_ALLOWED", 0)
    archive = make_zip(tmp_path / "a", ("zeros", bytes(5_000_000)))
    _refused(archive, tmp_path, "files of more than")


def test_too_many_files_are_refused(tmp_path):
    archive = make_zip(tmp_path / "a", *((f"{i}.txt", b"") for i in range(11)))
    with pytest.raises(DataError, match="more than 10 files"):
        unpack(archive, tmp_path / "out", most_files=10)


@pytest.mark.parametrize("make", [make_tar, make_zip])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_file_twice_is_refused(tmp_path, make):
    _refused(make(tmp_path / "a", ("x/a.txt", b"1"), ("x/a.txt", b"2")), tmp_path, "'x/a.txt' twice")


def test_an_encrypted_member_is_refused(tmp_path):
    archive = make_zip(tmp_path / "a", ("secret.txt", b"secret"))
    data = bytearray(archive.read_bytes())
    data[6] |= 1  # flag in the local header
    data[data.find(b"PK\x01\x02") + 8] |= 1  # and in the directory
    archive.write_bytes(data)
    _refused(archive, tmp_path, "'secret.txt', which is encrypted")


@pytest.mark.parametrize("mode", ["w:gz", "w:xz", "zip"])
def test_a_damaged_archive_is_refused(tmp_path, mode):
    content = bytes(range(256)) * 400
    members = (("a.txt", content), ("b.txt", content[::-1]))
    archive = make_zip(tmp_path / "a", *members) if mode == "zip" else make_tar(tmp_path / "a", *members, mode=mode)
    data = archive.read_bytes()
    if mode == "zip":  # a bit flips
        archive.write_bytes(data[:300] + bytes([data[300] ^ 255]) + data[301:])
    else:  # the end is missing
        archive.write_bytes(data[: len(data) // 2])
    _refused(archive, tmp_path, "Expected a whole archive")


def test_another_kind_of_file_is_named(tmp_path):
    (tmp_path / "a").write_bytes(b"<html>log in</html>")
    _refused(tmp_path / "a", tmp_path, "begins with b'<html>log in</ht'")


def test_space_is_checked_first(tmp_path):
    archive = make_zip(tmp_path / "a", ("a.txt", b"1"))
    with pytest.raises(StorageError, match="for the unpacked a"):
        unpack(archive, tmp_path / "out", expected_bytes=10**18)
    assert not (tmp_path / "out").exists()


def _refused(archive, folder, message: str) -> None:
    with pytest.raises(DataError) as caught:
        unpack(archive, folder / "out")
    assert message in str(caught.value)
    assert sorted(path.name for path in folder.iterdir()) == ["a"]


def test_a_tar_that_ends_with_a_zip_is_a_tar(tmp_path):
    """A zip is known by its end: here the end of the tar's last member, padded."""
    inner = make_zip(tmp_path / "inner.zip", ("deep.txt", b"deep"))
    archive = make_tar(tmp_path / "a.tar", ("top.txt", b"top"), ("inner.zip", inner.read_bytes()), mode="w")
    assert zipfile.is_zipfile(archive)
    assert unpack(archive, tmp_path / "out") == 2
    assert (tmp_path / "out/inner.zip").read_bytes() == inner.read_bytes()


def test_a_zip_that_holds_a_tar_and_one_that_begins_with_a_program_are_zips(tmp_path):
    inner = make_tar(tmp_path / "inner.tar", ("deep.txt", b"deep"), mode="w")
    archive = make_zip(tmp_path / "a.zip", ("inner.tar", inner.read_bytes()))
    assert unpack(archive, tmp_path / "out") == 1
    assert (tmp_path / "out/inner.tar").read_bytes() == inner.read_bytes()
    (tmp_path / "program").write_bytes(b"MZ program" + archive.read_bytes())
    assert unpack(tmp_path / "program", tmp_path / "more") == 1
