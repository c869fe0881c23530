"""What a plan says of its tasks before anything trains: labels, rows that occur twice, how heads begin."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from lora_bench.launch import packs
from lora_bench.tasks.rows import Task
from lora_bench.tasks.summary import summarise
from lora_bench.wording import counted, listed

if TYPE_CHECKING:
    from lora_bench.models.blueprint import Blueprint  # with torch, which no table needs

MOST_NAMED = 8
"""Labels that are named one by one; of more the first and the last are."""
MOST_LETTERS = 40
FEW = 0.01
"""Share of a split's rows that fill `train.max_length`, below which nothing is said of them."""

NEARLY_ALL = 0.95
"""Share of train rows at which what holds of them is no chance."""


def lines(runs: Iterable[Any]) -> Iterator[str]:
    """Two lines for each task of these resolved runs, one for each text that holds none, one for each length at which
    many rows are cut, and one for each head that a backbone begins with."""
    runs = list(runs)
    first: dict[tuple[str, int], Any] = {}
    for run in runs:
        first.setdefault(_rows_of(run), run)
    for run in first.values():
        yield _labels(run.config.task.name, run.task)
        yield f"  {_repeats(run.task)}"
        yield from (f"  {line}" for line in _leaks(run.task))
        alike = [other for other in runs if _rows_of(other) == _rows_of(run)]
        by_length = {(other.blueprint.fingerprint, other.config.train.max_length): other for other in reversed(alike)}
        yield from (f"  {line}" for line in filter(None, map(_full, by_length.values())))
        plans = {other.blueprint.fingerprint: other.blueprint for other in alike}
        yield from (f"  {_head(plan, run.task)}" for plan in plans.values())


def _rows_of(run: Any) -> tuple[str, int]:
    return run.task.fingerprint, run.n_train


def _labels(name: str, task: Task) -> str:
    counts = summarise(task).counts
    order = ", ".join(map(functools.partial(_counted, task), task.splits))
    if not task.label_names:
        return f"task {name}: numbers ({order})"
    per_label = list(zip(map(_shown, task.label_names), zip(*counts.values(), strict=True), strict=True))
    cells = [f"{label} ({', '.join(f'{count:,}' for count in row)})" for label, row in per_label]
    if len(cells) > MOST_NAMED:
        cells = [*cells[:3], "...", cells[-1]]
    return f"task {name}: {counted(task.n_labels, 'label')} ({order}): {', '.join(cells)}"


def _counted(task: Task, split: str) -> str:
    n_rows, n_used = len(task.splits[split]), task.facts["splits"][split]["rows"]
    name = split.replace("_", " ")
    return f"{n_rows:,} {name}" if n_used == n_rows else f"{n_rows:,} {name}, of which each seed draws {n_used:,}"


def _repeats(task: Task) -> str:
    figures = summarise(task)
    sayings = []
    for split, others in figures.repeats.items():
        rows = f"{len(task.splits[split]):,} {split.replace('_', ' ')} rows"
        repeated = [f"{n:,} of {other}" for other, n in others.items() if n]
        sayings.append(f"of {rows} {listed(repeated)} too" if repeated else f"of {rows} none of train or select")
    if figures.n_select_repeats:
        sayings.append(f"of {len(task.splits['select']):,} select rows {figures.n_select_repeats:,} of train too")
    if figures.n_empty:
        sayings.append(f"{counted(figures.n_empty, 'row')} with one text empty")
    is_cut = task.facts["cut"]["select"] != "own split"
    sayings.append("select is cut from train, before it" if is_cut else "select has rows of its own")
    return "; ".join(sayings)


def _leaks(task: Task) -> Iterator[str]:
    """What a text holds instead of a text: the label, or the other text. Both are slips in `task.text_columns`."""
    figures = summarise(task)
    names = ("the first text", "the second text") if len(figures.given) > 1 else ("the text",)
    for name, share in zip(names, figures.given, strict=True):
        if share >= NEARLY_ALL:
            yield f"WARNING: {name} gives away the label of {share:.0%} of train rows; is its column one of the labels?"
    if figures.same >= NEARLY_ALL:
        yield f"WARNING: both texts are the same in {figures.same:.0%} of train rows; are their columns the two meant?"


def _full(run: Any) -> str:
    """Which rows are as long as rows may be, where those are more than a few: what is behind is not read."""
    shares = packs.lengths(run).full
    parts = [f"{share:.0%} of {split.replace('_', ' ')}" for split, share in shares.items() if share >= FEW]
    most = run.config.train.max_length
    where = f"train.max_length={most} tokens of {run.blueprint.name}"
    return f"rows that fill {where}, and are cut there if longer: {listed(parts)}" if parts else ""


def _head(plan: Blueprint, task: Task) -> str:
    """How the head begins, and whether its outputs stand for the labels in the task's order."""
    from lora_bench.models import weights

    if plan.config.trust_remote_code:
        return f"how the head on {plan.name} begins is for the model's own code"
    if plan.folder is None:
        return f"all weights of {plan.name} are random, as model.weights=random says: its scores mean nothing"
    head = weights.head_of(plan.folder)
    if head is None or len(head.labels) != task.n_labels:
        return f"the head on {plan.name} begins fresh"
    start = f"the head on {plan.name} begins as the checkpoint's"
    if not task.label_names:
        return start
    in_order = f"{_few(task.label_names)}, in this order"
    if all(re.fullmatch(r"LABEL_\d+", label) for label in head.labels):
        return f"{start}, whose outputs have no names; the task takes them for {in_order}"
    outputs = f"{start}, whose outputs are {_few(head.labels)}"
    ours, theirs = ([label.casefold() for label in labels] for labels in (task.label_names, head.labels))
    if ours == theirs:
        return f"{outputs}, as the task's"
    if sorted(ours) == sorted(theirs):
        return f"{outputs}: NOT the order of the task, {_few(task.label_names)}; it begins with labels exchanged"
    return f"{outputs}; the task takes them for {in_order}"


def _few(labels: Sequence[str]) -> str:
    names = [_shown(label) for label in labels]
    return ", ".join(names if len(names) <= MOST_NAMED else [*names[:3], "...", names[-1]])


def _shown(label: str) -> str:
    """A label on one line of a terminal: short, and what moves the cursor as its escape."""
    plain = label if label.isprintable() else repr(label)[1:-1]
    return plain if len(plain) <= MOST_LETTERS else f"{plain[: MOST_LETTERS - 3]}..."
