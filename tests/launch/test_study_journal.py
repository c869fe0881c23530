"""What a study said stays what it said: whoever edits, empties or removes its journal, or asks again, is told."""

import functools
import shutil
from dataclasses import replace

import pytest

from launch import test_study_runs
from launch.test_study_runs import Lab, compose
from lora_bench.cli import rescore
from lora_bench.config.errors import ConfigError
from lora_bench.launch import study
from lora_bench.launch.lost import OF_A_STUDY
from lora_bench.store.errors import StoreError
from lora_bench.store.journal import journals

SMALL = {"names": ("v", "qv"), "rates": [3e-3], "looks": [4, 6]}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A study of one contrast, as a store's records have it, that is open after its last look."""
    lab = Lab(tmp_path_factory.mktemp("study") / "runs", overrides=[OF_A_STUDY])
    lab.ended = lab.launch(**SMALL, margin=1e-4)
    assert lab.ended.is_over
    return lab


@pytest.fixture
def looked_at(whole):
    """The journal of the study, and what holds it against the records as a launch would; put back afterwards."""
    (journal,) = journals(whole.root)
    content, course = journal.path.read_bytes(), whole.ended.courses[0]
    yield journal, lambda: study.keep(whole.families[0], course)
    journal.path.write_bytes(content)


@pytest.fixture
def ended(whole, tmp_path):
    lab = Lab(shutil.copytree(whole.root, tmp_path / "runs"), overrides=[OF_A_STUDY])
    lab.launch = functools.partial(lab.launch, **SMALL, margin=1e-4)
    return lab


def leaves(value, path=()):
    """Every place of a document that holds no further ones."""
    if isinstance(value, (dict, list)) and value:
        keys = value if isinstance(value, dict) else range(len(value))
        for key in keys:
            yield from leaves(value[key], (*path, key))
    else:
        yield path


def other(value):
    """Another value of the same kind."""
    if isinstance(value, bool) or value is None:
        return 0.5
    if isinstance(value, (int, float)):
        return value * 1.01 + 1
    return value + value if isinstance(value, list) else f"{value}x"


def edited(journal, path, change):
    """Write a journal with one value changed, and the checksum that fits."""
    written = journal.read()
    *parents, last = path
    place = functools.reduce(lambda inner, key: inner[key], parents, written)
    change(place, last)
    journal.write(written)


FREE = {"title", "declared", "held"}
"""Nothing else gives what is said there: the order of the command line, and times."""


def test_any_value_that_was_changed_is_told_whatever_its_checksum(looked_at):
    """A level, a p-value or an interval is as much of the verdict as its word, and anybody can compute a checksum."""
    journal, hold = looked_at
    content = journal.path.read_bytes()
    places = [path for path in leaves(journal.read()) if path[-1] not in FREE]
    ids = [path for path in places if "runs" in path]
    places = [path for path in places if path not in ids[1:]]
    assert len(places) > 60

    def set_other(place, key):
        place[key] = other(place[key])

    silent = []
    for path in places:
        edited(journal, path, set_other)
        try:
            hold()
        except (ConfigError, StoreError) as error:
            assert "study.first_seed=1000" in str(error) and "\n" not in str(error), path
        else:
            silent.append(path)
        journal.path.write_bytes(content)
    assert not silent
    assert hold() == []


@pytest.mark.parametrize(
    ("path", "said"),
    [
        (("looks", 0, "level"), "look 1 of .* other level .1.0336.*, now 0.033"),
        (("looks", 1, "spent"), "look 2 of .* other error spent"),
        (("looks", 1, "findings", 0, "p_different"), "look 2 of .* other p-values of qv − v"),
        (("looks", 0, "findings", 0, "low"), "look 1 of .* other intervals of qv − v"),
        (("looks", 0, "findings", 0, "word"), "look 1 of .* other words of qv − v .openx, now open"),
        (("looks", 0, "environment"), "look 1 of .* other environment .cpu-ax, now cpu-a"),
        (("looks", 1, "runs", 0), "1 run that the store no longer has"),
        (("metric",), "another metric"),
    ],
)
def test_what_was_changed_is_named(looked_at, path, said):
    """By its look and its kind, with both values where they are short."""
    journal, hold = looked_at
    edited(journal, path, lambda place, key: place.__setitem__(key, other(place[key])))
    with pytest.raises(ConfigError, match=said):
        hold()


@pytest.mark.parametrize(
    "path",
    [
        ("looks",),
        ("declaration",),
        ("looks", 0),
        ("looks", 0, "level"),
        ("looks", 0, "findings", 0),
        ("setting", "task"),
    ],
    ids=str,
)
def test_what_was_taken_out_is_told(looked_at, path):
    """Whatever is no longer there, in one line."""
    journal, hold = looked_at
    edited(journal, path, lambda place, key: place.pop(key))
    with pytest.raises((ConfigError, StoreError), match=r"study\.first_seed=1000") as refused:
        hold()
    assert "\n" not in str(refused.value)


# ---------------------------------------------------------------- a journal that is gone


