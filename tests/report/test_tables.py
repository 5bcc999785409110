"""Tables: means by hand, marks in every format, published numbers where they belong, and no torch."""

import dataclasses
import io
import json
import math
import re
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import typer
import yaml
from packaging.requirements import Requirement
from rich.console import Console
from typer.testing import CliRunner

from sanflow.benchmark_json import write_outline
from sanflow.cli import results as results_commands
from sanflow.errors import ConfigError, DataError, IntegrityError
from sanflow.methods.validation import CRITERION
from sanflow.report.missing import missing_notes, missing_runs
from sanflow.report.names import TABLE_FORMATS as FORMATS
from sanflow.report.names import TABLES as NAMES
from sanflow.report.names import figure_metrics_of, tables_of
from sanflow.report.runs import labels_of, read_runs
from sanflow.report.summary import Summary, means_by_name
from sanflow.report.tables import BUILDERS, build_table, write_tables
from sanflow.report.tables.cells import Cell, percent, points, with_best
from sanflow.report.tables.paired import paired_table
from sanflow.report.tables.render import to_csv, to_html, to_latex, to_markdown
from sanflow.report.tables.show import print_overview
from tests.helpers.results import write_metrics

OURS = {"method": "sanflow", "label": "SANFlow", "encoder": "timm/wide_resnet50_2.tv_in1k", "weights": "pretrained"}
OURS |= {"base": "predicted", "synthetic_anomalies": True, "abnormal_mean": 1.0, "epochs": 20}
PLAIN = {**OURS, "method": "cflow-matched", "label": None, "base": "fixed", "synthetic_anomalies": False}


@pytest.fixture
def results(tmp_path):
    """MVTec AD's bottle and cable, two experiments, two seeds of one of them."""
    root = tmp_path / "results" / "mine"
    for category, seed, value in [("bottle", 0, 0.98), ("bottle", 1, 1.0), ("cable", 0, 0.9), ("cable", 1, 0.94)]:
        write_metrics(root, f"mvtec_ad/{category}/sanflow/seed{seed}", OURS, image_auroc=value)
    write_metrics(root, "mvtec_ad/bottle/plain/seed0", PLAIN, image_auroc=0.99, intervals={"image_auroc": [0.9, 1.0]})
    write_metrics(root, "mvtec_ad/cable/plain/seed0", PLAIN, image_auroc=0.8)
    return root


def test_runs_stand_in_the_benchmarks_order(results):
    assert [run.experiment for run in read_runs(results)][:3] == ["plain", "sanflow", "sanflow"]  # the alphabet's
    write_metrics(results, "mvtec_ad/bottle/added/seed0", PLAIN)
    outline = {"name": "mine", "title": "", "digest": "0" * 64}
    order = {"mvtec_ad": ["cable", "bottle"]}
    write_outline(results, **outline, datasets=order, experiments=["sanflow", "plain"])
    runs = [(run.category, run.experiment, run.seed) for run in read_runs(results)]
    assert runs[:3] == [("cable", "sanflow", 0), ("cable", "sanflow", 1), ("cable", "plain", 0)]
    assert runs[3:] == [("bottle", *rest) for rest in [("sanflow", 0), ("sanflow", 1), ("plain", 0), ("added", 0)]]


def texts(table, section=0):
    return [[cell.text for cell in row] for row in table.sections[section].rows]


def test_cells_and_means_by_hand(results):
    table = build_table("image_auroc", read_runs(results))
    rows = {row[0]: row[1:3] for row in texts(table)}
    assert table.sections[0].header[:3] == ["Category", "plain", "SANFlow"]
    assert rows["bottle"] == ["99.00", "99.00 ± 1.41"]
    assert rows["cable"] == ["80.00", "92.00 ± 2.83"]
    # Seeds' means are 0.94 and 0.97: mean 0.955, sample standard deviation 0.0212.
    assert rows["mean of 2"] == ["89.50", "95.50 ± 2.12"]


def test_best_is_bold_among_measured_ones_only(results):
    table = build_table("image_auroc", read_runs(results))
    bottle, cable, mean = table.sections[0].rows
    assert [cell.best for cell in bottle[:3]] == [False, True, True]  # 99.00 both
    assert [cell.best for cell in cable[:3]] == [False, False, True]
    assert [cell.best for cell in mean[:3]] == [False, False, True]
    assert not any(cell.best for row in table.sections[0].rows for cell in row if cell.published)


def test_published_numbers_stand_beside_ours_and_name_their_source(results):
    table = build_table("image_auroc", read_runs(results))
    header = table.sections[0].header
    column = next(i for i, name in enumerate(header) if name.startswith("CFLOW-AD †"))
    bottle, cable, mean = (row[column] for row in table.sections[0].rows)
    assert (bottle.text, bottle.published) == ("100.00", True)
    assert float(mean.text) == pytest.approx((100 + float(cable.text)) / 2, abs=0.006)
    number = header[column].split("†")[1]
    (note,) = [note for note in table.notes if note.startswith(f"†{number} ")]
    assert "first-hand: gudovskiy/cflow-ad" in note
    assert any("not measured here" in note for note in table.notes)


