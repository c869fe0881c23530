"""Simulated studies are followed as real ones are, and what they say that is not so is counted."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom

from lora_bench.calibration import followed, noise, protocol, studies
from lora_bench.calibration.protocol import Outcome, Pattern
from lora_bench.calibration.studies import COLA, SST2, Noise, Simulated, Truth
from lora_bench.reports.scope import Scope
from lora_bench.verdicts import looks, scheme
from lora_bench.verdicts.looks import Finding
from lora_bench.verdicts.settings import PLACEMENTS

ROOT = Path(__file__).resolve().parents[2]
EQUAL, WORSE, AT_MARGIN = (Truth(SST2, 0.01, effects=effects) for effects in ({}, {"k": -0.035}, {"k": -0.01}))
COLLAPSING = Truth(SST2, 0.01, collapse={"k": 0.2})


@pytest.mark.parametrize(
    ("truth", "word", "is_false"),
    [
        (EQUAL, looks.BETTER, True),
        (EQUAL, looks.WORSE, True),
        (EQUAL, looks.TIED, False),
        (EQUAL, looks.OPEN, False),
        (EQUAL, looks.MORE_OFTEN, True),
        (EQUAL, looks.NOT_LEARNED, True),
        (WORSE, looks.BETTER, False),
        (WORSE, looks.WORSE, True),
        (WORSE, looks.TIED, True),
        (AT_MARGIN, looks.TIED, True),
        (AT_MARGIN, looks.BETTER, False),
        (COLLAPSING, looks.MORE_OFTEN, False),
        (COLLAPSING, looks.LESS_OFTEN, True),
        (COLLAPSING, looks.BETTER, True),
        (Truth(SST2, 0.01, effects={"k": -0.295}), looks.NOT_LEARNED, False),
    ],
)
def test_a_word_is_false_where_the_truth_is_another(truth, word, is_false):
    """All that the calibration says rests on this; qv is the first, k the second."""
    finding = Finding("qv", "k", word=word, look=0)
    assert truth.is_false(finding) == is_false
    assert not (truth.is_false_difference(finding) and truth.is_false_tie(finding))


@pytest.mark.parametrize("name", protocol.PATTERNS)
def test_one_pass_comes_to_what_a_pass_per_step_comes_to(name):
    """Simulated studies train what is asked for; real ones train a step, and look again."""
    truth = protocol.PATTERNS[name].truth
    course, n_runs = studies.carry_through(truth, [3])
    family = truth.declaration()
    results = Simulated(truth, family, [3])
    while (stepwise := scheme.follow(family, results)).step:
        results.train(stepwise.step)
    assert repr(course) == repr(stepwise)
    assert n_runs == results.n_runs


@pytest.mark.parametrize("about", [SST2, COLA, dataclasses.replace(SST2, tails="heavy")], ids=["sst2", "cola", "heavy"])
def test_draws_have_the_sizes_and_correlations_that_were_asked_for(about):
    """The truth is what the error rates are held against."""
    about = dataclasses.replace(about, spread=0.0, middle=0.0, cliffs=(math.inf,))
    truth = Truth(about, 0.01, effects={"k": -0.05}, collapse={"o": 0.25})
    family = truth.declaration(seeds=(4000,))
    results = studies.TrainedWhenAsked(Simulated(truth, family, [0]))
    q, k, o, below, above, floor = (
        results.at(name, rate, family.seeds(4000))
        for name, rate in (("q", 3e-3), ("k", 3e-3), ("o", 3e-3), ("q", 2e-3), ("q", 6e-3), ("head_only", None))
    )
    assert q.report.std() == pytest.approx(about.report, rel=0.1)
    assert q.select.std() == pytest.approx(about.select, rel=0.1)
    assert np.corrcoef(q.report, k.report)[0, 1] == pytest.approx(about.shared, abs=0.06)
    within = about.shared + (1 - about.shared) * about.correlation
    assert np.corrcoef(q.select, q.report)[0, 1] == pytest.approx(within, abs=0.06)
    error = 5 * about.report / math.sqrt(4000)
    assert q.report.mean() - k.report.mean() == pytest.approx(0.05, abs=error)
    assert q.report.mean() - below.report.mean() == pytest.approx(about.below * math.log10(1.5) ** 2, abs=error)
    assert q.report.mean() - above.report.mean() == pytest.approx(about.above * math.log10(2) ** 2, abs=error)
    assert q.report.mean() - floor.report.mean() == pytest.approx(about.floor, abs=error)
    assert o.learns.mean() == pytest.approx(0.75, abs=0.03) and o.report[~o.learns].std() < 1e-12


def test_beyond_its_cliff_a_placement_always_collapses():
    truth = Truth(dataclasses.replace(SST2, spread=0.0, middle=0.0, cliffs=(0.3,)), 0.01)
    results = Simulated(truth, truth.declaration(), [0])
    results = studies.TrainedWhenAsked(results)
    assert results.at("q", 5e-3, range(8)).learns.all()
    assert not results.at("q", 7e-3, range(8)).learns.any()


# ---------------------------------------------------------------- many studies


FEW = {"equal": Pattern(EQUAL, is_own=True), "collapse": Pattern(COLLAPSING)}


def outcomes(n: int = 10, *, n_processes: int = 1):
    return protocol.outcomes(FEW, n_studies=n, seed=0, n_processes=n_processes)


def test_studies_are_the_same_however_many_are_asked_for():
    """A longer calibration goes on from a shorter one."""
    few, more = outcomes(4), outcomes(6)
    for key, said in few.items():
        assert said == more[key][: len(said)]
    assert len(more["equal", studies.LOOKS]) == 6 and len(more["equal", "staged"]) == 6


def test_false_words_are_counted_and_words_priced():
    """By hand: two of eight studies say something false, and one look gives as many words at 10 seeds."""
    false, right = Outcome(True, False, 5, 300, 3), Outcome(False, False, 5, 200, 2)
    found = {("collapse", studies.LOOKS): [right] * 8}
    found["equal", studies.LOOKS] = [false, dataclasses.replace(false, is_false_tie=True)] + [right] * 6
    found["equal", "staged"] = [right] * 8
    for n in protocol.FIXED_SEEDS:
        found["equal", (n,)] = [Outcome(False, False, n // 2, 30 * n, 1)]
    table = protocol.table_of(FEW, found).set_index("label")
    row = table.loc["equal"]
    assert (row["share"], row["differences"], row["ties"], row["words"]) == (0.25, 0.25, 0.125, 5)
    assert row["low"] == pytest.approx(0.0319, abs=1e-3)
    assert row["runs"] == pytest.approx(225) and row["fixed_seeds"] == pytest.approx(10)
    assert row["saved"] == pytest.approx(1 - 225 / 300)
    assert math.isnan(table.loc["collapse", "saved"])


def test_the_section_holds_and_says_at_what_price(monkeypatch):
    monkeypatch.setattr(protocol, "FIXED_SEEDS", (8, 32))
    section = followed.section(protocol.table_of(FEW, outcomes()))
    assert section.says == "holds" and "within the nominal 5 %" in section.sentence
    assert len(section.tables[0].shown()) == 2


def test_an_instrument_that_tells_everything_apart_is_caught(monkeypatch):
    """Its studies are full of words, all of them wrong."""
    monkeypatch.setattr(looks, "p_of", lambda differences, margin: (0.0, 1.0, 1.0))
    monkeypatch.setattr(protocol, "FIXED_SEEDS", (8,))
    section = followed.section(protocol.table_of(FEW, outcomes(4)))
    assert section.says == "fails" and "more than the nominal 5 %" in section.sentence


def test_an_instrument_that_ties_everything_is_caught(monkeypatch):
    monkeypatch.setattr(looks, "p_of", lambda differences, margin: (1.0, 0.0, 1.0))
    apart = {"apart": Pattern(Truth(SST2, 0.01, effects=dict.fromkeys(set(PLACEMENTS) - {"qv"}, -0.01)))}
    found = protocol.outcomes(apart, n_studies=5, seed=0, n_processes=1)
    section = followed.section(protocol.table_of(apart, found))
    assert section.says == "fails" and section.outcome["ties"].item() == 1


def test_an_instrument_that_never_speaks_is_caught(monkeypatch):
    """No false word is no merit of one that gives none."""
    monkeypatch.setattr(looks, "p_of", lambda differences, margin: (1.0, 1.0, 1.0))
    monkeypatch.setattr(protocol, "FIXED_SEEDS", (8,))
    assert followed.section(protocol.table_of(FEW, outcomes(4))).says == "fails"


@pytest.mark.slow
def test_processes_share_the_studies_and_change_nothing():
    assert outcomes(30, n_processes=2) == outcomes(30)


@pytest.mark.slow
@pytest.mark.parametrize("name", protocol.PATTERNS)
def test_studies_say_nothing_false_more_often_than_promised(name):
    """400 of each pattern, rates included; as many false words as 5 % give in all but one of a thousand."""
    truth = protocol.PATTERNS[name].truth
    said = [protocol.by_looks(truth, [7, number]) for number in range(400)]
    assert sum(outcome.is_false for outcome in said) <= binom.ppf(0.999, 400, protocol.ERROR)


# ---------------------------------------------------------------- the noise


def drawn_runs(truth: Truth, *, n_seeds: int = 400) -> tuple[pd.DataFrame, dict[str, float]]:
    """A study's runs at many rates, as `settings.prepare` leaves them, and where its placements peak."""
    family = truth.declaration(seeds=(n_seeds,))
    simulated = Simulated(truth, family, [0])
    rates = [1e-3, 2e-3, 3e-3, 5e-3]
    results = studies.TrainedWhenAsked(simulated)
    cells = [(name, rate, "lora") for name in PLACEMENTS for rate in rates] + [("head_only", None, "head_only")]
    tables = []
    for name, rate, method in cells:
        points = results.at(name, rate, family.seeds(n_seeds))
        table = pd.DataFrame({"seed": range(n_seeds), "select": points.select, "report": points.report})
        table = table.assign(collapsed=~points.learns, method=method, lr=rate or 1e-3, scored=True)
        tables.append(table.assign(targets=name if rate else "", run_id=f"{name} {rate} " + table["seed"].astype(str)))
    return pd.concat(tables, ignore_index=True), simulated._peaks


