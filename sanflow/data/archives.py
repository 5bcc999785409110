"""Unpack an archive that is not trusted: only plain files and folders, only inside its folder, only up to a limit.

Refused, before the first byte of the member in question is written: absolute names, `..`, backslashes and drive
letters, links of any kind, devices, a file twice, encrypted members, and more bytes or files than allowed. A refusal
removes everything that was written.
"""

import lzma
import re
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from sanflow.errors import DataError
from sanflow.files import require_free_space, storage_errors

CHUNK = 2**20
ZIP_STARTS = (b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08")
MOST_FILES = 2_000_000
LARGEST_EXPANSION = 50  # images hardly compress, masks do
ALWAYS_ALLOWED = 256 * 2**20

Report = Callable[[int, int | None], None]
DAMAGE = (tarfile.TarError, zipfile.BadZipFile, lzma.LZMAError, zlib.error, EOFError, OSError, NotImplementedError)


@dataclass(frozen=True)
class Member:
    """One file or folder of an archive, as the archive claims it."""

    name: str
    is_folder: bool
    size: int
    open: Callable[[], IO[bytes]]


def unpack(
    archive: Path,
    folder: Path,
    *,
    expected_bytes: int | None = None,
    most_bytes: int | None = None,
    most_files: int = MOST_FILES,
    report: Report | None = None,
) -> int:
    """Unpack a .zip or .tar (plain, gz, bz2, xz) into a new folder.

    Arguments:
        archive: The file; its kind is recognised by its content.
        folder: Folder to make; must not exist.
        expected_bytes: Unpacked size, where known: for the check of free space and the progress bar.
        most_bytes: More unpacked bytes than this are refused; 50 times the archive's size if unset.
        most_files: More files than this are refused.
        report: Called with the unpacked bytes so far and in all.

    Returns:
        Number of files.

    Raises:
        DataError: If the archive is damaged, of another kind, or hostile; `folder` is then removed.
        StorageError: If there is no space.
    """
    archive_bytes = archive.stat().st_size
    limit = most_bytes or max(LARGEST_EXPANSION * archive_bytes, ALWAYS_ALLOWED)
    require_free_space(folder.parent, expected_bytes or archive_bytes, f"the unpacked {archive.name}")
    folder.mkdir(parents=True)
    written, n_files = 0, 0
    try:
        for member in _members(archive):
            target = folder / _safe_name(member, archive)
            if member.is_folder:
                target.mkdir(parents=True, exist_ok=True)
                continue
            n_files += 1
            if n_files > most_files:
                raise DataError(_refusal(archive, f"more than {most_files} files"))
            if written + member.size > limit:
                raise DataError(_refusal(archive, f"files of more than {limit / 1e9:.2f} GB in all"))
            written += _write(member, target, archive, limit - written)
            if report:
                report(written, expected_bytes)
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, DAMAGE) and getattr(error, "errno", None) is None:
            raise DataError(f"Expected a whole archive in {archive}, but got: {error}. Fetch it again.") from error
        raise
    return n_files


def _members(archive: Path) -> Iterator[Member]:
    """Yield the members in the order of the archive; refuse what is neither file nor folder."""
    # Look at the first bytes: a zip is usually recognised by its end, which a .tar has too if its last member is a zip.
    if _head(archive).startswith(ZIP_STARTS):
        return _zip_members(archive)
    if tarfile.is_tarfile(archive):
        return _tar_members(archive)
    if zipfile.is_zipfile(archive):  # a self-extracting archive begins with a program
        return _zip_members(archive)
    raise DataError(
        f"Expected a .zip or .tar archive in {archive}, but it begins with {_head(archive)!r}. Fetch it again."
    )


def _zip_members(archive: Path) -> Iterator[Member]:
    with zipfile.ZipFile(archive) as file:
        for info in file.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)
            if kind not in {0, stat.S_IFREG, stat.S_IFDIR}:
                raise DataError(_refusal(archive, f"{info.filename!r}, a link or device"))
            if info.flag_bits & 1:
                raise DataError(_refusal(archive, f"{info.filename!r}, which is encrypted"))
            # `orig_filename` is the name in the archive; zipfile's cleaned name would hide a malicious one.
            yield Member(info.orig_filename, info.is_dir(), info.file_size, lambda info=info: file.open(info))  # type: ignore[misc]


def _tar_members(archive: Path) -> Iterator[Member]:
    with tarfile.open(archive) as file:
        for info in file:
            if not (info.isreg() or info.isdir()):
                raise DataError(_refusal(archive, f"{info.name!r}, a link or device"))
            yield Member(info.name, info.isdir(), info.size, lambda info=info: _content(file, info))  # type: ignore[misc]


def _content(file: tarfile.TarFile, info: tarfile.TarInfo) -> IO[bytes]:
    content = file.extractfile(info)
    assert content is not None
    return content


def _safe_name(member: Member, archive: Path) -> PurePosixPath:
    name = member.name
    path = PurePosixPath(name)
    hostile = path.is_absolute() or ".." in path.parts or "\\" in name or re.match(r"[A-Za-z]:", name)
    if hostile or "\0" in name or (not path.parts and not member.is_folder):
        raise DataError(_refusal(archive, f"{name!r}, which points outside of its folder"))
    return path


def _write(member: Member, target: Path, archive: Path, room: int) -> int:
    """Write one file; count the bytes that are unpacked, because the archive's number may be wrong."""
    target.parent.mkdir(parents=True, exist_ok=True)
    written = 0
    with storage_errors(target), _new_file(target, member, archive) as output, member.open() as content:
        while chunk := content.read(CHUNK):
            written += len(chunk)
            if written > room:
                raise DataError(_refusal(archive, f"{member.name!r}, which grows beyond the limit"))
            output.write(chunk)
    return written


def _new_file(target: Path, member: Member, archive: Path) -> IO[bytes]:
    try:
        return open(target, "xb")
    except (FileExistsError, IsADirectoryError) as error:
        raise DataError(_refusal(archive, f"{member.name!r} twice")) from error


def _refusal(archive: Path, what: str) -> str:
    return (
        f"Expected an archive of plain files and folders in {archive}, but it holds {what}. Nothing of it was kept. "
        "It is not the data set: fetch it from another mirror."
    )


def _head(archive: Path) -> bytes:
    with open(archive, "rb") as file:
        return file.read(16)
