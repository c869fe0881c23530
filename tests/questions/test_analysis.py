"""The scripts in analysis/, on stores with invented scores whose answers are known."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from commands import run
from fake_store import fake_record, frame_of, rank_records, weight_types_records, write_store, write_with_adapters
from lora_bench.questions import claims, weight_types
from lora_bench.questions.across import across
from lora_bench.reports import tables
from lora_bench.reports.figures import style
from lora_bench.reports.scope import Scope
from lora_bench.store.folder import Store
from lora_bench.store.frame import COLUMNS
from lora_bench.tasks.metrics import score
from lora_bench.verdicts import arms, gaps, settings, tuning
from patience import PATIENCE_SECONDS

ROOT = Path(__file__).resolve().parents[2]


def arms_of(records: list[dict]) -> pd.DataFrame:
    runs = frame_of(records)
    return runs.assign(arm=runs["targets"].where(runs["targets"] != "", runs["method"]))


@pytest.fixture(scope="module")
def weight_types_store(tmp_path_factory) -> Path:
    return write_store(tmp_path_factory.mktemp("wt"), weight_types_records(rates=(1e-3, 3e-3, 1e-2), n_seeds=6))


# ---------------------------------------------------------------- scripts


def test_weight_types_writes_tables_figures_and_a_sentence(weight_types_store, tmp_path, capsys):
    assert run("weight_types", weight_types_store, tmp_path, "--paper") == 0
    shown = capsys.readouterr().out
    assert "better than" in shown
    table = pd.read_csv(tmp_path / "tables" / "weight_types_minilm_cola.csv")
    assert list(table["cell"]) == [*settings.PLACEMENTS, "head_only"]
    assert (table["adapter_parameters"][:7] == 36864).all()
    assert table.set_index("cell").loc["q", "paper_wikisql"] == 0.704
    for suffix in ("pdf", "png", "svg"):
        assert (tmp_path / "figures" / f"weight_types_minilm_cola.{suffix}").stat().st_size > 5000
    assert r"\toprule" in (tmp_path / "tables" / "weight_types_minilm_cola.tex").read_text(encoding="utf-8")


def test_rank_writes_tables_figures_and_a_sentence(tmp_path, capsys):
    store = write_store(tmp_path / "store", rank_records(ranks=(1, 8), n_seeds=6))
    assert run("rank", store, tmp_path, "--paper") == 0
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
    assert capsys.readouterr().err.startswith(f"lora-bench {script}: store: ")
    assert not (tmp_path / "out").exists()


def test_equal_stores_give_equal_files(weight_types_store, tmp_path):
    files = []
    for out in (tmp_path / "a", tmp_path / "b"):
        assert run("weight_types", weight_types_store, out) == 0
        files.append({str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*.*")})
    assert files[0] == files[1]
    assert {Path(name).suffix for name in files[0]} == {".csv", ".tex", ".pdf", ".svg", ".png"}


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
        ({1e-3: [0.5, 0.5], 3e-3: [0.5, 0.5], 1e-2: [0.1, 0.1]}, 3e-3, "inside", []),
        ({3e-3: [0.5, 0.6]}, 3e-3, "single", [1e-3, 1e-2]),
        ({1e-3: [0.1, 0.2], 3e-3: [0.5, 0.6], 1e-2: [None, 0.99]}, 3e-3, "inside", []),
        ({1e-3: [0.1, 0.2, 0.1], 3e-3: [0.5, 0.5, 0.6], 1e-2: [0.9]}, 3e-3, "behind", [0.01]),
        ({1e-3: [0.501], 2e-3: [0.49, 0.48], 3e-3: [0.5, 0.5], 5e-3: [0.4, 0.4]}, 3e-3, "inside", []),
        ({1e-3: [0.1], 2e-3: [0.4, 0.4], 3e-3: [0.5, 0.5, 0.6], 1e-2: [None]}, 3e-3, "inside", []),
        ({1e-3: [0.5, 0.6, 0.55], 3e-3: [None, 0.9, None], 1e-2: [0.1, 0.1, 0.1]}, 1e-3, "edge", [1e-4, 3e-4]),
        ({1e-3: [0.1], 2e-3: [0.4, 0.4], 3e-3: [0.5, 0.5, 0.6], 5e-3: [0.4, 0.5], 1e-2: [0.2]}, 3e-3, "inside", []),
        ({1e-3: [0.1], 2e-3: [0.4, 0.4], 3e-3: [0.5, 0.5, 0.6]}, 3e-3, "edge", [0.005, 0.01]),
        ({1e-3: [0.1], 2e-3: [0.48, 0.5], 3e-3: [0.5, 0.5, 0.6]}, 3e-3, "inside*", []),
        ({1e-3: [None, None]}, 1e-3, "none", []),
    ],
    ids=[
        "inside", "upper_edge", "lower_edge", "one_standard_error", "tie", "single", "diverged", "unfinished",
        "ahead_by_luck", "staged_diverged", "survivors", "staged", "staged_edge", "staged_one_standard_error",
        "no_score",
    ],
)  # fmt: skip
def test_the_rate_is_chosen_on_select_with_a_certificate(scores, rate, certificate, add):
    chosen = tuning.choose_rates(arms_of(sweep(scores))).loc["qv"]
    assert (chosen["lr"], chosen["certificate"]) == (rate, certificate)
    assert list(chosen["add"]) == pytest.approx(add)


STAGED = {3e-4: 1, 1e-3: 8, 2e-3: 2, 3e-3: 2}  # rate -> seeds that were run


@pytest.mark.parametrize(
    ("seeds_at", "told"),
    [
        ({"q": {1e-3: 8, 3e-3: 5}, "k": {1e-3: 8, 3e-3: 5}}, "q, k at lr 0.003, seeds 5 to 7"),
        ({"q": {1e-3: 8, 3e-3: 8}, "k": {1e-3: 8}}, "k at lr 0.003, all seeds"),
        ({"q": STAGED, "k": STAGED}, ""),
        ({"q": STAGED, "k": {3e-4: 1, 1e-3: 2, 2e-3: 2, 3e-3: 8}}, ""),
        ({"q": STAGED, "k": STAGED, "v": STAGED | {1e-3: 2}}, "v at lr 0.003, seeds 2 to 7"),
        ({"q": STAGED, "k": STAGED, "v": STAGED | {1e-3: 7}}, "v at lr 0.001, seeds 7"),
        ({"q": {1e-3: 3}, "k": {1e-3: 3}}, "v, o"),
        ({arm: {1e-3: 8, 2e-3: 8, 3e-3: 2, 5e-3: 1} for arm in "qk"}, ""),  # the two best with all
        ({arm: {1e-3: 8, 2e-3: 8, 3e-3: 2} for arm in "qk"}, "q, k at lr 0.003, seeds 2 to 7"),
        ({"q": {1e-3: 8, 3e-3: 8, 1e-2: 4}, "k": {1e-3: 8, 3e-3: 8, 1e-2: 8}}, "q at lr 0.01, seeds 4 to 7"),
    ],
    ids=[
        "cut_off",
        "rate",
        "staged",
        "own_rates",
        "last_stage_missing",
        "last_seed_missing",
        "placements",
        "two_rates",
        "grid",
        "half_cut_off",
    ],
)
def test_what_a_store_lacks_is_told_for_grids_and_for_staged_searches(seeds_at, told):
    records = [
        fake_record(targets=targets, lr=rate, seed=seed, report=0.5)
        for targets, rates in seeds_at.items()
        for rate, n_seeds in rates.items()
        for seed in range(n_seeds)
    ]
    expected = ["q", "k", "v", "o"] if told == "v, o" else []
    assert gaps.missing(arms_of(records), expected) == told


def test_nothing_is_chosen_on_report():
    """The rate that does best on report must lose to the one that does best on select."""
    records = [
        fake_record(lr=rate, seed=seed, select=select, report=report)
        for rate, select, report in ((1e-3, 0.6, 0.1), (1e-2, 0.5, 0.9))
        for seed in range(3)
    ]
    runs = arms_of(records)
    rates = tuning.choose_rates(runs)
    assert rates.loc["qv", "lr"] == 1e-3
    assert arms.estimate(runs, rates["lr"]).loc["qv", "mean"] == pytest.approx(0.1)


# ---------------------------------------------------------------- settings


def test_environments_are_blocks_unless_asked():
    records = weight_types_records(n_seeds=2, rates=(1e-3,)) + weight_types_records(
        n_seeds=2, rates=(1e-3,), environment="gpu-b"
    )
    apart = settings.settings(frame_of(records))
    assert [one.runs["environment"].nunique() for one in apart] == [1, 1]
    assert "kept apart" in apart[0].notes[0].text
    assert len({one.slug for one in apart}) == 2
    joined = settings.settings(frame_of(records), mix_environments=True)
    assert len(joined) == 1
    assert "mixed, as asked" in joined[0].notes[0].text


def test_runs_of_another_training_are_another_setting():
    records = weight_types_records(n_seeds=2, rates=(1e-3,)) + weight_types_records(
        n_seeds=2, rates=(1e-3,), train={"epochs": 10.0}
    )
    assert [one.facts["epochs"] for one in settings.settings(frame_of(records))] == [3.0, 10.0]


def test_every_setting_that_tells_runs_apart_is_a_column_of_the_store():
    assert {*settings.SHARED, *settings.OF_ADAPTER} - {"head_rate"} <= set(COLUMNS)


@pytest.mark.parametrize(
    "train",
    [{"max_length": 64}, {"schedule": "constant"}, {"weight_decay": 0.1}, {"dropout": 0.1}, {"checkpoint": "best"}],
)
def test_whatever_changes_training_makes_another_setting(train):
    usual = {"max_length": 128, "schedule": "linear", "weight_decay": 0.0, "dropout": 0.0, "checkpoint": "last"}
    records = [fake_record(train=usual), fake_record(targets="v", train=usual | train)]
    assert len(settings.settings(frame_of(records))) == 2


def test_rows_drawn_otherwise_have_a_title_of_their_own():
    records = [fake_record(seed=seed) for seed in range(2)]
    other = {**records[1]["config"], "task": {**records[1]["config"]["task"], "fingerprint": "abcdefgh"}}
    found = settings.settings(frame_of([records[0], {**records[1], "config": other}]))
    assert sorted(one.title for one in found) == [
        "minilm · cola · task fingerprint abcdef",
        "minilm · cola · task fingerprint t-cola",
    ]


def test_a_fixed_head_rate_of_one_task_does_not_split_another_task():
    follows = [fake_record(targets=t, lr=rate, head_lr=rate) for t in ("q", "qv") for rate in (3e-4, 1e-3, 1e-2)]
    fixed = [fake_record(task="sst2", lr=rate, head_lr=1e-3) for rate in (3e-4, 1e-3, 1e-2)]
    assert [one.facts["head_rate"] for one in settings.settings(frame_of(follows + fixed))] == ["lr", "0.001"]


def test_what_one_setting_lacks_does_not_hide_the_others(tmp_path, capsys, quick):
    good = weight_types_records(n_seeds=3, rates=(1e-3,))
    twice = fake_record(task="rte", seed=0)
    bad = [twice, {**twice, "run_id": "f" * 16}, fake_record(task="rte", targets="q", rank=8)]
    text = shown("weight_types", good + bad, tmp_path, capsys)
    assert "has the highest mean" in text and "minilm · rte: several runs of" in text


def test_brackets_in_a_text_are_shown_as_they_are(tmp_path, capsys, quick):
    records = [fake_record(targets=t, rank=r, task="cola[/x]") for t, r in (("q", 8), ("qv", 4))]
    assert "minilm · cola[/x]" in shown("weight_types", records, tmp_path, capsys)


@pytest.mark.parametrize("margin", ["0", "-1", "nan", "inf"])
def test_a_margin_must_be_above_zero(margin, weight_types_store, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        run("weight_types", weight_types_store, tmp_path, "--margin", margin)
    assert "--margin" in capsys.readouterr().err


def test_a_task_with_two_trainings_is_not_pooled():
    one, other = (weight_types_records(n_seeds=3, rates=(1e-3,), task=task) for task in ("cola", "rte"))
    again = weight_types_records(n_seeds=3, rates=(1e-3,), task="rte", train={"epochs": 10.0})

    def pooled(records):
        made = weight_types.sections(frame_of(records), Scope(Path("runs")))
        return [section.sentence.partition(",")[0] for section in across(made)]

    assert pooled(one + other) == ["Over cola and rte"]
    assert pooled(one + again) == ["Over cola and rte"]  # a preset may train each task for its own epochs
    assert pooled(one + other + again) == []  # which of the two is rte's score?
    first_stage = [record for record in again if record["config"]["seed"] == 0]
    assert pooled(one + other + first_stage) == ["Over cola and rte"]  # one seed is a search, and no score


def test_a_head_that_follows_the_adapters_rate_is_one_setting():
    """Records hold the resolved head rate: it must not split the grid of rates into settings of one rate each."""
    records = [fake_record(targets=t, lr=rate, head_lr=rate, seed=0) for t in ("q", "qv") for rate in (1e-3, 3e-3)]
    (one,) = settings.settings(frame_of(records))
    assert one.facts["head_rate"] == "lr"


def test_two_head_rates_are_two_settings():
    records = [fake_record(lr=rate, head_lr=head, seed=0) for rate in (1e-3, 3e-3) for head in (1e-3, 5e-4)]
    assert len(settings.settings(frame_of(records))) == 2


def test_a_point_that_was_run_twice_differently_is_refused():
    records = sweep({1e-3: [0.5, 0.6]})
    records.append({**records[0], "run_id": "f" * 16})
    setting = settings.settings(frame_of(records))[0]
    with pytest.raises(settings.NothingToShow, match="cannot tell apart"):
        settings.refuse_duplicates(setting, setting.runs.assign(arm="qv"))


def test_placements_meet_at_equal_parameters():
    records = [
        *weight_types_records(n_seeds=2, rates=(0.001,)),
        fake_record(targets="qv", rank=8),
        fake_record(targets="q", rank=1),
    ]
    (setting,) = settings.settings(frame_of(records))
    ((budget, runs),) = settings.at_budgets(setting)
    assert budget == 36864
    assert set(runs["rank"].dropna()) == {2, 4, 8}
    with pytest.raises(settings.NothingToShow, match="no run has 99 adapter parameters"):
        settings.at_budgets(setting, budget=99)


# ---------------------------------------------------------------- bad input


def shown(script: str, records: list[dict], tmp_path: Path, capsys, *options: str) -> str:
    status = run(script, write_store(tmp_path / "store", records), tmp_path / "out", *options)
    captured = capsys.readouterr()
    assert status in (0, 2), captured.err
    return " ".join((captured.out + captured.err).split())


def test_one_seed_gets_no_interval_and_no_verdict(tmp_path, capsys, quick):
    text = shown("weight_types", weight_types_records(n_seeds=1, rates=(1e-3, 3e-3, 1e-2)), tmp_path, capsys)
    assert "no interval from one seed" in text
    assert "only 1 scored seed(s): no verdict is possible below 4" in text
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
    assert (table["n_seeds"]["qkvo"], table["n_failed"]["qkvo"]) == (3, 1)


def test_unequal_seeds_are_paired_over_the_common_ones(tmp_path, capsys, quick):
    records = [
        r
        for r in weight_types_records(n_seeds=6, rates=(3e-3,))
        if not (r["config"]["adapter"].get("targets") == "v" and r["config"]["seed"] > 3)
    ]
    shown("weight_types", records, tmp_path, capsys)
    table = pd.read_csv(tmp_path / "out" / "tables" / "weight_types_minilm_cola_contrasts.csv").set_index("second")
    assert table.loc["v", "n_pairs"] == 4
    assert "2 seeds without a partner left out" in table["note"]["v"]


@pytest.mark.parametrize(
    ("score", "why"), [(0.0, "the training may have been too short"), (1.0, "all may be at the top")]
)
def test_a_constant_metric_is_said_and_not_called_a_tie(tmp_path, capsys, quick, score, why):
    """At the top of a task training was not too short: whoever trains longer then waits for nothing."""
    records = [
        fake_record(targets=t, rank=r, lr=3e-3, seed=s, report=score)
        for t, r in (("q", 8), ("qv", 4), ("o", 8))
        for s in range(5)
    ]
    text = shown("weight_types", records, tmp_path, capsys)
    assert "is the metric stuck?" in text
    assert f"nothing tells them apart, and {why}" in " ".join(text.split())
    assert "has the highest" not in text
    assert "tied with" not in text
    assert "better than" not in text


@pytest.mark.parametrize(
    ("n_stuck", "sd", "asks", "says"),
    [(4, 0.0, False, True), (3, 0.0, True, True), (0, 0.0, True, False), (4, 0.01, False, True)],
)
def test_a_score_without_spread_is_asked_about_where_no_other_line_explains_it(n_stuck, sd, asks, says):
    """Where every seed predicts one class the metric works: whoever doubts it looks in the wrong place."""
    learns = [np.array([number >= n_stuck for number in range(4)])]
    estimates = pd.DataFrame({"sd": [sd], "n_stuck": [n_stuck], "learns": learns}, index=["q"])
    text = "; ".join(str(note) for note in tables.seed_notes(estimates))
    assert ("is the metric stuck?" in text) == asks
    assert (f"q: {n_stuck} of 4 seeds predict one class" in text) == says


def test_a_placement_that_scores_the_same_in_every_seed_is_no_single_seed(tmp_path, capsys, quick):
    """At the top of a task four seeds without a spread are four: one could not have settled anything."""
    scores = {"q": [0.98, 0.97, 0.99, 0.96], "qv": [1.0] * 4}
    records = [
        fake_record(targets=t, rank=8 if t == "q" else 4, lr=3e-3, seed=s, report=score)
        for t, by_seed in scores.items()
        for s, score in enumerate(by_seed)
    ]
    text = shown("weight_types", records, tmp_path, capsys)
    assert "qv has the highest mean Matthews: 100.0, the same in all 4 seeds;" in text
    assert "one seed" not in text


def test_a_score_that_is_missing_counts_as_failed(tmp_path, capsys, quick):
    records = weight_types_records(n_seeds=4, rates=(3e-3,), metric="pearson")
    runs = frame_of(records)
    lost = runs["targets"].eq("qv") & runs["seed"].eq(1)
    frame = pd.DataFrame(runs.drop(columns="scored")).assign(report=runs["report"].mask(lost))
    setting = settings.settings(settings.prepare(frame))[0]
    mine = setting.runs.assign(arm=setting.runs["targets"])
    estimate = arms.estimate(mine[mine["arm"] != ""], tuning.choose_rates(mine)["lr"]).loc["qv"]
    assert (estimate["n_seeds"], estimate["n_failed"]) == (3, 1)
    assert dict(estimate["failures"]) == {1: "finished without a finite score"}
    assert np.isfinite(estimate["mean"])


def test_an_unknown_filter_names_what_there_is(weight_types_store, tmp_path, capsys):
    assert run("weight_types", weight_types_store, tmp_path, "--task", "rte") == 2
    assert "no run has task 'rte'; the store holds cola" in capsys.readouterr().err
    assert run("weight_types", weight_types_store, tmp_path, "--metric", "f1") == 2
    assert "metrics here are matthews" in capsys.readouterr().err


# ---------------------------------------------------------------- learning rates, section 7, cost


def csv(tmp_path: Path, name: str) -> pd.DataFrame:
    return pd.read_csv(tmp_path / "out" / "tables" / f"{name}.csv")


def full_records(*, peak: float, n_seeds: int = 6) -> list[dict]:
    """Full fine-tuning with its best rate at `peak`."""
    return [
        fake_record(
            method="full", targets="", lr=rate, seed=seed, report=0.5 - 0.1 * abs(np.log10(rate / peak)) + 0.001 * seed
        )
        for rate in (3e-5, 1e-4, 3e-4, 1e-3, 3e-3)
        for seed in range(n_seeds)
    ]


@pytest.mark.parametrize(("peak", "found"), [(3e-4, "supported"), (3e-3, "refuted")])
def test_the_tenfold_rule_is_tested_and_not_assumed(peak, found, tmp_path, capsys, quick):
    records = weight_types_records(effects={"qv": 0.0}, n_seeds=6, noise=0.001) + full_records(peak=peak)
    records = [r for r in records if r["config"]["adapter"].get("targets") in ("qv", None)]
    text = shown("learning_rate", records, tmp_path, capsys)
    assert f"the tenfold rule is {found} here" in text


def test_an_edge_rate_gets_a_line_to_paste(tmp_path, capsys, quick):
    records = weight_types_records(n_seeds=4, best_rate={"k": 0.3}, with_floor=False)
    text = shown("learning_rate", records, tmp_path, capsys)
    at = "adapter.targets=k adapter.rank=8 adapter.budget=null train.lr=0.1,0.3"
    line = f"lora-bench +sweeps=weight_types task=cola {at} 'seed=range(4)'"
    assert f"to settle k r=8: {line}" in text
    table = csv(tmp_path, "learning_rate_minilm_cola").set_index("cell")
    assert table.loc["k r=8", "certificate"] == "edge"
    assert table.loc["q r=8", "certificate"] == "inside"
    assert table["shared_difference"]["k r=8"] < -0.02


def test_amplification_reads_the_norms_of_the_records(tmp_path, capsys, quick):
    records = rank_records(ranks=(1, 8), n_seeds=3, rates=(3e-3,))
    text = shown("amplification", records, tmp_path, capsys)
    table = csv(tmp_path, "amplification_minilm_cola").set_index(["targets", "rank", "role"])
    layers, seeds = 1.1 ** np.mean(np.arange(6)), 1.02 ** np.mean(np.arange(3))  # geometric means
    assert table.loc[("qv", 8, "v"), "amplification"] == pytest.approx(8 / 8 * layers * seeds)
    assert table.loc[("qv", 8, "v"), "over_random"] == pytest.approx(1 / (8 * 30 / 384))
    assert "hold 1.6 to 13 times as much of the weight as random ones do, the leading one 13 to 13 times (paper" in text
    assert table.loc[("qv", 1, "v"), "scale"] == 16
    assert "alpha 16, policy fixed" in text
    assert "factor 21.6" in text


def test_subspaces_that_share_a_direction_are_told_from_chance(tmp_path, capsys, quick):
    store = write_with_adapters(tmp_path / "store", rank_records(ranks=(4, 16), n_seeds=3, rates=(3e-3,)))
    assert run("subspace", store, tmp_path / "out", "--targets", "qv") == 0
    rows = csv(tmp_path, "subspace_minilm_cola").set_index(["comparison", "vectors", "role"]).to_dict("index")
    ranks, seeds = rows["rank 4 and rank 16", "A", "q"], rows["seeds at rank 16", "A", "q"]
    assert ranks["first"] > 0.3 > ranks["first_null"]
    assert seeds["above"] == 6
    assert csv(tmp_path, "subspace_minilm_cola_matrices")["null_mean"].between(0, 1).all()


def test_random_subspaces_stay_within_the_band(tmp_path, capsys, quick):
    store = write_with_adapters(tmp_path / "store", rank_records(ranks=(4, 16), n_seeds=3, rates=(3e-3,)), shared=0.0)
    assert run("subspace", store, tmp_path / "out", "--targets", "qv") == 0
    whole = csv(tmp_path, "subspace_minilm_cola_matrices")
    whole = whole[(whole["vectors"] == "A") & (whole["comparison"] == "rank 4 and rank 16")]
    assert ((whole["phi"] >= whole["null_low"]) & (whole["phi"] <= whole["null_high"])).mean() > 0.85


def test_subspaces_say_what_is_missing(tmp_path, capsys, quick):
    text = shown("subspace", rank_records(ranks=(4, 16), n_seeds=2, rates=(3e-3,)), tmp_path, capsys)
    assert "0 adapters of q" in text
    assert "4 runs without" in text


def test_the_front_holds_what_no_cell_beats():
    front = arms.on_front(np.array([1, 2, 3, 3, 4, np.nan]), np.array([0.5, 0.4, 0.6, 0.7, 0.7, 0.9]))
    assert front.tolist() == [True, False, False, True, False, False]


def test_pareto_counts_parameters_time_and_bytes(tmp_path, capsys, quick):
    text = shown(
        "pareto",
        rank_records(ranks=(1, 8), n_seeds=3, rates=(3e-3,)) + full_records(peak=3e-4, n_seeds=3),
        tmp_path,
        capsys,
    )
    assert "the front of mean score against adapter parameters is q r=1" in text
    table = csv(tmp_path, "pareto_minilm_cola").set_index("cell")
    assert table.loc["qv r=8", "adapter_parameters"] == 6 * 2 * 8 * 768
    assert np.isnan(table["adapter_parameters"]["full"])


# ---------------------------------------------------------------- claims


@pytest.fixture(scope="module")
def card() -> pd.DataFrame:
    rates = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
    records = weight_types_records(n_seeds=6, noise=0.002, effects={"qkvo": 0.05}, rates=rates)
    seen = {record["run_id"]: record for record in records + rank_records(n_seeds=6, rates=rates)}
    (section,) = claims.sections(frame_of(list(seen.values())), Scope(Path("runs")))
    return section.rows.set_index("claim")


@pytest.mark.parametrize(
    ("claim", "status", "evidence"),
    [
        ("qv_over_k", "supported", "points, 6 seeds"),
        ("qv_as_good_as_qkvo", "refuted", "qv r=4 − qkvo r=2: −"),
        ("mlp_over_attention", "not run", "needs mlp and attention at one budget"),
        ("q_needs_rank", "supported", "q r=64 − q r=1: +"),
        ("best_rate_flat_in_rank", "supported", "6 of 6 seeds"),
        ("tenfold_rate", "not run", "adapter=full"),
    ],
)
def test_claims_are_judged_by_the_store(card, claim, status, evidence):
    assert card.loc[claim, "status"] == status
    assert evidence in card.loc[claim, "evidence"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("claims: [{id: a, kind: nonsense}]", "no kind 'nonsense'"),
        ("claims: [{id: a, kind: rank, text: t, source: s, targets: q, first: 1}]", "no second, says"),
        (
            "claims: [{id: a, kind: placement, text: t, source: s, first: q, second: v, says: maybe}]",
            "words are better",
        ),
        ("nothing: 1", "as a list under `claims`"),
        (
            "claims: [{id: a, kind: rate_tenfold, text: t, source: s, contradicts: [b]}]",
            "contradicts 'b', which is no claim",
        ),
    ],
)
def test_a_claims_file_that_cannot_be_read_is_refused(text, message, tmp_path, capsys):
    (tmp_path / "mine.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(SystemExit):
        run("claims", tmp_path, tmp_path, "--claims", str(tmp_path / "mine.yaml"))
    assert message in capsys.readouterr().err


# ---------------------------------------------------------------- re-scoring


def store_with_predictions(root: Path, *, wrong: bool = False) -> Path:
    store, rng = Store(root), np.random.default_rng(0)
    for seed in range(2):
        tables: list[pd.DataFrame] = []
        scores: dict[str, Any] = {"train": None}
        for split, n in (("select", 40), ("report", 60)):
            labels, logits = rng.integers(2, size=n), rng.normal(size=(n, 2)).astype(np.float32)
            scores[split] = score(["matthews"], labels, logits)
            tables.append(
                pd.DataFrame(
                    {"split": split, "idx": range(n), "label": labels, "logit_0": logits[:, 0], "logit_1": logits[:, 1]}
                )
            )
        record = fake_record(seed=seed)
        record["scores"] = scores
        if wrong and seed:
            record["scores"]["report"] = {"matthews": scores["report"]["matthews"] + 1e-12}
        store.write(record, predictions=pd.concat(tables, ignore_index=True))
    store.write(fake_record(seed=9))
    return root


def test_rescoring_gives_the_records_numbers_byte_for_byte(tmp_path, capsys):
    store = store_with_predictions(tmp_path / "store")
    assert run("rescore", store, tmp_path / "out", "--add", "accuracy,balanced_accuracy") == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "4 of 4 scored splits of 2 runs are equal to the record, byte for byte" in text
    assert "1 not checked: the run kept no predictions" in text
    assert csv(tmp_path, "rescored")["balanced_accuracy"].dropna().between(0, 1).all()


def test_a_score_that_the_predictions_do_not_give_is_named(tmp_path, capsys):
    assert run("rescore", store_with_predictions(tmp_path / "store", wrong=True), tmp_path / "out") == 1
    assert re.search(r"- [0-9a-f]{16} report: the record says", capsys.readouterr().out)


# ---------------------------------------------------------------- the report


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    """A report over two tasks, one with ranks and failed runs, and one more environment."""
    root = tmp_path_factory.mktemp("report")
    records = weight_types_records(rates=(1e-3, 3e-3, 1e-2), n_seeds=4)
    records += weight_types_records(
        rates=(1e-3, 3e-3, 1e-2), n_seeds=4, task="rte<b>", metric="accuracy", rng=np.random.default_rng(5)
    )
    records += rank_records(ranks=(1, 16), n_seeds=4, rates=(1e-3, 3e-3, 1e-2))
    records += weight_types_records(rates=(3e-3,), n_seeds=1, environment="gpu-b", with_floor=False)
    records += [fake_record(lr=0.3, seed=seed, error="nonfinite") for seed in range(4)]
    with pytest.MonkeyPatch.context() as patch:  # the page needs the SVG alone
        patch.setattr(style, "save", save_svg)
        assert run("report", write_store(root / "store", records), root / "out") == 0
    return root / "out" / "index.html"


def save_svg(figure, folder: Path, name: str, **_) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / f"{name}.svg")
    return folder / f"{name}.svg"


def test_the_page_holds_everything_and_fetches_nothing(page):
    html = page.read_text(encoding="utf-8")
    for wanted in (
        "Verdict",
        "Contrasts",
        "Across tasks",
        "Claims",
        "What is missing",
        "How it was made",
        "nonfinite",
        "kept apart",
    ):
        assert wanted in html, wanted
    references = re.findall(r"""(?:src|href)=["']?([^"'\s>]+)""", html)
    assert {reference.split(":")[0] if ":" in reference else "#" for reference in references} <= {"data", "#"}
    assert "url(" not in html
    assert "@import" not in html
    n_figures = html.count("<figure") - html.count('<figure class="line">')  # that is drawn in the page itself
    assert len(list((page.parent / "figures").glob("*.svg"))) >= n_figures
    assert html.count("data:image/svg+xml") == n_figures > 6


def test_the_page_escapes_what_records_say(page):
    html = page.read_text(encoding="utf-8")
    assert "rte&lt;b&gt;" in html
    assert "rte<b>" not in html


def test_the_page_is_well_formed(page):
    class Checker(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.open: list[str] = []
            self.ids: list[str | None] = []

        def handle_starttag(self, tag, attrs):
            self.ids += [value for name, value in attrs if name == "id"]
            if tag not in ("meta", "link", "img", "br", "input"):
                self.open.append(tag)

        def handle_endtag(self, tag):
            assert self.open.pop() == tag

    checker = Checker()
    html = page.read_text(encoding="utf-8")
    checker.feed(html)
    assert checker.open == []
    assert len(checker.ids) == len(set(checker.ids))
    assert set(re.findall(r'href="#([^"]+)"', html)) <= set(checker.ids)


def test_a_store_of_one_failed_run_still_gets_a_page(tmp_path, capsys):
    store = write_store(tmp_path / "store", [fake_record(error="exception")])
    status = run("report", store, tmp_path / "out")
    captured = capsys.readouterr()
    assert status == 0, captured.err
    html = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert "without a score" in html
    assert "better" not in re.sub(r"<style.*?</style>", "", html, flags=re.S).split("<main>")[1].split("Claims")[0]


def test_scripts_work_from_any_folder_and_without_torch(tmp_path, weight_types_store):
    """One process imports every script but throughput and the like, and runs one: torch must stay out."""
    names = [
        "weight_types",
        "rank",
        "learning_rate",
        "subspace",
        "amplification",
        "pareto",
        "claims",
        "rescore",
        "report",
    ]
    code = (
        f"import sys; sys.path[0] = {str(ROOT)!r}\nfrom analysis import {', '.join(names)}\n"
        f"status = claims.main(['--store', {str(weight_types_store)!r}, '--out', 'here'])\n"
        "assert status == 0 and 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, encoding="utf-8", timeout=PATIENCE_SECONDS
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "here" / "tables" / "claims.csv").exists()


CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_works_in_a_browser(page, tmp_path, width):
    """No console message, every figure shown, nothing wider than the window but what says that it scrolls, and a table
    sorts both ways."""
    probe = """<script>addEventListener("load", () => setTimeout(() => {
      const table = [...document.querySelectorAll("table.sortable")].find((t) => t.tBodies[0].rows.length > 4);
      const place = [...table.tHead.rows[0].cells].findIndex(
        (c) => c.innerText.includes("difference") || c.className === "num");
      const texts = () => [...table.tBodies[0].rows].map((r) => r.cells[place].dataset.key);
      const keys = () => texts().filter((k) => k !== "").map(Number);
      const button = table.tHead.rows[0].cells[place].querySelector("button");
      button.click(); const up = keys(); button.click(); const down = keys();
      const images = [...document.images];
      const boxes = [...document.querySelectorAll(".scroll")].filter((b) => b.clientWidth > 0);
      document.documentElement.dataset.probe = JSON.stringify({up, down, images: images.length,
        shown: images.filter((i) => i.naturalWidth > 0 && i.getBoundingClientRect().width > 100).length,
        unsaid: boxes.filter((b) => b.scrollWidth > b.clientWidth + 1 !== b.classList.contains("wide")).length,
        wide: boxes.filter((b) => b.classList.contains("wide")).length,
        overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth});
    }, 500));</script>"""
    probed = tmp_path / "probed.html"
    probed.write_text(page.read_text(encoding="utf-8").replace("</body>", probe + "</body>"), encoding="utf-8")
    command = [
        str(CHROMIUM),
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        f"--window-size={width},900",
        "--enable-logging=stderr",
    ]
    done = subprocess.run(
        [*command, "--virtual-time-budget=5000", "--dump-dom", probed.as_uri()],
        capture_output=True,
        encoding="utf-8",
        timeout=PATIENCE_SECONDS,
    )
    assert "CONSOLE" not in done.stderr
    found = re.search(r'data-probe="([^"]+)"', done.stdout)
    assert found, done.stdout[-500:]
    result = json.loads(found[1].replace("&quot;", '"'))
    assert result["images"] == result["shown"] > 6
    assert result["up"] == sorted(result["up"])
    assert result["down"] == sorted(result["down"], reverse=True)
    assert result["overflow"] <= 0
    assert result["unsaid"] == 0 and (result["wide"] > 3 or width > 1000)


def test_a_head_that_follows_is_one_setting_over_machines_that_are_mixed():
    records = [fake_record(lr=rate, head_lr=rate, environment=where) for rate, where in ((1e-3, "a"), (3e-3, "b"))]
    (one,) = settings.settings(frame_of(records), mix_environments=True)
    assert one.facts["head_rate"] == "lr"


def test_a_line_to_paste_does_not_spoil_the_next_one(tmp_path, capsys, quick):
    """What it adds to fit a cell (a rank, no budget) belongs to that cell and not to what its runs share."""
    started = {"overrides": ["task=cola", "adapter.rank=8", "adapter.budget=null"], "sweep": "weight_types"}
    points = [(lr, seed) for lr in (1e-3, 3e-3, 1e-2) for seed in (0, 1)]
    common = {"targets": "k", "rank": 8, "invocation": started}
    records = [fake_record(lr=lr, seed=seed, select=-lr, **common) for lr, seed in points]
    text = shown("learning_rate", records, tmp_path, capsys)
    assert "task=cola adapter.targets=k adapter.rank=8 adapter.budget=null" in text
