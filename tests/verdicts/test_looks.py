"""Words of one look, against scipy and statsmodels."""

import math
from dataclasses import asdict

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import ttost_paired

from lora_bench.verdicts import looks
from lora_bench.verdicts.family import Declaration, Points
from lora_bench.verdicts.looks import Finding, Scores

PLACEMENTS = ("qv", "q", "k", "v", "o", "qk", "qkvo")
FAMILY = Declaration(placements=PLACEMENTS, reference="qv", rates=(1e-3, 3e-3, 1e-2), margin=0.01)
LEARNING = dict.fromkeys(PLACEMENTS, looks.LEARNS)
# |t| that n seeds must reach for the first word of k - D - i open contrasts: docs/method.md.
BOUNDS = {
    8: (4.75, 4.59, 4.41, 4.17, 3.86, 3.34),
    16: (3.71, 3.62, 3.52, 3.37, 3.18, 2.84),
    32: (3.09, 3.02, 2.93, 2.82, 2.65, 2.36),
}


def points(report: np.ndarray, learns: np.ndarray | None = None) -> Points:
    learns = np.ones(len(report), dtype=bool) if learns is None else learns
    return Points(report, report, np.ones(len(report), dtype=bool), learns)


def scores_of(reports: dict[str, list[np.ndarray]], learning: dict[str, str] | None = None) -> Scores:
    of = {name: [points(report) for report in at_rates] for name, at_rates in reports.items()}
    return Scores(of, dict.fromkeys(of, 0), LEARNING | (learning or {}))


def first_look(scores: Scores, family: Declaration = FAMILY, number: int = 0) -> dict[str, Finding]:
    judged = looks.judge(family, number, [Finding(*pair) for pair in family.pairs], scores)
    return {finding.second: finding for finding in judged}


def exactly(t: float, n: int) -> np.ndarray:
    """Differences whose paired t statistic is `t`."""
    drawn = np.linspace(-1, 1, n)
    return drawn / drawn.std(ddof=1) + t / math.sqrt(n)


@pytest.mark.parametrize(("number", "n_seeds"), [*enumerate(BOUNDS)])
@pytest.mark.parametrize("n_open", range(1, 7))
def test_a_word_takes_the_t_of_the_published_table(number, n_seeds, n_open):
    """The levels and Holm's steps together: a difference just above the bound gets its word, one below it none."""
    bound = BOUNDS[n_seeds][6 - n_open]
    others = PLACEMENTS[1:]
    for t, is_word in ((bound + 0.01, True), (bound - 0.01, False)):
        settled = [Finding("qv", name, word=looks.BETTER, look=0) for name in others[n_open:]]
        before = [Finding("qv", name) for name in others[:n_open]] + settled
        ours = 0.01 * exactly(t, n_seeds)
        reports = {"qv": [ours], others[0]: [np.zeros(n_seeds)]}
        reports |= {name: [ours - 0.01 * exactly(0.1, n_seeds)] for name in others[1:n_open]}
        tight = Declaration(PLACEMENTS, "qv", FAMILY.rates, margin=1e-9)
        found = looks.judge(tight, number, before, scores_of(reports))
        assert (found[0].word == looks.BETTER) is is_word


def test_the_p_are_those_of_scipy_and_statsmodels():
    """The tests are the textbook's."""
    rng = np.random.default_rng(0)
    for n in (4, 8, 31):
        ours, theirs = rng.normal(size=n), rng.normal(0.3, 1, size=n)
        different, tied, sign = looks.p_of(ours - theirs, 0.9)
        assert different == pytest.approx(stats.ttest_rel(ours, theirs).pvalue, rel=1e-9)
        assert tied == pytest.approx(ttost_paired(ours, theirs, -0.9, 0.9)[0], rel=1e-9)
        assert sign == np.sign((ours - theirs).mean())