def test_differences_from_published_numbers(results):
    table = build_table("published_image_auroc", read_runs(results))
    headings = [section.heading for section in table.sections]
    assert headings == ["plain on mvtec_ad", "SANFlow on mvtec_ad"]
    assert table.sections[1].rows[0][2].text == "100.00 (−1.00)"
    data = table.data.query("experiment == 'sanflow' and category == 'bottle' and method == 'CFLOW-AD'")
    assert data.difference.item() == pytest.approx(-0.01)
    assert data.standing.item() == "first-hand"


def test_an_average_stands_for_all_categories_only(results):
    """SimpleNet printed no categories: of two of fifteen there is nothing to say."""
    table = build_table("image_auroc", read_runs(results))
    column = next(i for i, name in enumerate(table.sections[0].header) if name.startswith("SimpleNet"))
    assert [row[column].text for row in table.sections[0].rows] == ["–", "–", "–"]


def test_no_published_numbers_for_other_data_sets(tmp_path):
    write_metrics(tmp_path, "photo_textures/brick/sanflow/seed0", OURS)
    table = build_table("image_auroc", read_runs(tmp_path))
    assert table.sections[0].header == ["Category", "SANFlow"]
    assert not any("†" in note for note in table.notes)
    assert build_table("published_image_auroc", read_runs(tmp_path)).sections == []


def test_published_and_measured_cells_are_marked_in_every_format(results):
    table = build_table("image_auroc", read_runs(results))
    markdown, latex, page = to_markdown(table), to_latex(table), to_html(table)
    assert "**99.00**" in markdown
    assert "*100.00*" in markdown
    assert "CFLOW-AD †1" in markdown
    assert r"\textbf{99.00}" in latex
    assert r"\textit{100.00}" in latex
    assert r"\textdagger{}1" in latex
    assert re.search(r'<td class="[^"]*\bbest" >99\.00</td>', page)
    assert re.search(r'<td class="[^"]*\bpublished" >100\.00</td>', page)
    (column,) = re.findall(r'<th class="[^"]*\b(col\d+)" >CFLOW-AD †1</th>', page)
    assert re.search(rf"th\.{column} {{\s*font-style: italic", page)
    assert set(table.data.origin) == {"measured", "published"}
    assert table.data.query("origin == 'published'").source.notna().all()


def test_csv_has_full_precision_and_intervals(results):
    write_tables(read_runs(results), results / "tables", ["image_auroc"])
    data = pd.read_csv(results / "tables/image_auroc.csv")
    ours = data[data.origin == "measured"].set_index(["method", "category"])
    assert ours.loc[("sanflow", "mean"), "value"] == pytest.approx(0.955, abs=1e-15)
    assert ours.loc[("sanflow", "cable"), "std"] == pytest.approx(np.std([0.9, 0.94], ddof=1))
    assert ours.loc[("plain", "bottle"), ["low", "high"]].tolist() == [0.9, 1.0]
    assert ours.loc[("sanflow", "bottle"), "seeds"] == 2


def test_missing_and_undefined_cells(tmp_path):
    write_metrics(tmp_path, "parts/a/one/seed0", aupro=0.5)
    write_metrics(tmp_path, "parts/b/one/seed0", aupro=None)
    write_metrics(tmp_path, "parts/a/two/seed0", aupro=0.7)
    write_metrics(tmp_path, "parts/c/one/seed0", aupro=0.9)
    table = build_table("aupro", read_runs(tmp_path))
    assert texts(table) == [
        ["a", "50.00", "70.00"],
        ["b", "n/a", "–"],
        ["c", "90.00", "–"],
        ["mean of 2", "70.00", "70.00 [1]"],
    ]
    assert not any(cell.best for cell in table.sections[0].rows[-1])
    assert any("in brackets" in note for note in table.notes)


def test_random_weights_are_marked_in_every_table(tmp_path):
    settings = {**OURS, "weights": "random"}
    write_metrics(tmp_path, "mvtec_ad/bottle/sanflow/seed0", settings, cost={"training_seconds": 60})
    write_metrics(tmp_path, "mvtec_ad/bottle/plain/seed0", PLAIN)
    runs = read_runs(tmp_path)
    for name in NAMES:
        table = build_table(name, runs)
        if not table.sections:
            continue
        assert "SANFlow‡" in to_markdown(table), name
        assert "plain‡" not in to_markdown(table), name
        assert any(note.startswith("‡") and "random, untrained" in note for note in table.notes), name


def test_external_maps_have_no_mark_of_weights(tmp_path):
    write_metrics(tmp_path, "d/a/e/seed0", {"method": "external", "weights": "random"})
    assert labels_of(read_runs(tmp_path)) == {"e": "e"}


def test_two_experiments_of_one_label_are_told_apart(tmp_path):
    for name in ("one", "two"):
        write_metrics(tmp_path, f"d/a/{name}/seed0", {**OURS})
    assert labels_of(read_runs(tmp_path)) == {"one": "SANFlow (one)", "two": "SANFlow (two)"}


