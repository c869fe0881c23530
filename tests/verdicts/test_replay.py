"""The published records, judged as a fixed design and by the rules of a study at one look, against scripts that know
none of that code."""

import itertools
import json
import math
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import ttost_paired

from lora_bench.config.schema import ALPHA_POLICIES
from lora_bench.paths import resource_root
from lora_bench.reports.learned import with_learning
from lora_bench.store import open_store
from lora_bench.store.predictions import answers
from lora_bench.verdicts import arms, looks, settings
from lora_bench.verdicts.collapse import has_collapsed
from lora_bench.verdicts.family import Declaration, Points
from lora_bench.verdicts.looks import Finding, Scores

PLACEMENTS = ("q", "k", "v", "o", "qk", "qv", "qkvo")
MARGINS = {"cola": 0.02, "sst2": 0.01}
SEEDS = range(8)


@pytest.fixture(scope="module", params=MARGINS)
def published(request):
    """A task's scores at one budget: by placement and rate with all seeds, whether each learns; and the floor's."""
    store = open_store(resource_root() / "results" / "study")
    frame = store.frame()
    runs = settings.prepare(frame[frame["task"] == request.param])
    at_budget = runs[(runs["adapter_parameters"] == 36_864) | (runs["method"] == "head_only")]
    scores = {}
    for (targets, rate), of_cell in at_budget.groupby(["targets", "lr"]):
        of_cell = of_cell.drop_duplicates("seed").set_index("seed")
        if set(SEEDS) <= set(of_cell.index):
            rows = of_cell.loc[list(SEEDS)]
            kept = [store.predictions(run_id) for run_id in rows["run_id"]]  # of the chosen rates alone
            learns = [predictions is None or not has_collapsed(*answers(predictions)) for predictions in kept]
            select, report = rows["select"].to_numpy(float), rows["report"].to_numpy(float)
            scores[targets, rate] = Points(select, report, np.ones(8, bool), np.array(learns))
    assert {targets for targets, _ in scores} == {*PLACEMENTS, ""}
    return request.param, scores


def by_the_book(pairs, margin, level, k):
    """p of a difference and of a tie over all pairs of rates, from scipy and numpy alone; and Holm's words."""
    rows = []
    for ours, theirs in pairs:
        p_different, p_tied, signs, fishers = [], [], set(), []
        has_failed = not all(points.learns.all() for points in (*ours, *theirs))
        for our, their in itertools.product(ours, theirs):
            both = our.learns & their.learns
            first, second = our.report[both], their.report[both]
            if both.sum() < 4:
                p_different.append(1.0)
                p_tied.append(1.0)
            else:
                p_different.append(stats.ttest_rel(first, second).pvalue)
                below = stats.ttest_1samp(first - second, -margin, alternative="greater").pvalue
                above = stats.ttest_1samp(first - second, margin, alternative="less").pvalue
                p_tied.append(max(below, above))
            signs.add(np.sign((first - second).mean()) if both.sum() >= 4 else math.nan)
            table = [[our.learns.sum(), (~our.learns).sum()], [their.learns.sum(), (~their.learns).sum()]]
            fishers.append(stats.fisher_exact(table, alternative="greater").pvalue)
        different = max(p_different) if len(signs) == 1 else 1.0
        tied, share = max(p_tied), max(min(1.0, 2 * p) for p in fishers)
        if has_failed:
            different, tied, share = min(1.0, 2 * different), min(1.0, 2 * tied), min(1.0, 2 * share)
        rows.append((different, tied, share if has_failed else 1.0))
    return rows


