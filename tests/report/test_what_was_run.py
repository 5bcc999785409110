"""What is said about finished runs: every commit and machine once, hours, and nothing where nothing is known."""

from sanflow.report.runs import read_runs
from sanflow.report.what_was_run import what_was_run
from tests.helpers.results import write_metrics

VERSIONS = {
    **{"sanflow": "0.1.0", "git_commit": "0123456789abcdef", "git_dirty": False, "python": "3.11.7"},
    **{"platform": "Linux-6", "processor": "Xeon", "cpu_count": 2, "packages": {"torch": "2.6", "mlflow": "3"}},
}


def write_run(root, run, *, fit, evaluate, seconds):
    steps = {"evaluate": {"versions": evaluate}, "fit": {"versions": fit}}
    settings = {"label": "SANFlow", "encoder": "timm/x.y", "method": "sanflow"}
    cost = {"device": "cpu, 2 threads"} | ({} if seconds is None else {"training_seconds": seconds})
    provenance = {"experiment": settings, "steps": steps}
    counts = {"test_images": 1000}
    write_metrics(root, run, settings, provenance=provenance, cost=cost, counts=counts, input_size=[192, 192])


def test_facts(tmp_path):
    dirty = VERSIONS | {"git_commit": "f" * 40, "git_dirty": True, "cpu_count": 4}
    write_run(tmp_path, "d/a/e/seed0", fit=VERSIONS, evaluate=dirty, seconds=3600)
    write_run(tmp_path, "d/b/e/seed2", fit=VERSIONS, evaluate=VERSIONS, seconds=5400)
    write_run(tmp_path, "d/b/f/seed2", fit=VERSIONS, evaluate=VERSIONS, seconds=None)
    assert what_was_run(read_runs(tmp_path)) == [
        ("Data sets", ["d (2 categories: a, b; 2,000 test images)"]),
        (
            "Experiments",
            [f"SANFlow ({key}) (encoder timm/x.y, input 192 x 192 pixels)" for key in ("e", "f")],
        ),
        ("Seeds", ["0, 2"]),
        ("Commit", ["0123456789ab", "ffffffffffff with changes"]),
        ("Device", ["cpu, 2 threads"]),
        ("Machine", ["Xeon, 2 processors, Linux-6", "Xeon, 4 processors, Linux-6"]),
        ("Software", ["sanflow 0.1.0, Python 3.11.7, torch 2.6"]),
        ("Training time", ["2.5 hours, all runs together, not known of 1 runs"]),
    ]


def test_what_no_run_knows_is_left_out(tmp_path):
    write_metrics(tmp_path, "d/a/e/seed0")
    assert what_was_run(read_runs(tmp_path)) == [
        ("Data sets", ["d (1 category: a; 0 test images)"]),
        ("Experiments", ["e"]),
        ("Seeds", ["0"]),
    ]