def test_oracle_epoch(tmp_path):
    write_metrics(tmp_path, "d/a/sanflow/seed0", OURS, aupro=0.8)
    write_metrics(tmp_path, "d/a/sanflow/seed0/epoch02", OURS, aupro=0.9)
    write_metrics(tmp_path, "d/a/sanflow/seed0/epoch04", OURS, aupro=0.7)
    write_metrics(tmp_path, "d/a/plain/seed0", PLAIN, aupro=0.95)
    runs = read_runs(tmp_path)
    table = build_table("aupro", runs)
    assert table.sections[0].header == ["Category", "plain", "SANFlow", "SANFlow, oracle ◊"]
    assert texts(table)[0] == ["a", "95.00", "80.00", "90.00"]
    assert not table.sections[0].rows[0][3].best
    assert any(note.startswith("◊") for note in table.notes)
    rows = texts(build_table("epoch", runs))
    assert [row[:2] for row in rows] == [["SANFlow", name] for name in ("Image AUROC", "Pixel AUROC", "AUPRO")]
    assert rows[0][2:] == ["50.00", "–", "50.00", "–", "–", "0.00", "–", "–", "–", "1"]
    assert rows[2][2:] == ["80.00", "–", "90.00", "–", "–", "+10.00", "–", "–", "–", "1"]
    assert {run.epoch for run in runs if run.experiment == "sanflow"} == {None, 2, 4}


def test_no_oracle_without_kept_epochs(results):
    assert "keep_every" in build_table("epoch", read_runs(results)).notes[0]
    assert "choose_epoch: validation" in build_table("criterion", read_runs(results)).notes[0]


CHOOSING = {**OURS, "choose_epoch": "validation", "epochs": 6, "keep_every": 2}


def write_epoch(root, run, aupro, resampled, epoch, **measures):
    """One epoch with its bootstrap resamples and its measures on held-out parts."""
    details = {f"validation_{name}": value for name, value in measures.items()}
    provenance = {"epoch": epoch, "steps": {"fit": {"details": details}}}
    cost = {"training_seconds": 200.0, "validation_seconds": 10.0}
    file = write_metrics(root, run, CHOOSING, aupro=aupro, provenance=provenance, cost=cost)
    metrics = json.loads(file.read_text())
    metrics["provenance"]["experiment"] = CHOOSING
    file.write_text(json.dumps(metrics))
    np.savez(file.with_name("curves.npz"), resampled_aupro=np.asarray(resampled, np.float32))


def write_choosing(root, category, seed, offset):
    run = f"d/{category}/sanflow/seed{seed}"
    resamples = np.linspace(-0.01, 0.01, 201)
    write_epoch(root, f"{run}/epoch02", 0.7, 0.7 + resamples, 2, pixel_ap=0.5, log_prob=-1.0)
    write_epoch(root, f"{run}/epoch04", 0.9 + offset, 0.9 + offset + 2 * resamples, 4, pixel_ap=0.8, log_prob=-2.0)
    write_epoch(root, f"{run}/epoch06", 0.8, 0.8 + resamples, 6, pixel_ap=0.6, log_prob=-3.0)
    write_epoch(root, run, 0.9 + offset, 0.9 + offset + 2 * resamples, 4, pixel_ap=0.8, log_prob=-2.0)


def test_the_chosen_epoch_beside_the_last_and_the_oracle(tmp_path):
    write_choosing(tmp_path, "a", 0, 0.0)
    rows = texts(build_table("epoch", read_runs(tmp_path)))
    # The chosen epoch is 0.1 better, by 0.1 - 0.01 ... 0.1 + 0.01 over resamples, of which 95 % are within 0.0095.
    expected = ["80.00", "90.00", "90.00", "+10.00", "+9.05 … +10.95", "+10.00", "+9.05 … +10.95", "4.0 of 6"]
    assert rows[2][2:] == [*expected, "5 %", "1"]


def test_differences_of_one_category_are_paired_over_seeds_and_of_two_are_not(tmp_path):
    write_choosing(tmp_path, "a", 0, 0.0)
    write_choosing(tmp_path, "a", 1, 0.04)
    data = build_table("epoch", read_runs(tmp_path)).data.set_index("metric")
    one = data.loc["aupro"]
    assert (one.chosen_minus_last, one.chosen_low, one.chosen_high) == pytest.approx((0.12, 0.1105, 0.1295), abs=1e-6)
    write_choosing(tmp_path, "b", 0, 0.04)
    two = build_table("epoch", read_runs(tmp_path)).data.set_index("metric").loc["aupro"]
    assert two.chosen_minus_last == pytest.approx((0.12 + 0.14) / 2)
    assert two.chosen_high - two.chosen_low < 0.9 * (one.chosen_high - one.chosen_low)


def test_rank_correlation_by_hand(tmp_path):
    write_choosing(tmp_path, "a", 0, 0.0)
    write_choosing(tmp_path, "b", 0, -0.25)  # epoch 4 is the worst there
    table = build_table("criterion", read_runs(tmp_path))
    assert f"The epoch is chosen by {CRITERION}." in table.caption
    # Ranks of AUPRO: 1 3 2 in a; 2 1 3 in b. Of pixel_ap: 1 3 2, so 1 and -0.5. Of log_prob: 3 2 1, so -0.5 and -0.5.
    assert [row[:2] + row[-3:] for row in texts(table)] == [
        ["SANFlow", "pixel_ap", "+0.25", "−0.50 … +1.00", "2"],
        ["SANFlow", "log_prob", "−0.50", "−0.50 … −0.50", "2"],
    ]
    assert texts(table)[0][2:4] == ["–", "–"]  # image AUROC is 0.5 at each epoch


