"""Figures: what is drawn is what the files say, in both formats, the same bytes twice, and nothing is empty."""

import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest
import typer
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager
from matplotlib.text import Text
from PIL import Image
from typer.testing import CliRunner

from sanflow.anomaly_maps.scores_file import Extras, Scores
from sanflow.cli import results as results_commands
from sanflow.data.index import read_index
from sanflow.errors import ConfigError, IntegrityError
from sanflow.evaluation.metric_table import HEADLINE
from sanflow.report.figures import PER_CATEGORY, PER_METRIC, PlannedFigure, dots, plan_figures, write_figure
from sanflow.report.figures import contact_sheet as contact_sheets
from sanflow.report.figures.contact_sheet import Maps, colour_range, contact_sheet
from sanflow.report.figures.fonts import fonts_for
from sanflow.report.figures.inputs import first_seeds
from sanflow.report.figures.latents import embed, latents_of_category
from sanflow.report.figures.samples import choose_samples
from sanflow.report.figures.style import EXPERIMENT_COLOURS, WIDTHS, looks, message_figure, save, styled
from sanflow.report.figures.training import training_curves
from sanflow.report.figures.variance import variance_maps
from sanflow.report.names import CATEGORY_FIGURES, FIGURES, METRIC_FIGURES
from sanflow.report.published import METHODS, best_columns
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
    for files in (outputs[:2], outputs[2:]):
        write_figure(PlannedFigure("training", "nut", runs, files, results / DATASET / "nut" / "index.csv"))
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
    table = pd.read_csv(runs[0].folder / "images.csv")
    chosen = choose_samples(list(table.defect_type), table.score.to_numpy())
    words = texts(drawn("contact_sheet", runs, index))
    assert {f"{table.score[i]:.3g}" for i in chosen} <= set(words)


def test_contact_sheet_fuses_the_shown_images_alone(runs, index, monkeypatch):
    """The colours are those of the whole test set all the same."""
    fused = []
    real = contact_sheets.anomaly_maps

    def counted(scores, size):
        fused.append(len(scores.paths))
        return real(scores, size)

    monkeypatch.setattr(contact_sheets, "anomaly_maps", counted)
    figure = drawn("contact_sheet", runs, index)
    assert fused == [8, 8]
    assert len(index.test) == 11
    run = first_seeds(runs)["cflow-matched‡"]
    maps = real(Scores.load(run.folder / "scores.npz"), (64, 64))
    low, high = figure.axes[2 * 8].images[0].get_clim()
    assert high == pytest.approx(maps.max())
    assert low == pytest.approx(np.quantile(maps, 0.02), abs=0.01 * float(np.ptp(maps)))


def test_the_range_of_colours_by_hand():
    curves = {
        "pixel_histogram_edges": np.array([-1.0, 0.0, 1.0]),
        "pixel_histogram_normal": np.array([1, 90]),
        "pixel_histogram_anomalous": np.array([0, 9]),
    }
    low, high = colour_range(curves)  # the second of 100 pixels is the first of the 99 that are spread over [0, 1]
    assert low == pytest.approx(1 / 99)
    assert high == 1.0


def dots_of(axes):
    """Label of each line of dots -> its values and its places."""
    lines = {container.get_label(): container.lines[0] for container in axes.containers}
    lines |= {line.get_label(): line for line in axes.lines if not line.get_label().startswith("_")}
    return {label: line.get_xydata().T for label, line in lines.items()}


def test_dots_are_the_means_of_the_metrics(results):
    runs = read_runs(results)
    with styled():
        (axes,) = dots.draw(runs, "aupro").axes
    by_name = {(run.category, run.experiment, run.seed): run.metrics["aupro"] for run in runs}
    found = dots_of(axes)
    for label, experiment in {"cflow-matched‡": "cflow-matched", "SANFlow‡": "sanflow"}.items():
        cells = [100 * np.mean([by_name[category, experiment, seed] for seed in (0, 1)]) for category in ("cap", "nut")]
        np.testing.assert_allclose(found[label][0], [*cells, np.mean(cells)])
        np.testing.assert_array_equal(np.rint(found[label][1]), [0, 1, 2])  # each within its row
    assert [label.get_text() for label in axes.get_yticklabels()] == ["cap", "nut", "mean"]
    assert not np.any(found["cflow-matched‡"][1] == found["SANFlow‡"][1])  # none hides another


