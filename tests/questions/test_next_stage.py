"""The next stage of a staged search: rates around each placement's own best, chosen on select, as a sweep that runs."""

from pathlib import Path

import pytest
import yaml

from analysis import next_stage
from fake_store import RANKS, fake_record, write_store
from lora_bench.verdicts import arms

ROOT = Path(__file__).resolve().parents[2]
BEST = {"q": 3e-3, "qv": 3e-4}  # on select; on report the other way round


def coarse(root: Path, *, failed: str = "", **given) -> Path:
    """One seed at three rates, started by the sweep in pair.yaml; `failed` has no score at any of them."""
    records = [
        fake_record(
            targets=targets,
            rank=RANKS[targets],
            lr=rate,
            select=0.5 if rate == best else 0.1,
            report=0.1 if rate == best else 0.5,
            error="nonfinite" if targets == failed else None,
            invocation={"overrides": ["task=cola", "train.epochs=5", f"train.lr={rate}", "seed=0"], "sweep": "pair"},
            **given,
        )
        for targets, best in BEST.items()
        for rate in (3e-4, 1e-3, 3e-3)
    ]
    return write_store(root, records)


@pytest.fixture
def write(tmp_path):
    """The script, on a sweep of two placements; gives its exit status."""
    text = (ROOT / "sweeps" / "weight_types.yaml").read_text(encoding="utf-8").replace("q,k,v,o,qk,qv,qkvo", "q,qv")
    (tmp_path / "pair.yaml").write_text(text, encoding="utf-8")

    def run(store: Path, out: Path, *more: str) -> int:
        sweep = () if "--sweep" in more else ("--sweep", str(tmp_path / "pair.yaml"))
        return next_stage.main(["--store", str(store), *sweep, "--out", str(out), *more])

    return run


def test_each_placement_gets_rates_around_its_own_best_on_select(tmp_path, capsys, write):
    assert write(coarse(tmp_path / "runs"), tmp_path / "fine.yaml") == 0
    made = yaml.safe_load((tmp_path / "fine.yaml").read_text(encoding="utf-8"))
    base = yaml.safe_load((ROOT / "sweeps" / "weight_types.yaml").read_text(encoding="utf-8"))
    assert {key: made[key] for key in made if key != "hydra"} == {key: base[key] for key in base if key != "hydra"}
    sweeper = made["hydra"]["sweeper"]
    assert sweeper["params"] == {"seed": "range(2)"}
    assert sweeper["grids"] == [
        {"adapter.targets": "q", "train.lr": "0.002,0.003,0.005"},
        {"adapter.targets": "qv", "train.lr": "0.0002,0.0003,0.0005"},
    ]
    store = tmp_path / "runs"
    assert capsys.readouterr().out.endswith(f"lora-bench +sweeps=fine task=cola train.epochs=5 store={store}\n")


def test_the_last_stage_is_planned_as_a_sweep(tmp_path, command, write):
    folder = tmp_path / "sweeps"
    folder.mkdir()
    more = ("--rates", "1", "--seeds", "8", "--head-only")
    assert write(coarse(tmp_path / "runs"), folder / "final.yaml", *more) == 0
    ended = command("+sweeps=final", "tracking=none", "hydra.sweeper.dry_run=true")
    assert ended.status == 0, ended.text
    assert "3 cells, 8 seeds, 24 runs" in ended.out


def test_the_last_stage_has_the_second_best_rate_with_all_seeds(tmp_path, capsys, write):
    """Two seeds choose the wrong one of two close rates half the time: a word that holds at both does not care."""
    records = [
        fake_record(
            targets=targets, rank=RANKS[targets], lr=rate, seed=seed, select=0.5 - abs(place - best) / 10,
            invocation={"overrides": ["task=cola"], "sweep": "pair"},
        )
        for targets, best in (("q", 0.6), ("qv", 1.4))
        for place, rate in enumerate((3e-4, 1e-3, 3e-3))
        for seed in range(2)
    ]  # fmt: skip
    assert write(write_store(tmp_path / "runs", records), tmp_path / "final.yaml", "--rates", "2", "--seeds", "8") == 0
    grids = yaml.safe_load((tmp_path / "final.yaml").read_text(encoding="utf-8"))["hydra"]["sweeper"]["grids"]
    assert [grid["train.lr"] for grid in grids] == ["0.0003,0.001", "0.001,0.003"]
    assert "q: 0.001 (inside) -> 0.0003,0.001" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--sweep", "rank"], "holds no LoRA run of +sweeps=rank"),
        (["--sweep", "methods"], "cannot stage the axis adapter"),
        (["--sweep", "nowhere"], "no nowhere; looked at"),
        (["--sweep", "depth"], "cannot stage the axis adapter.layers"),
    ],
)
def test_a_stage_that_cannot_be_told_is_an_error_in_words(tmp_path, capsys, write, more, told):
    assert write(coarse(tmp_path / "runs"), tmp_path / "fine.yaml", *more) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "fine.yaml").exists()


