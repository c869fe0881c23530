"""From a word on the page down to its seeds and rows, and what the page's own arithmetic says of another margin."""

import json
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from fake_store import fake_record, weight_types_records, write_store
from lora_bench.questions import drill, page, weight_types
from lora_bench.reports.scope import Scope
from lora_bench.verdicts import looks, stats

NODE, CHROMIUM = shutil.which("node"), shutil.which("chromium")


def families(n: int = 60):
    """Families as a sweep may have them: differences of all sizes, seeds that fail, constant and few pairs."""
    rng = np.random.default_rng(7)
    for number in range(n):
        n_seeds = int(rng.integers(2, 18))
        pairs = []
        for _ in range(int(rng.integers(1, 7))):
            first = rng.normal(50, 3, n_seeds)
            second = first - rng.normal(0, 4) + rng.normal(0, rng.choice([0.3, 2.0]), n_seeds)
            if rng.random() < 0.15:
                second = first - rng.choice([0.0, 1.5, 4.0])
            shares = rng.choice([0.0, 0.3, 0.8], size=(2, 1), p=[0.6, 0.2, 0.2])
            learn = rng.random((2, n_seeds)) >= shares
            pairs.append((first, second, learn))
        yield pairs, float(rng.choice([0.5, 1, 2, 5])), float(rng.choice([0.9, 0.95, 0.99])), number


def in_python(pairs, margin, level):
    made = [
        stats.contrast(first, second, margin=margin, learn=(learn[0], learn[1]), level=level)
        for first, second, learn in pairs
    ]
    return stats.judge(made, level=level)


@pytest.mark.skipif(NODE is None, reason="needs node, which runs the page's script")
@pytest.mark.parametrize("min_pairs", [stats.MIN_PAIRS, 6])
def test_the_page_gives_the_words_that_the_library_gives(tmp_path, monkeypatch, min_pairs):
    """Whoever moves the slider reads what the library would have said had that margin been declared, whatever the
    fewest pairs are that it gives a word for."""
    monkeypatch.setattr(stats, "MIN_PAIRS", min_pairs)
    monkeypatch.setattr(looks, "MIN_PAIRS", min_pairs)
    asked = [
        {
            "pairs": [
                {
                    "first": [float(x) if ok else None for x, ok in zip(first, learn[0], strict=True)],
                    "second": [float(x) if ok else None for x, ok in zip(second, learn[1], strict=True)],
                }
                for first, second, learn in pairs
            ],
            "margin": margin,
            "level": level,
        }
        for pairs, margin, level, _ in families()
    ]
    script = tmp_path / "words.js"
    script.write_text(
        f"{page.SCRIPT.read_text()}\nconsole.log(JSON.stringify({json.dumps(asked)}"
        f".map(({{pairs, margin, level}}) => judge(pairs, margin, level, {min_pairs}))))"
    )
    done = subprocess.run([str(NODE), str(script)], capture_output=True, text=True, check=True)
    words = set()
    for answers, (pairs, margin, level, _) in zip(json.loads(done.stdout), families(), strict=True):
        for answer, contrast in zip(answers, in_python(pairs, margin, level), strict=True):
            assert answer["word"] == contrast.verdict
            words.add(contrast.verdict)
            for ours, theirs in ((answer["p"], contrast.p_holm), (answer["low"], contrast.low)):
                assert np.isnan(theirs) if ours is None else ours == pytest.approx(theirs, rel=1e-8, abs=1e-12)
    assert words >= {"better", "worse", "tied", "unresolved", "learns more often"}


@pytest.fixture(scope="module")
def placements(tmp_path_factory):
    root = write_store(tmp_path_factory.mktemp("drill") / "runs", weight_types_records(n_seeds=5, rates=(1e-3, 3e-3)))
    scope = Scope(root)
    runs = scope.read()
    (section,) = weight_types.sections(runs, scope)
    return SimpleNamespace(root=root, scope=scope, runs=runs, section=section)


