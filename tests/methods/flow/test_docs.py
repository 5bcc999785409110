"""docs/method.md names functions that exist; every D mark in code and documents is explained."""

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
NAMES = sorted(set(re.findall(r"`(sanflow(?:\.\w+)+)`", (ROOT / "docs/method.md").read_text("utf-8"))))
MARK = re.compile(r"\bD\d{1,2}\b")


@pytest.mark.parametrize("name", NAMES)
def test_what_the_page_names_exists(name):
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for attribute in parts[end:]:
            found = getattr(found, attribute)
        return
    pytest.fail(name)


def test_page_names_the_heart_of_the_method():
    assert {
        "sanflow.methods.flow.losses.loss_of",
        "sanflow.methods.flow.coupling_flow.CouplingBlock",
        "sanflow.anomaly_maps.fusion.calibrated",
    } <= set(NAMES)


def test_every_mark_is_explained_once():
    explained = re.findall(r"^\*\*(D\d+)\.", (ROOT / "docs/deviations.md").read_text("utf-8"), re.MULTILINE)
    assert sorted(explained, key=lambda mark: int(mark[1:])) == [
        f"D{number}" for number in range(1, len(explained) + 1)
    ]
    for file in [*(ROOT / "docs").glob("*.md"), *(ROOT / "sanflow").rglob("*.py")]:
        assert set(MARK.findall(file.read_text("utf-8"))) <= set(explained), file
