"""The page of a benchmark's results: its form on an imagined benchmark, its verdicts by hand, and the committed one."""

import math
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sanflow.benchmark_json import write_outline
from sanflow.cli import app
from sanflow.errors import ConfigError, IntegrityError
from sanflow.report.results_page import FEWEST_CATEGORIES, check_page, copies_of, results_page
from tests.helpers.results import imagine_benchmark, write_metrics

FLOW = {"method": "sanflow", "label": "SANFlow", "encoder": "timm/x.y", "weights": "bundled"}
PLAIN = FLOW | {"method": "cflow-matched", "label": None}


@pytest.fixture
def page(tmp_path):
    return tmp_path / "docs" / "results.md"


def record(page, *arguments):
    return CliRunner().invoke(app, ["record", *map(str, arguments), "--output", str(page)])


def outline_of(results, datasets, experiments=("flow", "plain"), seeds=(0,), runs_on=None):
    write_outline(
        results,
        **{"name": "mine", "title": "Mine", "digest": "0" * 64, "seeds": seeds, "runs_on": runs_on},
        **{"datasets": datasets, "experiments": experiments},
    )


@pytest.fixture
def results(tmp_path):
    """One category of MVTec AD with one seed, one of tiles with three; one experiment is missing, two are optional."""
    root = tmp_path / "results" / "mine"
    intervals = {"aupro": [0.85, 0.9]}
    write_metrics(root, "mvtec_ad/bottle/flow/seed0", FLOW, aupro=0.875, intervals=intervals)
    write_metrics(root, "mvtec_ad/bottle/plain/seed0", PLAIN, aupro=0.9, testset_aupro=0.95)
    # Differences in AUPRO of 4, 5 and 6 points; in the other metrics none.
    for seed, value in enumerate((0.84, 0.85, 0.86)):
        write_metrics(root, f"magnetic_tile/magnetic_tile/flow/seed{seed}", FLOW, aupro=value)
        write_metrics(root, f"magnetic_tile/magnetic_tile/plain/seed{seed}", PLAIN, aupro=0.80)
    outline_of(
        root,
        {"mvtec_ad": ["bottle"], "magnetic_tile": ["magnetic_tile"]},
        ("flow", "plain", "third", "optional", "ablation"),
        runs_on={"optional": [], "ablation": []},
    )
    return root


def sections(text):
    return dict(part.split("\n", 1) for part in re.split(r"^## ", text, flags=re.MULTILINE)[1:])


def test_the_form_of_the_page(tmp_path, page):
    results = imagine_benchmark(tmp_path, seeds=(0, 1))
    for epoch in (2, 4):
        write_metrics(results, f"my_parts/nut/sanflow/seed0/epoch{epoch:02d}", aupro=0.2 * epoch)
    outline_of(results, {"my_parts": ["nut", "cap"]}, ("sanflow", "cflow-matched"), (0, 1))
    answer = record(page, results)
    assert (answer.exit_code, answer.output) == (0, f"{page}\n")
    text = page.read_text("utf-8")
    assert text.startswith("# Mine\n\n*Written by `sanflow record` from the files in [results/](results/) alone.")
    assert not re.search(r"\n\n\n|[ \t]$", text, re.MULTILINE)
    found = sections(text)
    names = [name for name in found if "epoch" not in name]
    assert names == [
        *("What was run", "Headline metrics, mean over categories", "Every run with its intervals", "Encoders"),
        *("Ablation", "Fusion and resolution", "Cost", "Paired comparison of experiments"),
        *("What is decided", "What was not run"),
    ]
    assert any("epoch" in name for name in found)
    assert "- **Data sets**: my_parts (2 categories: nut, cap; 22 test images)" in found["What was run"]
    assert "- **Training time**: 12 minutes, all runs together" in found["What was run"]  # eight times 90 seconds
    assert re.search(r"- \*\*Machine\*\*: .+ processors, ", found["What was run"])
    rows = re.findall(r"^\| (?:nut|cap) .*$", found["Every run with its intervals"], re.MULTILINE)
    assert len(rows) == 8
    assert re.search(r"\| +\d+\.\d\d \\\[\d+\.\d\d, \d+\.\d\d\] ", rows[0])
    assert "test-set, input resolution" in found["Fusion and resolution"]
    assert "- my_parts: 2 categories, 2 seeds." in found["What is decided"]
    assert "All planned runs are finished" in found["What was not run"]
    record(page, results)
    assert page.read_text("utf-8") == text
    assert record(page, "--check").exit_code == 0


