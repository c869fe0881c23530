"""The instrument's own test finds what was put there, and notices an instrument that is off."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom

from analysis import calibration as calibration_command
from fake_store import fake_record, weight_types_records, write_store
from lora_bench.calibration import measured, protocol, simulate
from lora_bench.calibration import simulated as script
from lora_bench.reports.figures import style
from lora_bench.verdicts import power, settings, stats


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Figures are drawn but not rendered: saving one in three formats takes a second."""
    monkeypatch.setattr(style, "save", lambda figure, folder, name, **_: folder / name)


def simulated(n: int, seed: int = 0, **values):
    rng = np.random.default_rng(seed)
    return (simulate.simulate(rng, sd=0.02, **values) for _ in range(n))


# ---------------------------------------------------------------- simulated sweeps


def test_noise_is_what_was_asked_for():
    """The sd of a seed-wise difference between placements is the knob of every figure."""
    effects = {"qv": 0.05}
    runs = simulate.simulate(np.random.default_rng(0), sd=0.03, n_seeds=4000, effects=effects)
    table = runs[runs["lr"] == 3e-3].pivot_table(index="seed", columns="arm", values="report")
    assert (table["qv"] - table["k"]).std() == pytest.approx(0.03, rel=0.1)
    assert (table["qv"] - table["k"]).mean() == pytest.approx(0.05, abs=0.002)
    assert (table["o"] - table["k"]).mean() == pytest.approx(0.0, abs=0.002)


def test_select_shares_a_runs_luck_with_report_but_not_the_luck_of_its_rows():
    """Two thirds of a run's own variance are training's: after the seed's common part, a correlation of 2/3."""
    runs = simulate.simulate(np.random.default_rng(1), sd=0.03, n_seeds=4000)
    one = runs[runs["lr"] == 3e-3].pivot_table(index="seed", columns="arm", values=["select", "report"])
    select, report = one["select"]["q"] - one["select"]["k"], one["report"]["q"] - one["report"]["k"]
    assert np.corrcoef(select, report)[0, 1] == pytest.approx(2 / 3, abs=0.04)


def test_a_known_effect_is_found_as_often_as_promised():
    """Eight seeds, one and a half sd: promised 71 %."""
    n = 50
    found = simulate.detections(simulated(n, n_seeds=8, effects={simulate.SHIFTED: -0.03}))
    promised = simulate.promised_power(0.03, 0.02, 8)
    assert promised == pytest.approx(0.706, abs=0.005)
    assert binom.ppf(0.001, n, promised) <= found.count <= binom.ppf(0.999, n, promised + 0.1)


@pytest.mark.parametrize("n_seeds", [2, 3, 4])
def test_nothing_is_promised_where_no_verdict_is_given(n_seeds):
    """Three seeds were promised a fifth at three sd, and words are given from four pairs on."""
    found = simulate.detections(simulated(20, n_seeds=n_seeds, effects={simulate.SHIFTED: -0.4}))
    promised = simulate.promised_power(0.4, 0.02, n_seeds)
    assert (promised > 0.5, found.value > 0.5) == (n_seeds >= 4, n_seeds >= 4)
    assert n_seeds >= 4 or promised == found.count == 0


def test_resampled_differences_are_the_residuals_and_the_shift():
    residuals = np.array([0.01, -0.02, 0.03])
    runs = simulate.resample(np.random.default_rng(0), residuals, n_seeds=6000, shift=0.5)
    table = runs.pivot_table(index="seed", columns="arm", values="report")
    away = (table["qv"] - table["o"]).to_numpy()
    assert set(np.round(np.abs(away), 6)) == set(np.abs(residuals))
    assert away.mean() == pytest.approx(0, abs=0.001)
    assert (table["qv"] - table[simulate.SHIFTED]).mean() == pytest.approx(0.5, abs=0.001)


# ---------------------------------------------------------------- an instrument that is off


def trials() -> simulate.Trials:
    return simulate.Trials(n_power_sweeps=12)


def test_an_instrument_that_never_speaks_is_caught(monkeypatch):
    """No false verdict is no merit of one that gives none: the promised power tells."""
    monkeypatch.setattr(script, "SEEDS", (8,))
    monkeypatch.setattr(script, "EFFECTS", (0.0, 2.0))
    (section,) = script.power(trials())
    assert section.says == "holds"
    monkeypatch.setattr(stats, "MIN_PAIRS", 99)
    (section,) = script.power(trials())
    assert section.says == "fails"
    assert "kept at 0 of 1 points" in section.sentence


# ---------------------------------------------------------------- coverage


