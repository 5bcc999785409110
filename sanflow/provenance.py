"""Record where a number comes from: digests of code and configuration, versions, the machine.

Snakemake reruns a job when its `code_digest` changes. An edit of a figure function changes the digest of `figures`
alone, an edit of the flow that of `train` and all later stages. Comments, docstrings and formatting do not count.
"""

import ast
import dataclasses
import functools
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sanflow.config.experiment import Experiment
from sanflow.files import sha256_of_file

PACKAGE = Path(__file__).resolve().parent

# The first modules of each stage. All other modules that decide its result are found by following imports.
STAGES: dict[str, tuple[str, ...]] = {
    "download": ("sanflow.data.photo_textures",),
    "index": ("sanflow.data.index",),
    "score": ("sanflow.scoring",),
    "score_external": ("sanflow.anomaly_maps.from_other_tools",),
    "evaluate": ("sanflow.evaluation.evaluate",),
    "tables": ("sanflow.report.tables",),
    "figures": ("sanflow.report.figures",),
    "explorer": ("sanflow.report.explorer",),
}
# Modules and packages that decide no result although stages import them. Settings have a digest of their values.
# Files that sanflow wrote contain a format and a digest, which are checked when they are read.
NEUTRAL = (
    "sanflow.anomaly_maps.scores_file",
    "sanflow.benchmark_json",
    "sanflow.config",
    "sanflow.data.cache",
    "sanflow.errors",
    "sanflow.files",
    "sanflow.memory",
    "sanflow.methods.checkpoints",
    "sanflow.methods.cost",
    "sanflow.methods.fit",
    "sanflow.methods.flow.settings",
    "sanflow.methods.flow.training.progress",
    "sanflow.methods.flow.training.state",
    "sanflow.methods.method",
    "sanflow.methods.registry",
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
    """Compute the SHA-256 of a value's canonical JSON, as 64 hexadecimal digits.

    Example:
        >>> digest_of({"b": 1, "a": 2}) == digest_of({"a": 2, "b": 1})
        True
    """
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def fit_digest(experiment: Experiment, dataset: str, category: str) -> str:
    """Compute the SHA-256 of what decides the result of a fit beside data, seed and code.

    It is over the settings, and the content of the files that the experiment names: another file under the same name
    changes it. Weights named by a tag or drawn from a seed are identified by the settings, bundled ones by the digest
    in the code.
    """
    files = [Path(file) for file in experiment.content_files(dataset, category)]
    contents = [_digest_as_of(file, file.stat().st_mtime_ns) if file.is_file() else None for file in files]
    return digest_of([experiment.fit_settings(dataset, category), contents])


@functools.cache
def _digest_as_of(file: Path, changed: int) -> str:
    """Compute a file's SHA-256, again once it has changed; the files may be large."""
    return sha256_of_file(file)


def code_digest(stage: str, more: tuple[str, ...] = (), package: Path = PACKAGE) -> str:
    """Compute the SHA-256 over what the Python code of a stage does.

    Arguments:
        stage: A key of `STAGES`.
        more: Further modules at which the stage begins, such as a method's.
        package: The folder of the package.
    """
    return modules_digest((*STAGES[stage], *more), package)


@functools.cache
def modules_digest(entries: tuple[str, ...], package: Path = PACKAGE) -> str:
    """Compute the SHA-256 over what modules do, and the modules of sanflow that they import.

    Arguments:
        entries: Full names of modules, also of other packages.
        package: The folder of the package.
    """
    digest = hashlib.sha256()
    for module in sorted(modules_of(entries, package)):
        file = _file_of(module, package)
        digest.update(module.encode() + b"\0" + _meaning(file).encode() + b"\0")
        # Other files in a package's folder, such as a page's templates, decide its output too.
        for other in sorted(file.parent.rglob("*")) if file.name == "__init__.py" else []:
            if other.is_file() and other.suffix not in {".py", ".pyc"}:
                digest.update(other.name.encode() + b"\0" + other.read_bytes() + b"\0")
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
    if module.split(".", maxsplit=1)[0] != "sanflow":
        spec = importlib.util.find_spec(module)
        assert spec is not None
        assert spec.origin is not None
        return Path(spec.origin)
    path = package.joinpath(*module.split(".")[1:])
    return path / "__init__.py" if path.is_dir() else path.with_name(path.name + ".py")


@functools.cache
def _imports_of(file: Path, package: Path) -> list[str]:
    """Return the full names of the modules of sanflow that a file imports."""
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
    """Return the versions of the packages, of Python and of sanflow's own commit, and the kind of machine."""
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


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:  # the table environment has no torch
        return None


def _git(*arguments: str) -> str | None:
    """Ask git about the checkout that sanflow runs from; None where it runs from none."""
    # A package may be installed within the folder of another repository, whose commit is not sanflow's.
    if _answer_of_git("ls-files", "--error-unmatch", str(PACKAGE / "__init__.py")) is None:
        return None
    return _answer_of_git(*arguments)


def _answer_of_git(*arguments: str) -> str | None:
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


@dataclasses.dataclass(frozen=True)
class Step:
    """How one step of a run was computed.

    Arguments:
        code_digest: Of the code of the step.
        device: Name of the device.
        precision: Of matrix products and convolutions; None where there are none.
        versions: Of packages, Python and sanflow's own commit, see `environment`.
        details: What else belongs to the step, JSON values.
    """

    code_digest: str
    device: str | None = None
    precision: str | None = None
    versions: dict[str, Any] = dataclasses.field(default_factory=environment)
    details: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Provenance:
    """What a run is and how each of its steps was computed; kept in checkpoint, scores and metrics.

    Arguments:
        dataset: Name of the data set.
        category: Name of the category.
        experiment_name: Key of the experiment in the benchmark.
        experiment: All its keys, as plain values.
        index_digest: Digest of the index: which images and masks.
        config_digest: Digest of what decides the fit, see `fit_digest`.
        seed: Seed of the run; None where nothing was drawn.
        epoch: The epoch of the model; None if it has none.
        encoder: Identity of the encoder; None if there is none.
        steps: Name of a step (`fit`, `score`, `evaluate`) -> how it was computed.
    """

    dataset: str
    category: str
    experiment_name: str
    experiment: dict[str, Any]
    index_digest: str
    config_digest: str
    seed: int | None = None
    epoch: int | None = None
    encoder: dict[str, Any] | None = None
    steps: dict[str, Step] = dataclasses.field(default_factory=dict)

    def with_step(self, name: str, step: Step, **changes: Any) -> "Provenance":
        """Return a copy with one more step, and other fields changed."""
        return dataclasses.replace(self, steps={**self.steps, name: step}, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values for a file."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Provenance":
        """Read it from the plain values of a file."""
        steps = {name: Step(**step) for name, step in values.get("steps", {}).items()}
        return cls(**{**values, "steps": steps})
