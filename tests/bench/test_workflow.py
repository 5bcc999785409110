"""The time of the workflow: rules are summed from Snakemake's files, and many jobs are planned."""

import json

import pytest

from sanflow.bench import workflow
from sanflow.errors import DataError


def test_seconds_of_rules_are_summed(tmp_path):
    for name, seconds in {"train/a/seed0": 2.0, "train/a/seed1": 3.5, "score/a/seed0": 1.0, "tables": 0.25}.items():
        path = tmp_path / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"s": seconds, "max_rss": 1}) + "\n")
    assert workflow.seconds_of_rules(tmp_path) == {"score": 1.0, "tables": 0.25, "train": 5.5}


def test_without_a_checkout_it_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(workflow, "BENCHMARK", tmp_path / "demo.yaml")
    with pytest.raises(DataError, match="sanflow is installed without its checkout"):
        workflow.bench_workflow(run=False)


@pytest.mark.slow
def test_a_dry_run_plans_at_least_so_many_jobs():
    found = workflow.bench_workflow(run=False, jobs=30)
    assert 30 <= found["dry_run"]["jobs"] < 100
    assert found["dry_run"]["seconds"] > 0


@pytest.mark.slow
def test_a_workflow_that_fails_is_reported(tmp_path, monkeypatch):
    broken = tmp_path / "demo.yaml"
    broken.write_text("datasets: {photo_textures: {}}\nexperiments: {a: {method: nothing}}\nseeds: [0]\n")
    monkeypatch.setattr(workflow, "BENCHMARK", broken)
    with pytest.raises(DataError, match="Expected the workflow to run, but it ended with"):
        workflow.bench_workflow(run=False)
