"""AUROC, average precision and F1-max: by hand, against scikit-learn, and their laws."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from sanflow.evaluation.metrics import MetricWarning, auroc, average_precision, f1_max, f1_max_threshold, image_metrics

METRICS = [auroc, average_precision, f1_max]


def sk_f1_max(labels, scores):
    precision, recall, _ = sk.precision_recall_curve(labels, scores)
    return max(2 * p * r / (p + r) for p, r in zip(precision, recall, strict=True) if p + r > 0)


@pytest.mark.parametrize(
    ("scores", "roc", "ap", "f1"),
    [  # labels: normal, normal, anomalous, anomalous
        ([1, 2, 3, 4], 1.0, 1.0, 1.0),
        ([4, 3, 2, 1], 0.0, (1 / 3 + 2 / 4) / 2, 2 / 3),
        ([0, 0, 0, 0], 0.5, 0.5, 2 / 3),
        ([1, 3, 2, 4], 0.75, (1 + 2 / 3) / 2, 0.8),
        ([0.1, 0.4, 0.4, 0.9], 0.875, (1 + 2 / 3) / 2, 0.8),
    ],
)
def test_by_hand(scores, roc, ap, f1):
    labels = [False, False, True, True]
    assert auroc(scores, labels) == roc
    assert average_precision(scores, labels) == pytest.approx(ap, abs=1e-15)
    assert f1_max(scores, labels) == pytest.approx(f1, abs=1e-15)


scored = st.lists(
    st.tuples(st.sampled_from([-1.0, 0.0, 0.25, 2.0]) | st.floats(-1e6, 1e6, width=32), st.booleans()), min_size=2
).filter(lambda pairs: len({label for _, label in pairs}) == 2)


@settings(max_examples=100, deadline=None)
@given(pairs=scored)
def test_agree_with_scikit_learn(pairs):
    scores, labels = np.array([s for s, _ in pairs]), np.array([label for _, label in pairs])
    assert auroc(scores, labels) == pytest.approx(sk.roc_auc_score(labels, scores), abs=1e-12)
    assert average_precision(scores, labels) == pytest.approx(sk.average_precision_score(labels, scores), abs=1e-12)
    assert f1_max(scores, labels) == pytest.approx(sk_f1_max(labels, scores), abs=1e-12)


@settings(max_examples=50, deadline=None)
@given(pairs=scored)
def test_the_threshold_reaches_f1_max(pairs):
    scores, labels = np.array([s for s, _ in pairs]), np.array([label for _, label in pairs])
    called = scores >= f1_max_threshold(scores, labels)
    assert sk.f1_score(labels, called) == pytest.approx(f1_max(scores, labels), abs=1e-12)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_agree_with_scikit_learn_on_many(metric, dtype):
    generator = np.random.default_rng(5)
    labels = generator.random(20_000) < 0.03
    scores = np.round(generator.normal(size=20_000) + labels, 2).astype(dtype)
    expected = {auroc: sk.roc_auc_score, average_precision: sk.average_precision_score, f1_max: sk_f1_max}[metric]
    assert metric(scores, labels) == pytest.approx(expected(labels, scores), abs=1e-12)


@pytest.mark.parametrize("metric", METRICS)
def test_order_alone_counts_even_far_from_zero(metric):
    generator = np.random.default_rng(6)
    labels = generator.random(500) < 0.3
    scores = generator.normal(size=500) + labels
    for moved in (1e6 * scores - 3.0, scores + 1e3, np.exp(20 * scores), scores * 1e-300):
        assert metric(moved, labels) == metric(scores, labels)


def test_any_shape_of_scores():
    generator = np.random.default_rng(7)
    scores, labels = generator.normal(size=(3, 4, 5)), generator.random((3, 4, 5)) < 0.5
    assert auroc(scores, labels) == auroc(scores.ravel(), labels.ravel())


@pytest.mark.parametrize("metric", [*METRICS, f1_max_threshold])
@pytest.mark.parametrize(("labels", "missing"), [([0, 0, 0], "anomalies"), ([1, 1, 1], "normals"), ([], "anomalies")])
def test_a_missing_class_is_nan_with_a_warning(metric, labels, missing):
    with pytest.warns(MetricWarning, match=f"is undefined without {missing}; NaN is returned"):
        assert np.isnan(metric(np.arange(len(labels)), np.array(labels, dtype=bool)))


def test_image_metrics_are_the_metrics():
    scores, labels = [0.1, 0.4, 0.4, 0.9], [0, 0, 1, 1]
    assert image_metrics(scores, labels) == {
        "image_auroc": auroc(scores, labels),
        "image_ap": average_precision(scores, labels),
        "image_f1_max": f1_max(scores, labels),
        "image_f1_threshold": 0.4,
    }