REMOVED = {
    "the_file": lambda journal: journal.path.unlink(),
    "its_folder": lambda journal: shutil.rmtree(journal.path.parent),
    "all_journals": lambda journal: shutil.rmtree(journal.path.parents[1]),
    "its_looks": lambda journal: edited(journal, ("looks",), lambda place, key: place.__setitem__(key, [])),
}
ASKED: dict[str, dict] = {
    "as_it_was": {},
    "with_another_margin": {"margin": 0.5},
    "under_another_name": {"sweep": "renamed"},
}


@pytest.mark.parametrize(
    ("removed", "asked"),
    [*((removed, "as_it_was") for removed in REMOVED), *(("the_file", asked) for asked in ASKED if ASKED[asked])],
)
def test_a_journal_that_is_gone_is_missed(ended, removed, asked):
    """Its runs say that a study trained them: a new declaration would be made with their scores before one's eyes."""
    REMOVED[removed](journals(ended.root)[0])
    n_trained = len(ended.trained)
    with pytest.raises(ConfigError, match=r"put back .*family\.json, or .*study\.first_seed=1000") as refused:
        ended.launch(**ASKED[asked])
    assert "\n" not in str(refused.value) and len(ended.trained) == n_trained


def test_runs_of_a_fixed_design_may_become_those_of_a_study(whole, tmp_path):
    """No study trained them, so none has lost its journal."""
    lab = Lab(shutil.copytree(whole.root, tmp_path / "runs"))
    for file in lab.root.glob("*/record.json"):
        body = "{" + file.read_text().partition("\n")[2]  # without its checksum, as another tool writes one
        file.write_text(body.replace(OF_A_STUDY, "seed=range(8)"))
    shutil.rmtree(journals(lab.root)[0].path.parents[1])
    assert lab.launch(**SMALL, margin=1e-4).is_over


def test_a_search_that_was_stopped_is_none_of_it(tmp_path):
    """Before the first look all may change: its scores on report have not been compared."""
    lab = Lab(tmp_path, luck=lambda: len(lab.trained) >= 8, overrides=[OF_A_STUDY])
    assert lab.launch(**SMALL).stopped
    journals(lab.root)[0].path.unlink()
    assert lab.launch(**SMALL, margin=0.3).stopped
    lab.launch(sweep="renamed", **SMALL)


# ---------------------------------------------------------------- what is done between two looks


def test_runs_that_are_scored_on_other_rows_are_the_same_models(ended, monkeypatch):
    """Rows more or less, or another metric, would be another choice of words for what was seen."""

    def on_fewer_rows(store, overrides):
        candidate = compose(store, overrides)
        candidate.config.task.report_rows -= 4
        return candidate

    test_study_runs.parsed.cache_clear()
    monkeypatch.setattr(test_study_runs, "compose", on_fewer_rows)
    with pytest.raises(
        ConfigError, match=r"were looked at with .* on other rows or by another metric; .*first_seed=1000"
    ):
        ended.launch()


def test_predictions_that_were_changed_are_told(ended):
    """Which seeds learn is read from them."""
    run_id = ended.launch().courses[0].looks and journals(ended.root)[0].read()["looks"][0]["runs"][0]
    (ended.root / run_id / "predictions.parquet").write_bytes(b"PAR1")
    with pytest.raises(StoreError, match=rf"{run_id}.* does not match its checksum") as refused:
        ended.launch()
    assert "\n" not in str(refused.value)


def test_scoring_again_changes_nothing(ended, tmp_path):
    """It writes a table, and neither records nor words."""
    before = {path: path.read_bytes() for path in ended.root.rglob("*.json")}
    rescore.main(["--store", str(ended.root), "--out", str(tmp_path / "out")])
    assert {path: path.read_bytes() for path in ended.root.rglob("*.json")} == before
    assert ended.launch().is_over


@pytest.mark.parametrize("left", [("v", "qv"), ("q", "qv"), ("q", "v", "qv", "k")])
def test_a_placement_more_or_less_makes_no_new_family_of_seeds_that_were_looked_at(tmp_path, monkeypatch, left):
    """Even where what the rest shares is another setting, and so another journal: `methods` without `full` is one."""

    def of_another_alpha(store, overrides):
        candidate = compose(store, overrides)
        if "adapter.targets=q" not in overrides:
            return candidate
        return replace(
            candidate, config=replace(candidate.config, adapter=replace(candidate.config.adapter, alpha=32.0))
        )

    monkeypatch.setattr(test_study_runs, "compose", of_another_alpha)
    lab = Lab(tmp_path, overrides=[OF_A_STUDY])
    assert lab.launch(names=("q", "v", "qv"), rates=[3e-3], looks=[4]).is_over
    n_trained = len(lab.trained)
    with pytest.raises(ConfigError, match=r"were looked at|placements q, v, qv \(now") as refused:
        lab.launch(names=left, rates=[3e-3], looks=[4])
    assert "study.first_seed=1000" in str(refused.value) and len(lab.trained) == n_trained