def test_patience_leaves_the_chosen_epoch_alone(tmp_path):
    write_epoch(tmp_path, "d/a/sanflow/seed0", 0.9, [], 4, pixel_ap=0.8)
    assert texts(build_table("epoch", read_runs(tmp_path)))[2][2:] == [
        *["–", "90.00", "–"],
        *["–"] * 4,
        *["4.0 of 6", "5 %", "1"],
    ]


def test_paired_comparison_prints_n(results):
    table = build_table("paired", read_runs(results))
    row = texts(table)[0]
    assert row[:3] == ["plain − SANFlow", "Image AUROC", "−6.00"]  # (0 - 12) / 2
    assert (table.sections[0].header[-1], row[-1]) == ("n", "2")
    assert row[-3:-1] == ["0 / 1 / 1", "categories"]
    assert table.data.n.tolist() == [2, 2, 2]


def test_one_category_is_paired_by_seed(tmp_path):
    for seed, (ours, plain) in enumerate([(0.80, 0.78), (0.84, 0.80), (0.79, 0.73)]):
        write_metrics(tmp_path, f"d/a/sanflow/seed{seed}", OURS, aupro=ours)
        write_metrics(tmp_path, f"d/a/plain/seed{seed}", PLAIN, aupro=plain)
    write_metrics(tmp_path, "d/a/plain/seed3", PLAIN, aupro=0.1)  # no partner
    table = build_table("paired", read_runs(tmp_path))
    row = next(row for row in texts(table) if row[1] == "AUPRO")
    # Differences -2, -4, -6: mean -4, standard error 2 / sqrt(3), t(0.975; 2) = 4.303
    assert row[2:4] == ["−4.00", "−8.97 … +0.97"]
    assert row[-3:] == ["0 / 0 / 3", "seeds", "3"]
    assert table.data.left_out.tolist()[-1] == "seed3"
    # Another category of one of them is named, not dropped for the sake of an interval.
    write_metrics(tmp_path, "d/b/plain/seed0", PLAIN, aupro=0.5)
    table = build_table("paired", read_runs(tmp_path))
    row = next(row for row in texts(table) if row[1] == "AUPRO")
    assert row[-2:] == ["categories", "1"]
    assert table.data.left_out.tolist()[-1] == "b"


def test_comparisons_of_few_pairs_can_be_left_out(tmp_path):
    for run in ("a/x/one/seed0", "a/x/two/seed0", "b/y/one/seed0", "b/y/two/seed0", "b/z/one/seed0", "b/z/two/seed0"):
        write_metrics(tmp_path, run)
    summary = Summary(read_runs(tmp_path))
    assert paired_table(summary).data.n.tolist() == [1, 1, 1, 2, 2, 2]
    table = paired_table(summary, fewest_pairs=2)
    assert table.data.n.tolist() == [2, 2, 2]
    assert [section.heading for section in table.sections] == ["b"]
    none = paired_table(summary, fewest_pairs=3)
    assert (none.sections, none.notes) == ([], ["No two experiments have enough in common to be compared."])


def test_every_run_has_its_intervals(tmp_path):
    intervals = {"image_auroc": [0.98, 1.0], "aupimo": [0.4, 0.6]}
    write_metrics(tmp_path, "d/a/e/seed3", OURS, image_auroc=0.99, aupro=None, aupimo=0.5, intervals=intervals)
    write_metrics(tmp_path, "d/a/e/seed4", OURS)
    table = build_table("intervals", read_runs(tmp_path))
    assert table.sections[0].header[3:] == ["Image AUROC", "Pixel AUROC", "AUPRO", "Pixel AP", "AUPIMO"]
    first, second = texts(table)
    assert first == ["a", "SANFlow", "3", "99.00 [98.00, 100.00]", "50.00", "n/a", "–", "50.00 [40.00, 60.00]"]
    assert second == ["a", "SANFlow", "4", "50.00", "50.00", "50.00", "–", "–"]
    row = table.data[(table.data.seed == 3) & (table.data.metric == "aupimo")].iloc[0]
    assert (row.dataset, row.category, row.experiment, row.value, row.low, row.high) == ("d", "a", "e", 0.5, 0.4, 0.6)


def test_a_table_is_a_part_of_a_page(results):
    text = to_markdown(build_table("overview", read_runs(results)), level=2)
    assert re.findall(r"^#+ .*", text, re.MULTILINE) == ["## Headline metrics, mean over categories", "### mvtec_ad"]


def test_ablation_shows_what_differs(results):
    table = build_table("ablation", read_runs(results))
    assert table.sections[0].header[1:4] == ["base", "synthetic anomalies", "abnormal mean"]
    assert texts(table)[0][:4] == ["plain", "fixed", "no", "1.0"]
    assert texts(table)[1][:4] == ["SANFlow", "predicted", "yes", "1.0"]
    assert len(table.sections[0].header) == 7


