"""Studies: followed from the records, written down before they are shown, the same wherever they were stopped."""

import functools
import io
import json
import random
import zlib
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from lora_bench.config.errors import ConfigError
from lora_bench.launch import study
from lora_bench.launch.families import Declared, families
from lora_bench.launch.plan import Candidate, make
from lora_bench.paths import resource_root
from lora_bench.store import open_store
from lora_bench.store.folder import Store
from lora_bench.store.journal import journals
from lora_bench.store.record import Failure
from lora_bench.verdicts import looks
from records import failed_record, finished_record
from tiny import tiny_config

DECLARED = {"reference": "qv", "rates": [1e-3, 3e-3, 1e-2], "looks": [4, 8], "margin": 0.02}
LEVELS = {"qv": 0.80, "q": 0.60, "v": 0.795, "head_only": 0.50}


@functools.cache
def parsed(targets, store):
    if targets == "head_only":
        return tiny_config(adapter__method="head_only", store=store)
    return tiny_config(adapter__targets=targets, store=store)


def compose(store, overrides):
    """A candidate, as the sweeper composes one."""
    values = dict(override.split("=") for override in overrides)
    targets = "head_only" if values.get("adapter") == "head_only" else values["adapter.targets"]
    config = parsed(targets, str(store))
    train = replace(config.train, lr=float(values["train.lr"]))
    return Candidate(replace(config, train=train, seed=int(values["seed"])), tuple(overrides))


def noise(*key):
    return float(np.random.default_rng(zlib.crc32(repr(key).encode())).normal())


class Lab:
    """A store, a study of three placements, and a trainer that invents scores."""

    def __init__(self, root, *, stuck=(), luck=None, environment="cpu-a"):
        self.root, self.stuck, self.luck, self.environment = root, stuck, luck or (lambda: False), environment
        self.out = Console(file=io.StringIO(), width=140, highlight=False, markup=False)
        self.trained = []

    def launch(self, **declared):
        """Whatever one command does; returns how it ended."""
        store = open_store(self.root)
        points = [(f"adapter.targets={name}",) for name in ("q", "v", "qv")]
        section = Declared.read(DECLARED | declared, sweep="mine")
        composer = functools.partial(compose, self.root)
        self.families = families("mine", section, points, composer, store)
        return study.carry_through(
            self.families,
            store,
            self.out,
            make=lambda candidates: make(candidates, store, sweep="mine"),
            train=self.train,
            is_late=lambda: False,
        )

    def train(self, plan):
        """Write the runs that a plan lacks, until luck runs out."""
        store = Store(self.root)
        for run_id in plan.pending():
            if self.luck():
                return "killed", True
            self.write(store, plan.runs[run_id].run)
        plan.status |= {run_id: store.status(run_id) for run_id in plan.runs}
        return None, False

    def write(self, store, run):
        name = run.science["adapter"].get("targets") or "head_only"
        rate, seed = run.config.train.lr, run.config.seed
        far = 0.0 if name == "head_only" else abs(np.log10(rate / 3e-3))
        score = LEVELS[name] - 0.1 * far + 0.004 * noise(name, rate, seed)
        select = LEVELS[name] - 0.1 * far + 0.004 * noise(name, rate, seed, "select")
        is_stuck = (name, seed) in self.stuck
        scores = {
            "select": {"matthews": 0.0 if is_stuck else select},
            "report": {"matthews": 0.0 if is_stuck else score},
        }
        record = finished_record(
            run_id=run.run_id,
            cell_id=run.cell_id,
            config=run.science,
            metrics=["matthews"],
            manifest=run.manifest,
            scores=scores,
            environment={"id": self.environment, "commit": None, "dirty": None},
        )
        logits = np.array([[1.0, 0.0]] * 20 if is_stuck else [[1.0, 0.0], [0.0, 1.0]] * 10)
        columns = {f"logit_{i}": logits[:, i] for i in range(2)}
        kept = pd.DataFrame({"split": "report", "idx": range(20), "label": [0, 1] * 10, **columns})
        store.write(record, predictions=kept)
        self.trained.append(run.run_id)

    @property
    def journal(self):
        written = [each.read() for each in journals(self.root)]
        assert len(written) == 1
        return written[0]

    @property
    def said(self):
        return self.out.file.getvalue()


def without_times(journal):
    looks_held = [{key: value for key, value in look.items() if key != "held"} for look in journal["looks"]]
    return {key: value for key, value in journal.items() if key != "declared"} | {"looks": looks_held}


def test_one_launch_goes_from_the_first_rate_to_the_words(tmp_path):
    """The whole way: rates, looks, words, and no run more than they ask for."""
    lab = Lab(tmp_path)
    ended = lab.launch()
    assert ended.is_over
    words = {finding.second: finding.word for finding in ended.courses[0].findings}
    assert words == {"q": looks.BETTER, "v": looks.TIED}
    journal = lab.journal
    assert [look["n_seeds"] for look in journal["looks"]] == [4, 8][: len(journal["looks"])]
    assert sorted(lab.trained) == sorted(set(lab.trained))
    assert set(journal["looks"][0]["runs"]) <= set(lab.trained)
    assert "look 1 of 2 | 4 seeds | error spent 0.0250 of 0.0500" in lab.said
    before = len(lab.trained)
    assert lab.launch().is_over
    assert len(lab.trained) == before, "a study that is over trains nothing"