def test_the_published_words_and_intervals_are_those_of_a_script_of_its_own(published):
    """Both families are settled alike by the engine's rules and by textbook functions."""
    task, scores = published
    family = Declaration(PLACEMENTS, "qv", (1e-3,), MARGINS[task], looks=(8,), floor="head_only")
    floor = next(points for (targets, _), points in scores.items() if not targets)
    of = {name: [points for (targets, _), points in sorted(scores.items()) if targets == name] for name in PLACEMENTS}
    chosen = {name: int(np.argmax([points.select.mean() for points in of[name]])) for name in PLACEMENTS}
    learning = {name: looks.learning_of(of[name], floor, family.margin) for name in PLACEMENTS}
    found = looks.judge(family, 0, [Finding(*pair) for pair in family.pairs], Scores(of, chosen, learning))
    rows = by_the_book([(of["qv"], of[second]) for _, second in family.pairs], family.margin, 0.05, 6)
    n_checked = 0
    for finding, (different, tied, share) in zip(found, rows, strict=True):
        if learning[finding.second] == looks.LEARNS:
            assert finding.p_different == pytest.approx(min(different, share), rel=1e-6)
            assert finding.p_tied == pytest.approx(tied, rel=1e-6)
            n_checked += 1
        else:
            assert finding.word in (looks.NOT_LEARNED, looks.UNTOLD, looks.MORE_OFTEN)
            assert finding.p_different == pytest.approx(share, rel=1e-6)
        our, their = of["qv"][chosen["qv"]], of[finding.second][chosen[finding.second]]
        both = our.learns & their.learns
        assert finding.n_pairs == both.sum()
        if both.sum() >= 2:
            differences = our.report[both] - their.report[both]
            level = 0.05 / 6 / (1 if all(points.learns.all() for points in (*of["qv"], *of[finding.second])) else 2)
            interval = stats.t.interval(1 - level, both.sum() - 1, differences.mean(), stats.sem(differences))
            assert (finding.low, finding.high) == pytest.approx(interval, rel=1e-9)
    assert n_checked >= 3
    words = {finding.second: finding.word for finding in found}
    expected = {
        "sst2": {"q": looks.BETTER, "k": looks.BETTER, "qk": looks.BETTER},
        "cola": {"q": looks.MORE_OFTEN, "k": looks.UNTOLD, "qk": looks.UNTOLD},
    }[task]
    assert {name: words[name] for name in expected} == expected
    for name, points in of.items():
        assert (task == "cola" and name in ("q", "k", "qk")) or all(one.learns.all() for one in points), name


def says_one_class(store, run_id):
    """Whether a run's model gives 99 % of the report rows one label."""
    kept = store.predictions(run_id)
    if kept is None:
        return False
    report = kept[kept["split"] == "report"]
    label = report.filter(like="logit_").to_numpy().argmax(axis=1)
    return np.bincount(label).max() >= 0.99 * len(label)


def fixed_by_the_book(runs, margin, store):
    """A sweep's words from scipy and statsmodels alone: qv against each other placement at its best rate on select."""
    best = runs.groupby(["targets", "lr"])["select"].agg(["size", "mean"])
    best = best[best["size"] == len(SEEDS)]["mean"].groupby("targets").idxmax()
    cells = {name: runs[(runs["targets"] == name) & (runs["lr"] == best[name][1])] for name in PLACEMENTS}
    cells = {name: cell.set_index("seed").loc[list(SEEDS)] for name, cell in cells.items()}
    learns = {name: np.array([not says_one_class(store, run_id) for run_id in cells[name]["run_id"]]) for name in cells}
    rows = []
    for second in (name for name in PLACEMENTS if name != "qv"):
        both = learns["qv"] & learns[second]
        ours, theirs = (cells[name]["report"].to_numpy(float)[both] for name in ("qv", second))
        different = tied = share = 1.0
        interval = (math.nan, math.nan)
        if both.sum() >= 2:
            interval = stats.t.interval(0.95, both.sum() - 1, (ours - theirs).mean(), stats.sem(ours - theirs))
        if both.sum() >= 4:
            different = stats.ttest_rel(ours, theirs).pvalue
            tied = ttost_paired(ours, theirs, -margin, margin)[0]
        word = "better" if both.any() and (ours - theirs).mean() > 0 else "worse"
        if not (learns["qv"].all() and learns[second].all()):  # half of the level goes to the shares that learn
            n_ours, n_theirs = learns["qv"].sum(), learns[second].sum()
            table = [[n_ours, 8 - n_ours], [n_theirs, 8 - n_theirs]]
            sides = [stats.fisher_exact(table, alternative=side).pvalue for side in ("less", "greater")]
            share = min(1.0, 2 * 2 * min(sides))
            different, tied = min(1.0, 2 * different), min(1.0, 2 * tied)
            if share < different:
                different, word = share, "learns more often" if sides[1] < sides[0] else "learns less often"
        rows.append([second, both.sum(), interval, different, tied, word])
    adjusted, adjusted_tied = (multipletests([row[i] for row in rows], method="holm")[1] for i in (3, 4))
    for row, p, p_tied in zip(rows, adjusted, adjusted_tied, strict=True):
        row[3:] = p, p_tied, row[5] if p < 0.05 else "tied" if p_tied < 0.05 else "unresolved"
    return rows


