"""The workflow as a module of another Snakefile, which names a checkout, or was written by snakedeploy."""

import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml

from tests.helpers.workflow import copy_project, environment, write_benchmark

BIN = Path(sys.executable).parent
pytestmark = pytest.mark.timeout(1200)


def importing(
    root: Path, folder: Path, module: str, *arguments: str, rules: str = "", imported: str = "workflow/Snakefile"
) -> str:
    """Run a Snakefile that imports this project's; returns all it printed."""
    snakefile = folder / "Snakefile"
    text = f"module bench:\n    snakefile: {str(root / imported)!r}\n{module}"
    text += f"use rule * from bench as bench_*\n{rules}"
    snakefile.write_text(text, "utf-8")
    answer = subprocess.run(
        [BIN / "snakemake", "--snakefile", snakefile, "--cores", "1", "--nocolor", *arguments],
        cwd=folder,
        env=environment(root),
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stdout[-3000:] + answer.stderr[-3000:]
    return answer.stdout + answer.stderr


@pytest.mark.parametrize(
    ("module", "imported"),
    [("    config: {'benchmark': 'demo', 'tracking': {'uri': None}}\n", "Snakefile"), ("", "workflow/Snakefile")],
)
def test_a_named_benchmark_is_found_beside_the_imported_snakefile(root, tmp_path, module, imported):
    output = importing(root, tmp_path, module, "--dry-run", "--quiet", "rules", imported=imported)
    assert "bench_train" in output
    assert "bench_all" in output


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
def test_with_a_prefix_and_replaced_rules_a_benchmark_runs_whole(root, tmp_path):
    write_benchmark(tmp_path, experiments=("tiny",))
    values = {"benchmark": "small.yaml", "device": "cpu", "tracking": {"uri": None}, "data_root": "cached"}
    module = f"    config: {values}\n    prefix: 'anomaly'\n"
    rules = (
        "rule photograph:\n    output:\n        'photographed.txt',\n    shell:\n        'touch {output}'\n"
        "use rule index from bench as bench_index with:\n    input:\n        photographs='photographed.txt',\n"
        "use rule tables from bench as bench_tables with:\n    log:\n        'mine.log',\n"
        "rule mine:\n    default_target: True\n"
        "    input:\n        'anomaly/results/small/tables/overview.csv',\n"
        "        'anomaly/results/small/figures/curves/parts/nut.png',\n"
    )
    output = importing(root, tmp_path, module, "--keep-going", rules=rules)
    assert output.index("rule photograph:") < output.index("rule bench_index:")
    table = (tmp_path / "anomaly/results/small/tables/overview.csv").read_text("utf-8")
    assert table.count("parts,tiny,tiny,aupro,") == 1
    assert (tmp_path / "anomaly/results/small/figures/curves/parts/nut.png").stat().st_size
    assert "overview.csv" in (tmp_path / "mine.log").read_text("utf-8")
    assert {path.name for path in tmp_path.iterdir()} - {".snakemake"} == {
        *("Snakefile", "small.yaml", "parts", "maps", "anomaly", "photographed.txt", "mine.log")
    }


# As the workflow catalog and snakedeploy expect it -----------------------------------------------------------------


def test_the_catalog_finds_its_files(root):
    """What the Snakemake workflow catalog reads of a workflow with standardized usage."""
    usage = yaml.safe_load((root / ".snakemake-workflow-catalog.yml").read_text("utf-8"))["usage"]
    assert set(usage["software-stack-deployment"]) == {"conda", "apptainer", "apptainer+conda"}
    assert usage["report"] is True
    readme = (root / "README.md").read_text("utf-8").lower()
    assert "snakemake" in readme
    assert "workflow" in readme
    assert (root / "workflow/Snakefile").is_file()
    assert all(file.suffix == ".smk" for file in (root / "workflow/rules").iterdir())
    # The page shows this file without the repository around it.
    page = (root / "config/README.md").read_text("utf-8")
    assert [link for link in re.findall(r"\]\(([^)]+)\)", page) if not link.startswith("https://")] == []


def test_the_catalog_draws_the_rules(root, tmp_path):
    """It asks for the graph of the rules in a folder that has no configuration of its own."""
    command = ["snakemake", "--snakefile", "workflow/Snakefile", "--cores", "1", "--directory", tmp_path]
    answer = subprocess.run(
        [BIN / command[0], *command[1:], "--forceall", "--rulegraph"],
        cwd=root,
        env=environment(root),
        capture_output=True,
        text=True,
        check=True,
    )
    for rule in ("download", "index", "train", "score", "evaluate", "tables", "figures", "dots", "explorer"):
        assert f'label = "{rule}"' in answer.stdout


@pytest.mark.slow
def test_a_workflow_deployed_by_snakedeploy_runs(tmp_path, monkeypatch):
    """From the address of a repository at a tag; git takes the repository from this machine."""
    address = "https://github.com/sanflow/sanflow"
    project, deployed = copy_project(tmp_path / "project"), tmp_path / "deployed"
    for words in (["init", "--quiet"], ["add", "--all"], ["commit", "--quiet", "--message", "One"], ["tag", "v1"]):
        who = ["-c", "user.name=Nobody", "-c", "user.email=nobody@example.org"]
        subprocess.run(["git", *who, *words], cwd=project, check=True)
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", f"url.{project.as_uri()}.insteadOf")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", address)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    subprocess.run([BIN / "snakedeploy", "deploy-workflow", address, deployed, "--tag", "v1"], check=True)
    assert 'github("sanflow/sanflow", path="workflow/Snakefile", tag="v1")' in (
        deployed / "workflow/Snakefile"
    ).read_text("utf-8")
    write_benchmark(deployed, experiments=("maps",)).rename(deployed / "config/benchmarks/mine.yaml")
    settings = deployed / "config/config.yaml"
    settings.write_text(settings.read_text("utf-8").replace("benchmark: demo", "benchmark: mine"), "utf-8")
    answer = subprocess.run(
        [BIN / "snakemake", "--cores", "1", "--nocolor", "results/mine/tables/overview.csv"],
        cwd=deployed,
        env=environment(project),
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stdout[-3000:] + answer.stderr[-3000:]
    table = pd.read_csv(deployed / "results/mine/tables/overview.csv")
    assert set(table[table["experiment"] == "maps"]["value"]) == {1.0}
