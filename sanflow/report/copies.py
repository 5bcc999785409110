"""Copy the small files of a benchmark's results from which its page is made, with their digests, and check them.

The folder of copies can be committed. It holds metrics.json of every run and kept epoch, benchmark.json without its
owner, and `sha256.txt`, which `sha256sum --check` reads too. Runs with kept epochs also have a small curves.npz with
the metrics in each bootstrap resample, which intervals of differences between epochs need.
"""

import contextlib
import re
import zipfile
from pathlib import Path

import numpy as np

from sanflow.benchmark_json import FILE as OUTLINE
from sanflow.benchmark_json import read_outline
from sanflow.errors import ConfigError, DataError, IntegrityError
from sanflow.files import atomic_path, sha256_of_file, write_json
from sanflow.report.runs import Run, read_runs

DIGESTS = "sha256.txt"
DIGEST_LINE = re.compile(r"([0-9a-f]{64})  (.+)")
METRICS, CURVES = "metrics.json", "curves.npz"
RESAMPLED = "resampled_"
REMEDY = "Restore the folder from version control, or delete it and run `sanflow record <results>` again."


def copy_results(results: Path, folder: Path) -> list[str]:
    """Replace the copies in a folder by those of a benchmark's finished runs; other files in it are kept.

    Arguments:
        results: Folder of the benchmark, `results/<benchmark>`.
        folder: Where the copies go.

    Returns:
        The runs that were left out, because benchmark.json does not name their experiment or data set.

    Raises:
        ConfigError: If one folder is within the other.
        DataError: If there is no benchmark.json, or no finished run of the benchmark.
        IntegrityError: If a file is damaged.
    """
    here, there = results.resolve(), folder.resolve()
    if here.is_relative_to(there) or there.is_relative_to(here):
        raise ConfigError(
            f"Expected copies outside of the results, but {folder} and {results} are within each other. "
            "Choose another --output."
        )
    outline = read_outline(results)
    if outline is None:
        raise DataError(
            f"Expected {results / OUTLINE}, which says what should have run, but there is none. Start snakemake with "
            "this benchmark, which writes it, or name the benchmark's results folder."
        )
    found = read_runs(results)
    runs = [run for run in found if run.dataset in outline["datasets"] and run.experiment in outline["experiments"]]
    if not runs:
        raise DataError(f"Expected a finished run of the benchmark {outline['name']} in {results}, but there is none.")
    _remove_copies(folder)
    kept = {_key(run) for run in runs if run.epoch is not None}
    write_json(folder / OUTLINE, {name: value for name, value in outline.items() if name != "owner"})
    names = [OUTLINE]
    for run in runs:
        own = run.folder.relative_to(results)
        with atomic_path(folder / own / METRICS) as temporary:
            temporary.write_bytes((run.folder / METRICS).read_bytes())
        names.append((own / METRICS).as_posix())
        if _key(run) in kept and (resampled := _resampled(run.folder / CURVES)):
            with atomic_path(folder / own / CURVES) as temporary:
                np.savez_compressed(temporary, **resampled)  # type: ignore[arg-type]
            names.append((own / CURVES).as_posix())
    with atomic_path(folder / DIGESTS) as temporary:
        temporary.write_text("".join(f"{sha256_of_file(folder / name)}  {name}\n" for name in sorted(names)), "utf-8")
    return [run.folder.relative_to(results).as_posix() for run in found if run not in runs]


def check_copies(folder: Path) -> None:
    """Check that a folder holds the copies that its digests list, unchanged, and no others.

    Raises:
        IntegrityError: With every file that is missing, changed or not listed.
    """
    digests = _read_digests(folder)
    problems = []
    for name, digest in digests.items():
        if not (folder / name).is_file():
            problems.append(f"{name} is missing")
        elif sha256_of_file(folder / name) != digest:
            problems.append(f"{name} has another digest")
    present = {
        path.relative_to(folder).as_posix() for name in (METRICS, CURVES, OUTLINE) for path in folder.rglob(name)
    }
    problems += [f"{name} is not listed" for name in sorted(present - set(digests))]
    if problems:
        raise IntegrityError(f"Expected the files that {folder / DIGESTS} lists, but: {'; '.join(problems)}. {REMEDY}")


def _read_digests(folder: Path) -> dict[str, str]:
    """Read the digests: path within the folder -> 64 hexadecimal digits."""
    path = folder / DIGESTS
    try:
        lines = path.read_text("utf-8").splitlines()
    except FileNotFoundError as error:
        raise IntegrityError(
            f"Expected copies of results in {folder} with their digests in {DIGESTS}, but there is no such file. "
            f"{REMEDY}"
        ) from error
    digests = {}
    for number, line in enumerate(lines, 1):
        match = DIGEST_LINE.fullmatch(line)
        if match is None or Path(match[2]).is_absolute() or ".." in Path(match[2]).parts:
            raise IntegrityError(
                f"Expected 64 hexadecimal digits, two spaces and a path in line {number} of {path}, but got {line!r}. "
                f"{REMEDY}"
            )
        digests[match[2]] = match[1]
    return digests


def _remove_copies(folder: Path) -> None:
    """Remove the copies of an earlier call, and the folders that are empty then."""
    if not (folder / DIGESTS).exists():
        return
    for name in _read_digests(folder):
        (folder / name).unlink(missing_ok=True)
        for parent in list((folder / name).parents)[: len(Path(name).parents) - 1]:
            with contextlib.suppress(OSError):
                parent.rmdir()


def _key(run: Run) -> tuple[str, str, str, int]:
    return run.dataset, run.category, run.experiment, run.seed


def _resampled(path: Path) -> dict[str, np.ndarray]:
    """Read a run's metrics in each bootstrap resample; none where they are not kept."""
    if not path.exists():
        return {}
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files if name.startswith(RESAMPLED)}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise IntegrityError(f"Expected curves in {path}, but got: {error}. Evaluate the run again.") from error