def test_words_are_those_of_holm_by_statsmodels(no_collections):
    """At one rate each, a look is Holm's procedure at the look's level, differences and ties each by itself."""
    rng = np.random.default_rng(1)
    n_words = 0
    for number, n in enumerate(FAMILY.looks):
        for _ in range(12):
            means = rng.choice([0.0, 0.02, -0.01], size=len(PLACEMENTS))
            reports = {name: [rng.normal(mean, 0.008, n)] for name, mean in zip(PLACEMENTS, means, strict=True)}
            found = first_look(scores_of(reports), number=number)
            pairs = [(reports["qv"][0], reports[name][0]) for name in PLACEMENTS[1:]]
            level = FAMILY.level(number)
            different = multipletests([stats.ttest_rel(*pair).pvalue for pair in pairs], level, "holm")[0]
            p_tied = np.array([ttost_paired(*pair, -0.01, 0.01)[0] for pair in pairs])
            order = [i for i in np.argsort(p_tied) if not different[i]]
            tied = set()
            for step, i in enumerate(order):
                if p_tied[i] > level / (6 - step):
                    break
                tied.add(i)
            for i, name in enumerate(PLACEMENTS[1:]):
                sign = looks.BETTER if pairs[i][0].mean() > pairs[i][1].mean() else looks.WORSE
                assert found[name].word == (sign if different[i] else looks.TIED if i in tied else looks.OPEN)
                n_words += found[name].is_final
    assert n_words > 30


def test_a_word_holds_at_every_live_rate():
    """What is better at one rate alone is a word about that rate, not about the placement."""
    rng = np.random.default_rng(2)
    high, low = rng.normal(0.05, 0.005, 8), rng.normal(-0.0005, 0.005, 8)
    base = np.zeros(8)
    at_both = first_look(scores_of({"qv": [high, high - 0.001], "q": [base]}))["q"]
    at_one = first_look(scores_of({"qv": [high, low], "q": [base]}))["q"]
    assert at_both.word == looks.BETTER
    assert at_one.word == looks.OPEN
    assert at_one.p_different == 1.0  # the mean differences have two signs


def test_the_interval_and_open_agree():
    """An interval that excludes zero never stands beside `open` where one rate is alive and nothing was settled."""
    rng = np.random.default_rng(3)
    n_open = 0
    for _ in range(200):
        reports = {name: [rng.normal(rng.choice([0, 0.01]), 0.008, 8)] for name in PLACEMENTS}
        for finding in first_look(scores_of(reports)).values():
            if finding.word == looks.OPEN:
                n_open += 1
                assert finding.low < 0 < finding.high
    assert n_open > 100


def test_seeds_that_do_not_learn_are_set_aside_and_counted():
    """The mean of learners and of stuck seeds is no model's score."""
    rng = np.random.default_rng(4)
    ours, theirs = rng.normal(0.05, 0.005, 8), rng.normal(0.0, 0.005, 8)
    learns = np.ones(8, dtype=bool)
    learns[3] = False
    theirs[3] = -0.4
    scores = Scores({"qv": [points(ours)], "q": [points(theirs, learns)]}, {"qv": 0, "q": 0}, LEARNING)
    finding = first_look(scores)["q"]
    assert (finding.word, finding.n_pairs, finding.n_failed) == (looks.BETTER, 7, (0, 1))
    assert finding.difference == pytest.approx((ours - theirs)[learns].mean())
    assert finding.p_different == pytest.approx(2 * stats.ttest_rel(ours[learns], theirs[learns]).pvalue)
    half = stats.t.ppf(1 - FAMILY.level(0) / 2 / 2 / 6, 6) * (ours - theirs)[learns].std(ddof=1) / math.sqrt(7)
    assert finding.high - finding.low == pytest.approx(2 * half)


def test_that_one_learns_more_often_is_fishers_test():
    """Where hardly a seed of a placement learns, its few scores say less than how few they are."""
    ours, theirs = np.full(32, 0.3) + np.linspace(0, 1e-3, 32), np.zeros(32)
    learns = np.zeros(32, dtype=bool)
    learns[:3] = True
    scores = Scores({"qv": [points(ours)], "q": [points(theirs, learns)]}, {"qv": 0, "q": 0}, LEARNING)
    finding = first_look(scores, number=2)["q"]
    assert finding.word == looks.MORE_OFTEN
    table = [[32, 0], [3, 29]]
    one_sided = stats.fisher_exact(table, alternative="greater")[1]
    assert finding.p_different == pytest.approx(min(1, 4 * one_sided))
    fewer, more = looks.p_of_shares(np.ones(32, dtype=bool), learns)
    assert (fewer, more) == (1.0, pytest.approx(2 * one_sided))


def test_what_never_learned_is_neither_better_nor_tied():
    """A placement that stays at the head's score at every rate tried has no score of its own."""
    rng = np.random.default_rng(5)
    reports = {"qv": [rng.normal(0.2, 0.01, 8)], "q": [np.zeros(8)], "k": [rng.normal(0, 0.01, 8)]}
    found = first_look(scores_of(reports, learning={"q": looks.FLAT, "k": looks.UNPROVEN}))
    assert (found["q"].word, found["q"].is_final) == (looks.NOT_LEARNED, True)
    assert (found["k"].word, found["k"].is_final) == (looks.UNTOLD, False)
    assert found["k"].is_spending