def test_a_study_killed_at_random_moments_is_the_same_study(tmp_path):
    """The same journal, looks and words, bit for bit, wherever it was stopped: twenty times here."""
    whole = Lab(tmp_path / "whole")
    whole.launch()
    draw = random.Random(7)
    killed = Lab(tmp_path / "killed", luck=lambda: draw.random() < 0.25)
    n_kills = 0
    while killed.launch().stopped:
        n_kills += 1
        if n_kills >= 20:
            killed.luck = lambda: False
    assert n_kills >= 10
    # The folder differs, and nothing else may.
    assert json.dumps(without_times(killed.journal)) == json.dumps(without_times(whole.journal))
    assert sorted(killed.trained) == sorted(whole.trained)


def test_a_look_is_in_the_journal_before_it_is_shown(tmp_path, monkeypatch):
    """Whoever is killed while reading has looked."""
    seen = []
    monkeypatch.setattr("lora_bench.launch.tell_study.show_look", lambda *_: seen.append(len(lab.journal["looks"])))
    lab = Lab(tmp_path)
    lab.launch()
    assert seen == list(range(1, len(seen) + 1)) and seen


def test_adapters_that_are_not_to_be_kept_go_with_the_last_look(tmp_path, monkeypatch):
    """`best` keeps each placement's runs at its chosen rate, of the whole study and not of its last step."""
    kept = []
    monkeypatch.setattr("lora_bench.launch.study.drop_adapters", lambda plan, *_: kept.append(set(plan.runs)))
    monkeypatch.setattr("lora_bench.launch.study.log_findings", lambda *_: None)
    lab = Lab(tmp_path)
    lab.launch()
    store = open_store(tmp_path)
    study.finish(lab.families, store, lab.out, make=lambda candidates: make(candidates, store))
    assert kept == [set(lab.trained)]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"margin": 0.05}, "margin 0.02 (now 0.05)"),
        ({"reference": "v"}, "reference qv (now v)"),
        ({"reference": None, "pairs": "all"}, "reference qv (now none)"),
        ({"rates": [1e-3, 3e-3]}, "rates 0.001, 0.003, 0.01 (now 0.001, 0.003)"),
        ({"looks": [4, 8, 16]}, "looks 4, 8 (now 4, 8, 16)"),
        ({"looks": [8]}, "looks 4, 8 (now 8)"),
    ],
)
def test_what_was_declared_stays_once_it_was_looked_at(tmp_path, change, said):
    """Choosing a margin after seeing the scores is choosing the word; a new family has seeds of its own."""
    lab = Lab(tmp_path)
    lab.launch()
    with pytest.raises(ConfigError, match=r"study\.first_seed=1000") as refused:
        lab.launch(**change)
    assert said in str(refused.value) and "\n" not in str(refused.value)
    before = len(lab.trained)
    assert lab.launch(**change, first_seed=1000).is_over
    assert len(lab.trained) > before


def test_a_family_of_another_rule_is_refused(tmp_path):
    """Half of its words would be given under one rule and half under another, which keeps neither one's promise."""
    lab = Lab(tmp_path)
    lab.launch()
    (journal,) = journals(tmp_path)
    written = journal.read()
    del written["declaration"]["rule"]  # as those of the first rule are
    journal.write(written)
    with pytest.raises(ConfigError, match=r"under rule 1 .* has rule 2; .*study\.first_seed=1000") as refused:
        lab.launch()
    assert "\n" not in str(refused.value)
    assert lab.launch(first_seed=1000).is_over


def test_before_the_first_look_it_may_still_change(tmp_path):
    """The search looks at `select` alone, and spends nothing."""
    lab = Lab(tmp_path, luck=lambda: len(lab.trained) >= 5)
    lab.launch()
    lab.luck = lambda: False
    assert lab.launch(margin=0.03).is_over
    assert lab.journal["declaration"]["margin"] == 0.03


def test_runs_dropped_by_hand_are_missed(tmp_path):
    """Seeds that somebody did not like must not leave without a word."""
    lab = Lab(tmp_path)
    lab.launch()
    lost = lab.journal["looks"][0]["runs"][0]
    (tmp_path / lost).rename(tmp_path.parent / lost)
    with pytest.raises(ConfigError, match=f"1 run that the store no longer has .{lost}"):
        lab.launch()
    (tmp_path.parent / lost).rename(tmp_path / lost)
    assert lab.launch().is_over


