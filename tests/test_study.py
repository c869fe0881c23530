"""The published study: its records give its scores again, and the page that tells its answer tells what they say."""

import re
import runpy
from argparse import Namespace
from pathlib import Path

import pandas as pd
import pytest

from lora_bench import cells, stats
from lora_bench.store import Store

ROOT = Path(__file__).resolve().parents[1]
STUDY = ROOT / "results" / "study"
PAGE = ROOT / "docs" / "replication.md"


def test_rescoring_reproduces_every_score_byte_for_byte(tmp_path, capsys):
    rescore = runpy.run_path(str(ROOT / "analysis" / "rescore.py"))["main"]
    assert rescore(["--store", str(STUDY), "--out", str(tmp_path)]) == 0
    table = pd.read_csv(tmp_path / "tables" / "rescored.csv")
    assert set(table["state"]) == {"equal", "unchecked"}
    frame = Store(STUDY).frame()
    checked = table[(table["state"] == "equal") & (table["split"] == "report")]["run_id"]
    final = frame[(frame["task"] == "sst2") & (frame["seed"] == 7)]["run_id"]
    assert len(final) == 14 and set(final) <= set(checked)


def test_the_study_fits_in_the_repository():
    assert sum(path.stat().st_size for path in STUDY.rglob("*") if path.is_file()) < 20e6


@pytest.fixture(scope="module")
def judged() -> cells.Judgement:
    """Of the SST-2 placements at one budget, by the code that judges any store."""
    (setting,) = cells.settings(cells.prepare(Store(STUDY).frame()), task="sst2")
    ((_, runs),) = cells.at_budgets(setting)
    runs = cells.sort_arms(runs.assign(arm=runs["targets"].where(runs["method"] != cells.FLOOR, cells.FLOOR)))
    return cells.judge(runs, cells.against_reference(runs["arm"].unique()), margin=stats.margin_of(setting.metric))


def test_the_table_of_the_page_is_that_of_the_records(judged):
    text = PAGE.read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([a-z ]+) \| ([^|]*) \| ([\d.e-]+) \| ([\d.]+) ± ([\d.]+) \|", text, flags=re.MULTILINE)
    told = {name.replace(" ", "_"): rest for name, *rest in rows}
    assert list(told) == [*cells.PLACEMENTS, cells.FLOOR]
    for arm, (rank, rate, mean, half) in told.items():
        one = judged.estimates.loc[arm]
        assert one["n_seeds"] == 8
        assert (rank.strip() or "–", float(rate)) == (one["ranks"] or "–", one["lr"])
        assert (mean, half) == (f"{100 * one['mean']:.1f}", f"{100 * (one['high'] - one['mean']):.1f}")


def test_the_verdicts_of_the_page_are_those_of_the_records(judged):
    text = PAGE.read_text(encoding="utf-8")
    rows = re.findall(r"^\| qv − (\w+) \| ([−+][\d.]+) ± ([\d.]+) \| ([^|]+) \| (\w+)", text, flags=re.MULTILINE)
    assert len(rows) == 6
    contrasts = judged.contrasts.set_index("second")
    for arm, mean, half, _, verdict in rows:
        one = contrasts.loc[arm]
        assert float(mean.replace("−", "-")) == pytest.approx(100 * one["difference"], abs=0.051)
        assert float(half) == pytest.approx(100 * (one["high"] - one["difference"]), abs=0.051)
        assert verdict == one["verdict"]


def test_the_rank_table_of_the_page_is_that_of_the_records():
    options = Namespace(task="sst2", model=None, method="lora", mix_environments=False, margin=None)
    sections = runpy.run_path(str(ROOT / "analysis" / "rank.py"))["sections"]
    (section,) = sections(cells.prepare(Store(STUDY).frame()), options)
    estimates, contrasts = section.facts["estimates"], section.facts["contrasts"].set_index("first")
    rows = re.findall(
        r"^\| (q|qv|qkvo) r=(\d+) \| ([\d.e-]+) \| ([\d.]+) ± ([\d.]+) \| (?:([−+][\d.]+) ± ([\d.]+))? ?\| ?(\w*)",
        PAGE.read_text(encoding="utf-8"),
        flags=re.MULTILINE,
    )
    assert [f"{targets} r={rank}" for targets, rank, *_ in rows] == list(estimates.index)
    for targets, rank, rate, mean, half, difference, spread, verdict in rows:
        one = estimates.loc[f"{targets} r={rank}"]
        assert one["n_seeds"] == 8
        assert (float(rate), mean, half) == (
            one["lr"],
            f"{100 * one['mean']:.1f}",
            f"{100 * (one['high'] - one['mean']):.1f}",
        )
        if f"{targets} r={rank}" in contrasts.index:
            pair = contrasts.loc[f"{targets} r={rank}"]
            assert float(difference.replace("−", "-")) == pytest.approx(100 * pair["difference"], abs=0.051)
            assert float(spread) == pytest.approx(100 * (pair["high"] - pair["difference"]), abs=0.051)
            assert verdict == pair["verdict"]
        else:
            assert (difference, spread, verdict) == ("", "", "")
