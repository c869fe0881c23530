"""The next stage of a staged search: rates around each placement's own best, chosen on select, as a sweep that runs."""

import runpy
from pathlib import Path

import pytest
import yaml

from fake_store import RANKS, fake_record, write_store
from lora_bench import cells
from lora_bench.store import Store

ROOT = Path(__file__).resolve().parents[1]
BEST = {"q": 3e-3, "qv": 3e-4}  # on select; on report the other way round


def coarse(root: Path, *, failed: str = "") -> Path:
    """One seed at three rates; `failed` has no score at any of them."""
    records = [
        fake_record(
            targets=targets,
            rank=RANKS[targets],
            lr=rate,
            select=0.5 if rate == best else 0.1,
            report=0.1 if rate == best else 0.5,
            error="nonfinite" if targets == failed else None,
            invocation={"overrides": [], "sweep": "weight_types"},
        )
        for targets, best in BEST.items()
        for rate in (3e-4, 1e-3, 3e-3)
    ]
    write_store(root, records)
    return root


def write(store: Path, out: Path, *more: str) -> int:
    main = runpy.run_path(str(ROOT / "analysis" / "next_stage.py"))["main"]
    return main(["--store", str(store), "--sweep", "weight_types", "--out", str(out), *more])


def test_each_placement_gets_rates_around_its_own_best_on_select(tmp_path):
    assert write(coarse(tmp_path / "runs"), tmp_path / "fine.yaml") == 0
    made = yaml.safe_load((tmp_path / "fine.yaml").read_text())
    base = yaml.safe_load((ROOT / "sweeps" / "weight_types.yaml").read_text())
    assert {key: made[key] for key in made if key != "hydra"} == {key: base[key] for key in base if key != "hydra"}
    sweeper = made["hydra"]["sweeper"]
    assert sweeper["params"] == {"seed": "range(2)"}
    assert sweeper["grids"] == [
        {"adapter.targets": "q", "train.lr": "0.002,0.003,0.005"},
        {"adapter.targets": "qv", "train.lr": "0.0002,0.0003,0.0005"},
    ]


def test_the_last_stage_is_planned_as_a_sweep(tmp_path, command):
    folder = tmp_path / "sweeps"
    folder.mkdir()
    more = ("--rates", "1", "--seeds", "8", "--head-only")
    assert write(coarse(tmp_path / "runs"), folder / "final.yaml", *more) == 0
    ended = command("+sweeps=final", "tracking=none", "hydra.sweeper.dry_run=true")
    assert ended.status == 0, ended.text
    assert "3 cells, 8 seeds, 24 runs" in ended.out


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--sweep", "rank"], "holds no run of +sweeps=rank"),
        (["--sweep", "nowhere"], "no nowhere; looked at"),
        (["--sweep", "depth"], "cannot stage the axis adapter.layers"),
    ],
)
def test_a_stage_that_cannot_be_told_is_an_error_in_words(tmp_path, capsys, more, told):
    assert write(coarse(tmp_path / "runs"), tmp_path / "fine.yaml", *more) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "fine.yaml").exists()


def test_a_placement_without_a_score_stops_the_search(tmp_path, capsys):
    assert write(coarse(tmp_path / "runs", failed="q"), tmp_path / "fine.yaml") == 2
    assert "q r=8: no run has a score" in capsys.readouterr().err


def test_a_file_is_not_replaced_unasked(tmp_path):
    store, out = coarse(tmp_path / "runs"), tmp_path / "fine.yaml"
    out.write_text("mine\n")
    with pytest.raises(SystemExit, match="2"):
        write(store, out)
    assert out.read_text() == "mine\n"
    assert write(store, out, "--overwrite") == 0


def test_earlier_stages_are_not_missing_and_a_lost_seed_is(tmp_path):
    store = coarse(tmp_path / "runs")
    final = [
        fake_record(targets=targets, rank=RANKS[targets], lr=rate, seed=seed, report=0.5)
        for targets, rate in BEST.items()
        for seed in range(1, 4)
        if (targets, seed) != ("q", 3)
    ]
    write_store(store, final)
    runs = cells.name_arms(cells.prepare(Store(store).frame()))
    assert cells.missing(runs, []) == "q r=8 at lr 0.003, seeds 3"
