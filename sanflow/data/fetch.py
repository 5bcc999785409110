"""Fetch one file over HTTP so that it is complete or absent: retries, resuming, several mirrors, a hash at the end.

Received bytes are written to `<name>.part` beside the file; it is renamed only if its hash is right. The part of an
earlier run is continued. It is deleted if the server does not continue it or its hash is wrong.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
import tenacity
import urllib3

from sanflow.errors import DataError
from sanflow.files import require_free_space, sha256_of_file, storage_errors

CHUNK = 2**20
RETRIED_STATUS = {408, 425, 429, 500, 502, 503, 504}
RESERVE = 64 * 2**20  # free space left beside the file

Report = Callable[[int, int | None], None]


@dataclass(frozen=True)
class Patience:
    """How long to try."""

    attempts: int = 6
    connect_seconds: float = 15.0
    stall_seconds: float = 60.0
    first_wait: float = 1.0
    longest_wait: float = 60.0


class _Passing(Exception):
    """An error that may not occur at the next attempt."""


class _Final(Exception):
    """An error of this mirror that occurs at every attempt."""


def fetch(
    mirrors: Sequence[str],
    path: Path,
    *,
    sha256: str | None,
    size: int | None = None,
    patience: Patience | None = None,
    report: Report | None = None,
) -> str:
    """Fetch a file from the first mirror that gives all of it.

    Arguments:
        mirrors: http:// or https:// addresses, tried in order.
        path: Final path of the file; a file that is there already is kept if its hash is right.
        sha256: Expected hash of the file; None where nobody has published it (then nothing is resumed).
        size: Its bytes, where known: for the check of free space and the progress bar.
        patience: How often and how long to try each mirror.
        report: Called with the bytes so far and in all.

    Returns:
        The file's SHA-256.

    Raises:
        DataError: If no mirror gives the right file; gives the reason for each.
        StorageError: If there is no space.
    """
    patience = patience or Patience()
    if path.exists():
        found = sha256_of_file(path)
        if sha256 in {None, found}:
            return found
        path.unlink()
    part = path.with_name(path.name + ".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    if sha256 is None:
        part.unlink(missing_ok=True)
    if size is not None:
        done = part.stat().st_size if part.exists() else 0
        require_free_space(path.parent, max(0, size - done) + RESERVE, f"the archive {path.name}")
    failures = []
    for url in mirrors:
        try:
            found = _from_mirror(url, part, sha256, patience, report or _silent)
        except (_Final, _Passing) as error:
            failures.append(f"  - {url}: {error}")
            if sha256 is None:
                part.unlink(missing_ok=True)
            continue
        part.replace(path)
        return found
    raise DataError(
        f"Expected {path.name} from one of {len(mirrors)} mirrors, but none gave it:\n" + "\n".join(failures) + "\n"
        f"Try again later (what has arrived is kept and continued), or fetch the file by hand, put it at {path} and "
        "start again, or name another mirror (`mirrors:` of the data set, or --mirror)."
    )


def _silent(done: int, total: int | None) -> None:
    pass


def _from_mirror(url: str, part: Path, sha256: str | None, patience: Patience, report: Report) -> str:
    attempts = tenacity.Retrying(
        stop=tenacity.stop_after_attempt(patience.attempts),
        wait=tenacity.wait_random_exponential(multiplier=patience.first_wait, max=patience.longest_wait),
        retry=tenacity.retry_if_exception_type(_Passing),
        reraise=True,
    )
    resumed = part.exists() and part.stat().st_size > 0
    attempts(_receive, url, part, patience, report)
    found = sha256_of_file(part)
    if sha256 is not None and found != sha256 and resumed:
        # The part of an earlier run may have been another version of the file: once more from the start.
        part.unlink()
        attempts(_receive, url, part, patience, report)
        found = sha256_of_file(part)
    if sha256 is not None and found != sha256:
        part.unlink()
        raise _Final(f"expected sha256 {sha256}, but got {found}; it was deleted")
    return found


def _receive(url: str, part: Path, patience: Patience, report: Report) -> None:
    """Fetch the missing bytes of `part`."""
    start = part.stat().st_size if part.exists() else 0
    headers = {"Accept-Encoding": "identity", "User-Agent": "sanflow"}
    if start:
        headers["Range"] = f"bytes={start}-"
    timeout = (patience.connect_seconds, patience.stall_seconds)
    try:
        with requests.get(url, headers=headers, stream=True, timeout=timeout) as response:
            if start and not _continues(response, start, part):
                return None if part.exists() else _receive(url, part, patience, report)
            _check_status(response)
            total = _length(response, start)
            if total is not None:
                require_free_space(part.parent, total - start, f"the archive {part.stem}")
            _write(response, part, start, total, report)
    except requests.exceptions.InvalidURL as error:
        raise _Final(f"no address: {error}") from error
    except (requests.exceptions.RequestException, urllib3.exceptions.HTTPError) as error:
        raise _Passing(_short(error)) from error
    return None


def _continues(response: requests.Response, start: int, part: Path) -> bool:
    """Return whether the answer continues at `start`. If not, the part is deleted unless it is complete already."""
    if response.status_code == 206:
        match = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", response.headers.get("Content-Range", ""))
        if match and int(match[1]) == start:
            return True
    elif response.status_code == 416:
        match = re.fullmatch(r"bytes \*/(\d+)", response.headers.get("Content-Range", ""))
        if match and int(match[1]) == start:
            return False
    elif response.status_code != 200:
        _check_status(response)
    part.unlink()
    return False


def _check_status(response: requests.Response) -> None:
    status = f"{response.status_code} {response.reason}"
    if response.status_code in RETRIED_STATUS:
        raise _Passing(status)
    if response.status_code not in {200, 206}:
        raise _Final(status)


def _length(response: requests.Response, start: int) -> int | None:
    length = response.headers.get("Content-Length", "")
    return start + int(length) if length.isdigit() else None


def _write(response: requests.Response, part: Path, start: int, total: int | None, report: Report) -> None:
    done = start
    with storage_errors(part), open(part, "ab" if start else "wb") as file:
        # `read1` gives what has arrived; `iter_content` would lose up to a chunk at every cut and may never get on.
        while chunk := response.raw.read1(CHUNK):
            file.write(chunk)
            done += len(chunk)
            report(done, total)
    if total is not None and done != total:
        raise _Passing(f"the connection ended after {done} of {total} bytes")


def _short(error: Any) -> str:
    """Return the innermost reason, without addresses of objects."""
    reason = getattr(error.args[0], "reason", None) if error.args else None
    return re.sub(r"<[^>]* object at 0x[0-9a-f]+>:? ?", "", str(reason or error)) or type(error).__name__