def test_every_contrast_shows_the_seeds_that_it_rests_on(placements):
    """The dots are the scores whose difference is printed."""
    shown = drill.Drill(placements.root).pairs(placements.section, "here")
    contrasts = placements.section.judged.contrasts
    assert [pair["second"] for pair in shown] == contrasts["second"].tolist()
    assert len({pair["anchor"] for pair in shown}) == len(shown)
    for pair, difference in zip(shown, contrasts["difference"], strict=True):
        assert np.mean(np.subtract(*pair["scores"])) == pytest.approx(100 * difference)
        assert len(pair["dots"]["lines"]) == 5
        assert pair["word"] in pair["sentence"] and pair["difference"] in pair["sentence"]


class Predictions:
    """A store whose runs keep predictions: that of `first` are right in the rows of `first_rows` alone."""

    def __init__(self, runs: pd.DataFrame, right: dict[str, set[int]]):
        self.of = dict(zip(runs["run_id"], runs["targets"], strict=True))
        self.right = right

    def predictions(self, run_id):
        labels = np.arange(12) % 2
        is_right = np.array([row in self.right.get(self.of[run_id], set()) for row in range(12)])
        chosen = np.where(is_right, labels, 1 - labels)
        report = pd.DataFrame({"split": "report", "idx": range(100, 112), "label": labels})
        return report.assign(logit_0=(chosen == 0) * 1.0, logit_1=(chosen == 1) * 1.0)

    def record(self, run_id):
        return {"task": {"labels": ["bad", "<good>"]}}


def test_the_rows_shown_are_those_on_which_the_cells_differ(placements, monkeypatch):
    """What a placement is better at can be read, row by row."""
    store = Predictions(placements.runs, {"qv": {1, 2, 3}, "q": {2, 9}})
    monkeypatch.setattr(drill, "open_store", lambda root: store)
    fingerprint = placements.runs["task_fingerprint"].iloc[0]
    texts = {fingerprint: {101: "a row", 109: "x" * 1000}}
    pairs = {pair["second"]: pair for pair in drill.Drill(placements.root, texts).pairs(placements.section, "here")}
    rows = {row["idx"]: row for row in pairs["q"]["rows"]}
    assert set(rows) == {101, 103, 109}
    assert rows[101] == {"idx": 101, "label": "<good>", "first": "5 of 5", "second": "0 of 5", "text": "a row"}
    assert rows[109]["first"] == "0 of 5" and len(rows[109]["text"]) <= drill.LETTERS + 2


def test_runs_without_predictions_show_their_seeds_alone(placements):
    """A store that kept no predictions has contrasts all the same."""
    assert all(pair["rows"] == [] for pair in drill.Drill(placements.root).pairs(placements.section, "here"))


def test_a_seed_that_does_not_learn_has_no_line(tmp_path):
    """It is set aside in the test, and so it is in the picture."""
    shown = drill.dots([0, 1], [50.0, None], [40.0, 45.0])
    assert [line["seed"] for line in shown["lines"]] == [0]
    assert [(dot["seed"], dot["is_first"]) for dot in shown["single"]] == [(1, False)]


def test_the_page_carries_its_contrasts(placements, tmp_path):
    """A page works from a file, with no other file beside it."""
    made = page.build(placements.runs, placements.scope, out=tmp_path, title="runs")
    assert made["html"].count('<details class="pair" id="weight-types') == 6
    assert "copy as sentence" in made["html"] and "function judge(" in made["html"]
    other = fake_record(targets="qv", seed=77)
    assert page.state_of(placements.runs) != page.state_of(pd.DataFrame([{"run_id": other["run_id"], "report": 0.5}]))


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_a_link_opens_the_contrast_that_it_names(placements, tmp_path):
    """One from another state of the store says so."""
    made = page.build(placements.runs, placements.scope, out=tmp_path, title="runs")
    (tmp_path / "index.html").write_text(made["html"], encoding="utf-8")
    anchor = made["html"].partition('<details class="pair" id="')[2].partition('"')[0]
    address = f"{Path(tmp_path / 'index.html').as_uri()}#{anchor}@00000000"
    options = ("--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom")
    shown = subprocess.run([str(CHROMIUM), *options, address], capture_output=True, text=True, check=True).stdout
    assert f'<details class="pair" id="{anchor}" open=""' in shown
    assert "The link was made when the store held other results (00000000)" in shown
