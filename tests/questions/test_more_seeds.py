"""What an unresolved contrast needs is a line to paste that plans those runs and no other."""

import random
import re
import shlex
from pathlib import Path

import pandas as pd
import pytest

from lora_bench.cli.texts import texts_of
from lora_bench.questions import more_seeds, rank, weight_types
from lora_bench.reports.scope import Scope
from lora_bench.store.folder import Store
from lora_bench.verdicts.arms import Judgement

SMALL = ("model=tiny", "tracking=none", "task.train_rows=40", "task.report_rows=20")
PLACEMENTS = """\
# @package _global_
defaults: [override /task: sentiment]
task: {select_rows: 30}
adapter: {rank: null, budget: q@8, alpha: 8}
train: {head_lr: null, batch_size: 8, dropout: 0.0}
hydra:
  mode: MULTIRUN
  sweeper:
    params: {seed: range(6)}
    grids:
      - {adapter.targets: qv, train.lr: 3e-3}
      - {adapter.targets: v, train.lr: 1e-2}
      - {adapter: head_only}
"""
DEPTHS = """\
# @package _global_
hydra:
  mode: MULTIRUN
  sweeper:
    params:
      seed: range(6)
      adapter.targets: q,qv
      adapter.layers: "last:1,[0]"
      train.lr: 3e-3
      adapter.rank: null
      adapter.budget: q@4
"""
RANKS = """\
# @package _global_
hydra:
  mode: MULTIRUN
  sweeper:
    params: {seed: range(6), adapter.targets: q, adapter.rank: "1,4", train.epochs: "1,2"}
    grids: [{train.lr: 3e-3}]
"""


def with_noise(root: Path) -> Path:
    """A store of the same runs whose arms differ by less than their seeds do."""
    noisy = Store(root / "noisy")
    for record in Store(root / "runs").records():
        adapter = record["config"]["adapter"]
        drawn = random.Random(f"{adapter.get('targets')} {adapter.get('rank')} {record['config']['seed']}")
        shift = drawn.gauss(0, 0.016)
        scores = {name: dict.fromkeys(values, 0.7 + shift) for name, values in record["scores"].items() if values}
        noisy.write({**record, "scores": scores})
    return noisy.root


def swept(command, tmp_path: Path, sweep: str) -> Path:
    (tmp_path / "sweeps").mkdir()
    (tmp_path / "sweeps" / "mine.yaml").write_text(sweep, encoding="utf-8")
    ended = command("+sweeps=mine", *SMALL)
    assert ended.status == 0, ended.text
    return with_noise(tmp_path)


@pytest.mark.parametrize(
    ("sweep", "question"),
    [(PLACEMENTS, weight_types), (DEPTHS, weight_types), (RANKS, rank)],
    ids=["placements", "depths", "ranks"],
)
def test_the_line_plans_the_missing_runs_and_no_other(command, training, tmp_path, sweep, question):
    """Both arms at their own rates and settings: not the whole sweep at more seeds, nor what the sweep had beside.

    Whoever deleted the sweep's file is told the settings that it had.
    """
    store = swept(command, tmp_path, sweep)
    lines = lines_of(question, store)
    known = set(Store(store).statuses())
    note, (judged, row) = next(iter(lines.items()))
    file = tmp_path / "sweeps" / "mine.yaml"
    file.unlink()
    without_file, _ = next(iter(lines_of(question, store).items()))
    n_runs = 2 * (int(row["seeds_needed"]) - int(row["n_pairs"]))
    words = shlex.split(without_file.partition(": ")[2])[1:]
    assert texts_of(Scope(store).read(), store)  # of the same rows
    assert "sweeps" not in without_file and without_file.startswith(f"{n_runs} run") and "&&" not in without_file
    planned = command(*words, "dry_run=true")
    assert planned.status == 0, planned.text
    assert f"{n_runs} runs to train" in planned.out
    assert command(*words).status == 0
    new = [record for record in Store(store).records() if record["run_id"] not in known]
    assert len(new) == n_runs
    rates = {judged.rates.at[row[side], "lr"] for side in ("first", "second")}
    assert {record["config"]["train"]["lr"] for record in new} == rates
    cells = {record["cell_id"] for record in new}
    assert len(cells) == 2 and cells <= {record["cell_id"] for record in Store(tmp_path / "runs").records()}
    file.write_text(sweep, encoding="utf-8")
    assert note.startswith(f"{n_runs} run") and "+sweeps=mine" in note and "&&" not in note
    planned = command(*shlex.split(note.partition(": ")[2])[1:], "dry_run=true")
    assert planned.status == 0, planned.text
    assert f"{n_runs} finished" in planned.out and " 0 runs to train" in planned.out  # the very runs of the other line


def lines_of(question, store: Path) -> dict:
    """Note -> what it is of, for every contrast that needs more seeds."""
    scope = Scope(store)
    made = question.sections(scope.read(), scope)
    lines = {}
    for section in made:
        needed = section.judged.contrasts.dropna(subset="seeds_needed")
        notes = [str(note) for note in section.notes if "needs: lora-bench" in str(note)]
        assert len(notes) == (needed["verdict"] == "unresolved").sum()
        for note, (_, row) in zip(notes, needed.iterrows(), strict=True):
            lines[note] = (section.judged, row)
    assert lines
    return lines


def test_the_published_contrast_takes_eighteen_runs():
    """Of qv and v alone, where the sweep at seventeen seeds would take a hundred and nineteen. Its file is shipped no
    longer: the line has the settings that its records hold."""
    scope = Scope(Path(__file__).parents[2] / "results" / "study", task="sst2")
    (section,) = weight_types.sections(scope.read(), scope, budget=36_864)
    (note,) = [str(note) for note in section.notes if "qv − v needs" in str(note)]
    assert note.startswith("18 runs for the 17 seeds that qv − v needs: lora-bench -m ")
    words = (
        "task=sst2 task.select_rows=1000 task.train_rows=8000 train.epochs=1 train.batch_size=16 train.precision=fp32"
    )
    assert f" {words} train.dropout=0 " in note
    assert re.findall(r"adapter[.]targets:(\w+)", note) == ["qv", "v"]
    assert re.findall(r"adapter[.]rank:(\d+)", note) == ["4", "8"]
    assert re.findall(r"train[.]lr:([\d.]+)", note) == ["0.003", "0.003"]
    assert "'seed=range(8,17)'" in note and "store=" not in note  # an archive takes no runs


def test_no_line_asks_for_a_thousand_seeds():
    """A contrast that needs so many needs another design: a line that would train for a month is no advice."""
    row = {
        "first": "qv",
        "second": "q",
        "verdict": "unresolved",
        "n_pairs": 4,
        "seeds_needed": more_seeds.MOST_SEEDS + 1,
    }
    judged = Judgement(pd.DataFrame(), pd.DataFrame(), pd.DataFrame([row]))
    assert more_seeds.notes(pd.DataFrame(), judged, Path("runs"), pinned={}) == []