@pytest.mark.parametrize("task", MARGINS)
@pytest.mark.usefixtures("no_collections")
def test_the_published_words_of_the_fixed_design_are_those_of_textbook_functions(task):
    """What README and the replication page say rests on these records: rates, pairs, intervals, p and words."""
    root = resource_root() / "results" / "study"
    store = open_store(root)
    frame = store.frame()
    frame = frame[(frame["task"] == task) & (frame["adapter_parameters"] == 36_864) & frame["targets"].isin(PLACEMENTS)]
    runs = with_learning(settings.prepare(frame), root)
    judged = arms.judge(runs.assign(arm=runs["targets"]), [("qv", name) for name in PLACEMENTS if name != "qv"],
                        margin=MARGINS[task]).contrasts  # fmt: skip
    expected = fixed_by_the_book(frame, MARGINS[task], store)
    for contrast, (second, n_pairs, interval, p, p_tied, word) in zip(judged.to_dict("records"), expected, strict=True):
        assert (contrast["second"], contrast["n_pairs"], contrast["verdict"]) == (second, n_pairs, word)
        assert (contrast["low"], contrast["high"]) == pytest.approx(interval, rel=1e-9, nan_ok=True)
        assert contrast["p_holm"] == pytest.approx(p, rel=1e-9)
        assert contrast["p_equivalent_holm"] == pytest.approx(p_tied, rel=1e-6)
    words = [row[5] for row in expected]
    assert (
        words
        == {
            "sst2": ["better", "better", "unresolved", "unresolved", "better", "unresolved"],
            "cola": ["learns more often", *["unresolved"] * 5],
        }[task]
    )


@dataclass(frozen=True)
class Published:
    """A study whose journal and records lie in an archive, and what its words are known to be.

    Attributes:
        classes: rows of report of each label.
        n_compared: contrasts that were open at each look, added up.
        words: of placements beside the reference; the others are open at the cap.
    """

    archive: str
    title: str
    placements: tuple[str, ...]
    classes: tuple[int, int]
    n_compared: int
    words: dict[str, str]

    def journal(self):
        written = [json.loads(path.read_text()) for path in (self.root / "studies").glob("*.json")]
        asked = (self.title, set(self.placements))
        (found,) = (one for one in written if (one["title"], set(one["declaration"]["placements"])) == asked)
        return found

    def pairs(self, journal):
        """The contrasts: of a reference with each other placement, or of all with each other."""
        reference = journal["declaration"]["reference"]
        if reference is None:
            return list(itertools.combinations(self.placements, 2))
        return [(reference, name) for name in self.placements if name != reference]

    @property
    def root(self):
        return resource_root() / "results" / self.archive


