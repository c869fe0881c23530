"""What is missing: a note says itself whether it is a gap, in whatever words."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from fake_store import fake_record, frame_of, rank_records, weight_types_records
from lora_bench.questions import page, pareto, rank, weight_types
from lora_bench.reports.scope import Scope
from lora_bench.reports.section import SettingSection
from lora_bench.verdicts.note import Note, gap
from lora_bench.verdicts.settings import Setting

SCOPE = Scope(Path("runs"))  # of no store: the runs are given
SETTING = Setting("minilm · cola", "slug", {}, frame_of([fake_record()]))


def section(*notes: Note, refused: tuple[str, ...] = ()) -> tuple[str, SettingSection]:
    return "Rank", SettingSection("Rank", "Found.", notes=list(notes), refused=list(refused), setting=SETTING)


@pytest.mark.parametrize("text", ["nothing of the kind was run", "alpha needs no second look", "a task called missing"])
def test_a_note_is_a_gap_by_what_it_is_and_not_by_its_words(text):
    """Thirteen words of our own prose decided: one reworded note would have dropped off the page without a trace."""
    assert page.gaps([section(Note(text))]) == []
    assert page.gaps([section(gap(text))]) == [f"minilm · cola: {text}"]


def test_a_gap_is_told_once_and_that_of_another_setting_under_its_own_name():
    made = [section(gap("runs failed"), refused=("minilm · rte: no rank",)), section(gap("runs failed"))]
    assert page.gaps(made) == ["minilm · cola: runs failed", "minilm · rte: no rank"]


@pytest.mark.parametrize(
    ("question", "records", "words"),
    [
        (weight_types, weight_types_records(n_seeds=2, rates=(1e-3,)), "no verdict is possible below 4"),
        (weight_types, weight_types_records(n_seeds=3, rates=(1e-3,))[1:], "missing from the store"),
        (rank, rank_records(ranks=(1, 8), n_seeds=3, rates=(1e-3, 3e-3)), "the store lacks rank 2"),
        (rank, rank_records(ranks=(1, 8), n_seeds=3, rates=(1e-3,)), "one rate only was tried"),
    ],
    ids=["few_seeds", "absent_run", "absent_rank", "one_rate"],
)
def test_what_a_question_finds_missing_is_a_gap(question, records, words):
    made = question.sections(frame_of(records), replace(SCOPE, with_paper=True))
    assert any(words in line for line in page.gaps([("", one) for one in made]))
    assert any(words in remark for one in made for remark in one.remarks)


def test_how_a_setting_was_trained_is_no_gap():
    records = [record | {"git": {"commit": "a" * 40, "dirty": True}} for record in rank_records(n_seeds=3)]
    (made,) = pareto.sections(frame_of(records), SCOPE)
    assert page.gaps([("Cost", made)]) == []


def test_what_the_design_left_out_is_no_gap():
    """A staged search runs some rates on few seeds, and a rank of one placement is no hole in the others."""
    records = rank_records(ranks=(1, 8), n_seeds=4, rates=(3e-3, 1e-2))
    staged = rank_records(ranks=(1, 8), n_seeds=1, rates=(1e-3,))
    alone = [fake_record(targets="qv", rank=10, lr=3e-3, seed=seed, report=0.5) for seed in range(4)]
    made = rank.sections(frame_of([*records, *staged, *alone]), SCOPE)
    lines = page.gaps([("Rank", section) for section in made])
    assert not [line for line in lines if "could not compete" in line or "q r=10" in line or "qkvo r=10" in line]
    assert any("could not compete" in remark for section in made for remark in section.remarks)
