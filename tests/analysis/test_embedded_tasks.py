"""The noise of the embedded tasks, from which the length of `quick` was chosen."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import matthews_corrcoef

from analysis import embedded_tasks

N_ROWS = 60


class Kept:
    """A store of predictions: of each run the share of rows that it gets right, or None for a collapsed one."""

    def __init__(self, shares):
        rng = np.random.default_rng(0)
        self.tables = {run_id: self._table(share, rng) for run_id, share in shares.items()}

    def predictions(self, run_id):
        return self.tables[run_id]

    @staticmethod
    def _table(share, rng):
        labels = np.arange(N_ROWS) % 2
        said = np.zeros(N_ROWS, int) if share is None else np.where(rng.random(N_ROWS) < share, labels, 1 - labels)
        report = pd.DataFrame({"split": "report", "label": labels, "logit_0": 1.0 - said, "logit_1": said * 1.0})
        return pd.concat([report.assign(split="select"), report], ignore_index=True)


def runs(**changed):
    arms = [("head_only", 1e-3, 0.1)] * 3 + [("lora", 1e-3, 0.2)] * 3 + [("lora", 3e-3, 0.6)] * 3
    table = pd.DataFrame(arms, columns=["method", "lr", "select"])
    return table.assign(run_id=[f"run{i}" for i in range(9)], metric="matthews", train_rows=400, **changed)


@pytest.mark.parametrize("n_report", [20, N_ROWS])
def test_gain_and_spread_are_those_of_the_first_report_rows_at_every_rate(n_report):
    """A length chosen by other rows, or by the best rate alone, would promise a noise that no study's word rests on."""
    store = Kept({f"run{i}": 0.5 if i < 3 else 0.6 if i < 6 else 0.85 for i in range(9)})
    measured = embedded_tasks.noise(runs(), store, n_report)
    scores = [
        100 * matthews_corrcoef(table["label"], table["logit_1"])
        for table in (store.tables[f"run{i}"].iloc[N_ROWS : N_ROWS + n_report] for i in range(9))
    ]
    assert [of_rate["rate"] for of_rate in measured] == [1e-3, 3e-3]
    for of_rate, own in zip(measured, (scores[3:6], scores[6:]), strict=True):
        assert of_rate["score"] == pytest.approx(np.mean(own))
        assert of_rate["gain"] == pytest.approx(np.mean(own) - np.mean(scores[:3]))
        assert of_rate["spread"] == pytest.approx(np.std(own, ddof=1))


@pytest.mark.parametrize(("best", "is_alive"), [(0.81, False), (0.79, True)])
def test_a_rate_is_alive_within_two_standard_errors_of_two_seeds_on_select(best, is_alive):
    """The rates that a study would hold its words at, not those that select happens to rank first."""
    scores = [0.5, 0.6, 0.7]  # an sd of a tenth: two errors of a difference of two seeds are two tenths
    table = runs().assign(select=[0.1] * 3 + scores + [value + best - 0.6 for value in scores])
    measured = embedded_tasks.noise(table, Kept({f"run{i}": 0.8 for i in range(9)}), N_ROWS)
    assert [of_rate["is_alive"] for of_rate in measured] == [is_alive, True]


def test_a_collapsed_seed_is_counted_and_left_out_of_the_spread():
    """It is no estimate of how well a placement learns: a study tells it apart too."""
    shares = {f"run{i}": 0.8 for i in range(9)}
    with_it = embedded_tasks.noise(runs(), Kept(shares | {"run8": None}), N_ROWS)[-1]
    without = embedded_tasks.noise(runs().iloc[:8], Kept(shares), N_ROWS)[-1]
    assert with_it["collapsed"] == pytest.approx(1 / 3)
    assert with_it["spread"] == pytest.approx(without["spread"])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("n_learned", [0, 1])
def test_what_too_few_seeds_cannot_tell_is_no_number(n_learned):
    """One seed has no spread: an infinite signal would make the shortest sweep look best."""
    shares = {f"run{i}": 0.8 if i < 6 + n_learned else None for i in range(9)}
    measured = embedded_tasks.noise(runs(), Kept(shares), N_ROWS)[-1]
    assert np.isnan([measured["spread"], measured["signal"]]).all()
    assert np.isfinite(measured["gain"]) == bool(n_learned)


def test_a_report_row_costs_a_third_of_a_train_row():
    """A forward pass is a third of a training step; more report rows are not free."""
    store = Kept({f"run{i}": 0.8 for i in range(9)})
    costs = [embedded_tasks.noise(runs(), store, n_report)[0]["cost"] for n_report in (30, 60)]
    assert costs[1] - costs[0] == pytest.approx(10)


def test_the_rule_is_the_studys(monkeypatch):
    """Two copies of it would part one day: a length would be chosen by rates that no study keeps."""
    asked = []

    def least(best, spread, n_seeds):
        asked.append((best, spread, n_seeds))
        return best

    monkeypatch.setattr(embedded_tasks, "least_alive", least)
    table = runs().assign(select=[0.1] * 3 + [0.5, 0.6, 0.7] + [0.51, 0.61, 0.71])
    measured = embedded_tasks.noise(table, Kept({f"run{i}": 0.8 for i in range(9)}), N_ROWS)
    assert [of_rate["is_alive"] for of_rate in measured] == [False, True]
    assert asked == [(pytest.approx(0.61), pytest.approx(0.1), 2)]
