import numpy as np
import pandas as pd
import pytest
from scipy import stats as distributions
from sklearn import metrics
from statsmodels.formula.api import ols
from statsmodels.stats.anova import anova_lm

from lora_bench.tasks.metrics import score
from lora_bench.verdicts import crossed

SKLEARN = {
    "accuracy": metrics.accuracy_score,
    "balanced_accuracy": metrics.balanced_accuracy_score,
    "matthews": metrics.matthews_corrcoef,
    "f1": lambda labels, predicted: metrics.f1_score(labels, predicted, zero_division=0),
    "auc": metrics.roc_auc_score,
}


def rows(rng: np.random.Generator, metric: str, n: int, n_labels: int = 2) -> tuple[np.ndarray, np.ndarray]:
    labels = rng.permuted(np.arange(n) % n_labels)
    if metric == "auc":
        return labels, np.round(labels + rng.normal(size=n), 1)  # with ties
    return labels, np.where(rng.random(n) < 0.6, labels, rng.integers(n_labels, size=n))


@pytest.mark.parametrize("n_labels", [2, 3])
@pytest.mark.parametrize("metric", SKLEARN)
def test_a_rows_share_is_what_its_leaving_moves(metric, n_labels):
    """Intervals over rows rest on the pseudo-values; scikit-learn scores the rows with one left out, for each."""
    if n_labels > 2 and metric in ("auc", "f1"):
        pytest.skip("of two labels")
    rng = np.random.default_rng(3)
    for n in (9, 24):
        labels, predicted = rows(rng, metric, n, n_labels)
        score, shares = crossed.shares_of_rows(metric, labels, predicted)
        official = SKLEARN[metric]
        assert score == pytest.approx(official(labels, predicted))
        for row in range(n):
            without = official(np.delete(labels, row), np.delete(predicted, row))
            assert shares[row] == pytest.approx(n * score - (n - 1) * without)


@pytest.mark.parametrize("constant", [0, 1])
def test_a_model_that_says_one_class_scores_what_scikit_learn_says(constant):
    """Nothing is divided by nothing where a class is never predicted."""
    labels = np.array([0, 1, 1, 0, 1])
    for metric in crossed.OF_CLASSES:
        score, _ = crossed.shares_of_rows(metric, labels, np.full(5, constant))
        assert score == pytest.approx(SKLEARN[metric](labels, np.full(5, constant)))


def tally(labels: np.ndarray, predicted: np.ndarray, n_labels: int) -> np.ndarray:
    return np.array([[((labels == i) & (predicted == j)).sum() for j in range(n_labels)] for i in range(n_labels)])


@pytest.mark.filterwarnings("ignore:A single label was found")
@pytest.mark.parametrize("n_labels", [2, 4])
@pytest.mark.parametrize("metric", crossed.OF_CLASSES)
def test_a_metric_of_many_tables_is_the_official_one_of_each(metric, n_labels):
    """Records are scored from rows, rows left out and thresholds from counts: two ways to one number, or a contrast's
    intervals would be of another metric than its words."""
    if metric == "f1" and n_labels > 2:
        pytest.skip("of two labels")
    rng = np.random.default_rng(5)
    tables, official = [], []
    for n in (1, 2, 3, 7, 40) * 8:
        labels = rng.integers(rng.integers(1, n_labels + 1), size=n)  # some draws have one label alone
        logits = np.round(rng.normal(size=(n, n_labels)), int(rng.integers(3)))  # in steps, so with ties
        logits[:, int(rng.integers(n_labels))] += rng.choice([0, 5])  # and some draws get one class alone
        tables.append(tally(labels, logits.argmax(axis=1), n_labels))
        official.append(score([metric], labels, logits)[metric])
    assert len({float(value) for value in official}) > 4
    assert crossed.value_of(metric, np.stack(tables)) == pytest.approx(official, abs=1e-12)


def differences(rng: np.random.Generator, seeds: int, n: int, of_rows: float) -> np.ndarray:
    return 0.1 + rng.normal(size=(seeds, 1)) + of_rows * rng.normal(size=n) + rng.normal(size=(seeds, n))


