"""What the workflow asks of a benchmark: finished runs, threads."""

import dataclasses
from types import SimpleNamespace

import pytest
import yaml

from sanflow.errors import DeviceError
from sanflow.pipeline import plan
from sanflow.pipeline.benchmark import Benchmark
from sanflow.pipeline.plan import Plan, finished_metrics, threads_of_fit


def test_finished_metrics_are_those_of_the_benchmark_that_exist(tmp_path):
    experiment = {"method": "external", "maps": "maps"}
    flow = {"method": "cflow-matched", "encoder": "timm/resnet18.tv_in1k", "epochs": 4, "keep_every": 2}
    content = {
        "datasets": {"mvtec_ad": {"categories": ["cable", "bottle"]}},
        "experiments": {"maps": experiment, "flow": flow},
        "seeds": [0, 1],
    }
    benchmark = tmp_path / "mine.yaml"
    benchmark.write_text(yaml.safe_dump(content))
    results = tmp_path / "results" / "mine"
    assert finished_metrics(str(benchmark), results) == []
    written = [
        "mvtec_ad/bottle/maps/seed0",
        "mvtec_ad/bottle/maps/seed2",  # a seed that the benchmark has no longer
        "mvtec_ad/bottle/old/seed0",  # and an experiment
        "mvtec_ad/cable/flow/seed1",
        "mvtec_ad/cable/flow/seed1/epoch02",
        "mvtec_ad/cable/flow/seed1/epoch03",
    ]
    for folder in written:
        (results / folder).mkdir(parents=True, exist_ok=True)
        (results / folder / "metrics.json").write_text("{}")
    found = [str(path.parent.relative_to(results)) for path in finished_metrics(str(benchmark), results)]
    assert found == [written[3], written[0], written[4]]


def test_tables_wait_for_the_curves_of_what_keeps_epochs_alone():
    flow = {"method": "cflow-matched", "encoder": "timm/resnet18.tv_in1k", "epochs": 4}
    benchmark = Benchmark.model_validate(
        {"datasets": {"mvtec_ad": {"categories": ["cable"]}}, "experiments": {"a": flow | {"keep_every": 2}, "b": flow}}
    )
    jobs = list(benchmark.jobs({"mvtec_ad": ["cable"]}))
    found = Plan(benchmark, jobs, "results/mine", "data").curves_of_epochs({})
    run = "results/mine/mvtec_ad/cable/a/seed0"
    assert found == [f"{run}/curves.npz", f"{run}/epoch02/curves.npz", f"{run}/epoch04/curves.npz"]


RESNET = {"encoder": "timm/resnet18.tv_in1k"}
WIDE = {"encoder": "timm/wide_resnet50_2.tv_in1k"}


@pytest.mark.parametrize(
    ("experiment", "fit", "score"),
    [
        # 2,300 MB and 110 MB for each of 8 images of 256 x 256 pixels: an encoder's pass.
        ({"method": "sanflow", **RESNET}, 4800 + 4 * 470, 2300 + 8 * 110),
        ({"method": "sanflow", **WIDE, "input_size": 512}, 4800 + 4 * 4 * 470, 2300 + 4 * 8 * 110),
        ({"method": "sanflow", **RESNET, "input_size": [128, 256], "batch_size": 2}, 4800 + 470, 2300 + 4 * 110),
        ({"method": "cflow", **RESNET, "input_size": 256}, 3200 + 2300 + 32 * 110, 3180),
        ({"method": "official", **RESNET, "official_weights": "{category}.pth"}, 3200 + 3180, 3180),
        # 64 x 64 positions, 6 bytes for each product of two of 100 or 550 dimensions.
        ({"method": "padim", **RESNET}, 3180 + 246, 3180 + 246),
        ({"method": "padim", **WIDE}, 3180 + 7434, 3180 + 7434),
        ({"method": "padim", **WIDE, "dimensions": 100, "crop": 128}, 2300 + 220 + 61, 2300 + 220 + 61),
        # A thousand images of 32 x 32 patches with 1,536 channels are 6,291 MB; a tenth is kept.
        ({"method": "patchcore", **WIDE}, 3180 + 9437, 3180 + 1887),
    ],
)
def test_a_scheduler_reserves_the_memory_that_a_job_needs(experiment, fit, score):
    chosen = Benchmark.model_validate(
        {"datasets": {"mvtec_ad": {"categories": ["bottle"]}}, "experiments": {"a": experiment}}
    )
    plan = Plan(chosen, [], "results/mine", "data")
    wildcards = SimpleNamespace(dataset="mvtec_ad", category="bottle", experiment="a", seed="0")
    assert (plan.fit_memory_mb(wildcards), plan.score_memory_mb(wildcards)) == (fit, score)