def test_what_is_measured_is_what_was_put_in():
    """The fit finds sds, correlations and curvatures of a study that was drawn with them."""
    about = Noise(0.01, 0.008, 0.4, 0.2, below=0.3, above=0.6, middle=0.0, spread=0.1, floor=0.3)
    truth = Truth(about, 0.01, effects={"q": -0.04}, collapse={"k": 0.3})
    runs, peaks = drawn_runs(truth)
    found = noise.measure(runs, runs.set_index("run_id")["collapsed"], middle=3e-3)
    for name, tolerance in {"select": 0.05, "report": 0.05, "below": 0.2, "above": 0.2, "floor": 0.1}.items():
        assert getattr(found.noise, name) == pytest.approx(getattr(about, name), rel=tolerance), name
    within = about.shared + (1 - about.shared) * about.correlation
    assert found.noise.correlation == pytest.approx(within, abs=0.05)
    assert found.noise.shared == pytest.approx(about.shared, abs=0.05)
    assert np.allclose(np.log10(found.placements["peak"]), [peaks[name] for name in PLACEMENTS], atol=0.03)
    assert found.placements["collapse"]["k"] == pytest.approx(0.3, abs=0.06)
    assert found.placements["learned"]["q"] == pytest.approx(-0.04, abs=0.006)


def test_the_constants_are_those_that_the_command_measures():
    """They are copied from its output, which a change of either would belie."""
    sections = noise.noise(Scope(ROOT / "results" / "study"))
    for constants, task in ((SST2, "sst2"), (COLA, "cola")):
        (section,) = [section for section in sections if section.part.endswith(task)]
        shown = section.tables[1].frame.iloc[0]
        for name in ("select", "report", "correlation", "shared", "below", "above", "middle", "spread", "floor"):
            assert float(shown[name]) == pytest.approx(getattr(constants, name), rel=0.06), (task, name)
        assert [float(cliff) for cliff in shown["cliffs"].split(", ")] == pytest.approx(
            list(constants.cliffs), rel=0.03
        )