def test_what_is_decided(results, page):
    assert record(page, results).exit_code == 0
    text = sections(page.read_text("utf-8"))["What is decided"]
    assert "- mvtec_ad: 1 category of 15, 1 seed. No difference has an interval: nothing is decided." in text
    assert (
        "- magnetic_tile: 1 category of 1, 3 seeds. Differences are over seeds, and one category decides nothing about "
        "other categories."
    ) in text
    assert "Compared with intervals: 3. Decided: 1. Not decided: 2." in text
    # Differences 4, 5, 6: mean 5, standard error 1 / sqrt(3), t(0.975; 2) = 4.303.
    low, high = 5 - 4.303 / math.sqrt(3), 5 + 4.303 / math.sqrt(3)
    assert f"- magnetic_tile, AUPRO: SANFlow − plain is +5.00 points (+{low:.2f} … +{high:.2f}; 3 seeds)" in text
    # One pair of one seed has no interval, so no row.
    assert "mvtec_ad" not in sections(page.read_text("utf-8"))["Paired comparison of experiments"]


@pytest.mark.parametrize(("count", "decides"), [(2, False), (FEWEST_CATEGORIES - 1, False), (FEWEST_CATEGORIES, True)])
def test_few_categories_decide_nothing_about_others(tmp_path, page, count, decides):
    root = tmp_path / "results/mine"
    names = [f"c{number}" for number in range(count)]
    for name in names:
        write_metrics(root, f"parts/{name}/flow/seed0", FLOW)
        write_metrics(root, f"parts/{name}/plain/seed0", PLAIN)
    outline_of(root, {"parts": names})
    assert record(page, root).exit_code == 0
    text = sections(page.read_text("utf-8"))["What is decided"]
    assert f"- parts: {count} categories, 1 seed. Differences are over categories" in text
    assert (f"and {count} decide nothing about other categories" in text) != decides
    assert "Decided: 0. Not decided: 3." in text


def test_what_was_not_run_and_the_commands_that_run_it(results, page):
    record(page, results)
    text = sections(page.read_text("utf-8"))["What was not run"]
    assert "- experiment third (all)" in text
    assert "optional (all)" not in text
    assert "`snakemake --config benchmark=mine` runs all of it and repeats nothing." in text
    target, config = "snakemake results/mine", "metrics.json --config benchmark=mine"
    assert f"```sh\n{target}/mvtec_ad/bottle/{{optional,ablation}}/seed0/{config}\n```" in text
    assert f"A second seed on mvtec_ad:\n\n```sh\n{target}/mvtec_ad/bottle/{{flow,plain}}/seed1/{config}\n```" in text
    assert "A second seed on magnetic_tile" not in text
    others = re.search(r"Other categories of mvtec_ad:\n\n```sh\n(.*)\n```", text)[1]
    assert others.startswith(f"{target}/mvtec_ad/{{cable,capsule,")
    assert others.count(",") == 14  # 14 categories, 2 experiments
    assert "Other categories of magnetic_tile" not in text