@pytest.mark.parametrize(("n_seeds", "n_all"), [(3, 64), (8, 64), (8, 16)])
def test_expected_coverage_of_a_part_of_many_matches_simulation(n_seeds, n_all):
    rng = np.random.default_rng(0)
    held = [simulate.coverage(rng.normal(size=n_all), n_seeds, n_draws=10, rng=rng) for _ in range(400)]
    assert simulate.expected_coverage(n_seeds, n_all) == pytest.approx(np.mean(held), abs=0.015)
    assert simulate.expected_coverage(n_seeds, n_all) > 0.95


def test_the_band_of_normal_scores_holds_normal_scores_and_not_lopsided_ones():
    """One run in sixteen that fails to learn: three seeds mostly miss it, and their interval says nothing of it."""
    rng = np.random.default_rng(1)
    low, high = simulate.coverage_band(8, 64, rng=rng)
    assert low < simulate.expected_coverage(8, 64) < high
    inside = [low <= simulate.coverage(rng.normal(size=64), 8, n_draws=300, rng=rng) <= high for _ in range(20)]
    assert sum(inside) >= 16
    lopsided = np.where(np.arange(64) % 16 == 0, 0.0, 0.7) + rng.normal(0, 0.01, 64)
    assert simulate.coverage(lopsided, 8, n_draws=300, rng=rng) < low


# ---------------------------------------------------------------- real runs


def aa_records(*, shift: float = 0.0, n_seeds: int = 6) -> list[dict]:
    """Three cells in two draws of the init; the second draw is worse by `shift`."""
    return [
        record
        for draw in (0, 1)
        for record in weight_types_records(
            effects=dict.fromkeys(settings.PLACEMENTS, 0.0),
            rates=(3e-3, 1e-2),
            n_seeds=n_seeds,
            level=0.5 - draw * shift,
            with_floor=False,
            rng=CommonSeeds(draw),
            adapter={"replicate": draw},
        )
    ]


class CommonSeeds(np.random.Generator):
    """Both draws share what the seeds do (the first numbers), and nothing else."""

    def __init__(self, draw: int) -> None:
        super().__init__(np.random.PCG64(5))
        self.own = np.random.default_rng(100 + draw)
        self.has_drawn = False

    def normal(self, *args, **kwargs):
        if self.has_drawn:
            return self.own.normal(*args, **kwargs)
        self.has_drawn = True
        return super().normal(*args, **kwargs)


def run(store: Path, out: Path, *arguments: str) -> int:
    few = ["--studies", "2", "--processes", "1", "--sweeps", "6", "--power-sweeps", "2"]
    return calibration_command.main(["--store", str(store), "--out", str(out), *few, *arguments])


def says(out: Path) -> pd.Series:
    return pd.read_csv(out / "tables" / "calibration.csv").set_index("part")["says"]


def test_replicates_that_are_alike_pass_and_give_their_residuals(tmp_path, capsys, monkeypatch):
    for module in (script, measured):
        monkeypatch.setattr(module, "SEEDS", (3, 8))
    monkeypatch.setattr(script, "EFFECTS", (0.0, 2.0))
    store = write_store(tmp_path / "store", aa_records())
    assert run(store, tmp_path, "aa") == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "called different: none" in text
    assert f"the {7 * 2 * 6} real differences" in text
    table = pd.read_csv(tmp_path / "tables" / "calibration_aa_minilm_cola.csv")
    assert list(table["first"].str.removesuffix(" A")) == list(table["second"].str.removesuffix(" B"))
    assert len(table) == 7
    assert (says(tmp_path) == "holds").all()


def test_replicates_that_differ_are_told(tmp_path, capsys, monkeypatch):
    """A leak between replicate and anything but the init would look like this."""
    monkeypatch.setattr(measured, "_add_resampled", lambda *_: None)
    store = write_store(tmp_path / "store", aa_records(shift=0.05))
    assert run(store, tmp_path, "aa") == 0
    assert "The instrument fails its own test: A/A on minilm · cola" in " ".join(capsys.readouterr().out.split())


def test_the_intervals_of_few_seeds_are_held_against_many(tmp_path, capsys):
    rng = np.random.default_rng(2)
    records = [
        fake_record(targets=targets, rank=rank, seed=seed, report=float(0.5 + rng.normal(0, 0.02)))
        for targets, rank in (("q", 8), ("qv", 4))
        for seed in range(32)
    ]
    assert run(write_store(tmp_path / "store", records), tmp_path, "coverage") == 0
    table = pd.read_csv(tmp_path / "tables" / "calibration_coverage_minilm_cola.csv")
    assert list(table["cell"].unique()) == ["q r=8", "qv r=4", "q r=8 − qv r=4"]
    assert table["coverage"].between(0.9, 1).all()
    assert (table["n_all"] == 32).all()
    assert (says(tmp_path) == "holds").all()


