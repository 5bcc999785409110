"""Where a number comes from: digests of code and configuration, versions, the machine. Opens no model.

`code_digest` is what Snakemake watches: an edit of a figure function changes the digest of `figures` alone, an edit
of the flow that of `train` and all that follows. Comments, docstrings and formatting do not count.
"""

import ast
import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sanflow.files import resource, sha256_of_file

PACKAGE = Path(__file__).resolve().parent

_MODEL = ("batch_norm.py", "distributions.py", "encoders", "flow.py", "losses.py", "model.py", "statistics.py")
_READING = ("data/decode.py", "data/images.py")
_TRAINING = ("training/batches.py", "training/loop.py", "training/pixels.py", "training/step.py")
# What decides the result of each stage, as files or folders of the package. A stage's own inputs carry the rest.
STAGES: dict[str, tuple[str, ...]] = {
    "download": ("data/archives.py", "data/download.py", "data/fetch.py", "data/campus.py", "data/photo_textures.py"),
    "index": ("data/decode.py", "data/index.py", "data/layouts.py", "data/registry.py"),
    "train": (*_MODEL, *_READING, "anomalies.py", "device.py", "schedule.py", *_TRAINING),
    "import_official": (*_MODEL, "official.py"),
    "score": (*_MODEL, *_READING, "device.py", "fusion.py", "scoring.py"),
    "score_external": ("external.py", "fusion.py", "maps.py"),
    "evaluate": (*_READING, "evaluation.py", "fusion.py", "maps.py", "metrics"),
    "tables": ("metrics/comparison.py", "published.py", "runs.py", "tables"),
    "figures": (*_READING, "figures", "fusion.py", "maps.py", "published.py", "runs.py"),
}
# Modules that a stage uses without their deciding its result: settings and data enter by digests of their own, and the
# formats of files are checked when they are read.
INFRASTRUCTURE = (
    "checkpoints.py",
    "config.py",
    "data/cache.py",
    "data/index.py",
    "data/layouts.py",
    "data/registry.py",
    "errors.py",
    "files.py",
    "outline.py",
    "provenance.py",
    "scores.py",
    "tracking",
    "training/cost.py",
    "training/progress.py",
    "training/signals.py",
    "training/state.py",
)
PACKAGES = (
    "FrEIA",
    "matplotlib",
    "mlflow",
    "numpy",
    "pandas",
    "pillow",
    "scikit-image",
    "scikit-learn",
    "scipy",
    "snakemake",
    "timm",
    "torch",
    "torchvision",
)


def digest_of(value: Any) -> str:
    """SHA-256 of a value's canonical JSON, as 64 hexadecimal digits.

    Example:
        >>> digest_of({"b": 1, "a": 2}) == digest_of({"a": 2, "b": 1})
        True
    """
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def training_digest(settings: Mapping[str, Any]) -> str:
    """SHA-256 of what decides trained weights beside data, seed and code.

    That is the settings, and the content of the files that weights are read from: another file under the same name
    trains again. Weights named by a tag or drawn from a seed are settled by the settings.

    Arguments:
        settings: An experiment's `training_settings` for a category.
    """
    shipped = settings["encoder"] == "sanflow/compact" and settings["weights"] == "pretrained"
    files = [
        resource("encoders/compact.safetensors") if shipped else Path(str(settings["weights"])),
        Path(str(settings.get("official_weights"))),
    ]
    contents = [_digest_as_of(file, file.stat().st_mtime_ns) if file.is_file() else None for file in files]
    return digest_of([dict(settings), contents])


def listing_digest(folder: str | Path, *, times: bool = False) -> str:
    """SHA-256 of the names and sizes of all files below a folder: a new file is noticed, a touched one is not.

    Arguments:
        folder: May be missing.
        times: Also of when each file was changed: then a touched one is noticed too.
    """
    files = sorted(file for file in Path(folder).rglob("*") if file.is_file())
    facts = [(str(file.relative_to(folder)), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return digest_of(facts if times else [fact[:2] for fact in facts])


@functools.cache
def _digest_as_of(file: Path, changed: int) -> str:
    """A file's SHA-256, computed anew once it has changed; the files may be large."""
    return sha256_of_file(file)


@functools.cache
def code_digest(stage: str, package: Path = PACKAGE) -> str:
    """SHA-256 over what the Python code of a stage does.

    Arguments:
        stage: A key of `STAGES`.
        package: The folder of the package.
    """
    digest = hashlib.sha256()
    for entry in STAGES[stage]:
        path = package / entry
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(file.relative_to(package).as_posix().encode() + b"\0")
            digest.update(_meaning(file.read_text("utf-8")).encode() + b"\0")
    return digest.hexdigest()


def _meaning(source: str) -> str:
    """The code without its comments, docstrings and layout."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and (
            isinstance(node.body[0] if node.body else None, ast.Expr) and ast.get_docstring(node) is not None
        ):
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)


@functools.cache
def environment() -> dict[str, Any]:
    """Versions of the packages, of Python and of sanflow's own commit, and the kind of machine."""
    return {
        "sanflow": importlib.metadata.version("sanflow"),
        "git_commit": _git("rev-parse", "HEAD"),
        "git_dirty": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cpu_count": os.cpu_count(),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
    }


def environment_tags() -> dict[str, Any]:
    """What `environment` says, under the names of MLflow tags."""
    facts = environment()
    return {f"sanflow.{key}": facts[key] for key in ("git_commit", "git_dirty", "python", "platform")} | {
        "sanflow.version": facts["sanflow"],
        "versions": facts["packages"],
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:  # the table environment has no torch
        return None


def _git(*arguments: str) -> str | None:
    try:
        answer = subprocess.run(
            ["git", "-C", str(PACKAGE.parent), *arguments],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):  # installed from a wheel, or no git
        return None
    return answer.stdout.strip()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")),
        platform.processor(),
    )
