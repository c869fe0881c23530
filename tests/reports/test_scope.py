"""What a question is asked of: the command line becomes a Scope, once, and the library sees nothing of argparse."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from fake_store import fake_record, frame_of
from lora_bench.reports import script
from lora_bench.reports.scope import Scope
from lora_bench.verdicts.settings import NothingToShow

LIBRARY = Path(__file__).resolve().parents[2] / "lora_bench"
ROOMS = ("verdicts", "reports", "questions", "calibration")


@pytest.mark.parametrize(
    ("argv", "scope"),
    [
        ([], Scope(Path("runs"))),
        (["--store", "a", "--model", "m", "--task", "t"], Scope(Path("a"), model="m", task="t")),
        (["--margin", "2.5", "--metric", "f1"], Scope(Path("runs"), margin=0.025, metric="f1")),
        (["--method", "dora", "--mix-environments"], Scope(Path("runs"), method="dora", mix_environments=True)),
    ],
)
def test_a_command_line_says_what_it_is_asked_of(argv, scope):
    """Points on the command line are fractions from here on."""
    assert script.parse(script.parser("Ranks.", "rank"), [*argv, "--out", "b"])[:2] == (scope, Path("b"))


@pytest.mark.parametrize(("margin", "of_accuracy", "of_matthews"), [(None, 0.01, 0.02), (0.03, 0.03, 0.03)])
def test_a_margin_that_was_asked_for_stands_for_every_metric(margin, of_accuracy, of_matthews):
    scope = Scope(Path("runs"), margin=margin)
    assert (scope.margin_of("accuracy"), scope.margin_of("matthews")) == (of_accuracy, of_matthews)


@pytest.mark.parametrize(
    ("asked", "tasks"),
    [({}, {"cola", "rte"}), ({"task": "rte"}, {"rte"}), ({"model": "minilm"}, {"cola"}), ({"model": "a/b"}, {"rte"})],
)
def test_a_scope_leaves_the_runs_that_were_asked_for(asked, tasks):
    runs = frame_of([fake_record(task="cola"), fake_record(task="rte", model="a/b")])
    assert len(runs) == 2
    assert set(Scope(Path("runs"), **asked).within(runs)["task"]) == tasks


def test_a_scope_without_a_run_names_what_the_store_holds():
    with pytest.raises(NothingToShow, match=r"no run has task 'sst2'; the store holds cola"):
        Scope(Path("runs"), task="sst2").within(frame_of([fake_record()]))


def test_the_library_takes_no_namespace():
    """What a function needs stands in its signature: `options.layer` of a Namespace fails in the last minute of a
    report, when somebody forgot to set it."""
    files = [path for room in ROOMS for path in sorted((LIBRARY / room).rglob("*.py"))]
    assert len(files) > 30
    takes = [
        f"{path.name}: {node.name}"
        for path in files
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef)
        for argument in (*node.args.args, *node.args.kwonlyargs)
        if argument.arg == "options" or (argument.annotation and "Namespace" in ast.unparse(argument.annotation))
    ]
    assert takes == []