def test_encoders_of_all_categories(tmp_path):
    for category, size in (("a", [256, 256]), ("b", [128, 64])):
        provenance = {"encoder": {"padding": "reflect"}}
        write_metrics(
            tmp_path, f"d/{category}/e/seed0", OURS, input_size=size, provenance=provenance | {"experiment": OURS}
        )
    row = texts(build_table("encoders", read_runs(tmp_path)))[0]
    assert row[:5] == ["SANFlow", "timm/wide_resnet50_2.tv_in1k", "pretrained", "reflect", "256, 128 × 64"]
    write_metrics(tmp_path, "d/a/e/seed0", OURS | {"tile_size": 64}, input_size=[256, 256])
    assert texts(build_table("encoders", read_runs(tmp_path)))[0][4] == "256 in tiles of 64, 128 × 64"


def test_costs_in_their_units(tmp_path):
    cost = {"training_seconds": 90, "scoring_images_per_second": 7.26, "peak_memory_bytes": 2.5e9}
    cost |= {"parameters": 137.5e6, "checkpoint_bytes": 550e6, "device": "cuda"}
    write_metrics(tmp_path, "d/a/e/seed0", OURS, cost=cost)
    write_metrics(tmp_path, "d/b/e/seed0", OURS, cost=cost | {"training_seconds": 150})
    (row,) = texts(build_table("cost", read_runs(tmp_path)))
    assert row == ["SANFlow", "cuda", "2.0", "–", "7.3", "2.50", "137.50", "550.0", "2"]


def test_a_run_without_costs_has_dashes(tmp_path):
    write_metrics(tmp_path, "d/a/e/seed0", {"method": "external"})
    assert texts(build_table("cost", read_runs(tmp_path))) == [["e", *["–"] * 7, "1"]]


def test_protocols_shows_what_was_evaluated(tmp_path):
    write_metrics(tmp_path, "d/a/e/seed0", OURS, testset_aupro=0.25, testset_image_auroc=0.5, testset_pixel_auroc=0.5)
    rows = texts(build_table("protocols", read_runs(tmp_path)))
    assert [row[1] for row in rows] == ["calibrated, input resolution", "test-set, input resolution"]
    assert rows[1][-1] == "25.00"


def test_regions_are_shown_in_the_metric_that_was_measured(tmp_path):
    """MVTec LOCO in sPRO, others in AUPRO; the headline of MVTec AD 2 is AUPRO at 0.05."""
    write_metrics(tmp_path, "mvtec_loco/pushpins/e/seed0", OURS, spro_05=0.25)
    write_metrics(tmp_path, "mvtec_ad_2/vial/e/seed0", OURS, aupro_05=0.75)
    runs = read_runs(tmp_path)
    overview = build_table("overview", runs)
    assert [section.header[3] for section in overview.sections] == ["AUPRO at 0.05", "AU-sPRO at 0.05"]
    assert [section.rows[0][3].text for section in overview.sections] == ["75.00", "25.00"]
    aupro, spro = build_table("aupro_05", runs), build_table("spro_05", runs)
    assert (len(aupro.sections), texts(aupro)[0]) == (1, ["vial", "75.00"])
    assert aupro.notes[0] == "AUPRO at 0.05 is not measured on mvtec_loco: docs/metrics.md says why."
    assert (len(spro.sections), texts(spro)[0]) == (1, ["pushpins", "25.00"])
    assert "the images' own resolution" in spro.caption
    assert set(NAMES) == set(tables_of(["mvtec_ad_2", "mvtec_loco"]))
    assert set(NAMES) - set(tables_of(["mvtec_loco"])) == {"aupro", "aupro_05", "published_aupro"}
    assert figure_metrics_of(["mvtec_ad_2", "mvtec_loco"]) == ("image_auroc", "pixel_auroc", "aupro_05", "spro_05")
    for name in ("protocols", "paired", "epoch", "criterion", "intervals", "encoders", "ablation"):
        build_table(name, runs)
    assert means_by_name(runs)["mvtec_loco/e/spro_05"] == 0.25


def test_parts_of_the_test_sets_by_hand(tmp_path):
    for category, seed, value in [("vial", 0, 0.5), ("vial", 1, 0.7), ("rice", 0, 0.9), ("rice", 1, 0.9)]:
        lights = {"regular": {"image_auroc": value, "pixel_auroc": 0.5, "aupro_05": None}}
        if category == "vial":
            lights["shift_1"] = {"image_auroc": value / 2}
        write_metrics(tmp_path, f"mvtec_ad_2/{category}/e/seed{seed}", OURS, by_group=lights)
    write_metrics(tmp_path, "mvtec_ad_2/vial/better/seed0", PLAIN, by_group={"regular": {"image_auroc": 0.95}})
    kinds = {"logical_anomalies": {"spro_05": 0.25}, "mean": {"spro_05": 0.5}}
    write_metrics(tmp_path, "mvtec_loco/pushpins/e/seed0", OURS, by_kind=kinds)
    table = build_table("groups", read_runs(tmp_path))
    headings = [section.heading for section in table.sections]
    assert headings == ["mvtec_ad_2: images of one group", "mvtec_loco: one kind of anomaly and all good images"]
    lights, kinds = ([[cell.text for cell in row] for row in section.rows] for section in table.sections)
    assert lights == [
        # (0.5 + 0.7) / 2 in vial and 0.9 in rice; of the seeds' means 0.7 and 0.8 the deviation is 0.0707.
        ["regular", "SANFlow", "75.00 ± 7.07", "50.00 ± 0.00", "n/a", "2"],
        ["regular", "better", "95.00", "n/a", "n/a", "1"],
        ["shift_1", "SANFlow", "30.00 ± 7.07", "n/a", "n/a", "1"],
    ]
    assert table.sections[0].rows[1][2].best
    assert not table.sections[0].rows[0][2].best
    assert [(row[0], row[4]) for row in kinds] == [("logical_anomalies", "25.00"), ("mean", "50.00")]
    row = table.data[(table.data.part == "shift_1") & (table.data.metric == "image_auroc")].iloc[0]
    assert (row.parts, row.value, row.seeds, row.categories) == ("by_group", pytest.approx(0.3), 2, 1)


