"""MVTec LOCO and MVTec AD 2: small sets in their layouts, measured as their authors report them."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from sanflow.anomaly_maps.fusion import calibrated
from sanflow.anomaly_maps.maps import anomaly_maps
from sanflow.anomaly_maps.scores_file import Scores
from sanflow.data.images import load_masks
from sanflow.data.index import build_index
from sanflow.evaluation.evaluate import evaluate
from sanflow.evaluation.headline import applies, headline_of
from sanflow.evaluation.metric_table import METRICS, metrics_of
from sanflow.evaluation.metrics import auroc, pixel_metrics
from sanflow.evaluation.operating_point import operating_points
from tests.helpers.miniatures import image, mask
from tests.helpers.results import imagine_scores
from tests.reference.slow_spro import slow_spro, slow_spro_of_kind

pytestmark = pytest.mark.filterwarnings("ignore::sanflow.evaluation.metrics.MetricWarning")
INPUT, NATIVE = (16, 16), (15, 12)  # height and width of the input; width and height of the images
LIMITS = {"spro_01": 0.01, "spro_05": 0.05, "spro_10": 0.1, "spro_30": 0.3, "spro_100": 1.0}
KINDS = ("logical_anomalies", "structural_anomalies")


@pytest.fixture(scope="module")
def loco(tmp_path_factory):
    """Four good images, three of each kind of anomaly; regions of two kinds of defects, two per logical anomaly."""
    root = tmp_path_factory.mktemp("loco")
    top = root / "screw_bag"
    for number in range(4):
        image(top / f"train/good/{number:03d}.png", number, size=NATIVE)
        image(top / f"test/good/{number:03d}.png", 10 + number, size=NATIVE)
    for kind, seed in zip(KINDS, (20, 30), strict=True):
        for number in range(3):
            image(top / f"test/{kind}/{number:03d}.png", seed + number, size=NATIVE)
            truth = top / f"ground_truth/{kind}/{number:03d}"
            mask(truth / "000.png", NATIVE, (2 + number, 1, 8 + number, 7), value=1)
            if kind == KINDS[0]:  # touches the first region and shares pixels with it
                mask(truth / "001.png", NATIVE, (7 + number, 5, 11 + number, 9), value=2)
    names = ("defect_name", "pixel_value", "saturation_threshold", "relative_saturation")
    entries = [("missing", 1, 9, False), ("extra", 2, 0.4, True)]
    config = [dict(zip(names, entry, strict=True)) for entry in entries]
    (top / "defects_config.json").write_text(json.dumps(config))
    return build_index("mvtec_loco", "screw_bag", root, check_counts=False)


@pytest.fixture(scope="module")
def scores(loco):
    return imagine_scores(loco, INPUT, quality=1.5)


@pytest.fixture(scope="module")
def metrics(loco, scores):
    return evaluate(scores, loco, evaluate_at="native", resamples=20).metrics


def plain(index, maps):
    """(map, [(mask, area)], kind) of each test image; masks and areas are made here, without the package."""
    rows = []
    for map_HW, row in zip(maps, index.test.itertuples(), strict=True):
        files = sorted((index.root / row.mask).glob("*.png")) if row.mask else []
        values = [np.asarray(Image.open(file)) for file in files]
        areas = [9 if value.max() == 1 else int(0.4 * (value > 0).sum()) for value in values]
        regions = [(value > 0, area) for value, area in zip(values, areas, strict=True)]
        rows.append((map_HW, regions, row.defect_type if row.label else ""))
    return rows


def test_loco_is_measured_at_native_size_as_the_slow_reference(loco, scores, metrics):
    maps = calibrated(list(scores.grids.values()), list(scores.constants.values()), (12, 15))
    images = plain(loco, maps)
    for name, limit in LIMITS.items():
        expected = [slow_spro_of_kind([one for one in images if one[2] in ("", kind)], limit) for kind in KINDS]
        assert [metrics["by_kind"][kind][name] for kind in KINDS] == pytest.approx(expected, abs=1e-9)
        assert metrics[name] == pytest.approx(np.mean(expected), abs=1e-9)
        assert metrics["by_kind"]["mean"][name] == pytest.approx(metrics[name], abs=1e-12)
    assert 0.1 < metrics["spro_30"] < 1


def test_test_set_fusion_has_its_own_values(loco, scores, metrics):
    own = [float(grid.max()) for grid in scores.grids.values()]
    images = plain(loco, calibrated(list(scores.grids.values()), own, (12, 15)))
    assert metrics["testset_spro_30"] == pytest.approx(slow_spro(images, 0.3), abs=1e-9)


def test_finished_maps_have_the_same_values_in_both_fusions(loco):
    grid = np.random.default_rng(1).normal(size=(10, 12, 15)).astype(np.float32)
    table = loco.test
    finished = Scores("anomaly_map", {"map": grid}, {}, list(table.image), table.label, list(table.defect_type), INPUT)
    found = evaluate(finished, loco, resamples=2).metrics
    assert found["spro_05"] == pytest.approx(slow_spro(plain(loco, grid), 0.05), abs=1e-9)
    assert found["testset_spro_05"] == found["spro_05"]


def test_loco_has_no_aupro_under_any_name(loco, scores, metrics):
    assert [name for name in metrics if "aupro" in name] == []
    assert [name for part in metrics["by_kind"].values() for name in part if "aupro" in name] == []
    assert [name for name in metrics["intervals"] if "aupro" in name] == []
    assert evaluate(scores, loco, resamples=2).curves["pixel_pro_x"].size == 0
    assert list(metrics)[:3] == ["image_auroc", "pixel_auroc", "spro_05"] == list(headline_of("mvtec_loco"))
    assert {"pixel_ap", "aupimo", "native_pixel_auroc", "testset_pixel_ap"} <= set(metrics)


def test_loco_has_intervals(metrics):
    for name in metrics_of("region"):
        low, high = metrics["intervals"][name]
        assert low <= metrics[name] <= high


def test_a_kind_is_measured_with_all_good_images(loco, scores, metrics):
    best, labels = anomaly_maps(scores, INPUT).max(axis=(1, 2)), scores.labels
    own = np.isin(loco.test.defect_type, ["good", KINDS[1]])
    found = metrics["by_kind"][KINDS[1]]
    assert found["images"] == own.sum() == 7
    assert found["image_auroc"] == pytest.approx(auroc(best[own], labels[own]), abs=1e-12)


@pytest.fixture(scope="module")
def ad2(tmp_path_factory):
    """Two lights: one with two good and two defective images, one with a defective image alone."""
    root = tmp_path_factory.mktemp("ad2")
    top = root / "vial"
    for number in range(4):
        image(top / f"train/good/{number:03d}_regular.png", number, size=NATIVE)
    for number in range(20):
        image(top / f"validation/good/{number:03d}_regular.png", 100 + number, size=NATIVE)
    for number in range(2):
        image(top / f"test_public/good/{number:03d}_regular.png", 10 + number, size=NATIVE)
    for number, light in enumerate(("regular", "regular", "shift_1")):
        image(top / f"test_public/bad/{number:03d}_{light}.png", 20 + number, size=NATIVE)
        mask(top / f"test_public/ground_truth/bad/{number:03d}_{light}_mask.png", NATIVE, (3, 3, 9, 9))
    return build_index("mvtec_ad_2", "vial", root)


def test_each_light_is_measured_alone(ad2):
    scores = dataclasses.replace(imagine_scores(ad2, INPUT), held_out_scores=np.linspace(0, 1, 20))
    found = evaluate(scores, ad2, resamples=5).metrics
    assert list(found)[:3] == ["image_auroc", "pixel_auroc", "aupro_05"] == list(headline_of("mvtec_ad_2"))
    lights = (ad2.test["group"] == "regular").to_numpy()
    maps, masks = anomaly_maps(scores, INPUT), load_masks(ad2, INPUT)
    assert list(found["by_group"]) == ["regular", "shift_1"]
    regular, other = found["by_group"]["regular"], found["by_group"]["shift_1"]
    assert (regular["images"], other["images"]) == (4, 1)
    for name, value in pixel_metrics(maps[lights], masks[lights]).items():
        assert regular[name] == pytest.approx(value, abs=1e-12, nan_ok=True), name
    best = maps.max(axis=(1, 2))
    assert regular["image_auroc"] == pytest.approx(auroc(best[lights], scores.labels[lights]), abs=1e-12)
    assert np.isnan(other["image_auroc"])
    assert 0 <= other["aupro_05"] <= 1
    assert regular["operating_point"] == operating_points(best[lights], scores.labels[lights], scores.held_out_scores)
    assert regular["operating_point"][0]["held_out"] == 20
    assert not [text for text in found["warnings"] if "undefined without normals" in text]  # of one light alone


def test_one_group_or_very_many_are_not_measured_alone(ad2, monkeypatch):
    scores = imagine_scores(ad2, INPUT)
    anywhere = dataclasses.replace(scores, provenance={})
    for groups, most, measured in (("aaaaa", 20, False), ("abbbb", 20, True), ("abcde", 5, True), ("abcde", 4, False)):
        monkeypatch.setattr("sanflow.evaluation.subsets.MOST_GROUPS", most)
        table = ad2.table.assign(group=["regular"] * (len(ad2.table) - 5) + list(groups))
        found = evaluate(anywhere, dataclasses.replace(ad2, table=table), resamples=2).metrics
        assert ("by_group" in found) == measured, groups


def test_which_metrics_apply():
    regions = set(metrics_of("region"))
    assert {name for name in METRICS if not applies(name, "mvtec_loco")} == {"aupro", "aupro_05"}
    for dataset in ("mvtec_ad", "mvtec_ad_2", "of_my_own"):
        assert {name for name in METRICS if not applies(name, dataset)} == regions