def intervals_of(axes):
    """Ends of each line of the first experiment, in percent."""
    segments = axes.containers[0].lines[2][0].get_segments()
    return [segment[:, 0].tolist() for segment in segments]


def test_lines_are_intervals_of_one_seed_or_the_spread_over_seeds(tmp_path):
    write_metrics(tmp_path, "d/a/one/seed0", aupro=0.9, intervals={"aupro": [0.8, 0.95]})
    for seed, value in enumerate([0.7, 0.8, 0.9]):
        write_metrics(tmp_path, f"d/b/one/seed{seed}", aupro=value)
    write_metrics(tmp_path, "d/c/one/seed0", aupro=0.5)  # no interval
    with styled():
        (axes,) = dots.draw(read_runs(tmp_path), "aupro").axes
    first, second, third, _ = intervals_of(axes)
    np.testing.assert_allclose(first, [80, 95])
    np.testing.assert_allclose(second, [70, 90])
    np.testing.assert_allclose(third, [50, 50])  # nothing to see


def test_published_numbers_are_open_dots_in_a_panel_of_their_own(tmp_path):
    write_metrics(tmp_path, "mvtec_ad/bottle/ours/seed0", image_auroc=0.97)
    write_metrics(tmp_path, "mvtec_ad/cable/ours/seed0", image_auroc=0.9)
    with styled():
        measured, published = dots.draw(read_runs(tmp_path), "image_auroc").axes
    assert list(dots_of(measured)) == ["ours"]
    found = dots_of(published)
    assert found["CFLOW-AD"][0][0] == pytest.approx(100)
    assert set(found) == {column.method for column in best_columns("mvtec_ad", "image_auroc")}
    assert measured.get_xlim() == published.get_xlim()
    open_dots = [line for line in published.lines if line.get_label() in METHODS]
    assert {line.get_markerfacecolor() for line in open_dots} == {"white"}
    assert len({line.get_marker() for line in open_dots}) == len(open_dots)
    assert {line.get_linestyle() for line in open_dots} == {"None"}
    best = [line.get_xdata()[0] for line in published.lines if line.get_color() == "#8c959f"]
    np.testing.assert_allclose(best, [97, 90, 93.5])


def test_every_published_method_has_a_marker_of_its_own():
    assert set(dots.PUBLISHED_MARKERS) == set(METHODS)
    assert len(set(dots.PUBLISHED_MARKERS.values())) == len(METHODS)


def test_dots_of_one_category_and_missing_values(tmp_path):
    write_metrics(tmp_path, "d/a/one/seed0", aupro=None)
    write_metrics(tmp_path, "d/a/two/seed0", aupro=0.0)
    with styled():
        (axes,) = dots.draw(read_runs(tmp_path), "aupro").axes
    found = dots_of(axes)
    assert np.isnan(found["one"][0]).all()
    assert found["two"][0].tolist() == [0.0]
    assert axes.get_xlim()[0] < 0  # the dot at 0 is whole
    (figure,) = plan_figures(tmp_path, tmp_path / "figures", ["dots"])[2:]
    assert [file.stat().st_size > 1000 for file in write_figure(figure)] == [True, True]


def test_a_mean_over_fewer_categories_is_no_dot(tmp_path):
    for category, experiment in (("a", "one"), ("b", "one"), ("a", "two")):
        write_metrics(tmp_path, f"d/{category}/{experiment}/seed0", aupro=0.5)
    with styled():
        (axes,) = dots.draw(read_runs(tmp_path), "aupro").axes
    np.testing.assert_array_equal(dots_of(axes)["one"][0], [50, 50, 50])
    np.testing.assert_array_equal(dots_of(axes)["two"][0], [50, np.nan, np.nan])