def test_no_parts_where_no_data_set_has_them(results):
    assert "No data set of this benchmark has groups" in build_table("groups", read_runs(results)).notes[0]


def test_several_data_sets_have_a_section_each(tmp_path):
    write_metrics(tmp_path, "btad/01/e/seed0", OURS)
    write_metrics(tmp_path, "mvtec_ad/bottle/e/seed0", OURS)
    table = build_table("pixel_auroc", read_runs(tmp_path))
    assert [section.heading for section in table.sections] == ["btad", "mvtec_ad"]
    assert any(name.startswith("U-Flow †") for name in table.sections[0].header)
    marks = [name.split("†")[1] for section in table.sections for name in section.header if "†" in name]
    assert len(set(marks)) == len(marks)  # a source of its own for each column


def test_the_order_of_files_is_the_order_of_rows_and_columns(results):
    files = [
        results / f"mvtec_ad/{category}/{name}/seed0/metrics.json"
        for category in ("cable", "bottle")
        for name in ("sanflow", "plain")
    ]
    table = build_table("image_auroc", read_runs(results, files))
    assert table.sections[0].header[1:3] == ["SANFlow", "plain"]
    assert [row[0] for row in texts(table)] == ["cable", "bottle", "mean of 2"]


def test_every_table_in_every_format(results):
    files = write_tables(read_runs(results), results / "tables")
    names = tables_of(["mvtec_ad"])
    assert sorted(file.name for file in files) == sorted(f"{name}.{ending}" for name in names for ending in FORMATS)
    assert set(NAMES) - set(names) == {"spro_01", "spro_05", "spro_10", "spro_30", "spro_100"}
    for file in files:
        assert file.read_text("utf-8").strip(), file
    assert tuple(BUILDERS) == NAMES


def test_latex_is_escaped_and_has_booktabs_rules(tmp_path):
    write_metrics(tmp_path, "my_parts/metal_nut/a_b/seed0")
    latex = to_latex(build_table("aupro", read_runs(tmp_path)))
    assert r"metal\_nut & 50.00 \\" in latex
    assert r"a\_b" in latex
    for rule in (r"\toprule", r"\midrule", r"\bottomrule"):
        assert rule in latex
    assert not re.search(r"(?<!\\)_", latex.split(r"\begin{table*}")[1])


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex")
def test_latex_compiles(results, tmp_path):
    body = "".join(to_latex(build_table(name, read_runs(results))) for name in NAMES)
    page = (
        "\\documentclass{article}\\usepackage{booktabs,graphicx,textcomp}\\begin{document}" + body + "\\end{document}"
    )
    (tmp_path / "page.tex").write_text(page)
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "page.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]


def test_pages_are_escaped_and_self_contained(tmp_path):
    write_metrics(tmp_path, "d/a/e/seed0", {"label": "<b>&"})
    page = to_html(build_table("aupro", read_runs(tmp_path)))
    assert "&lt;b&gt;&amp;" in page
    assert "<b>" not in page
    assert not re.search(r"https?://|<script|<link", page)


HOSTILE = ["=1+1", "+x", "-x", "@x", "[x]", "*x*", "<script>x</script>", "a|b", "x & y", r"\input{x}"]


@pytest.fixture
def hostile(tmp_path):
    """A table whose columns, and whose experiments in the CSV file, have names that formats obey."""
    for number, name in enumerate(HOSTILE):
        # As a label: some of these are no names of folders. As the first word of a row: a category.
        write_metrics(tmp_path, f"d/{name.replace('/', '')}/e{number}/seed0", {"label": name}, aupro=0.25)
    return read_runs(tmp_path)


def test_a_spreadsheet_runs_no_name_as_a_formula(hostile):
    table = build_table("overview", hostile)
    data = pd.read_csv(io.StringIO(to_csv(table)))
    shown = data[data.metric == "aupro"].set_index("experiment").label
    for number, name in enumerate(HOSTILE):
        assert shown[f"e{number}"] == (f"'{name}" if name[0] in "=+-@" else name)
    assert data.value.dtype == float  # numbers stay numbers, negative ones too
    negative = dataclasses.replace(table, data=pd.DataFrame({"difference": [-0.5], "text": ["-0.5"]}))
    assert to_csv(negative) == "difference,text\n-0.5,'-0.5\n"


def test_markdown_shows_tags_and_marks(hostile):
    text = to_markdown(build_table("aupro", hostile))
    assert "<script>" not in text
    assert "&lt;script&gt;x&lt;/script&gt;" in text
    assert r"\*x\*" in text
    assert r"| \[x]" in text
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {2 + len(HOSTILE)}