MINILM = "all-MiniLM-L6-v2 · sst2"
ALL_ROWS = (428, 444)
SMOLLM2 = "SmolLM2-135M-Instruct.Q4_1.gguf · sst2"
TARGETS = {"qkvo": "attention", "up+down": "mlp", "up+gate+down": "mlp", "qkvo+up+gate+down": "all"}
STUDIES = {
    "encoder": Published(
        "study_sst2_1000", MINILM, PLACEMENTS, ALL_ROWS, 6 + 3 + 3, dict.fromkeys(("q", "k", "qk", "v", "o"), "better")
    ),
    "decoder": Published(
        "study_sst2_1000", SMOLLM2, PLACEMENTS, (192, 208), 6,
        dict.fromkeys(("q", "k", "qk"), "better"),
    ),
    "attention_mlp": Published(
        "smollm2_budget_sst2_1000", SMOLLM2, ("qv", "attention", "mlp", "all"), (192, 208), 6, {}
    ),
    "qnli": Published(
        "qnli_2000", "all-MiniLM-L6-v2 · qnli", PLACEMENTS, (969, 1031), 6, dict.fromkeys(("q", "k", "qk"), "better")
    ),
    "qqp": Published("qqp_2000", "all-MiniLM-L6-v2 · qqp", PLACEMENTS, (623, 377), 6, {}),
    "rows_by_seed": Published("further_sst2_1000", MINILM, ("q", "v", "qv"), ALL_ROWS, 2, {}),
    "alpha": Published(
        "further_sst2_1000", MINILM, ("r=1", *(f"r=10 alpha_policy={policy}" for policy in ALPHA_POLICIES)), ALL_ROWS,
        3, {},
    ),
    "rank": Published(
        "further_sst2_1000", f"{MINILM} · qv", tuple(f"r={rank}" for rank in (1, 2, 4, 8, 64)), ALL_ROWS, 4, {}
    ),
    "budget_qv@1": Published("budgets_sst2_1000", f"{MINILM} · qv@1", ("q", "qv"), ALL_ROWS, 1, {"q": "better"}),
    **{
        f"budget_{budget}": Published(
            "budgets_sst2_1000", f"{MINILM} · {budget}", ("qv", "attention", "mlp"), ALL_ROWS, 2, {}
        )
        for budget in ("mlp@1", "mlp@2", "mlp@4")
    },
}  # fmt: skip


def called(run, placements):
    """What a study calls a run's placement."""
    names = (
        run["targets"],
        TARGETS.get(run["targets"]),
        f"r={run['rank']:g}",
        f"r={run['rank']:g} alpha_policy={run['alpha_policy']}",
    )
    return next(name for name in names if name in placements)


@pytest.fixture(scope="module", params=STUDIES)
def whole(request):
    """A study, its journal, and its records' scores by placement and rate, in the order of the seeds.

    A run fails here where 99 % of its predictions are one class. Of a run whose predictions an older archive left out,
    being at a cell's third rate, the accuracy is then the share of one of the two classes, within a hundredth of the
    rows.
    """
    study = STUDIES[request.param]
    journal = study.journal()
    store = open_store(study.root)
    frame = store.frame().sort_values("seed")
    frame = frame[frame["run_id"].isin({run_id for look in journal["looks"] for run_id in look["runs"]})]
    frame = frame[frame["method"] == "lora"]
    names = frame.apply(called, axis=1, placements=study.placements)
    classes = np.array(study.classes)
    cells = {}
    for cell, group in frame.groupby([names, "lr"]):
        report = group["report"].to_numpy(float)
        off = abs(report[:, None] * classes.sum() - classes)
        learns = (off > 0.01 * classes.sum()).all(axis=1)
        kept = [store.predictions(run_id) for run_id in group["run_id"]]
        shares = [np.nan if of_run is None else share_of_one_class(of_run) for of_run in kept]
        cells[cell] = (report, np.where(np.isnan(shares), learns, np.array(shares) < 0.99))
    return study, journal, cells


def share_of_one_class(predictions):
    logits = predictions.loc[predictions["split"] == "report", ["logit_0", "logit_1"]].to_numpy()
    return max(np.mean(logits.argmax(axis=1) == label) for label in (0, 1))


def learning_by_the_book(study, look):
    """The placements that beat the head alone on `select` at some live rate, by the seeds that do not predict one class
    and a one-sided paired t test at 5 %."""
    store = open_store(study.root)
    frame = store.frame().set_index("seed")
    lora = frame[frame["run_id"].isin(look["runs"]) & (frame["method"] == "lora")]
    shared = ["model", "train_draw", "precision"]
    is_beside = (frame[shared] == lora[shared].iloc[0]).all(axis=1)
    floor = frame.loc[is_beside & (frame["method"] == "head_only"), "select"]
    names = lora.apply(called, axis=1, placements=study.placements)
    learning = set()
    for (name, _), runs in lora.groupby([names, "lr"]):
        kept = [store.predictions(run_id) for run_id in runs["run_id"]]
        learns = [of_run is None or share_of_one_class(of_run) < 0.99 for of_run in kept]
        gains = (runs.loc[learns, "select"] - floor).dropna()
        if len(gains) > 1 and stats.ttest_1samp(gains, 0, alternative="greater").pvalue < 0.05:
            learning.add(name)
    return learning


