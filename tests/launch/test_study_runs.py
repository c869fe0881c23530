"""Studies: followed from the records, written down before they are shown, the same wherever they were stopped."""

import functools
import io
import json
import random
import shutil
import zlib
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from lora_bench.config.errors import ConfigError
from lora_bench.launch import study
from lora_bench.launch.estimate import Estimate
from lora_bench.launch.families import Declared, families
from lora_bench.launch.plan import Candidate, make
from lora_bench.paths import resource_root
from lora_bench.store import open_store
from lora_bench.store.errors import StoreError
from lora_bench.store.folder import Store
from lora_bench.store.journal import journals
from lora_bench.store.record import Failure
from lora_bench.verdicts import looks
from records import failed_record, finished_record
from tiny import tiny_config

DECLARED = {"reference": "qv", "rates": [1e-3, 3e-3, 1e-2], "looks": [4, 8], "margin": 0.02}
LEVELS = {"qv": 0.80, "q": 0.60, "k": 0.60, "v": 0.795, "head_only": 0.50}


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

    def __init__(self, root, *, stuck=(), luck=None, environment="cpu-a", overrides=()):
        self.root, self.stuck, self.luck, self.environment = root, stuck, luck or (lambda: False), environment
        self.overrides = list(overrides)
        self.out = Console(file=io.StringIO(), width=140, highlight=False, markup=False)
        self.trained, self.plans, self.facts = [], [], {}

    def launch(self, *, sweep="mine", names=("q", "v", "qv"), **declared):
        """Whatever one command does; returns how it ended."""
        store = open_store(self.root)
        points = [(f"adapter.targets={name}",) for name in names]
        section = Declared.read(DECLARED | declared, sweep=sweep)
        composer = functools.partial(compose, self.root)
        self.families = families(sweep, section, points, composer, store)
        return study.carry_through(
            self.families,
            store,
            self.out,
            make=lambda candidates: make(candidates, store, sweep=sweep),
            train=self.train,
            is_late=lambda: False,
        )

    def train(self, plan):
        """Write the runs that a plan lacks, until luck runs out."""
        store = Store(self.root)
        self.plans.append(plan)
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
            invocation={"overrides": self.overrides, "sweep": "mine"},
            environment={"id": self.environment, "commit": None, "dirty": None, **self.facts},
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


@pytest.fixture(scope="module")
def whole_study(tmp_path_factory):
    lab = Lab(tmp_path_factory.mktemp("study") / "runs")
    lab.launch()
    return lab


@pytest.fixture
def ended(whole_study, tmp_path):
    """A study that is over, in a store of its own."""
    lab = Lab(shutil.copytree(whole_study.root, tmp_path / "runs"))
    lab.trained = list(whole_study.trained)
    return lab


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
        ({"names": ("q", "qv")}, "placements q, v, qv (now q, qv)"),
    ],
)
def test_what_was_declared_stays_once_it_was_looked_at(ended, change, said):
    """Choosing a margin after seeing the scores is choosing the word; a new family has seeds of its own."""
    with pytest.raises(ConfigError, match=r"study\.first_seed=1000") as refused:
        ended.launch(**change)
    assert said in str(refused.value) and "\n" not in str(refused.value)


def test_a_family_of_another_rule_is_refused(ended):
    """Half of its words would be given under one rule and half under another, which keeps neither one's promise."""
    (journal,) = journals(ended.root)
    written = journal.read()
    del written["declaration"]["rule"]  # as those of the first rule are
    journal.write(written)
    with pytest.raises(ConfigError, match=r"under rule 1 .* has rule 3; .*study\.first_seed=1000") as refused:
        ended.launch()
    assert "\n" not in str(refused.value)
    assert ended.launch(first_seed=1000).is_over


def test_before_the_first_look_it_may_still_change(tmp_path):
    """The search looks at `select` alone, and spends nothing."""
    lab = Lab(tmp_path, luck=lambda: len(lab.trained) >= 5)
    lab.launch()
    lab.luck = lambda: False
    assert lab.launch(margin=0.03).is_over
    assert lab.journal["declaration"]["margin"] == 0.03


def test_runs_dropped_by_hand_are_missed(ended, tmp_path):
    """Seeds that somebody did not like must not leave without a word."""
    lost = ended.journal["looks"][0]["runs"][0]
    (ended.root / lost).rename(tmp_path / lost)
    with pytest.raises(ConfigError, match=f"1 run that the store no longer has .{lost}"):
        ended.launch()
    (tmp_path / lost).rename(ended.root / lost)
    assert ended.launch().is_over


def test_scores_that_changed_since_a_look_are_told(ended):
    """A run trained again elsewhere may score otherwise; the look that was held stays what it was."""
    run_id = ended.journal["looks"][0]["runs"][0]
    record = ended.root / run_id / "record.json"
    text = record.read_text().partition("\n")[2]  # without the checksum, as another tool would write it
    scores = json.loads("{" + text)["scores"]["report"]["matthews"]
    record.write_text("{" + text.replace(f'"matthews": {scores}', '"matthews": 0.123'))
    with pytest.raises(ConfigError, match=r"look 1 of .* was held with other (scores|words|rates)"):
        ended.launch()


def test_runs_of_two_environments_are_not_compared(tmp_path):
    """A look over two machines would compare the machines."""
    lab = Lab(tmp_path, luck=lambda: len(lab.trained) >= 20)
    lab.launch()
    lab.luck, lab.environment = (lambda: False), "cpu-b"
    with pytest.raises(ConfigError, match=r"2 environments \(cpu-a, cpu-b\).*study\.first_seed=1000"):
        lab.launch()