def test_latex_takes_no_name_for_an_argument_or_command(hostile):
    text = to_latex(build_table("aupro", hostile))
    # `\\\\` takes a following bracket or star for itself, over the end of the line.
    assert not re.search(r"\\\\\s*[\[*]", text)
    assert "{[}x]" in text
    assert "{*}x{*}" in text
    assert r"\input" not in text
    assert r"\textbackslash{}input\{x\}" in text
    rows = text[text.index(r"\toprule") : text.index(r"\bottomrule")]
    assert {len(re.findall(r"(?<!\\)&", line)) for line in rows.splitlines() if "&" in line} == {len(HOSTILE)}


def test_html_shows_tags(hostile):
    page = to_html(build_table("aupro", hostile))
    assert "<script>" not in page
    assert "&lt;script&gt;x&lt;/script&gt;" in page
    assert page == to_html(build_table("aupro", hostile))


def test_a_bar_in_a_name_does_not_break_markdown(tmp_path):
    write_metrics(tmp_path, "d/a|b/e/seed0", {"label": "x|y"})
    lines = [
        line for line in to_markdown(build_table("aupro", read_runs(tmp_path))).splitlines() if line.startswith("|")
    ]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {3}


@pytest.mark.parametrize(
    ("difference", "text"), [(0.01234, "+1.23"), (-0.5, "−50.00"), (1e-6, "0.00"), (math.nan, "–")]
)
def test_points(difference, text):
    assert points(difference) == text


def test_percent():
    assert [percent(value).text for value in (0.5, None, math.nan)] == ["50.00", "–", "n/a"]


def test_a_lone_value_is_not_best():
    assert with_best([Cell("1"), Cell("–")], [1.0, None]) == [Cell("1"), Cell("–")]


def test_a_seed_that_lacks_a_category_does_not_move_the_spread(tmp_path):
    for seed, values in enumerate([(0.8, 0.6), (0.9, 0.7), (0.5,)]):
        for category, value in zip("ab", values, strict=False):
            write_metrics(tmp_path, f"d/{category}/e/seed{seed}", aupro=value)
    mean = Summary(read_runs(tmp_path)).mean("d", "e", "aupro")
    assert mean.value == pytest.approx(((0.8 + 0.9 + 0.5) / 3 + 0.65) / 2)
    assert mean.std == pytest.approx(np.std([0.7, 0.8], ddof=1))
    assert (mean.categories, mean.seeds) == (2, 3)


def test_means_for_a_server_are_those_of_the_tables(tmp_path):
    """Unequal seeds: a mean over runs would weigh category a three times."""
    for seed, value in enumerate([0.9, 0.8, 0.7]):
        write_metrics(tmp_path, f"d/a/e/seed{seed}", aupro=value, pixel_auroc=None)
    write_metrics(tmp_path, "d/b/e/seed0", aupro=0.4, pixel_auroc=None)
    means = means_by_name(read_runs(tmp_path))
    assert means == {"e/image_auroc": 0.5, "e/aupro": pytest.approx((0.8 + 0.4) / 2)}
    assert texts(build_table("overview", read_runs(tmp_path)))[0][3].startswith("60.00")
    write_metrics(tmp_path, "other/c/e/seed0", aupro=0.1)
    assert means_by_name(read_runs(tmp_path))["other/e/aupro"] == pytest.approx(0.1)


@pytest.fixture
def outline(results):
    """Three categories on two data sets, of which the fixture `results` has run some."""
    write_outline(
        results,
        name="mine",
        title="",
        digest="0" * 64,
        datasets={"mvtec_ad": ["bottle", "cable", "grid"], "btad": ["01"], "own": [], "empty": []},
        experiments=["sanflow", "plain", "third", "by-name"],
        runs_on={"plain": ["mvtec_ad", "own"], "third": ["mvtec_ad"], "by-name": []},
        seeds=[0, 1],
    )
    return results


def test_missing_runs_are_named(outline):
    write_metrics(outline, "own/nut/sanflow/seed0", OURS)
    assert missing_runs(outline, read_runs(outline)) == [
        "experiment third (all)",
        "mvtec_ad/bottle (plain seed 1)",
        "mvtec_ad/cable (plain seed 1)",
        "mvtec_ad/grid (all)",
        "btad/01 (all)",
        "own/nut (sanflow seed 1, plain)",
        "empty (all)",
    ]


def test_nothing_is_missing_where_nothing_is_known_or_all_is_there(results):
    assert missing_runs(results, read_runs(results)) == []
    order = {"mvtec_ad": ["bottle"]}
    write_outline(results, name="x", title="", digest="0" * 64, datasets=order, experiments=["sanflow"], seeds=[0, 1])
    assert missing_runs(results, read_runs(results)) == []
    assert missing_notes([]) == []


def test_many_missing_categories_are_counted():
    (note,) = missing_notes([f"d/{number:02d} (all)" for number in range(15)])
    assert note.endswith("d/11 (all); and 3 more.")


