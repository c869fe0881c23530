"""The scripts in analysis/, on stores with invented scores whose answers are known."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fake_store import fake_record, rank_records, weight_types_records, write_store

from lora_bench import cells, figures
from lora_bench.store import COLUMNS, row_of

ANALYSIS = Path(__file__).resolve().parent.parent / "analysis"


def run(script: str, store: Path, out: Path, *options: str) -> int:
    return runpy.run_path(str(ANALYSIS / f"{script}.py"))["main"](["--store", str(store), "--out", str(out), *options])


def frame_of(records: list[dict]) -> pd.DataFrame:
    """What Store.frame gives for these records, without a disk."""
    rows = [row_of(record) for record in records]
    frame = pd.DataFrame([{**row, **row.pop("by_metric")} for row in rows])
    return cells.prepare(frame.reindex(columns=[*COLUMNS, *frame.columns.difference(list(COLUMNS))]))


def arms_of(records: list[dict]) -> pd.DataFrame:
    runs = frame_of(records)
    return runs.assign(arm=runs["targets"].where(runs["targets"] != "", runs["method"]))


@pytest.fixture(scope="module")
def weight_types_store(tmp_path_factory) -> Path:
    return write_store(tmp_path_factory.mktemp("wt"), weight_types_records(rates=(1e-3, 3e-3, 1e-2), n_seeds=6))


# ---------------------------------------------------------------- scripts


def test_weight_types_writes_tables_figures_and_a_sentence(weight_types_store, tmp_path, capsys):
    assert run("weight_types", weight_types_store, tmp_path) == 0
    shown = capsys.readouterr().out
    assert "better than" in shown
    table = pd.read_csv(tmp_path / "tables" / "weight_types_minilm_cola.csv")
    assert list(table["cell"]) == [*cells.PLACEMENTS, "head_only"]
    assert (table["adapter_parameters"][:7] == 36864).all()
    assert table.set_index("cell").loc["q", "paper_wikisql"] == 0.704
    for suffix in ("pdf", "png", "svg"):
        assert (tmp_path / "figures" / f"weight_types_minilm_cola.{suffix}").stat().st_size > 5000
    assert r"\toprule" in (tmp_path / "tables" / "weight_types_minilm_cola.tex").read_text()


def test_rank_writes_tables_figures_and_a_sentence(tmp_path, capsys):
    store = write_store(tmp_path / "store", rank_records(ranks=(1, 8), n_seeds=6))
    assert run("rank", store, tmp_path) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "q at rank 8 is better against rank 1" in shown
    assert "of the paper's Table 6 the store lacks rank 2, rank 4 and rank 64" in shown
    assert (tmp_path / "figures" / "rank_minilm_cola.pdf").exists()


@pytest.mark.parametrize("script", ["weight_types", "rank"])
@pytest.mark.parametrize("make", ["absent", "empty"])
def test_a_store_without_runs_is_a_clear_error(script, make, tmp_path, capsys):
    store = tmp_path / "store"
    if make == "empty":
        store.mkdir()
    assert run(script, store, tmp_path / "out") == 2
    assert "--store" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_equal_stores_give_equal_files(weight_types_store, tmp_path):
    for name in ("a", "b"):
        run("weight_types", weight_types_store, tmp_path / name)
    for path in (tmp_path / "a").rglob("*.*"):
        assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes(), path.name


# ---------------------------------------------------------------- choosing rates


def sweep(scores: dict[float, list[float | None]], targets: str = "qv") -> list[dict]:
    """One arm: rate -> score per seed, None for a diverged run."""
    return [
        fake_record(targets=targets, lr=rate, seed=seed, report=score, error="nonfinite" if score is None else None)
        for rate, of_seeds in scores.items()
        for seed, score in enumerate(of_seeds)
    ]


@pytest.mark.parametrize(
    ("scores", "rate", "certificate", "add"),
    [
        ({1e-3: [0.1, 0.2], 3e-3: [0.5, 0.6], 1e-2: [0.2, 0.3]}, 3e-3, "inside", []),
        ({1e-3: [0.1, 0.2], 3e-3: [0.3, 0.4], 1e-2: [0.6, 0.7]}, 1e-2, "edge", [0.03, 0.1]),
        ({1e-3: [0.6, 0.7], 3e-3: [0.3, 0.4], 1e-2: [0.1, 0.2]}, 1e-3, "edge", [1e-4, 3e-4]),
        ({1e-3: [0.1, 0.2], 3e-3: [0.60, 0.71], 1e-2: [0.61, 0.71]}, 1e-2, "inside*", []),
        ({1e-3: [0.5, 0.5], 3e-3: [0.5, 0.5], 1e-2: [0.1, 0.1]}, 1e-3, "inside*", []),
        ({3e-3: [0.5, 0.6]}, 3e-3, "single", [1e-3, 1e-2]),
        ({1e-3: [0.1, 0.2], 3e-3: [0.5, 0.6], 1e-2: [None, 0.99]}, 3e-3, "inside", []),
        ({1e-3: [0.1, 0.2, 0.1], 3e-3: [0.5, 0.5, 0.6], 1e-2: [0.9]}, 3e-3, "edge", [0.01, 0.03]),
        ({1e-3: [None, None]}, 1e-3, "none", []),
    ],
    ids=["inside", "upper_edge", "lower_edge", "one_standard_error", "tie", "single", "diverged", "unfinished", "no_score"],
)  # fmt: skip
def test_the_rate_is_chosen_on_select_with_a_certificate(scores, rate, certificate, add):
    chosen = cells.choose_rates(arms_of(sweep(scores))).loc["qv"]
    assert (chosen["lr"], chosen["certificate"]) == (rate, certificate)
    assert chosen["add"] == pytest.approx(add)


def test_nothing_is_chosen_on_report():
    """The rate that does best on report must lose to the one that does best on select."""
    records = [
        fake_record(lr=rate, seed=seed, select=select, report=report)
        for rate, select, report in ((1e-3, 0.6, 0.1), (1e-2, 0.5, 0.9))
        for seed in range(3)
    ]
    runs = arms_of(records)
    rates = cells.choose_rates(runs)
    assert rates.loc["qv", "lr"] == 1e-3
    assert cells.estimate(runs, rates["lr"]).loc["qv", "mean"] == pytest.approx(0.1)


# ---------------------------------------------------------------- settings


def test_environments_are_blocks_unless_asked():
    records = weight_types_records(n_seeds=2, rates=(1e-3,)) + weight_types_records(
        n_seeds=2, rates=(1e-3,), environment="gpu-b"
    )
    apart = cells.settings(frame_of(records))
    assert [one.runs["environment"].nunique() for one in apart] == [1, 1]
    assert "kept apart" in apart[0].notes[0]
    assert len({one.slug for one in apart}) == 2
    joined = cells.settings(frame_of(records), mix_environments=True)
    assert len(joined) == 1
    assert "mixed, as asked" in joined[0].notes[0]


def test_runs_of_another_training_are_another_setting():
    records = weight_types_records(n_seeds=2, rates=(1e-3,)) + weight_types_records(
        n_seeds=2, rates=(1e-3,), train={"epochs": 10.0}
    )
    assert [one.facts["epochs"] for one in cells.settings(frame_of(records))] == [3.0, 10.0]


def test_a_head_that_follows_the_adapters_rate_is_one_setting():
    """Records hold the resolved head rate: it must not split the grid of rates into settings of one rate each."""
    records = [fake_record(targets=t, lr=rate, head_lr=rate, seed=0) for t in ("q", "qv") for rate in (1e-3, 3e-3)]
    (one,) = cells.settings(frame_of(records))
    assert one.facts["head_rate"] == "lr"


def test_two_head_rates_are_two_settings():
    records = [fake_record(lr=rate, head_lr=head, seed=0) for rate in (1e-3, 3e-3) for head in (1e-3, 5e-4)]
    assert len(cells.settings(frame_of(records))) == 2


def test_a_point_that_was_run_twice_differently_is_refused():
    records = sweep({1e-3: [0.5, 0.6]})
    records.append({**records[0], "run_id": "f" * 16})
    setting = cells.settings(frame_of(records))[0]
    with pytest.raises(cells.NothingToShow, match="cannot tell apart"):
        cells.refuse_duplicates(setting, setting.runs.assign(arm="qv"))


def test_placements_meet_at_equal_parameters():
    records = [
        *weight_types_records(n_seeds=2, rates=(0.001,)),
        fake_record(targets="qv", rank=8),
        fake_record(targets="q", rank=1),
    ]
    (setting,) = cells.settings(frame_of(records))
    ((budget, runs),) = cells.at_budgets(setting)
    assert budget == 36864
    assert set(runs["rank"].dropna()) == {2, 4, 8}
    with pytest.raises(cells.NothingToShow, match="no run has 99 adapter parameters"):
        cells.at_budgets(setting, budget=99)


# ---------------------------------------------------------------- bad input


@pytest.fixture
def quick(monkeypatch):
    """Figures are drawn but not rendered: saving one in three formats takes a second."""
    monkeypatch.setattr(figures, "save", lambda figure, folder, name: folder / name)


def shown(script: str, records: list[dict], tmp_path: Path, capsys, *options: str) -> str:
    status = run(script, write_store(tmp_path / "store", records), tmp_path / "out", *options)
    captured = capsys.readouterr()
    assert status in (0, 2), captured.err
    return " ".join((captured.out + captured.err).split())


def test_one_seed_gets_no_interval_and_no_verdict(tmp_path, capsys, quick):
    text = shown("weight_types", weight_types_records(n_seeds=1, rates=(1e-3, 3e-3, 1e-2)), tmp_path, capsys)
    assert "no interval from one seed" in text
    assert "only 1 scored seed(s): no verdict is possible below 3" in text
    assert " better " not in text
    table = pd.read_csv(tmp_path / "out" / "tables" / "weight_types_minilm_cola.csv")
    assert table["low"].isna().all()


def test_missing_cells_are_named(tmp_path, capsys, quick):
    records = weight_types_records(n_seeds=4, rates=(1e-3, 3e-3, 1e-2))
    config = lambda r: (r["config"]["adapter"].get("targets"), r["config"]["train"].get("lr"), r["config"]["seed"])  # noqa: E731
    kept = [r for r in records if config(r)[0] != "k" and config(r) not in (("o", 3e-3, 1), ("o", 3e-3, 2))]
    text = shown("weight_types", kept, tmp_path, capsys)
    assert "missing from the store: k; o at lr 0.003, seeds 1, 2" in text


def test_failed_runs_are_kept_and_flagged(tmp_path, capsys, quick):
    records = weight_types_records(n_seeds=4, rates=(1e-3, 3e-3, 1e-2))
    for record in records:
        if record["config"]["adapter"].get("targets") == "qkvo" and record["config"]["seed"] == 2:
            record.update(
                status="failed", error={"kind": "nonfinite", "type": "E", "message": "m", "traceback": ""}, guards={}
            )
            record["scores"] = {"train": None, "select": None, "report": None}
    text = shown("weight_types", records, tmp_path, capsys)
    assert "kept out of the means and counted: qkvo at lr 0.001, 0.003, 0.01: seed 2 (nonfinite)" in text
    table = pd.read_csv(tmp_path / "out" / "tables" / "weight_types_minilm_cola.csv").set_index("cell")
    assert table.loc["qkvo", ["n_seeds", "n_failed"]].tolist() == [3, 1]


def test_unequal_seeds_are_paired_over_the_common_ones(tmp_path, capsys, quick):
    records = [
        r
        for r in weight_types_records(n_seeds=5, rates=(3e-3,))
        if not (r["config"]["adapter"].get("targets") == "v" and r["config"]["seed"] > 2)
    ]
    shown("weight_types", records, tmp_path, capsys)
    table = pd.read_csv(tmp_path / "out" / "tables" / "weight_types_minilm_cola_contrasts.csv").set_index("second")
    assert table.loc["v", "n_pairs"] == 3
    assert "2 seeds without a partner left out" in table.loc["v", "note"]


def test_a_constant_metric_is_said_and_not_called_a_tie(tmp_path, capsys, quick):
    records = [
        fake_record(targets=t, rank=r, lr=3e-3, seed=s, report=0.0)
        for t, r in (("q", 8), ("qv", 4), ("o", 8))
        for s in range(5)
    ]
    text = shown("weight_types", records, tmp_path, capsys)
    assert "is the metric stuck?" in text
    assert "tied with" not in text
    assert "better than" not in text


def test_a_score_that_is_missing_counts_as_failed(tmp_path, capsys, quick):
    records = weight_types_records(n_seeds=4, rates=(3e-3,), metric="pearson")
    runs = frame_of(records)
    lost = runs["targets"].eq("qv") & runs["seed"].eq(1)
    frame = pd.DataFrame(runs.drop(columns="scored")).assign(report=runs["report"].mask(lost))
    setting = cells.settings(cells.prepare(frame))[0]
    mine = setting.runs.assign(arm=setting.runs["targets"])
    estimate = cells.estimate(mine[mine["arm"] != ""], cells.choose_rates(mine)["lr"]).loc["qv"]
    assert (estimate["n_seeds"], estimate["n_failed"]) == (3, 1)
    assert estimate["failures"] == {1: "finished without a finite score"}
    assert np.isfinite(estimate["mean"])


def test_an_unknown_filter_names_what_there_is(weight_types_store, tmp_path, capsys):
    assert run("weight_types", weight_types_store, tmp_path, "--task", "rte") == 2
    assert "no run has task 'rte'; the store holds cola" in capsys.readouterr().err
    assert run("weight_types", weight_types_store, tmp_path, "--metric", "f1") == 2
    assert "metrics here are matthews" in capsys.readouterr().err