def test_scores_that_changed_since_a_look_are_told(tmp_path):
    """A run trained again elsewhere may score otherwise; the look that was held stays what it was."""
    lab = Lab(tmp_path)
    lab.launch()
    run_id = lab.journal["looks"][0]["runs"][0]
    record = tmp_path / run_id / "record.json"
    text = record.read_text().partition("\n")[2]  # without the checksum, as another tool would write it
    scores = json.loads("{" + text)["scores"]["report"]["matthews"]
    record.write_text("{" + text.replace(f'"matthews": {scores}', '"matthews": 0.123'))
    with pytest.raises(ConfigError, match=r"look 1 of .* was held with other (scores|words|rates)"):
        lab.launch()


def test_runs_of_two_environments_are_not_compared(tmp_path):
    """A look over two machines would compare the machines."""
    lab = Lab(tmp_path, luck=lambda: len(lab.trained) >= 20)
    lab.launch()
    lab.luck, lab.environment = (lambda: False), "cpu-b"
    with pytest.raises(ConfigError, match=r"2 environments \(cpu-a, cpu-b\).*study\.first_seed=1000"):
        lab.launch()


def test_a_journal_that_was_edited_is_refused(tmp_path):
    """Its checksum is on its first line."""
    lab = Lab(tmp_path)
    lab.launch()
    path = journals(tmp_path)[0].path
    path.write_text(path.read_text().replace('"better"', '"worse"'))
    with pytest.raises(Exception, match="is not what was written"):
        lab.launch()


def test_seeds_that_predict_one_class_are_set_aside(tmp_path):
    """Their share stands beside the word, which is about the seeds that learn."""
    lab = Lab(tmp_path, stuck={("qv", 2), ("q", 5)})
    finding = next(one for one in lab.launch().courses[0].findings if one.second == "q")
    assert finding.word == looks.BETTER
    assert finding.n_failed[0] == 1 and finding.n_pairs < finding.n_seeds
    assert "qv 1 of" in lab.said


def test_a_run_that_failed_stops_the_study_and_not_its_words(tmp_path):
    """The next look needs the run; it is named, and nothing is judged without it."""
    lab = Lab(tmp_path)
    write = lab.write

    def break_one(store, run):
        if len(lab.trained) == 12 and not broken:
            broken.append(run.run_id)
            about = {"run_id": run.run_id, "cell_id": run.cell_id, "config": run.science, "manifest": run.manifest}
            store.write(failed_record(Failure.died("out of luck"), **about))
        else:
            write(store, run)

    broken: list[str] = []
    lab.write = break_one
    ended = lab.launch()
    assert broken and not ended.is_over and not ended.courses[0].looks
    assert study.conclude(lab.families, ended, open_store(tmp_path), lab.out, command=["lora-bench"]) == 1
    assert "out of luck" in lab.said and "hydra.sweeper.retry_failed=true" in lab.said


@pytest.mark.parametrize(
    ("section", "said"),
    [
        (None, "declares none"),
        ({"rates": [1e-3], "rate": 1}, "did you mean 'rates'"),
        ({"rates": "fast"}, "study.rates: no 'fast'; give such as"),
        ({"rates": [1e-3], "looks": [2]}, "study.looks: ascending, 4 seeds at least"),
        ({"rates": [1e-3], "pairs": "some"}, "study.pairs: no 'some'"),
        ({"rates": [1e-3], "reference": "k"}, "study.reference: 'k' is none of q, v, qv"),
        ({"rates": [1e-3], "margin": -1}, "study.margin: above 0"),
    ],
)
def test_a_declaration_that_cannot_be_is_told(tmp_path, section, said):
    """By its key, its value and what would work."""
    points = [(f"adapter.targets={name}",) for name in ("q", "v", "qv")]

    def declare():
        declared = Declared.read(section, sweep="mine")
        return families("mine", declared, points, functools.partial(compose, tmp_path), open_store(tmp_path))

    with pytest.raises(ConfigError) as refused:
        declare()
    assert said in str(refused.value)


def test_a_dry_run_tells_what_it_may_cost_and_trains_nothing(tmp_path):
    """Rates, looks, runs at least and at most, and the chance of a word."""
    lab = Lab(tmp_path)
    ended = lab.launch()
    store = open_store(tmp_path)
    study.dry_run(lab.families, store, lab.out, make=lambda candidates: make(candidates, store))
    assert "looks at 4, 8 seeds" in lab.said and "at least" in lab.said and "chance of a word" in lab.said
    n_runs = len(lab.trained)
    from lora_bench.launch import tell_study

    least, most = tell_study.runs_at_least(lab.families[0]), tell_study.runs_at_most(lab.families[0])
    assert least <= n_runs <= most
    assert ended.is_over


SHIPPED = [path.stem for path in sorted((resource_root() / "sweeps").glob("*.yaml")) if "study:" in path.read_text()]


@pytest.mark.parametrize("name", SHIPPED)
def test_the_studies_that_ship_can_be_run(name, command):
    """By a word or two beside the task and the model, as the help says."""
    assert {"weight_types", "budget"} <= set(SHIPPED)
    ended = command("study", name, "task=acceptability", "model=minilm", "tracking=none", "dry_run=true")
    assert ended.status == 0, ended.text
    assert "it is at: search" in ended.out and "at most" in ended.out and "chance of a word" in ended.out