@pytest.mark.parametrize("width", WIDTHS)
def test_figures_have_the_width_of_print(results, tmp_path, width):
    for figure in plan_figures(results, tmp_path):
        if figure.name in ("my_parts/nut", "aupro"):
            (_, pdf) = write_figure(figure, width)
            box = re.search(rb"/MediaBox \[ 0 0 ([\d.]+) ", pdf.read_bytes())
            assert float(box[1]) <= 72 * WIDTHS[width] + 1, figure.kind


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
    first = first_seeds(runs)["SANFlow‡"]
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
    assert {run.seed for run in first_seeds(runs).values()} == {0}
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
    assert len(set(EXPERIMENT_COLOURS)) == 8


def test_scores_of_other_images_are_refused(runs, results, index):
    other = read_index(results / DATASET / "cap" / "index.csv")
    with pytest.raises(IntegrityError, match=r"of the images of my_parts/cap, but they are of others.*Score the run"):
        contact_sheets.draw(runs, other)


def test_damaged_curves_and_extras_are_named(runs, index, tmp_path):
    folder = tmp_path / DATASET / "nut" / "sanflow" / "seed0"
    shutil.copytree(runs[-1].folder, folder)
    (folder / "curves.npz").write_bytes(b"no")
    with pytest.raises(IntegrityError, match=r"curves in .*curves\.npz.*Evaluate the run again"):
        PER_CATEGORY["curves"](read_runs(tmp_path), index)
    (folder / "extras.npz").write_bytes(b"no")
    with pytest.raises(IntegrityError, match=r"extras\.npz"):
        PER_CATEGORY["latents"](read_runs(tmp_path), index)


def test_a_run_without_extras_is_left_out(runs, index, tmp_path):
    shutil.copytree(runs[-1].folder, tmp_path / DATASET / "nut" / "sanflow" / "seed0")
    (tmp_path / DATASET / "nut" / "sanflow" / "seed0" / "extras.npz").unlink()
    assert "No experiment has latent" in " ".join(texts(drawn("latents", read_runs(tmp_path), index)))
    Extras([]).save(tmp_path / DATASET / "nut" / "sanflow" / "seed0" / "extras.npz")
    assert "no variance" in " ".join(texts(drawn("variance", read_runs(tmp_path), index)))


def test_every_figure_is_registered_and_has_a_file():
    assert tuple(PER_CATEGORY) == CATEGORY_FIGURES
    assert tuple(PER_METRIC) == METRIC_FIGURES
    for name, drawer in {**PER_CATEGORY, **PER_METRIC}.items():
        assert drawer.__module__ == f"sanflow.report.figures.{name}"


def test_variance_is_shown_at_the_positions_of_the_file(runs, index):
    figure = drawn("variance", runs, index)
    variance = Extras.load(first_seeds(runs)["SANFlow‡"].folder / "extras.npz").variance
    row = [axes for axes in figure.axes if axes.images and axes.images[0].get_array().ndim == 2][:8]
    shown = [axes.images[0].get_array() for axes in row]
    assert all(any(np.allclose(one, own) for own in variance.astype(np.float32)) for one in shown)
    assert "the statistics network is trained at no others" in " ".join(texts(figure)).replace("\n", " ")


def test_letters_that_matplotlibs_font_lacks_come_from_a_font_that_has_them(tmp_path, monkeypatch):
    letters = frozenset("漢字")
    own = [font for font in fontManager.ttflist if font.name == "DejaVu Sans"]
    monkeypatch.setattr(fontManager, "ttflist", own)  # as on a machine without any other
    fonts_for.cache_clear()
    assert fonts_for(letters) == ()
    file = tmp_path / "han.ttf"
    draw_font(file, "Two Han letters", letters)
    fontManager.addfont(file)
    fonts_for.cache_clear()
    try:
        figure = message_figure("name 漢字")
        with styled():
            (pdf,) = save(figure, [tmp_path / "x.pdf"])
        assert [text.get_fontfamily() for text in figure.texts] == [["DejaVu Sans", "Two Han letters"]]
        assert b"TwoHanletters" in pdf.read_bytes()
    finally:
        fonts_for.cache_clear()


