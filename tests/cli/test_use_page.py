"""Execute the commands and snippets of docs/use.md as they are printed, in an empty folder outside the checkout."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from tests.helpers.workflow import draw_category, environment

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def blocks(root):
    """Language -> the page's blocks of code."""
    page = (root / "docs/use.md").read_text("utf-8")
    found: dict[str, list[str]] = {}
    for language, code in re.findall(r"```(yaml|bash|python)\n(.*?)```", page, re.DOTALL):
        found.setdefault(language, []).append(code)
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """40 good parts of one kind, new parts of which some have a defect, and good parts after a change."""
    folder = tmp_path_factory.mktemp("use")
    draw_category(folder / "parts/nut", None, n_train=40)
    shutil.move(folder / "parts/nut/test/good", folder / "new")
    for path in (folder / "parts/nut/test/square").iterdir():
        shutil.move(path, folder / "new" / f"defective-{path.name}")
    shutil.rmtree(folder / "parts/nut/test")
    shutil.rmtree(folder / "parts/nut/ground_truth")
    shutil.copytree(folder / "parts/nut/train/good", folder / "good-after-the-change")
    return folder


def run(folder: Path, root: Path, *command: str) -> str:
    known = environment(root) | {"PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])}
    answer = subprocess.run(command, cwd=folder, env=known, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return answer.stdout + answer.stderr


@pytest.mark.slow
def test_the_page_leads_from_good_parts_to_decisions(root, folder, blocks):
    assert sum(len(code.splitlines()) for code in (blocks["yaml"][0], blocks["bash"][0])) <= 10
    (folder / "parts.yaml").write_text(blocks["yaml"][0])
    output = run(folder, root, "bash", "-ec", blocks["bash"][0])
    assert "from 10 held-out good parts" in output
    table = pd.read_csv(folder / "decisions/predictions.csv")
    assert set(table[table.anomalous == 1].image.map(lambda path: Path(path).name)) >= {
        f"defective-{number:03d}.png" for number in range(3)
    }
    assert len(list((folder / "decisions/overlays").rglob("*.*"))) == len(table) == 6
    printed = run(folder, root, sys.executable, "-c", blocks["python"][0]).split()
    row = table[table.image.str.endswith("new/000.png")].iloc[0]
    assert float(printed[0]) == pytest.approx(row.score, rel=1e-5)
    assert float(printed[1]) == pytest.approx(row.p_value)
    assert "40 good parts calibrate nut/checkpoint.pt" in run(folder, root, "bash", "-ec", blocks["bash"][1])


@pytest.mark.slow
def test_without_test_images_nothing_is_scored(root, folder):
    run(folder, root, "sanflow", "index", "--root", "parts", "--without-test", "--output", "index.csv", "parts", "nut")
    command = "sanflow score --checkpoint nut/checkpoint.pt --output a.npz --extras b.npz index.csv"
    with pytest.raises(AssertionError, match=r"Expected test images in the index of parts/nut, but it has none"):
        run(folder, root, *command.split())
    with pytest.raises(AssertionError, match="expected defective test images, but found none"):
        run(folder, root, "sanflow", "index", "--root", "parts", "--output", "index.csv", "parts", "nut")