DAMAGES = {
    "a_word": lambda content: content.replace(b'"better"', b'"worse"'),
    "a_number": lambda content: content.replace(b'"margin": 0.02', b'"margin": 0.05'),
    "a_look_less": lambda content: content.replace(b'"looks": [', b'"looks": [], "were": ['),
    "cut_short": lambda content: content[: len(content) // 2],
    "nothing": lambda content: b"",
    "no_json": lambda content: b"words\n",
}


def test_a_journal_that_was_edited_is_refused(ended):
    """Whatever was changed in it: its checksum is on its first line."""
    path = journals(ended.root)[0].path
    content = path.read_bytes()
    for damage in DAMAGES.values():
        path.write_bytes(damage(content))
        assert path.read_bytes() != content
        with pytest.raises(StoreError, match=r"is not what was written; .*study\.first_seed=1000") as refused:
            ended.launch()
        assert "\n" not in str(refused.value)
    path.write_bytes(content)
    assert ended.launch().is_over


def test_seeds_that_were_looked_at_are_not_looked_at_under_another_name(ended):
    """A renamed sweep with another margin, or a first seed one higher, would choose words from scores once seen."""
    n_trained = len(ended.trained)
    name = journals(ended.root)[0].path.parent.name
    for change in (
        {"sweep": "renamed"},
        {"sweep": "renamed", "margin": 0.05},
        {"sweep": "renamed", "names": ("v", "qv")},
        {"sweep": "renamed", "reference": None, "pairs": "all"},
        {"first_seed": 1},
        {"first_seed": 3, "rates": [3e-3, 1e-2]},
    ):
        with pytest.raises(ConfigError, match=rf"were looked at with .* in {name}; .*first_seed=1000") as refused:
            ended.launch(**change)
        assert "\n" not in str(refused.value)
        assert len(ended.trained) == n_trained, "nothing is trained for a look that may not be held"
    assert len(journals(ended.root)) == 1


def test_a_placement_alone_may_be_of_two_families(ended):
    """What was looked at is a contrast; a reference may stand in others."""
    assert ended.launch(sweep="another", names=("k", "qv")).is_over
    assert len(journals(ended.root)) == 2


def test_a_journal_of_another_family_is_refused_in_its_place(ended):
    """A file that was copied says words of other runs."""
    (journal,) = journals(ended.root)
    ended.luck = lambda: True
    ended.launch(first_seed=1000)
    (other,) = [place.path for place in journals(ended.root) if place.path != journal.path]
    other.write_bytes(journal.path.read_bytes())
    with pytest.raises(ConfigError, match=r"is of a family with another first_seed; .*first_seed=2000"):
        ended.launch(first_seed=1000)


def test_a_run_of_the_search_that_is_gone_is_named(ended, tmp_path):
    """A look rests on the rates that it was held at, and these on the search."""
    lost = next(
        run_id for run_id in ended.trained if all(run_id not in look["runs"] for look in ended.journal["looks"])
    )
    (ended.root / lost).rename(tmp_path / lost)
    with pytest.raises(ConfigError, match=f"1 run that the store no longer has .{lost}"):
        ended.launch()
    (tmp_path / lost).rename(ended.root / lost)


def test_a_store_may_move(ended, whole_study):
    """Its journal is of the runs in it, wherever they are: this store is a copy."""
    assert ended.launch().is_over
    assert (ended.journal, ended.trained) == (whole_study.journal, whole_study.trained)


def test_other_software_is_refused_before_it_trains(tmp_path):
    """A look would be refused in the end, hours later: it compares runs of one environment."""
    lab = Lab(tmp_path, luck=lambda: len(lab.trained) >= 5)
    lab.facts = {"torch": "0.1"}
    lab.launch()
    lab.luck = lambda: False
    with pytest.raises(ConfigError, match=r"trained with torch 0\.1 \(here .*study\.first_seed=1000") as refused:
        lab.launch()
    assert "\n" not in str(refused.value) and len(lab.trained) == 5


def test_a_study_goes_on_with_the_threads_that_it_began_with(tmp_path):
    """They are part of what a score depends on, and follow the number of workers, which may change at any moment."""
    lab = Lab(tmp_path, luck=lambda: len(lab.trained) >= 5)
    lab.facts = {"device": "cpu", "threads": 7}
    lab.launch()
    lab.luck = lambda: len(lab.trained) >= 10
    lab.launch()
    assert [plan.threads for plan in lab.plans[:2]] == [None, 7]


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


@pytest.mark.usefixtures("unrehearsed", "uncounted")
@pytest.mark.parametrize("name", SHIPPED)
def test_the_studies_that_ship_can_be_run(name, command, monkeypatch):
    """By a word or two beside the task and the model, as the help says."""
    assert {"weight_types", "budget"} <= set(SHIPPED)
    monkeypatch.setattr(study, "estimate", lambda plan, store: Estimate(60.0, 2**20, "not measured: that takes steps"))
    ended = command("study", name, "task=acceptability", "model=minilm", "tracking=none", "dry_run=true")
    assert ended.status == 0, ended.text
    assert "it is at: search" in ended.out and "at most" in ended.out and "chance of a word" in ended.out


def test_a_dry_run_tells_the_ranks_that_a_budget_comes_to(tmp_path):
    """Grouped queries and an MLP get other ranks than q for the same budget, and a reader cannot know them."""
    lab = Lab(tmp_path)
    lab.launch()
    (family,) = lab.families
    run = family.cells.run("qv", 1e-3, 0)
    (rank,) = {matrix.rank for matrix in run.matrices}
    cost = sum(rank * (matrix.d_in + matrix.d_out) for matrix in run.matrices)
    store = open_store(tmp_path)
    study.dry_run(lab.families, store, lab.out, make=lambda candidates: make(candidates, store))
    assert f"qv: {rank} ({cost:,})" in lab.said