def planted_records() -> list[dict]:
    """Two teachers; the one on q is learned best on v, the one on v on its own placement, at its own rank."""
    rng = np.random.default_rng(3)
    records = []
    for teacher, scores in (("q", {"q": 0.60, "v": 0.70, "qv": 0.68}), ("v", {"q": 0.60, "v": 0.75, "qv": 0.74})):
        data = {"planted": {"targets": teacher, "rank": 4, "noise": 0.0, "seed": 0, "texts": "acceptability"}}
        about = {"task": f"planted-{teacher}-r4", "metric": "accuracy", "data": data}
        for seed in range(4):
            for targets, score in scores.items():
                report = float(score + rng.normal(0, 0.005))
                rank = {"q": 8, "v": 8, "qv": 4}[targets]
                records.append(fake_record(targets=targets, rank=rank, seed=seed, report=report, **about))
            records.append(fake_record(method="head_only", targets="", lr=None, seed=seed, report=0.55, **about))
            if teacher == "v":
                for rank, score in ((1, 0.6), (4, 0.8), (16, 0.7)):
                    records.append(fake_record(targets="v", rank=rank, seed=seed, report=score + 0.001 * seed, **about))
    return records


def test_planted_teachers_are_shown_as_a_matrix_and_a_curve(tmp_path, capsys):
    assert run(write_store(tmp_path / "store", planted_records()), tmp_path, "planted") == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "Of 2 teachers, 1 have the highest mean on their own placement" in text
    assert "teacher on q is learned best on v" in text
    assert "which is better against its own placement's" in text
    assert "On the teacher of v r=4, students on v do best at rank 4" in text
    table = pd.read_csv(tmp_path / "tables" / "calibration_planted.csv").set_index(["teacher", "student"])
    assert len(table) == 2 * 4
    assert table.loc[("v r=4", "q"), "verdict"] == "worse"
    assert table.loc[("v r=4", "q"), "difference"] == pytest.approx(-0.15, abs=0.01)
    assert table["is_own"].sum() == 2
    assert pd.read_csv(tmp_path / "tables" / "calibration_planted_rank.csv")["rank"].tolist() == [1, 4, 8, 16]


# ---------------------------------------------------------------- what is missing


@pytest.mark.parametrize(
    ("part", "sweep"),
    [("aa", "calibration_aa"), ("coverage", "calibration_reference"), ("planted", "calibration_planted")],
)
def test_a_store_that_lacks_the_runs_is_told_which_sweep_makes_them(part, sweep, tmp_path, capsys):
    store = write_store(tmp_path / "store", weight_types_records(n_seeds=2, rates=(3e-3,)))
    assert run(store, tmp_path, part) == 2
    captured = capsys.readouterr()
    assert f"lora-bench +sweeps={sweep}" in captured.err
    assert f"Not tested: {part}" in captured.out
    assert says(tmp_path)[part] == "missing"


def test_an_absent_store_does_not_stop_what_needs_none(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(protocol, "PATTERNS", dict([*protocol.PATTERNS.items()][:1]))
    monkeypatch.setattr(script, "SEEDS", (5,))
    assert run(tmp_path / "nowhere", tmp_path) == 0
    assert says(tmp_path).tolist()[2:] == ["missing"] * 4
    assert "no folder" in capsys.readouterr().err


def test_replicates_without_partners_or_scores_are_no_proof(tmp_path, capsys, monkeypatch):
    """One seed gives no verdict: that is no evidence that nothing is there."""
    monkeypatch.setattr(measured, "_add_resampled", lambda *_: None)
    store = write_store(tmp_path / "store", aa_records(n_seeds=1))
    assert run(store, tmp_path, "aa") == 0
    assert says(tmp_path).tolist() == ["missing"]


@pytest.mark.parametrize(
    "bad", [["--sd", "0"], ["--sweeps", "0"], ["--studies", "0"], ["--processes", "0"], ["nonsense"], ["--seed", "-1"]]
)
def test_a_bad_option_is_refused(bad, capsys):
    with pytest.raises(SystemExit):
        calibration_command.main(bad)


# ---------------------------------------------------------------- the plan


def test_the_plan_promises_what_corrected_verdicts_can_see(command):
    """Three placements are two contrasts, and the promise is made for the corrected level."""
    swept = ["adapter.targets=q,v,qv", "seed=range(8)", "hydra.sweeper.dry_run=true"]
    ended = command("-m", "model=tiny", "tracking=none", "task.train_rows=64", "task.report_rows=40", *swept)
    assert ended.status == 0, ended.err
    low, high = (power.smallest_difference(8, sd, error=0.05 / 2) for sd in (0.01, 0.03))
    assert f"80 % power, 2 contrasts: {100 * low:.1f} to {100 * high:.1f} points" in ended.text