@pytest.mark.parametrize(("seeds", "n", "of_rows"), [(4, 30, 5.0), (8, 20, 2.0), (3, 12, 8.0)])
def test_the_interval_over_seeds_and_rows_is_that_of_the_two_way_analysis_of_variance(seeds, n, of_rows):
    """The mean squares come from statsmodels, Satterthwaite's degrees of freedom from his formula."""
    table = differences(np.random.default_rng(seeds), seeds, n, of_rows)
    seed, row = np.indices(table.shape)
    frame = pd.DataFrame({"y": table.ravel(), "seed": seed.ravel(), "row": row.ravel()})
    squares = anova_lm(ols("y ~ C(seed) + C(row)", frame).fit())
    mean_squares, free = squares["mean_sq"].to_numpy(), squares["df"].to_numpy()
    total = mean_squares[0] + mean_squares[1] - mean_squares[2]
    freedom = total**2 / (mean_squares**2 / free).sum()
    half = distributions.t.ppf(0.975, freedom) * np.sqrt(total / table.size)
    low, high = crossed.interval(table, table.mean())
    assert (high - low) / 2 == pytest.approx(half)
    assert (high + low) / 2 == pytest.approx(table.mean())


@pytest.mark.parametrize("of_rows", [0.0, 1.0, 6.0])
def test_it_holds_the_truth_of_other_seeds_and_other_rows(of_rows):
    """95 % of studies with seeds and rows of their own; those over seeds alone hold far less where rows matter."""
    rng = np.random.default_rng(0)
    ends = np.array(
        [crossed.interval(table, table.mean()) for table in (differences(rng, 8, 60, of_rows) for _ in range(600))]
    )
    held = ((ends[:, 0] <= 0.1) & (ends[:, 1] >= 0.1)).mean()
    assert 0.925 <= held <= 0.99


@pytest.mark.parametrize("of_rows", [0.0, 0.3])
def test_it_is_never_narrower_than_the_interval_over_seeds(of_rows):
    """Two seeds and a thousand rows: many degrees of freedom of rows must not hide how few the seeds are."""
    for draw in range(40):
        table = differences(np.random.default_rng(draw), 2 + draw % 3, 200, of_rows)
        low, high = crossed.interval(table, 0.0)
        means = table.mean(axis=1)
        over_seeds = distributions.t.ppf(0.975, len(means) - 1) * means.std(ddof=1) / np.sqrt(len(means))
        assert high - low >= 2 * over_seeds * (1 - 1e-9)


@pytest.mark.parametrize("metric", ["matthews", "f1", "auc"])
def test_the_rows_part_is_that_of_a_bootstrap_over_rows(metric):
    """One model, and one other: the jackknife's standard error beside that of resampled rows."""
    rng = np.random.default_rng(1)
    labels, ours = rows(rng, metric, 400)
    theirs = np.where(rng.random(400) < 0.7, ours, rng.permuted(ours))
    shares = crossed.shares_of_rows(metric, labels, ours)[1] - crossed.shares_of_rows(metric, labels, theirs)[1]
    drawn = rng.integers(400, size=(120, 400))
    scores = [SKLEARN[metric](labels[at], ours[at]) - SKLEARN[metric](labels[at], theirs[at]) for at in drawn]
    assert shares.std(ddof=1) / 20 == pytest.approx(np.std(scores, ddof=1), rel=0.25)


@pytest.mark.parametrize("metric", ["matthews", "f1", "accuracy"])
@pytest.mark.parametrize("shift", [-3.0, 0.0, 3.0])
def test_the_tuned_threshold_is_the_best_of_all(metric, shift):
    """Every threshold is tried, by scikit-learn; of equally good ones it is that nearest to the model's own."""
    rng = np.random.default_rng(7)
    labels = (rng.random(60) < 0.3).astype(int)
    outputs = np.round(labels + rng.normal(size=60) + shift, 1)
    threshold = crossed.tuned_threshold(metric, labels, outputs)
    grid = np.r_[np.arange(-6, 6, 0.2), threshold]
    values = np.array([SKLEARN[metric](labels, (outputs >= at).astype(int)) for at in grid])
    assert values[-1] == pytest.approx(values.max())


def test_a_threshold_that_is_best_already_stays():
    """Where the model parts the labels perfectly, nothing is to be tuned."""
    outputs, labels = np.array([-2.0, -1.0, 1.5, 3.0]), np.array([0, 0, 1, 1])
    assert crossed.tuned_threshold("matthews", labels, outputs) == pytest.approx(0.25)


def test_rows_of_one_label_have_no_area():
    """An area needs pairs of both labels."""
    assert np.isnan(crossed.shares_of_rows("auc", np.array([1, 1, 1]), np.array([0.1, 0.2, 0.3]))[0])
