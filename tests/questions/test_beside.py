import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn import metrics

from fake_store import fake_record, rank_records, weight_types_records, write_store
from lora_bench.questions import pooled, weight_types
from lora_bench.reports.scope import Scope
from lora_bench.store.folder import Store

SKILL = {"q": 0.3, "v": 0.7, "qv": 1.0}
N_ROWS = 80


def predictions(seed: int, targets: str, shift: float, splits: tuple[str, ...]) -> pd.DataFrame:
    """Two logits a row; a shift moves the share of label 1 and leaves the order of the rows."""
    tables = []
    for split in splits:
        labels = np.arange(N_ROWS) % 2
        hard = np.random.default_rng(len(split)).normal(size=N_ROWS)  # rows are as hard for every model
        noise = np.random.default_rng([seed, len(targets), len(split)]).normal(size=N_ROWS)
        outputs = SKILL[targets] * (2 * labels - 1) + hard + 0.5 * noise + shift
        tables.append(
            pd.DataFrame({"split": split, "idx": range(N_ROWS), "label": labels, "logit_0": 0.0, "logit_1": outputs})
        )
    return pd.concat(tables, ignore_index=True)


def store_of(root, *, splits=("select", "report"), metric="matthews", shift=0.4, seeds=6):
    """Runs whose scores are those of their predictions, in an order of rows of their own."""
    store, scores = Store(root), {}
    official = {"matthews": metrics.matthews_corrcoef, "accuracy": metrics.accuracy_score}[metric]
    for targets in SKILL:
        for seed in range(seeds):
            table = predictions(seed, targets, shift, splits)
            report = table[table["split"] == "report"]
            value = float(official(report["label"], report["logit_1"] > 0))
            scores[targets, seed] = report["label"].to_numpy(), report["logit_1"].to_numpy(), value
            record = fake_record(
                targets=targets,
                rank={"q": 8, "v": 8, "qv": 4}[targets],
                seed=seed,
                report=value,
                select=value,
                metric=metric,
            )
            store.write(record, predictions=table.sample(frac=1, random_state=seed).reset_index(drop=True))
    return scores


def beside_table(root) -> tuple[pd.DataFrame, list[str]]:
    scope = Scope(root)
    section = weight_types.sections(scope.read(), scope)[0]
    (table,) = [table for table in section.tables if table.name.endswith("_beside")]
    return table.frame.set_index("second"), section.remarks


@pytest.mark.parametrize("shift", [0.0, 1.5])
def test_beside_the_words_stand_area_and_tuned_score_of_every_seed(tmp_path, shift):
    """scikit-learn's area, whatever the threshold; and the official metric at the best threshold of select."""
    scores = store_of(tmp_path / "runs", shift=shift)
    frame, remarks = beside_table(tmp_path / "runs")
    for other in ("q", "v"):
        areas = [[metrics.roc_auc_score(*scores[cell, seed][:2]) for seed in range(6)] for cell in ("qv", other)]
        apart = np.subtract(*areas)
        assert frame.loc[other, "auc_difference"] == pytest.approx(apart.mean())
        assert frame.loc[other, "auc_p"] == pytest.approx(stats.ttest_rel(*areas).pvalue)
        assert frame.loc[other, "auc_high"] == pytest.approx(apart.mean() + stats.t.ppf(0.975, 5) * stats.sem(apart))
        assert np.isfinite(frame.loc[other, "tuned_difference"])
    assert any("best on select" in remark for remark in remarks)