def levels(journal):
    """Each look's part of the 5 %, in proportion to the seeds that it adds."""
    seeds = journal["declaration"]["looks"]
    return [0.05 * added / seeds[-1] for added in np.diff([0, *seeds])]


def of_look(cells, look, name):
    """The placement's live rates at the seeds of a look."""
    live = [cells[name, rate] for rate in look["alive"][name]]
    assert all(len(report) >= look["n_seeds"] for report, _ in live)
    return [SimpleNamespace(report=a[: look["n_seeds"]], learns=b[: look["n_seeds"]]) for a, b in live]


def claimed(p_values, n_taken, level, n_contrasts):
    """Positions that Holm's steps claim of the contrasts, of which so many were claimed before."""
    places = []
    for step, place in enumerate(np.argsort(p_values, kind="stable")):
        if p_values[place] > level / (n_contrasts - n_taken - step):
            break
        places.append(int(place))
    return places


def study_by_the_book(study, journal, cells):
    """After each look, the p of the contrasts that were open and the words so far."""
    words, pairs = {}, study.pairs(journal)
    for look, level in zip(journal["looks"], levels(journal), strict=True):
        names = [pair for pair in pairs if pair not in words]
        arms_of = {name: of_look(cells, look, name) for name in dict.fromkeys(itertools.chain(*names))}
        rows = by_the_book([(arms_of[first], arms_of[second]) for first, second in names], 0.01, level, len(pairs))
        different, tied = [min(p, share) for p, _, share in rows], [p for _, p, _ in rows]
        n_tied = sum(word == "tied" for word in words.values())
        for place in claimed(different, len(words) - n_tied, level, len(pairs)):
            first, second = (arms_of[name][0].report.mean() for name in names[place])
            ahead = first > second
            words[names[place]] = "better" if ahead else "worse"
        left = [place for place, name in enumerate(names) if name not in words]
        for place in claimed([tied[place] for place in left], n_tied, level, len(pairs)):
            words[names[left[place]]] = "tied"
        yield look, dict(zip(names, zip(different, tied, strict=True), strict=True)), dict(words)


def test_the_words_of_a_whole_study_are_those_of_textbook_functions(whole):
    """What a study says rests on its records and on the rules that were written down, not on the engine's code."""
    n_compared, words, learning = 0, {}, set()
    for look, p_values, words in study_by_the_book(*whole):
        learning |= learning_by_the_book(whole[0], look)  # for good
        for finding in look["findings"]:
            pair = (finding["first"], finding["second"])
            if learning.issuperset(pair):
                assert finding["word"] == words.get(pair, "open")
            else:  # that one is shown to add nothing rests on a curve through the rates, which is not drawn again here
                assert finding["word"] in ("not told from the head alone", "did not learn") and pair not in words
            if pair in p_values:
                expected = p_values[pair]
                assert (finding["p_different"], finding["p_tied"]) == pytest.approx(expected, rel=1e-6)
                n_compared += 1
    assert n_compared == whole[0].n_compared
    assert {second: word for (_, second), word in words.items()} == whole[0].words


def test_the_intervals_of_a_whole_study_hold_over_contrasts_and_looks(whole):
    """Each look's share of the 5 %, over all contrasts, at the rates that select ranks first, of seeds in which both
    learn."""
    study, journal, cells = whole
    n_compared = 0
    for look, level in zip(journal["looks"], levels(journal), strict=True):
        for finding in look["findings"]:
            names = (finding["first"], finding["second"])
            if finding["look"] not in (None, look["number"]):
                continue
            arms_of = [arm for name in names for arm in of_look(cells, look, name)]
            part = 1 if all(arm.learns.all() for arm in arms_of) else 2
            seeds = slice(look["n_seeds"])
            first, second = (cells[name, look["chosen"][name]] for name in names)
            both_learn = first[1][seeds] & second[1][seeds]
            paired = (first[0][seeds] - second[0][seeds])[both_learn]
            level_of_one = level / len(study.pairs(journal)) / part
            interval = stats.t.interval(1 - level_of_one, len(paired) - 1, paired.mean(), stats.sem(paired))
            assert (finding["low"], finding["high"]) == pytest.approx(interval, rel=1e-9)
            n_compared += 1
    assert n_compared == study.n_compared
