"""Where a score's spread comes from, of runs whose draws are known."""

from __future__ import annotations

import numpy as np
import pytest

from fake_store import fake_record, frame_of, write_store
from lora_bench.questions import spread
from lora_bench.reports.scope import Scope
from lora_bench.verdicts.settings import NothingToShow


def records(*, starts=4, n_seeds=6, rates=(1e-3, 3e-3)):
    """qv, whose seeds lie .05 apart at the first rate and whose starts do at the second, .02 higher there."""
    rng = np.random.default_rng(0)
    made = []
    for lr in rates:
        by_seed, by_start = (0.05, 0.0) if lr == rates[0] else (0.0, 0.05)
        for seed in range(n_seeds):
            moved = by_seed * (seed - 2.5)
            for start in range(starts):
                report = 0.6 + moved + by_start * (start - 1.5) + 0.02 * (lr != rates[0]) + 1e-4 * rng.normal()
                drawn = {"targets": "qv", "rank": 4, "lr": lr, "seed": seed, "adapter": {"replicate": start}}
                record = fake_record(**drawn, report=report, select=0.5 + lr) | {"run_id": f"{len(made):016x}"}
                made.append(record)
    return made


def told(made, tmp_path):
    (section,) = spread.sections(frame_of(made), Scope(tmp_path))
    return section


def test_starts_and_seeds_are_told_apart(tmp_path):
    section = told(records(), tmp_path)
    first, second = section.tables[0].frame.to_dict("records")
    assert first["start_sd"] < 0.001 and first["seed_sd"] == pytest.approx(
        np.std(0.05 * np.arange(6), ddof=1), rel=0.01
    )
    assert second["seed_sd"] == 0 and second["start_sd"] == pytest.approx(
        np.std(0.05 * np.arange(4)) * np.sqrt(4 / 3), rel=0.01
    )
    assert (first["share"], second["share"]) == (pytest.approx(0, abs=1e-3), 1)
    assert second["is_best"] and not first["is_best"]
    assert first["change"] == pytest.approx(-0.02, abs=1e-3) and np.isnan(second["change"])
    assert "another start of the adapter" in section.sentence and list(section.figures)


def test_the_interval_of_a_rate_is_over_seeds_and_not_over_runs(tmp_path):
    """Starts of one seed are no further seeds."""
    (row, _) = told(records(), tmp_path).tables[0].frame.to_dict("records")
    by_seed = 0.05 * (np.arange(6) - 2.5)
    half = 2.5706 * np.std(by_seed, ddof=1) / np.sqrt(6)  # t of 5 degrees of freedom
    assert row["change_high"] - row["change"] == pytest.approx(half, rel=0.01)


def test_runs_that_learned_nothing_are_set_aside_and_counted(tmp_path):
    made = records()
    runs = frame_of(made).assign(learns=[place % 24 != 0 for place in range(len(made))])
    (section,) = spread.sections(runs, Scope(tmp_path))
    frame = section.tables[0].frame
    assert list(frame["n_failed"]) == [1, 1] and list(frame["n_runs"]) == [23, 23]
    assert sum("1 of 24 runs failed or predict one class" in remark for remark in section.remarks) == 2
    stuck = frame_of(made).assign(learns=False)
    (section,) = spread.sections(stuck, Scope(tmp_path))
    assert "too few runs learn" in section.sentence and section.tables[0].shown()


def test_without_several_starts_there_is_nothing_to_tell(tmp_path):
    with pytest.raises(NothingToShow, match=r"sweeps=variance"):
        spread.sections(frame_of(records(starts=1)), Scope(tmp_path))


def test_the_command_writes_its_table_and_figure(tmp_path, capsys):
    from lora_bench.cli import spread as command

    write_store(tmp_path / "runs", records())
    assert command.main(["--store", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 0
    assert "another seed" in capsys.readouterr().out
    assert len(list((tmp_path / "out" / "figures").glob("spread_*.png"))) == 1
    assert len(list((tmp_path / "out" / "tables").glob("spread_*.csv"))) == 1