@pytest.mark.parametrize(
    ("cores", "jobs", "device", "gpus", "variables", "expected"),
    [
        (64, 1, "cpu", ["GPU-aa"], {}, 64),
        (64, 1, "auto", [], {}, 64),
        (64, 4, "auto", [], {}, 16),
        (3, 8, "cpu", [], {}, 1),
        (64, 1, "auto", ["GPU-aa"], {}, 4),
        (64, 1, "cuda", [], {}, 4),
        (None, 1, "cpu", [], {}, 4),
        (64, 1, "cpu", [], {"OMP_NUM_THREADS": "6"}, 6),
        (64, 1, "auto", ["GPU-aa"], {"OMP_NUM_THREADS": "6,2"}, 6),
        (8, 1, "cpu", [], {"OMP_NUM_THREADS": "all"}, 8),
        (8, 1, "cpu", [], {"OMP_NUM_THREADS": "0"}, 8),
    ],
)
def test_a_cpu_training_uses_the_cores_and_the_users_number_wins(
    monkeypatch, cores, jobs, device, gpus, variables, expected
):
    monkeypatch.setattr(plan, "gpu_pool", lambda environment: gpus)
    assert threads_of_fit(cores, jobs, device, variables) == expected


def test_a_gpu_that_cannot_be_used_is_reported_by_the_job(monkeypatch):
    def broken(environment):
        raise DeviceError("dead")

    monkeypatch.setattr(plan, "gpu_pool", broken)
    assert threads_of_fit(64, 1, "auto", {}) == 4


@pytest.mark.parametrize(("fit_needs_gpu", "scoring_needs_gpu"), [(True, True), (False, True), (True, False)])
def test_a_step_that_needs_no_gpu_neither_claims_nor_uses_one(monkeypatch, fit_needs_gpu, scoring_needs_gpu):
    experiment = {"method": "sanflow", "encoder": "timm/resnet18.tv_in1k"}
    benchmark = Benchmark.model_validate({"datasets": {"mvtec_ad": {}}, "experiments": {"flow": experiment}})
    wildcards = SimpleNamespace(dataset="mvtec_ad", category="bottle", experiment="flow", seed="0")
    needs = {"fit_needs_gpu": fit_needs_gpu, "scoring_needs_gpu": scoring_needs_gpu}
    method = dataclasses.replace(plan.methods()["sanflow"], **needs)
    monkeypatch.setattr(plan, "methods", lambda: {"sanflow": method})
    chosen = plan.Plan(benchmark, [], "results/b", "data")
    claims = ["sanflow", "gpu-exec", "--", "sanflow"]
    on_the_cpu = ["--device", "cpu"]
    assert chosen.fit_command(wildcards) == ([*claims, "train"] if fit_needs_gpu else ["sanflow", "train", *on_the_cpu])
    assert chosen.score_command(wildcards) == (
        [*claims, "score"] if scoring_needs_gpu else ["sanflow", "score", *on_the_cpu]
    )


@pytest.mark.parametrize(
    ("needs_gpu", "expected"),
    [(True, "sanflow gpu-exec -- sanflow make-maps"), (False, "sanflow make-maps --device cpu")],
)
def test_making_maps_without_a_gpu_claims_none(monkeypatch, needs_gpu, expected):
    experiment = {"method": "command", "command": ["tool", "{train}", "{test}", "{maps}"]}
    benchmark = Benchmark.model_validate({"datasets": {"mvtec_ad": {}}, "experiments": {"tool": experiment}})
    wildcards = SimpleNamespace(dataset="mvtec_ad", category="bottle", experiment="tool", seed="0")
    method = dataclasses.replace(plan.methods()["command"], make_needs_gpu=needs_gpu)
    monkeypatch.setattr(plan, "methods", lambda: {"command": method})
    assert " ".join(plan.Plan(benchmark, [], "results/b", "data").make_command(wildcards)) == expected


def test_of_a_registry_entry_what_decides_an_index_lists_again_and_nothing_else_does(tmp_path, monkeypatch):
    benchmark = Benchmark.model_validate(
        {"datasets": {"mvtec_ad": {}}, "experiments": {"maps": {"method": "external", "maps": "m"}}}
    )
    wildcards = SimpleNamespace(dataset="mvtec_ad", category="bottle", experiment="maps", seed="0")
    chosen = plan.Plan(benchmark, [], "results/b", "data")
    before, evaluation = chosen.data_settings(wildcards), chosen.evaluation_settings(wildcards)
    entry = plan.dataset_entry("mvtec_ad")

    def with_entry(**changes):
        monkeypatch.setattr(plan, "dataset_entry", lambda name: entry.model_copy(update=changes))
        return chosen.data_settings(wildcards)

    assert with_entry(mask_above=(entry.mask_above or 0) + 1) != before
    assert with_entry(sha256="0" * 64) != before
    assert with_entry(mirrors=[*entry.mirrors, "https://example.org/a"], title="Other", licence="?") == before
    counts = entry.categories["bottle"]
    assert with_entry(categories=entry.categories | {"bottle": counts.model_copy(update={"train": 1})}) != before
    assert with_entry(categories=entry.categories | {"cable": counts}) == before
    assert chosen.evaluation_settings(wildcards) == evaluation