def test_learning_is_judged_against_the_head_alone():
    """`learns` where some rate beats the floor, `flat` where all are shown within a margin of it, else neither."""
    rng = np.random.default_rng(6)
    floor = points(rng.normal(0, 0.002, 8))
    up, near = points(rng.normal(0.1, 0.01, 8)), points(rng.normal(0, 0.002, 8))
    wide = points(rng.normal(0.0, 0.2, 8) - 0.02)
    assert looks.learning_of([near, up], floor, 0.01) == looks.LEARNS
    assert looks.learning_of([near, near], floor, 0.01) == looks.FLAT
    assert looks.learning_of([near, wide], floor, 0.01) == looks.UNPROVEN
    assert looks.learning_of([points(np.zeros(8))], points(np.zeros(8)), 0.01) == looks.FLAT
    assert looks.is_above([near], None)
    stuck = np.array([False] + [True] * 7)  # one seed far below does not say that the others have not learned
    some = Points(np.where(stuck, up.select, -0.5), up.report, np.ones(8, bool), stuck)
    assert looks.learning_of([some], floor, 0.01) == looks.LEARNS
    assert looks.learning_of([Points(*[np.full(8, np.nan)] * 2, np.ones(8, bool), np.zeros(8, bool))], floor, 0.01) == (
        looks.UNPROVEN
    )


@pytest.mark.parametrize(("difference", "p"), [(0.03, 2 / 2**8), (0.0, 1.0)])
def test_differences_that_do_not_vary_go_by_sign_flip(difference, p):
    """They have no t; eight equal signs are evidence all the same, and there is no interval of width zero."""
    finding = first_look(scores_of({"qv": [np.full(8, 0.5 + difference)], "q": [np.full(8, 0.5)]}))["q"]
    assert finding.p_different == p
    assert math.isnan(finding.low) and math.isnan(finding.high)


def test_three_pairs_give_no_word():
    """Three pairs of two kinds of seeds (learn, stuck) err far above the level."""
    assert looks.p_of(np.array([0.5, 0.51, 0.52]), 0.01)[:2] == (1.0, 1.0)


@pytest.mark.parametrize("n_pairs", [0, 1, 2, 3, 4, 8])
def test_an_interval_is_shown_where_a_word_may_be(n_pairs):
    """Two seeds that learn have an interval of thousands of points; drawn, it makes a dot of every other contrast."""
    differences = np.linspace(0.01, 0.05, 8)[:n_pairs]
    low, high = looks.t_interval(differences, 0.001)
    finding = asdict(Finding("q", "v", n_pairs=n_pairs, n_seeds=8, low=low, high=high))
    shown = looks.ends(finding)
    assert shown == (low, high) if n_pairs >= 4 else all(map(math.isnan, shown))
    assert ("|difference|" in looks.spoken(finding, n_last=8)) == (n_pairs >= 4)


def test_the_chance_of_a_word_is_that_of_draws():
    """The closed form, against means at the cap drawn around the one of now."""
    rng = np.random.default_rng(7)
    n_open = 0
    for mean in (0.0, 0.004, 0.012):
        ours, theirs = rng.normal(mean, 0.01, 8), rng.normal(0, 0.01, 8)
        family = Declaration(("qv", "q"), "qv", (1e-3,), margin=0.008)
        finding = first_look(scores_of({"qv": [ours], "q": [theirs]}), family)["q"]
        if finding.is_final:
            continue
        n_open += 1
        d, s = finding.difference, finding.sd
        drawn = rng.normal(d, s * math.sqrt(1 / 8 - 1 / 32), 200_000)
        error = s / math.sqrt(32)
        level = family.level(2)
        word = (np.abs(drawn) > stats.t.ppf(1 - level / 2, 31) * error) | (
            np.abs(drawn) < 0.008 - stats.t.ppf(1 - level, 31) * error
        )
        assert finding.chance == pytest.approx(word.mean(), abs=0.005)
    assert n_open >= 2


def test_failed_shares_have_exact_intervals():
    """1 of 16 may well be 30 %."""
    assert looks.failed_interval(1, 16) == pytest.approx((0.0016, 0.3023), abs=1e-4)
    assert looks.failed_interval(0, 8)[0] == 0
