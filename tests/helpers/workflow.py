"""A benchmark so small that the whole workflow runs in a test: its images, its file, and calls of snakemake."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
# A name with all that a shell, a format string or a query could trip over.
ODD = 'o\'ring; $(touch pwned) `id` & "é" %s 𝛼'
EXPERIMENTS = {
    "tiny": {
        "method": "sanflow",
        "encoder": "timm/tf_efficientnet_lite0.in1k",
        "weights": "bundled",
        "taps": ["blocks.1", "blocks.2", "blocks.4"],
        "input_size": 64,
        "epochs": 2,
        "passes_per_epoch": 1,
        "warmup_epochs": 0.5,
        "batch_size": 2,
        "position_channels": 16,
        "coupling_blocks": 2,
    },
    "maps": {"method": "external", "maps": "maps/{dataset}/{category}", "input_size": 64},
}
EXPERIMENTS["kept"] = EXPERIMENTS["tiny"] | {"method": "cflow-matched", "keep_every": 2}


@dataclass(frozen=True)
class Answer:
    """How a call of snakemake ended, and all it printed."""

    returncode: int
    output: str


def draw_category(root: Path, maps: Path | None, n_train: int = 6, n_test: int = 3) -> None:
    """One category of 64 x 64 images, its defects bright squares, and anomaly maps of a perfect other tool."""
    rng = np.random.default_rng(0)
    for split, count in (("train/good", n_train), ("test/good", n_test), ("test/square", n_test)):
        for number in range(count):
            pixels = rng.integers(80, 120, (64, 64, 3), np.uint8)
            mask = np.zeros((64, 64), np.uint8)
            if split == "test/square":
                x, y = rng.integers(4, 40, 2)
                mask[y : y + 16, x : x + 16] = 255
                pixels[mask > 0] = 250
                _save(root / "ground_truth" / "square" / f"{number:03d}_mask.png", mask)
            _save(root / split / f"{number:03d}.png", pixels)
            if maps is not None and split.startswith("test"):
                _save(maps / split / f"{number:03d}.png", mask)


def _save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def write_benchmark(folder: Path, experiments=("tiny", "kept", "maps"), categories=("nut",), odd=False) -> Path:
    """Images, maps and the benchmark file `small.yaml` in `folder`."""
    for category in categories:
        draw_category(folder / "parts" / category, folder / "maps" / "parts" / category)
    datasets = {"parts": {"kind": "folder", "root": "parts", "categories": list(categories)}}
    chosen = {name: dict(EXPERIMENTS[name]) for name in experiments}
    if odd:
        draw_category(folder / "odd" / ODD, folder / "maps" / "odd" / ODD)
        datasets["odd"] = {"kind": "folder", "root": "odd", "categories": "all"}
        for name, experiment in chosen.items():
            if name != "maps":
                experiment["datasets"] = ["parts"]
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump({"datasets": datasets, "experiments": chosen}, allow_unicode=True), "utf-8")
    return path


def copy_project(folder: Path) -> Path:
    """A copy of the workflow and the package, to be edited by a test."""
    for name in ("Snakefile", "workflow", "config", "profiles", "sanflow", "resources"):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, folder / name)
    return folder


def command(project: Path, folder: Path, *arguments: object, **config: object) -> list[str]:
    """The command line of `snakemake` in `folder`, with its configuration."""
    values = {"benchmark": "small.yaml", "device": "cpu", "tracking": {"uri": None}} | config
    return [
        *(str(Path(sys.executable).parent / "snakemake"), "--snakefile", str(project / "Snakefile")),
        *("--directory", str(folder), "--cores", "2", "--nocolor"),
        *map(str, arguments),
        "--config",
        *(f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in values.items()),
    ]


def environment(project: Path, more_packages: Path | None = None) -> dict[str, str]:
    """The environment in which `sanflow` is the project's, also where that is a copy; with a folder of packages."""
    places = [str(project), *([str(more_packages)] if more_packages else [])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(places), "OMP_NUM_THREADS": "1"}


def snakemake(
    project: Path,
    folder: Path,
    *arguments: object,
    timeout: float = 1100,
    check=True,
    more_packages: Path | None = None,
    **config: object,
):
    """Run snakemake; on failure show what it said. After `timeout` seconds it and its jobs are killed."""
    process = subprocess.Popen(
        command(project, folder, *arguments, **config),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(project, more_packages),
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=timeout)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    if check:
        assert process.returncode == 0, output[-6000:]
    return Answer(process.returncode, output)


def planned(project: Path, folder: Path, *arguments: object, **config: object) -> dict[str, int]:
    """How many jobs of each rule a dry run plans; empty if there is nothing to do."""
    answer = snakemake(project, folder, "--dry-run", "--quiet", "rules", *arguments, **config)
    table = answer.output.partition("Job stats:")[2].partition("\n\n")[0]
    jobs = dict(re.findall(r"^(\w+) +(\d+)$", table, re.MULTILINE))
    return {rule: int(count) for rule, count in jobs.items() if rule not in {"total", "all"}}
