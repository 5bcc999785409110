"""Figures: what is drawn is what the files say, in both formats, the same bytes twice, and nothing is empty."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import typer
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image
from typer.testing import CliRunner

from sanflow.anomaly_maps.scores_file import Extras
from sanflow.cli import results as results_commands
from sanflow.data.index import read_index
from sanflow.errors import ConfigError, IntegrityError
from sanflow.evaluation.metric_table import HEADLINE
from sanflow.report.figures import KINDS, PER_CATEGORY, draw_bars, draw_category, gather, plan_figures
from sanflow.report.figures.contact_sheet import Maps, contact_sheet
from sanflow.report.figures.latents import embed, latents_of_category
from sanflow.report.figures.samples import choose_samples
from sanflow.report.figures.style import EXPERIMENT_COLOURS, looks, message_figure, save, styled
from sanflow.report.figures.training import training_curves
from sanflow.report.figures.variance import variance_maps
from sanflow.report.runs import read_runs
from tests.helpers.results import imagine_benchmark, imagine_history, write_metrics

DATASET = "my_parts"


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return imagine_benchmark(tmp_path_factory.mktemp("imagined"), seeds=(0, 1), resamples=5)


@pytest.fixture(scope="module")
def runs(results):
    return [run for run in read_runs(results) if run.category == "nut"]


@pytest.fixture(scope="module")
def index(results):
    return read_index(results / DATASET / "nut" / "index.csv")


def drawn(kind, runs, index) -> Figure:
    with styled():
        return PER_CATEGORY[kind](runs, index)


def texts(figure):
    """All words of a figure."""
    figure.draw_without_rendering()
    return [text.get_text() for text in figure.findobj(Text)]


@pytest.mark.parametrize("kind", PER_CATEGORY)
def test_each_figure_names_every_experiment_it_shows(kind, runs, index):
    words = " ".join(texts(drawn(kind, runs, index)))
    assert "SANFlow‡" in words
    assert ("cflow-matched‡" in words) == (kind != "variance")  # its base is fixed: it has no variance to show
    assert "random, untrained weights" in words


def test_files_are_whole_and_the_same_twice(runs, results, tmp_path):
    outputs = [tmp_path / name for name in ("a.png", "a.pdf", "b.png", "b.pdf")]
    draw_category("training", runs, results / DATASET / "nut" / "index.csv", outputs[:2])
    draw_category("training", runs, results / DATASET / "nut" / "index.csv", outputs[2:])
    assert outputs[0].read_bytes() == outputs[2].read_bytes()
    assert outputs[1].read_bytes() == outputs[3].read_bytes()
    assert outputs[1].read_bytes().startswith(b"%PDF")
    with Image.open(outputs[0]) as image:
        assert min(image.size) > 300
        assert np.asarray(image.convert("L")).std() > 10


def test_contact_sheet_has_a_row_per_view_and_no_empty_panel(runs, index):
    figure = drawn("contact_sheet", runs, index)
    panels = [axes for axes in figure.axes if axes.get_label() != "<colorbar>"]
    n_images = len(choose_samples(list(index.test.defect_type), np.arange(len(index.test))))
    assert len(panels) == (2 + 2 * 2) * n_images
    assert all(axes.images for axes in panels)
    titles = [axes.get_title() for axes in panels[:n_images]]
    assert titles == sorted(titles, key=lambda title: (title != "good", title))
    assert set(titles) == {"good", "dot", "line"}


def test_contact_sheet_shows_the_scores_of_the_files(runs, index):
    scores = pd.read_csv(runs[0].folder / "images.csv").score
    words = texts(drawn("contact_sheet", runs, index))
    assert f"{scores.max():.3g}" in words or sum(f"{score:.3g}" in words for score in scores) >= 4


def test_bars_have_the_heights_of_the_metrics(results):
    runs = read_runs(results)
    with styled():
        figure = gather.bars(runs, "aupro")
    (axes,) = figure.axes
    heights = [bar.get_height() for bar in axes.patches]
    by_name = {(run.category, run.experiment, run.seed): run.metrics["aupro"] for run in runs}
    cells = [
        100 * np.mean([by_name[category, experiment, seed] for seed in (0, 1)])
        for experiment in ("cflow-matched", "sanflow")
        for category in ("cap", "nut")
    ]
    expected = [cells[0], cells[1], (cells[0] + cells[1]) / 2, cells[2], cells[3], (cells[2] + cells[3]) / 2]
    np.testing.assert_allclose(heights, expected)
    assert [label.get_text() for label in axes.get_xticklabels()] == ["cap", "nut", "mean"]


def test_published_numbers_are_markers_not_bars(tmp_path):
    write_metrics(tmp_path, "mvtec_ad/bottle/ours/seed0", image_auroc=0.97)
    write_metrics(tmp_path, "mvtec_ad/cable/ours/seed0", image_auroc=0.9)
    with styled():
        (axes,) = gather.bars(read_runs(tmp_path), "image_auroc").axes
    assert len(axes.patches) == 3
    lines = {line.get_label(): line for line in axes.lines}
    cflow = lines["CFLOW-AD (published)"]
    assert cflow.get_ydata()[0] == pytest.approx(100)
    assert cflow.get_linestyle() == "None"
    assert cflow.get_markerfacecolor() == "white"


def test_bars_of_one_category_and_missing_values(tmp_path):
    write_metrics(tmp_path, "d/a/one/seed0", aupro=None)
    write_metrics(tmp_path, "d/a/two/seed0", aupro=0.0)
    files = draw_bars("aupro", read_runs(tmp_path), [tmp_path / "bars.png"])
    assert files[0].stat().st_size > 1000


def test_curves_are_those_of_the_files_with_their_areas(runs, index):
    figure = drawn("curves", runs, index)
    panels = {axes.get_title(): axes for axes in figure.axes}
    assert set(panels) == {
        "",
        "Image ROC",
        "Image precision-recall",
        "Pixel ROC",
        "Pixel precision-recall",
        "Per-region overlap",
    }
    first = gather.first_seeds(runs)["SANFlow‡"]
    with np.load(first.folder / "curves.npz") as curves:
        line = panels["Per-region overlap"].lines[1]
        np.testing.assert_array_equal(line.get_xdata(), curves["pixel_pro_x"])
        np.testing.assert_array_equal(line.get_ydata(), curves["pixel_pro_y"])
    assert f"{100 * first.metrics['aupro']:.2f}" in [text.get_text() for text in panels["Per-region overlap"].texts]


def test_histograms_hold_all_images(runs, index):
    figure = drawn("histograms", runs, index)
    above = [axes for axes in figure.axes if axes.get_xlabel() == "image score"]
    assert len(above) == 2
    for axes in above:
        filled = [stairs.get_data().values.sum() for stairs in axes.patches if stairs.get_fill()]
        assert filled == [5, 6]  # good, defective


def test_only_the_lowest_seed_is_shown_but_all_seeds_train(runs, index):
    assert {run.seed for run in gather.first_seeds(runs).values()} == {0}
    loss = drawn("training", runs, index).axes[0]
    assert len(loss.lines) == 4
    history = imagine_history(seed=0)["history"]
    np.testing.assert_allclose(loss.lines[0].get_ydata(), [epoch["loss"] for epoch in history])


def test_training_of_kept_epochs_is_not_drawn_twice(runs, index, tmp_path):
    copied = tmp_path / DATASET / "nut" / "sanflow" / "seed0"
    shutil.copytree(runs[-1].folder, copied)
    shutil.copytree(runs[-1].folder, copied / "epoch02")
    assert len(drawn("training", read_runs(tmp_path), index).axes[0].lines) == 1


@pytest.mark.parametrize(
    ("figure", "words"),
    [
        (lambda: training_curves({"a": [[]]}), "No experiment was trained here."),
        (lambda: latents_of_category({}), "No experiment has latent vectors here."),
        (
            lambda: variance_maps(np.zeros((1, 4, 4, 3), np.uint8), np.zeros((1, 4, 4)), ["good"], {}),
            "no variance to show",
        ),
        (lambda: message_figure("Nothing."), "Nothing."),
    ],
)
def test_where_there_is_nothing_to_see_a_sentence_says_so(figure, words):
    with styled():
        assert any(words in text for text in texts(figure()))


def test_latents_apart_stay_apart():
    rng = np.random.default_rng(0)
    labels = np.arange(80) < 30
    points, order = embed(rng.normal(size=(80, 8)) + 40 * labels[:, None], labels)
    assert points.shape == (80, 2)
    assert order.sum() == 30
    middles = [points[order == label].mean(0) for label in (False, True)]
    spread = max(points[order == label].std() for label in (False, True))
    assert np.linalg.norm(middles[0] - middles[1]) > spread
    again, _ = embed(rng.normal(size=(2, 8)), np.array([True, False]))
    assert again.shape == (2, 2)


def test_samples_are_the_median_and_then_the_hardest_of_each_kind():
    kinds = ["good"] * 5 + ["hole"] * 5 + ["tear"] * 5
    scores = np.array([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 20, 21, 22, 23, 24])
    assert choose_samples(kinds, scores, most=3) == [2, 7, 12]
    assert choose_samples(kinds, scores, most=6) == [2, 4, 7, 5, 12, 10]
    chosen = choose_samples(kinds, scores, most=8)
    assert len(set(chosen)) == len(chosen) == 8
    assert sum(kinds[i] == "good" for i in chosen) == 2
    assert choose_samples(["hole"], np.array([1.0])) == [0]
    assert len(choose_samples([f"kind{number}" for number in range(20)], np.arange(20.0), most=8)) == 8


def test_experiments_differ_without_colour_too():
    styles = list(looks(map(str, range(8))).values())
    assert len({(style["linestyle"], style["marker"]) for style in styles}) == 8
    assert len({style["hatch"] for style in styles}) == 8
    assert len(set(EXPERIMENT_COLOURS)) == 8


def test_scores_of_other_images_are_refused(runs, results, index):
    other = read_index(results / DATASET / "cap" / "index.csv")
    with pytest.raises(IntegrityError, match=r"of the images of my_parts/cap, but they are of others.*Score the run"):
        gather.contact(runs, other)


def test_damaged_curves_and_extras_are_named(runs, index, tmp_path):
    folder = tmp_path / DATASET / "nut" / "sanflow" / "seed0"
    shutil.copytree(runs[-1].folder, folder)
    (folder / "curves.npz").write_bytes(b"no")
    with pytest.raises(IntegrityError, match=r"curves in .*curves\.npz.*Evaluate the run again"):
        gather.curves(read_runs(tmp_path), index)
    (folder / "extras.npz").write_bytes(b"no")
    with pytest.raises(IntegrityError, match=r"extras\.npz"):
        gather.latents(read_runs(tmp_path), index)


def test_a_run_without_extras_is_left_out(runs, index, tmp_path):
    shutil.copytree(runs[-1].folder, tmp_path / DATASET / "nut" / "sanflow" / "seed0")
    (tmp_path / DATASET / "nut" / "sanflow" / "seed0" / "extras.npz").unlink()
    assert "No experiment has latent" in " ".join(texts(drawn("latents", read_runs(tmp_path), index)))
    Extras([]).save(tmp_path / DATASET / "nut" / "sanflow" / "seed0" / "extras.npz")
    assert "no variance" in " ".join(texts(drawn("variance", read_runs(tmp_path), index)))


def test_plan_has_each_category_and_metric_once(results):
    plan = plan_figures(results, results / "figures")
    names = [(figure.kind, figure.name) for figure in plan]
    assert len(set(names)) == len(names) == len(PER_CATEGORY) * 2 + len(HEADLINE)
    outputs = [output.relative_to(results).as_posix() for figure in plan for output in figure.outputs]
    assert "figures/curves/my_parts/nut.pdf" in outputs
    assert "figures/bars/aupro.png" in outputs
    assert {figure.kind for figure in plan} == set(KINDS)


def test_an_unknown_kind_is_refused(results):
    with pytest.raises(ConfigError, match=r"Expected a kind of figure, one of contact_sheet, .* but got 'pie'"):
        plan_figures(results, results, ["bars", "pie"])


def test_command_figures(results, tmp_path):
    app = typer.Typer()
    results_commands.register(app)
    arguments = ["figures", str(results), "--output", str(tmp_path), "--only", "training"]
    answer = CliRunner().invoke(app, arguments)
    assert answer.exit_code == 0, answer.output
    found = sorted(file.relative_to(tmp_path).as_posix() for file in tmp_path.rglob("*.*"))
    stems = ["training/my_parts/cap", "training/my_parts/nut"]
    assert found == sorted(f"{stem}{ending}" for stem in stems for ending in (".png", ".pdf"))


def test_text_in_pdf_stays_text(tmp_path):
    with styled():
        save(message_figure("Legible."), [tmp_path / "x.pdf"])
    content = (tmp_path / "x.pdf").read_bytes()
    assert b"/CIDFontType2" in content  # an embedded TrueType font, not outlines
    assert b"/Type3" not in content


def test_dollars_in_names_are_no_formulas(tmp_path):
    for name in ("$a$", "b$"):
        write_metrics(tmp_path, f"d/{name}/$x_1$/seed0", {"label": r"5$ \\frac $"})
    with styled():
        figure = gather.bars(read_runs(tmp_path), "aupro")
    save(figure, [tmp_path / "x.png"])  # a broken formula would stop it
    assert r"\$a\$" in texts(figure)


def test_a_map_of_two_values_has_an_outline_too():
    image, mask = np.zeros((1, 16, 16, 3), np.uint8), np.zeros((1, 16, 16), bool)
    mask[0, 4:9, 4:9] = True
    maps = Maps("maps", 255.0 * mask, 0.0, 255.0, 255.0, np.array([255.0]))
    with styled():
        figure = contact_sheet(image, mask, ["hole"], [maps])
    outline = figure.axes[3]
    assert len(outline.collections) == 2  # truth and prediction
    assert all(len(contour.get_paths()[0].vertices) > 8 for contour in outline.collections)


def test_the_helper_evaluates_for_real(runs):
    metrics = json.loads((runs[0].folder / "metrics.json").read_text())
    assert 0.5 < metrics["pixel_auroc"] <= 1


def test_the_page_about_outputs_and_the_report_name_every_kind(root):
    page = (root / "docs/outputs.md").read_text("utf-8")
    for kind in KINDS:
        assert f"| `{kind}` |" in page, kind
        assert (root / "workflow/report" / f"{kind}.rst").read_text("utf-8").strip(), kind