def test_names_cannot_break_the_page_or_a_command(tmp_path, page):
    root = tmp_path / "results/mine"
    write_metrics(root, "parts/a b|*$(id)/flow/seed0", FLOW | {"label": "<b>x*"})
    outline_of(root, {"parts": ["a b|*$(id)"]}, ("flow",))
    assert record(page, root).exit_code == 0
    text = page.read_text("utf-8")
    assert "<b>" not in text
    assert "snakemake results/mine/parts/'a b|*$(id)'/flow/seed1/metrics.json" in text


def test_findings_are_kept_and_shown(results, page):
    record(page, results)
    assert "## Findings" not in page.read_text("utf-8")
    (copies_of(page) / "findings.md").write_text("SANFlow is **behind** on `bottle`.\n")
    assert isinstance(record(page, "--check").exception, IntegrityError)
    assert record(page).exit_code == 0  # from the copies; the results folder is not needed
    assert sections(page.read_text("utf-8"))["Findings"].strip() == "SANFlow is **behind** on `bottle`."
    assert record(page, results).exit_code == 0
    assert (copies_of(page) / "findings.md").read_text() == "SANFlow is **behind** on `bottle`.\n"
    answer = record(page, "--check")
    assert (answer.exit_code, "and these have their digests" in answer.output) == (0, True)


def test_runs_that_are_left_out_are_named(results, page):
    write_metrics(results, "mvtec_ad/bottle/renamed/seed0")
    assert "left out, not named by benchmark.json: mvtec_ad/bottle/renamed/seed0" in record(page, results).output
    assert "renamed" not in page.read_text("utf-8")


def test_an_edited_page_is_refused_with_its_first_line(results, page):
    record(page, results)
    text = page.read_text("utf-8")
    page.write_text(text.replace("87.50", "97.50", 1))
    with pytest.raises(IntegrityError, match=r"line \d+ is '\|.*97\.50.*instead of '\|.*87\.50.*into .*findings\.md"):
        check_page(page)
    page.write_text(text + "More.\n")
    with pytest.raises(IntegrityError, match=rf"line {len(text.splitlines()) + 1} is 'More\.' instead of missing"):
        check_page(page)
    page.unlink()
    with pytest.raises(IntegrityError, match=r"Expected a page at .*results\.md, but there is none"):
        check_page(page)


def test_a_changed_number_is_refused(results, page):
    record(page, results)
    copy = copies_of(page) / "mvtec_ad/bottle/flow/seed0/metrics.json"
    copy.write_text(copy.read_text().replace("0.875", "0.975"))
    for call in (check_page, results_page):
        with pytest.raises(IntegrityError, match=r"bottle/flow/seed0/metrics\.json has another digest"):
            call(page)


def test_wrong_command_lines(results, page, tmp_path):
    assert isinstance(record(tmp_path / "results.html", results).exception, ConfigError)
    with pytest.raises(ConfigError, match=r"name ends with \.md, but got results\.html"):
        copies_of(Path("results.html"))
    answer = record(page, results, "--check")
    assert "Expected no results folder with --check" in str(answer.exception)


def test_the_committed_page_is_what_its_files_give(root):
    if not (root / "docs/results").exists():
        pytest.skip("no results are committed yet")
    check_page(root / "docs/results.md")


def rows_of_first_table(text):
    lines = [line for line in text.partition("\n|")[2].partition("\n\n")[0].splitlines() if line]
    head, _, *rows = ([cell.strip().strip("*") for cell in line.strip("|").split("|")] for line in lines)
    return [dict(zip(head, row, strict=True)) for row in rows]


def test_the_readmes_first_table_is_from_the_page(root):
    if not (root / "docs/results").exists():
        pytest.skip("no results are committed yet")
    page = sections((root / "docs/results.md").read_text("utf-8"))["Every run with its intervals"]
    recorded = {row["Experiment"]: row for row in rows_of_first_table(page)}
    shown = rows_of_first_table((root / "README.md").read_text("utf-8"))
    assert len(shown) >= 5
    for row in shown:
        assert row == {name: recorded[row["Experiment"]][name] for name in row}
