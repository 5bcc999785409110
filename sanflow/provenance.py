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
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sanflow.files import sha256_of_file

PACKAGE = Path(__file__).resolve().parent

# The modules at which each stage begins. What else decides its result follows from their imports.
STAGES: dict[str, tuple[str, ...]] = {
    "download": ("sanflow.data.photo_textures",),
    "index": ("sanflow.data.index",),
    "train": ("sanflow.methods.flow.training.loop",),
    "import_official": ("sanflow.methods.flow.authors_weights",),
    "score": ("sanflow.scoring",),
    "score_external": ("sanflow.anomaly_maps.from_other_tools",),
    "evaluate": ("sanflow.evaluation.evaluate",),
    "tables": ("sanflow.report.tables",),
    "figures": ("sanflow.report.figures",),
}
# Modules and packages that decide no result although stages import them. Settings enter by a digest of their values.
# Files that sanflow wrote carry a format and a digest of their own, which are checked when they are read.
NEUTRAL = (
    "sanflow.anomaly_maps.scores_file",
    "sanflow.benchmark_json",
    "sanflow.config",
    "sanflow.data.cache",
    "sanflow.errors",
    "sanflow.files",
    "sanflow.methods.checkpoints",
    "sanflow.methods.cost",
    "sanflow.methods.flow.training.progress",
    "sanflow.methods.flow.training.state",
    "sanflow.methods.signals",
    "sanflow.provenance",
    "sanflow.tracking",
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
    trains again. Weights named by a tag or drawn from a seed are settled by the settings, bundled ones by the digest
    of their file in the code.

    Arguments:
        settings: An experiment's `training_settings` for a category.
    """
    files = [Path(str(settings["weights"])), Path(str(settings.get("official_weights")))]
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
    """Compute the SHA-256 over what the Python code of a stage does.

    Arguments:
        stage: A key of `STAGES`.
        package: The folder of the package.
    """
    digest = hashlib.sha256()
    for module in sorted(modules_of(STAGES[stage], package)):
        digest.update(module.encode() + b"\0" + _meaning(_file_of(module, package)).encode() + b"\0")
    return digest.hexdigest()


def modules_of(entries: Iterable[str], package: Path = PACKAGE) -> set[str]:
    """Follow imports from the entry modules to all modules of sanflow that decide what these compute.

    An import anywhere in a file counts, also inside a function. Importing a module does not count as an import of the
    packages around it.

    Arguments:
        entries: Full names of modules.
        package: The folder of the package.

    Returns:
        Full names of the modules, the entries included, those in `NEUTRAL` left out.
    """
    found: set[str] = set()
    waiting = list(entries)
    while waiting:
        module = waiting.pop()
        if module not in found and not any(module == name or module.startswith(f"{name}.") for name in NEUTRAL):
            found.add(module)
            waiting += _imports_of(_file_of(module, package), package)
    return found


def _file_of(module: str, package: Path) -> Path:
    path = package.joinpath(*module.split(".")[1:])
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@functools.cache
def _imports_of(file: Path, package: Path) -> list[str]:
    """Full names of the modules of sanflow that a file imports."""
    names = []
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names if alias.name.startswith("sanflow.")]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "sanflow":
            # `from a import b` imports the module a.b where there is one, else a name that module a defines.
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                names.append(submodule if _file_of(submodule, package).is_file() else str(node.module))
    return [name for name in names if name != "sanflow"]


@functools.cache
def _meaning(file: Path) -> str:
    """Return the code without its comments, docstrings and layout."""
    tree = ast.parse(file.read_text("utf-8"))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            # A string on its own is a docstring, of a module, class, function or attribute.
            code = [part for part in body if not (isinstance(part, ast.Expr) and _is_text(part.value))]
            node.body = code or [ast.Pass()]  # type: ignore[attr-defined]
    return ast.unparse(tree)


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


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
