"""Commands about results: what is finished when jobs failed, one category's figures, the runs of one benchmark."""

import json
import math
import re

import pytest
import typer
import yaml
from typer.testing import CliRunner

from sanflow.benchmark_json import write_outline
from sanflow.cli import results as results_commands
from sanflow.errors import ConfigError
from sanflow.evaluation.metric_table import HEADLINE
from sanflow.report.names import CATEGORY_FIGURES, METRIC_FIGURES, tables_of
from sanflow.report.runs import read_runs
from tests.helpers.results import write_metrics


@pytest.fixture
def command():
    app = typer.Typer()
    results_commands.register(app)

    def run(*arguments: object):
        return CliRunner().invoke(app, [str(word) for word in arguments], catch_exceptions=False)

    return run


@pytest.fixture
def results(tmp_path):
    """One of two categories was evaluated; a run of an experiment that the benchmark has no longer."""
    root = tmp_path / "results" / "mine"
    write_metrics(root, "parts/nut/maps/seed0")
    write_metrics(root, "parts/nut/old/seed0")
    write_outline(
        root,
        name="mine",
        title="",
        digest="0" * 64,
        datasets={"parts": ["nut", "cap"]},
        experiments=["maps"],
        seeds=[0],
    )
    return root


@pytest.fixture
def benchmark(tmp_path):
    for category in ("nut", "cap"):
        for part in ("train", "test"):
            (tmp_path / "parts" / category / part / "good").mkdir(parents=True)
    content = {
        "datasets": {"parts": {"kind": "folder", "root": str(tmp_path / "parts"), "categories": ["nut", "cap"]}},
        "experiments": {"maps": {"method": "external", "maps": "maps"}},
    }
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content))
    return tmp_path / "mine.yaml"


def test_finished_makes_what_there_is_and_names_what_is_missing(command, results):
    done = command("finished", results)
    assert done.exit_code == 0
    assert "missing: parts/cap (all)" in done.output
    assert f"`sanflow explore {results}`" in done.output.replace("\n", "")
    assert {path.stem for path in (results / "tables").iterdir()} == set(tables_of(["parts"]))
    drawn = {path.relative_to(results / "figures").as_posix() for path in (results / "figures").rglob("*.png")}
    assert drawn == {f"{kind}/{metric}.png" for kind in METRIC_FIGURES for metric in HEADLINE}


def test_finished_without_any_run_is_no_error(command, tmp_path):
    done = command("finished", tmp_path)
    assert done.exit_code == 0
    assert "No run is finished yet" in done.output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("by_variable", [False, True])
def test_runs_of_the_benchmark_alone(command, results, benchmark, monkeypatch, by_variable):
    """As the rules do it, to which the workflow hands the benchmark in a variable."""
    assert "old" in _experiments(command, results)
    if by_variable:
        monkeypatch.setenv("SANFLOW_BENCHMARK", str(benchmark))
        assert _experiments(command, results) == {"maps"}
    else:
        assert _experiments(command, results, "--benchmark", benchmark) == {"maps"}


def _experiments(command, results, *arguments):
    assert command("tables", results, "--only", "overview", *arguments).exit_code == 0
    words = set(re.findall(r"\w+", (results / "tables/overview.md").read_text()))
    return words & {run.experiment for run in read_runs(results)}


def test_figures_of_one_category(command, results, monkeypatch):
    planned = []
    monkeypatch.setattr("sanflow.report.figures.write_figure", lambda figure, width: planned.append(figure) or [])
    write_metrics(results, "parts/cap/maps/seed0")
    assert command("figures", results, "--category", "parts/cap").exit_code == 0
    assert [(figure.kind, figure.name) for figure in planned] == [(kind, "parts/cap") for kind in CATEGORY_FIGURES]
    with pytest.raises(ConfigError, match=r"among parts/nut, parts/cap, but got 'parts/cup'. Did you mean 'parts/cap'"):
        command("figures", results, "--category", "parts/cup")


def test_the_made_up_metrics_are_whole(results):
    """So that these tests read what an evaluation writes."""
    metrics = json.loads((results / "parts/nut/maps/seed0/metrics.json").read_text())
    assert all(math.isfinite(metrics[name]) for name in HEADLINE)
