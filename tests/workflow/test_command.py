"""A benchmark whose method is another tool, from its images to its row in the tables."""

import json
import sys

import pytest
import yaml

from tests.helpers.workflow import draw_category, planned, snakemake

pytestmark = pytest.mark.timeout(1200)

# Distance to the mean training image, as a user would write it; and a list of all that it was shown.
TOOL = """
import json, os, pathlib, sys
import numpy as np, tifffile
from PIL import Image

train, test, maps, seen = map(pathlib.Path, sys.argv[1:5])
read = lambda file: np.asarray(Image.open(file).convert("L"), np.float32)
mean = np.mean([read(file) for file in train.iterdir()], axis=0)
for file in test.iterdir():
    tifffile.imwrite(maps / f"{file.stem}.tiff", np.abs(read(file) - mean))
files = [file for folder in (train, test) for file in folder.rglob("*")]
found = {
    "arguments": sys.argv[1:4],
    "names": {folder.name: sorted(os.listdir(folder)) for folder in (train, test)},
    "real": [str(file.resolve().relative_to(train.parent.resolve())) for file in files],
    "links": [file.name for file in files if file.is_symlink() or file.stat().st_nlink > 1],
    "beside": sorted(os.listdir(train.parent)),
    "environment": [name for name in os.environ if name.startswith("SANFLOW")],
}
seen.write_text(json.dumps(found))
print("distances are written")
"""


def row(*command, **keys):
    return {"method": "command", "command": list(command), "input_size": 64, **keys}


@pytest.fixture(scope="module")
def finished(root, tmp_path_factory):
    """A benchmark of a tool that works and of two that fail."""
    work = tmp_path_factory.mktemp("another tool")
    draw_category(work / "parts/nut", None)
    (work / "distance.py").write_text(TOOL)
    folders = ("{train}", "{test}", "{maps}")
    experiments = {
        "theirs": row(
            sys.executable, "distance.py", *folders, "seen.json", label="Distance to the mean", files=["distance.py"]
        ),
        "broken": row("sh", "-c", "echo no weights >&2; exit 4", "{test}", "{maps}"),
        "slow": row("sh", "-c", "sleep 600", "{test}", "{maps}", timeout=0.02),
    }
    datasets = {"parts": {"kind": "folder", "root": "parts", "categories": ["nut"]}}
    (work / "small.yaml").write_text(yaml.safe_dump({"datasets": datasets, "experiments": experiments}))
    return work, snakemake(root, work, "--keep-going", check=False)


def test_the_tool_is_measured_like_any_other_method(finished):
    work, answer = finished
    run = work / "results/small/parts/nut/theirs/seed0"
    metrics = json.loads((run / "metrics.json").read_text())
    assert [metrics[name] for name in ("image_auroc", "pixel_auroc")] == pytest.approx([1, 1], abs=0.01)
    record = json.loads((run / "train.json").read_text())
    assert metrics["cost"]["training_seconds"] == record["seconds"]["total"] > 0.05
    assert metrics["cost"]["peak_memory_bytes"] == record["peak_memory_bytes"] > 5e6
    assert metrics["cost"]["device"] == "cpu"
    log = work / "results/small/logs/make_maps/parts/nut/theirs/seed0.log"
    assert "distances are written" in log.read_text()
    assert answer.returncode == 1, "two other jobs fail"


def test_the_tool_saw_no_labels_and_no_names_of_the_data_set(finished):
    work, _ = finished
    seen = json.loads((work / "seen.json").read_text())
    names = {"train": [f"{n:06d}.png" for n in range(6)], "test": [f"{n:06d}.png" for n in range(6)]}
    assert seen["names"] == names
    assert sorted(seen["real"]) == sorted(f"{split}/{name}" for split in names for name in names[split])
    assert seen["links"] == []
    assert seen["beside"] == ["maps", "test", "train"]
    assert seen["environment"] == []
    assert not {"good", "square", "ground_truth"} & {part for path in seen["arguments"] for part in path.split("/")}


def test_tools_that_fail_do_so_alone_and_say_why(finished):
    work, answer = finished
    logs = work / "results/small/logs/make_maps/parts/nut"
    broken, slow = ((logs / name / "seed0.log").read_text() for name in ("broken", "slow"))
    assert "ToolError: Expected the command to succeed, but it exited with code 4. Its last lines:" in broken
    assert "\n  no weights\n" in broken
    assert "within 0.02 minutes" in slow
    assert "no weights" in answer.output
    assert not list(work.glob("results/small/parts/nut/[bs]*/seed0/*"))
    assert [path for path in (work / "results/small/state/parts").rglob("*") if path.is_file()] == []


def test_its_row_is_in_the_tables_with_its_cost(root, finished):
    work, _ = finished
    path = work / "small.yaml"
    content = yaml.safe_load(path.read_text())
    content["experiments"] = {"theirs": content["experiments"]["theirs"]}
    path.write_text(yaml.safe_dump(content))
    snakemake(root, work)
    tables = work / "results/small/tables"
    assert "Distance to the mean" in (tables / "image_auroc.md").read_text()
    line = next(text for text in (tables / "cost.md").read_text().splitlines() if "Distance to the mean" in text)
    assert "cpu" in line
    # An edit of the tool's script runs it again.
    assert planned(root, work) == {}
    (work / "distance.py").write_text(TOOL + "# another version\n")
    assert planned(root, work)["make_maps"] == 1