def test_tables_are_made_of_what_exists_and_say_what_does_not(outline, command):
    assert command("tables", outline).exit_code == 0
    for name in tables_of(["mvtec_ad"]):
        for ending in ("md", "html"):
            text = (outline / f"tables/{name}.{ending}").read_text("utf-8")
            assert "Missing, and in no number here: experiment third (all); mvtec_ad/bottle (plain seed 1)" in text, (
                name,
                ending,
            )
    answer = command("show", outline)
    assert "mvtec_ad/grid (all)" in answer.output.replace("\n", " ")
    assert "95.50" in answer.output


def test_errors_name_what_is_wrong(tmp_path, results):
    with pytest.raises(DataError, match=r"metrics\.json files below .*empty, but there is none\. Run the benchmark"):
        read_runs(tmp_path / "empty")
    with pytest.raises(ConfigError, match=r"name of a table, one of overview, .* but got 'speed'"):
        build_table("speed", read_runs(results))
    misplaced = results / "metrics.json"
    misplaced.write_text("{}")
    with pytest.raises(DataError, match=r"<data set>/<category>/<experiment>/seed<k>"):
        read_runs(results)
    misplaced.unlink()
    broken = results / "mvtec_ad/bottle/plain/seed0/metrics.json"
    broken.write_text('{"aupro": 1}')
    with pytest.raises(DataError, match="hold image_auroc, but it does not"):
        read_runs(results)
    broken.write_text("{")
    with pytest.raises(IntegrityError, match="damaged"):
        read_runs(results)


def test_show_prints_the_headline_and_the_places(results):
    (results / "tables").mkdir()
    console = Console(width=120, record=True, file=io.StringIO())
    print_overview(read_runs(results), results, console)
    printed = console.export_text()
    assert "95.50 ± 2.12" in printed
    assert "Image AUROC" in printed
    assert f"tables: {results / 'tables'}" in printed
    assert "report:" not in printed  # there is none yet


@pytest.fixture
def command():
    app = typer.Typer()
    results_commands.register(app)
    return lambda *arguments: CliRunner().invoke(app, list(map(str, arguments)))


def test_commands(command, results):
    answer = command("tables", results, "--only", "overview", "--only", "cost")
    assert answer.exit_code == 0, answer.output
    assert sorted(file.name for file in (results / "tables").iterdir()) == sorted(
        f"{name}.{ending}" for name in ("overview", "cost") for ending in FORMATS
    )
    assert "SANFlow" in command("show", results).output


@pytest.fixture(scope="module")
def listed(root):
    """Packages of envs/report.yaml."""
    content = yaml.safe_load((root / "envs/report.yaml").read_text())
    (pip,) = [entry["pip"] for entry in content["dependencies"] if isinstance(entry, dict)]
    return pip


def test_the_list_is_part_of_the_package_and_torch_free(listed, root):
    import tomllib

    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    assert set(listed) <= set(project["dependencies"])
    names = {Requirement(line).name for line in listed}
    assert not names & {"torch", "torchvision", "timm", "FrEIA", "mlflow", "snakemake"}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_tables_are_made_anew_without_torch(listed, root, results, tmp_path):
    """A new environment from the list of envs/report.yaml makes the same tables, byte for byte."""
    python = tmp_path / "venv/bin/python"
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    install = [python, "-m", "pip", "install", "--quiet"]
    subprocess.run([*install, *listed], check=True, timeout=1200)
    subprocess.run([*install, "--no-deps", root], check=True, timeout=600)
    answer = subprocess.run([python, "-c", "import torch"], capture_output=True, check=False)
    assert b"No module named 'torch'" in answer.stderr
    subprocess.run([tmp_path / "venv/bin/sanflow", "tables", results], check=True, cwd=tmp_path, timeout=300)
    here = tmp_path / "here"
    write_tables(read_runs(results), here)
    for file in sorted(here.iterdir()):
        assert (results / "tables" / file.name).read_bytes() == file.read_bytes(), file.name


def test_the_page_about_outputs_names_every_table_and_column(root, results):
    page = (root / "docs/outputs.md").read_text("utf-8")
    for name in NAMES:
        assert f"`{name}`" in page, name
    for name in ("aupro", "published_image_auroc"):
        for column in build_table(name, read_runs(results)).data.columns:
            assert f"`{column}`" in page, column


def test_operating_point(tmp_path):
    point = {
        **{"level": 0.05, "held_out": 39, "rank": 2, "threshold": 3.5},
        **{"expected_rate": 0.05, "expected_interval": [0.0062, 0.1318]},
        **{"false_alarm_rate": 0.1, "false_alarm_interval": [0.0123, 0.317]},
        **{"detection_rate": None, "detection_interval": None},
    }
    write_metrics(tmp_path, "d/c/a/seed0", operating_point=[point])
    table = build_table("operating_point", read_runs(tmp_path))
    assert [cell.text for cell in table.sections[0].rows[0][3:]] == [
        *("5", "39", "5.0 [0.6, 13.2]", "10.0 [1.2, 31.7]", "–"),
    ]
    row = table.data.iloc[0]
    assert (row.seed, row.level, row.false_alarm_low, row.expected_high) == (0, 0.05, 0.0123, 0.1318)
    write_metrics(tmp_path, "d/c/a/seed0", operating_point=[])
    assert "calibration_fraction" in build_table("operating_point", read_runs(tmp_path)).notes[0]