def draw_font(file, name, letters):
    """A TrueType font whose letters are squares."""
    from fontTools.fontBuilder import FontBuilder
    from fontTools.pens.ttGlyphPen import TTGlyphPen

    pen = TTGlyphPen(None)
    pen.moveTo((100, 0))
    for corner in ((100, 800), (900, 800), (900, 0)):
        pen.lineTo(corner)
    pen.closePath()
    glyphs = {".notdef": pen.glyph()} | {f"uni{ord(letter):04X}": pen.glyph() for letter in sorted(letters)}
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder(list(glyphs))
    builder.setupCharacterMap({ord(letter): f"uni{ord(letter):04X}" for letter in letters})
    builder.setupGlyf(glyphs)
    builder.setupHorizontalMetrics(dict.fromkeys(glyphs, (1000, 100)))
    builder.setupHorizontalHeader(ascent=900, descent=-100)
    builder.setupNameTable({"familyName": name, "styleName": "Regular", "psName": name.replace(" ", "")})
    builder.setupOS2(sTypoAscender=900, usWeightClass=400)
    builder.setupPost()
    builder.save(file)


def test_plan_has_each_category_and_metric_once(results):
    plan = plan_figures(results, results / "figures")
    names = [(figure.kind, figure.name) for figure in plan]
    assert len(set(names)) == len(names) == len(PER_CATEGORY) * 2 + len(HEADLINE)
    outputs = [output.relative_to(results).as_posix() for figure in plan for output in figure.outputs]
    assert "figures/curves/my_parts/nut.pdf" in outputs
    assert "figures/dots/aupro.png" in outputs
    assert {figure.kind for figure in plan} == set(FIGURES)


def test_an_unknown_kind_is_refused(results):
    with pytest.raises(ConfigError, match=r"Expected a kind of figure, one of contact_sheet, .* but got 'pie'"):
        plan_figures(results, results, ["dots", "pie"])


def test_command_figures(results, tmp_path):
    app = typer.Typer()
    results_commands.register(app)
    arguments = ["figures", str(results), "--output", str(tmp_path), "--only", "training"]
    answer = CliRunner().invoke(app, arguments)
    assert answer.exit_code == 0, answer.output
    found = sorted(file.relative_to(tmp_path).as_posix() for file in tmp_path.rglob("*.*"))
    stems = ["training/my_parts/cap", "training/my_parts/nut"]
    assert found == sorted(f"{stem}{ending}" for stem in stems for ending in (".png", ".pdf"))


def test_figures_of_what_exists_are_drawn_where_runs_are_missing(results, tmp_path):
    copied = tmp_path / "results"
    shutil.copytree(results / DATASET / "nut", copied / DATASET / "nut")
    shutil.copytree(results / DATASET / "cap" / "sanflow" / "seed0", copied / DATASET / "cap" / "sanflow" / "seed0")
    for name in ("index.csv", "index.json"):
        shutil.copy(results / DATASET / "cap" / name, copied / DATASET / "cap")
    plan = plan_figures(copied, tmp_path / "figures", ["contact_sheet", "dots"])
    assert {figure.name for figure in plan} == {"my_parts/nut", "my_parts/cap", *HEADLINE}
    for figure in plan:
        assert all(file.stat().st_size > 1000 for file in write_figure(figure))


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
        figure = dots.draw(read_runs(tmp_path), "aupro")
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
    for kind in FIGURES:
        assert f"| `{kind}` |" in page, kind
        assert (root / "workflow/report" / f"{kind}.rst").read_text("utf-8").strip(), kind
