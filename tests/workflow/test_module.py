"""The workflow as a module of another Snakefile: named benchmarks, no configuration, a prefix."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.workflow import environment, write_benchmark

SNAKEMAKE = Path(sys.executable).parent / "snakemake"
pytestmark = pytest.mark.timeout(1200)


def importing(root: Path, folder: Path, module: str, *arguments: str, rules: str = "") -> str:
    """Run a Snakefile that imports this project's; returns all it printed."""
    snakefile = folder / "Snakefile"
    text = (
        f"module bench:\n    snakefile: {str(root / 'Snakefile')!r}\n{module}use rule * from bench as bench_*\n{rules}"
    )
    snakefile.write_text(text, "utf-8")
    answer = subprocess.run(
        [SNAKEMAKE, "--snakefile", snakefile, "--cores", "1", "--nocolor", *arguments],
        cwd=folder,
        env=environment(root),
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stdout[-3000:] + answer.stderr[-3000:]
    return answer.stdout + answer.stderr


@pytest.mark.parametrize("module", ["    config: {'benchmark': 'demo', 'tracking': {'uri': None}}\n", ""])
def test_a_named_benchmark_is_found_beside_the_imported_snakefile(root, tmp_path, module):
    output = importing(root, tmp_path, module, "--dry-run", "--quiet", "rules")
    assert "bench_train" in output


def test_its_folders_can_be_named_by_the_importing_snakefile(root, tmp_path):
    module = "    config: {'benchmark': 'demo'}\n    pathvars:\n        results='out'\n"
    output = importing(root, tmp_path, module, "--dry-run")
    assert "out/photo_textures/" in output
    assert "out/logs/train/" in output
    assert "results/demo" not in output


def test_a_rule_can_be_changed_after_all_were_imported(root, tmp_path):
    """The module's files are read twice then, with one and the same configuration."""
    rules = "use rule train from bench as bench_train with:\n    threads: 1\n"
    config = "    config: {'benchmark': 'demo'}\n"
    assert "bench_train" in importing(root, tmp_path, config, "--dry-run", "--quiet", "rules", rules=rules)


@pytest.mark.slow
def test_with_a_prefix_everything_is_below_it(root, tmp_path):
    write_benchmark(tmp_path, experiments=("tiny",))
    values = {"benchmark": "small.yaml", "device": "cpu", "tracking": {"uri": None}, "data_root": "cached"}
    module = f"    config: {values}\n    prefix: 'anomaly'\n"
    rules = (
        "rule mine:\n    default_target: True\n"
        "    input:\n        'anomaly/results/small/tables/overview.csv',\n"
        "        'anomaly/results/small/figures/curves/parts/nut.png',\n"
    )
    importing(root, tmp_path, module, "--keep-going", rules=rules)
    table = (tmp_path / "anomaly/results/small/tables/overview.csv").read_text("utf-8")
    assert table.count("parts,tiny,tiny,aupro,") == 1
    assert (tmp_path / "anomaly/results/small/figures/curves/parts/nut.png").stat().st_size
    assert {path.name for path in tmp_path.iterdir()} - {".snakemake"} == {
        *("Snakefile", "small.yaml", "parts", "maps", "anomaly")
    }