def test_the_interval_over_rows_is_that_of_the_hits(tmp_path):
    """Of an accuracy: the mean squares of the table of hits, by hand."""
    scores = store_of(tmp_path / "runs", metric="accuracy")
    frame, _ = beside_table(tmp_path / "runs")
    hits = {
        cell: np.array([(scores[cell, seed][1] > 0) == scores[cell, seed][0] for seed in range(6)], dtype=float)
        for cell in ("qv", "q")
    }
    table = hits["qv"] - hits["q"]
    rest = table - table.mean(axis=1, keepdims=True) - table.mean(axis=0) + table.mean()
    variance = table.mean(axis=1).var(ddof=1) / 6 + table.mean(axis=0).var(ddof=1) / N_ROWS
    variance -= (rest**2).sum() / (5 * (N_ROWS - 1)) / table.size
    row = frame.loc["q"]
    assert (row["rows_low"] + row["rows_high"]) / 2 == pytest.approx(row["difference"]) == pytest.approx(table.mean())
    half = (row["rows_high"] - row["rows_low"]) / 2
    assert 1.9 < half / np.sqrt(variance) < stats.t.ppf(0.975, 5)
    assert half > (row["high"] - row["low"]) / 2


def test_without_selects_logits_the_area_stands_alone_and_a_note_says_why(tmp_path):
    """A threshold tuned on report would be chosen on what it is scored by."""
    store_of(tmp_path / "runs", splits=("report",))
    frame, remarks = beside_table(tmp_path / "runs")
    assert np.isfinite(frame["auc_difference"]).all() and frame["tuned_difference"].isna().all()
    assert any("no logits of select were kept" in remark for remark in remarks)


def test_without_predictions_no_table_stands_beside_and_a_note_says_so(tmp_path):
    """An absent table must not look like an answer."""
    write_store(tmp_path / "runs", weight_types_records(n_seeds=4, rates=(1e-3,)))
    scope = Scope(tmp_path / "runs")
    section = weight_types.sections(scope.read(), scope)[0]
    assert not [table for table in section.tables if table.name.endswith("_beside")]
    assert any("no run kept its predictions" in remark for remark in section.remarks)


def test_every_pair_is_a_family_of_its_own(tmp_path):
    """21 pairs of seven placements at Holm: what qv as the reference hides."""
    write_store(tmp_path / "runs", weight_types_records(n_seeds=6, rates=(1e-3,)))
    scope = Scope(tmp_path / "runs")
    section = weight_types.sections(scope.read(), scope)[0]
    (table,) = [table for table in section.tables if table.name.endswith("_pairs")]
    scores = section.judged.estimates["scores"]
    p = [
        stats.ttest_rel(list(scores[a].values()), list(scores[b].values())).pvalue
        for a, b in zip(table.frame["first"], table.frame["second"], strict=True)
    ]
    assert len(table.frame) == 21
    assert table.frame["p"].to_list() == pytest.approx(p)
    assert table.frame["p_holm"].min() == pytest.approx(min(1.0, 21 * min(p)))


def test_pooled_contrasts_are_one_declared_family(tmp_path):
    """What the store cannot answer still counts, so that no sweep chooses its family by what it ran."""
    write_store(tmp_path / "runs", weight_types_records(n_seeds=6, rates=(1e-3,)))
    scope = Scope(tmp_path / "runs")
    frame = pooled.sections(scope.read(), scope)[0].tables[0].frame
    known = frame[frame["n_pairs"] > 0]
    assert len(frame) == len(pooled.DECLARED) == 5
    assert known["p_holm"].min() == pytest.approx(min(1.0, 5 * known["p"].min()))
    assert set(frame["verdict"][frame["n_pairs"] == 0]) == {"missing"}


def test_budgets_are_pooled_and_rank_is_a_slope(tmp_path):
    """qv at each rank beside qkvo at half of it, and each seed's slope, from the scores themselves."""
    write_store(tmp_path / "runs", rank_records())
    scope = Scope(tmp_path / "runs")
    runs = scope.read()
    frame = pooled.sections(runs, scope)[0].tables[0].frame.set_index("contrast")
    slopes = frame.loc["qv, per doubling of the rank"]
    assert slopes["n_pairs"] > 1 and np.isfinite(slopes["difference"])
    assert frame.loc["qv − qkvo at half the rank, all budgets", "n_pairs"] > 1
