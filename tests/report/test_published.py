"""Published numbers: the right source for each, and no number of another data set."""

import csv
from collections import Counter

import pytest

from sanflow.files import resource
from sanflow.report.published import (
    DATASETS,
    METHODS,
    METRICS,
    best_columns,
    method_of,
    read_columns,
    standing_of,
)


def column(dataset, metric, method):
    return next(column for column in best_columns(dataset, metric) if column.method == method)


@pytest.mark.parametrize(
    ("variant", "source", "expected"),
    [
        ("CFLOW-AD", "gudovskiy/cflow-ad@b2ebf9e README.md", "first-hand"),
        ("PaDiM", "gudovskiy/cflow-ad@b2ebf9e images/fig-table.svg", "second-hand"),
        ("PatchCore (authors' repo run)", "amazon-science/patchcore-inspection@fcaa92f README.md", "first-hand"),
        ("U-Flow", "mtailanian/uflow@d621784 (U-Flow Table 5, run by the U-Flow authors)", "first-hand"),
        ("CFLOW-AD", "mtailanian/uflow@d621784 (U-Flow Table 5, run by the U-Flow authors)", "re-run"),
        ("FastFlow", "mtailanian/uflow@d621784 (U-Flow Table 1; peers second-hand)", "second-hand"),
        ("FastFlow (gathierry re-implementation)", "gathierry/FastFlow@2cf1f2f README.md", "re-run"),
        ("CFLOW-AD (anomalib re-run)", "open-edge-platform/anomalib README.md (re-run)", "re-run"),
        ("CFLOW-AD (in the FastFlow paper)", "FastFlow paper summary (second-hand)", "re-run"),
        ("PaDiM (run in the DRAEM paper)", "DRAEM paper p.8 Table 2", "re-run"),
        ("DRAEM", "DRAEM paper p.8 Table 2", "first-hand"),
        ("SimpleNet", "SimpleNet paper note (second-hand)", "second-hand"),
    ],
)
def test_standing(variant, source, expected):
    assert standing_of(variant, source) == expected


@pytest.mark.parametrize(
    ("dataset", "metric", "method", "category"),
    [
        ("mvtec_ad", "image_auroc", "CFLOW-AD", "bottle"),
        ("mvtec_ad", "pixel_auroc", "CFLOW-AD", "transistor"),
        ("btad", "pixel_auroc", "U-Flow", "01"),
        ("visa", "image_auroc", "MSFlow", "pcb1"),
    ],
)
def test_values_are_those_of_the_file(dataset, metric, method, category):
    columns = {column.method: column for column in best_columns(dataset, metric)}
    with open(resource("published.csv"), encoding="utf-8", newline="") as file:
        printed = {
            float(row["value"])
            for row in csv.DictReader(file)
            if (row["source"], row["method"], row["encoder"], row["category"], row["metric"])
            == (columns[method].source, columns[method].variant, columns[method].encoder, category, metric)
        }
    assert columns[method].values[category] * 100 in [pytest.approx(number) for number in printed]
    assert columns[method].standing == "first-hand"
    assert len(printed) == 1


def test_the_whole_file_is_there():
    with open(resource("published.csv"), encoding="utf-8", newline="") as file:
        assert sum(1 for _ in csv.DictReader(file)) == 2169


def test_first_hand_comes_before_second_hand_before_re_run():
    rank = {"first-hand": 0, "second-hand": 1, "re-run": 2}
    for dataset in DATASETS:
        for metric in METRICS:
            for best in best_columns(dataset, metric):
                same = [c for c in read_columns() if (c.dataset, c.metric, c.method) == (dataset, metric, best.method)]
                assert rank[best.standing] == min(rank[c.standing] for c in same), best.footnote()


def test_columns_come_in_one_order_and_once():
    for dataset in DATASETS:
        for metric in METRICS:
            methods = [column.method for column in best_columns(dataset, metric)]
            assert methods == sorted(methods, key=METHODS.index)
            assert max(Counter(methods).values(), default=1) == 1


def test_every_value_is_a_fraction_and_no_average_hides_among_categories():
    for column in read_columns():
        for name, value in column.values.items():
            assert 0 < value <= 1, (column, name)
            assert "average" not in name
        assert column.values or column.average is not None or "average" in column.source, column


def test_data_sets_nobody_published_have_no_columns():
    assert best_columns("photo_textures", "image_auroc") == []
    assert best_columns("mvtec_ad", "aupimo") == []


def test_mean_over_the_categories_of_a_table():
    cflow = column("mvtec_ad", "image_auroc", "CFLOW-AD")
    two = (cflow.values["bottle"] + cflow.values["cable"]) / 2
    assert cflow.mean(["bottle", "cable"], whole=False) == pytest.approx(two)
    assert cflow.mean(list(cflow.values), whole=True) == pytest.approx(0.9826, abs=1e-4)
    assert cflow.mean(["bottle", "unheard_of"], whole=False) is None
    padim = column("mvtec_ad", "aupro", "PaDiM")  # its printed average is not the mean of its printed cells
    assert padim.mean(list(padim.values), whole=True) == pytest.approx(0.921)
    assert padim.mean(list(padim.values), whole=False) == pytest.approx(0.9151, abs=1e-4)
    simplenet = column("mvtec_ad", "image_auroc", "SimpleNet")
    assert simplenet.mean(["bottle"], whole=False) is None
    assert simplenet.mean(["bottle"], whole=True) == pytest.approx(0.996)


def test_variants_belong_to_their_method():
    assert method_of("PatchCore (IADBE re-run)") == "PatchCore"
    assert method_of("AD-CLSCNFs (CFLOW + synthetic-defect classifier)") is None
