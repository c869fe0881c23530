"""Metrics against closed forms and scikit-learn, and what they refuse."""

import warnings

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sklearn_metrics

from lora_bench.config.schema import METRICS
from lora_bench.tasks.metrics import CLASSIFICATION, REGRESSION, NonFiniteLogits, score


def logits_of(predicted: list[int], n_labels: int = 2) -> np.ndarray:
    return np.eye(n_labels)[predicted] * 3.0 - 1.0


def test_metric_names_are_those_of_the_schema():
    """A metric that the schema lets through must be scored."""
    assert set(METRICS) == {*CLASSIFICATION, *REGRESSION}


def test_two_label_metrics_match_their_closed_forms():
    """TP 3, FP 1, FN 2, TN 4: small enough to check by hand."""
    labels = np.array([1] * 5 + [0] * 5)
    predicted = [1, 1, 1, 0, 0, 1, 0, 0, 0, 0]
    found = score(CLASSIFICATION, labels, logits_of(predicted))
    assert found["accuracy"] == pytest.approx(0.7)
    assert found["balanced_accuracy"] == pytest.approx((3 / 5 + 4 / 5) / 2)
    assert found["f1"] == pytest.approx(2 * 3 / (2 * 3 + 1 + 2))
    assert found["matthews"] == pytest.approx((3 * 4 - 1 * 2) / np.sqrt(4 * 5 * 5 * 6))


@pytest.mark.parametrize("n_labels", [2, 3, 7])
def test_classification_metrics_match_sklearn(n_labels):
    rng = np.random.default_rng(n_labels)
    labels = rng.integers(n_labels, size=200)
    logits = rng.normal(size=(200, n_labels)).astype(np.float32)
    predicted = logits.argmax(1)
    metrics = CLASSIFICATION if n_labels == 2 else CLASSIFICATION[:3]
    expected = {
        "accuracy": sklearn_metrics.accuracy_score(labels, predicted),
        "balanced_accuracy": sklearn_metrics.balanced_accuracy_score(labels, predicted),
        "matthews": sklearn_metrics.matthews_corrcoef(labels, predicted),
    }
    if n_labels == 2:
        expected["f1"] = sklearn_metrics.f1_score(labels, predicted)
    assert score(metrics, labels, logits) == pytest.approx(expected)


def test_correlations_match_their_definitions():
    """Pearson from its formula; Spearman as the Pearson correlation of ranks, ties averaged."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 6, size=80).astype(np.float32)
    logits = (labels + rng.normal(size=80)).astype(np.float32)[:, None]
    x, y = labels.astype(float), logits[:, 0].astype(float)

    def pearson(x, y):
        x, y = x - x.mean(), y - y.mean()
        return (x @ y) / np.sqrt((x @ x) * (y @ y))

    found = score(REGRESSION, labels, logits)
    assert found["pearson"] == pytest.approx(pearson(x, y))
    assert found["spearman"] == pytest.approx(pearson(stats.rankdata(x), stats.rankdata(y)))


def test_equal_logits_predict_the_first_label():
    assert score(["accuracy"], np.array([0, 0, 1]), np.zeros((3, 2))) == {"accuracy": pytest.approx(2 / 3)}


def test_constant_predictions_have_a_score_and_no_warning():
    """A run that collapses to one label is a result: Matthews 0, no correlation, never an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = score(CLASSIFICATION, np.array([0, 1, 0]), logits_of([0, 0, 0]))
        assert found == {"accuracy": pytest.approx(2 / 3), "balanced_accuracy": 0.5, "matthews": 0.0, "f1": 0.0}
        assert score(REGRESSION, np.array([1.0, 2.0]), np.ones((2, 1))) == {"pearson": None, "spearman": None}
        assert score(REGRESSION, np.ones(2), np.array([[1.0], [2.0]])) == {"pearson": None, "spearman": None}
        assert score(REGRESSION, np.ones(1), np.ones((1, 1))) == {"pearson": None, "spearman": None}
        only_one = score(["balanced_accuracy"], np.array([1, 1]), logits_of([1, 0]))
        assert only_one == {"balanced_accuracy": 0.5}


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("metric", METRICS)
def test_logits_that_are_not_finite_are_refused(metric, value):
    """argmax of NaN is 0: such a run would report a plausible number."""
    logits = np.zeros((4, 1 if metric in REGRESSION else 2))
    logits[2, 0] = value
    with pytest.raises(NonFiniteLogits, match="1 of 4 rows"):
        score([metric], np.array([0, 1, 0, 1]), logits)


@pytest.mark.parametrize(
    ("metric", "labels", "logits", "message"),
    [
        ("bleu", [0, 1], np.zeros((2, 2)), "no metric 'bleu'"),
        ("accuracy", [], np.zeros((0, 2)), "no rows"),
        ("accuracy", [0, 1, 1], np.zeros((2, 2)), r"got \(3,\) and \(2, 2\)"),
        ("accuracy", [0, 1], np.zeros(2), r"logits \(n, n_labels\)"),
        ("accuracy", [0, -1], np.zeros((2, 2)), "labels 0 to 1"),
        ("matthews", [0, 2], np.zeros((2, 2)), "labels 0 to 1"),
        ("accuracy", [0, 0], np.zeros((2, 1)), "one logit for each"),
        ("f1", [0, 2], np.zeros((2, 3)), "balanced_accuracy"),
        ("pearson", [0.0, 1.0], np.zeros((2, 2)), "one output per row"),
        ("pearson", [0.0, np.nan], np.array([[0.0], [1.0]]), "finite labels"),
    ],
)
def test_what_cannot_be_scored_is_refused(metric, labels, logits, message):
    with pytest.raises(ValueError, match=message):
        score([metric], np.array(labels), logits)