def test_a_placement_without_a_score_stops_the_search(tmp_path, capsys, write):
    assert write(coarse(tmp_path / "runs", failed="q"), tmp_path / "fine.yaml") == 2
    assert "q r=8: no run has a score" in capsys.readouterr().err


def test_a_file_is_not_replaced_unasked(tmp_path, write):
    store, out = coarse(tmp_path / "runs"), tmp_path / "fine.yaml"
    out.write_text("mine\n", encoding="utf-8")
    with pytest.raises(SystemExit, match="2"):
        write(store, out)
    assert out.read_text(encoding="utf-8") == "mine\n"
    assert write(store, out, "--overwrite") == 0


def test_runs_beside_the_sweep_do_not_stop_it_and_an_unfinished_one_does(tmp_path, capsys, write):
    store = coarse(tmp_path / "runs")
    beside = [fake_record(adapter={"alpha": 32.0}), fake_record(method="dora"), fake_record(targets="k")]
    write_store(store, [*beside, fake_record(targets="q", rank=64, lr=1e-2, select=0.9)])
    assert write(store, tmp_path / "fine.yaml") == 0
    made = yaml.safe_load((tmp_path / "fine.yaml").read_text(encoding="utf-8"))["hydra"]["sweeper"]["grids"]
    assert [grid["adapter.targets"] for grid in made] == ["q", "qv"]
    assert made[0]["train.lr"] == "0.002,0.003,0.005"
    text = (tmp_path / "pair.yaml").read_text(encoding="utf-8")
    (tmp_path / "pair.yaml").write_text(text.replace("q,qv", "q,qv,o"), encoding="utf-8")
    assert write(store, tmp_path / "more.yaml") == 2
    assert "no run of o; finish +sweeps=pair first" in capsys.readouterr().err


def test_a_placement_that_another_sweep_ran_first_is_staged_all_the_same(tmp_path, write):
    """Its runs were skipped as finished, and their records keep the name of the sweep that trained them."""
    store = coarse(tmp_path / "runs")
    text = (tmp_path / "pair.yaml").read_text(encoding="utf-8")
    (tmp_path / "pair.yaml").write_text(text.replace("q,qv", "q,qv,k"), encoding="utf-8")
    others = [fake_record(targets="k", rank=8, lr=rate, select=rate) for rate in (3e-4, 1e-3, 3e-3)]
    write_store(store, [{**one, "invocation": {"overrides": [], "sweep": "earlier"}} for one in others])
    assert write(store, tmp_path / "fine.yaml") == 0
    made = yaml.safe_load((tmp_path / "fine.yaml").read_text(encoding="utf-8"))["hydra"]["sweeper"]["grids"]
    assert {grid["adapter.targets"]: grid["train.lr"] for grid in made}["k"] == "0.002,0.003,0.005"


def test_words_for_several_matrices_stay_as_the_sweep_writes_them(tmp_path, write):
    text = (tmp_path / "pair.yaml").read_text(encoding="utf-8")
    (tmp_path / "pair.yaml").write_text(text.replace("q,qv", "vq,attention"), encoding="utf-8")
    records = [
        fake_record(targets=targets, rank=RANKS[targets], lr=rate, select=rate, invocation={"sweep": "pair"})
        for targets in ("qv", "qkvo")
        for rate in (3e-4, 1e-3, 3e-3)
    ]
    assert write(write_store(tmp_path / "runs", records), tmp_path / "fine.yaml") == 0
    made = yaml.safe_load((tmp_path / "fine.yaml").read_text(encoding="utf-8"))["hydra"]["sweeper"]["grids"]
    assert [grid["adapter.targets"] for grid in made] == ["vq", "attention"]


@pytest.mark.parametrize(
    ("word", "targets", "same"),
    [
        ("qv", "qv", True),
        ("vq", "qv", True),
        ("qv", "qk", False),
        ("attention", "qkvo", True),
        ("mlp", "up+down", True),
        ("mlp", "up+gate+down", True),
        ("mlp", "qkvo+up+down", False),
        ("all", "qkvo+up+down", True),
        ("up+down+v", "v+up+down", True),
        ("mlp+v", "v+up+down", True),
    ],
)
def test_a_word_of_a_sweep_means_the_targets_of_a_run(word, targets, same):
    assert arms.same_targets(word, targets) is same
