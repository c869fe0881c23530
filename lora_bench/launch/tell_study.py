"""What a study says: before a step, at each look, and in the end."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from rich.console import Console

from lora_bench.launch import tell_tasks
from lora_bench.launch.families import Family
from lora_bench.launch.plan import Plan
from lora_bench.verdicts import looks, pairwise, power, scheme
from lora_bench.verdicts.family import starts_in_words
from lora_bench.verdicts.looks import Finding, Look
from lora_bench.verdicts.scheme import Course
from lora_bench.wording import Grid, counted, duration, interval, p_value, signed, size


def introduce(family: Family, out: Console, *, before: Family | None = None) -> None:
    """What a family is of, once a launch: its task's labels and rows, and what is declared.

    Args:
        before: the family that was introduced before it, whose lines are not said again.
    """
    said = [] if before is None else _of_task(before)
    for line in _of_task(family):
        if line not in said:
            out.print(line)
    out.print(declared_in_words(family))


def _of_task(family: Family) -> list[str]:
    declared = family.declaration
    first = declared.placements[0]
    run = family.cells.run(first, declared.start(first)[0], declared.first_seed)
    return [*tell_tasks.lines([run]), *filter(None, [run.blueprint.remark])]


def announce(family: Family, course: Course, plan: Plan, out: Console) -> None:
    """The step of a family, and what it still has to train for it."""
    run_ids = set(family.run_ids(course.step))
    to_train = sum(run_id in run_ids for run_id in plan.pending())
    line = f"{family.title}: {course.stage}, {counted(to_train, 'run')} to train"
    if course.alive:
        line += f"; rates {_rates({cell.placement: course.alive[cell.placement] for cell in course.step if cell.rate})}"
    out.print(line)


def show_look(family: Family, look: Look, out: Console) -> None:
    """The words of a look, and what is open."""
    declaration = family.declaration
    parts = [
        f"look {look.number + 1} of {len(declaration.looks)}",
        f"{look.n_seeds} seeds",
        f"error spent {look.spent:.4f} of {declaration.error:.4f}",
    ]
    out.print(f"\n{family.title} | {' | '.join(parts)}")
    out.print(f"  rates alive: {_rates(look.alive, look.steadier)}")
    out.print(_table(family, look))
    if declaration.reference is None:
        _explain_pairs(family, look, out)
    metric = family.metric.replace("_", " ")
    out.print(f"  {metric} × 100 on report, each at the rate that select ranks first; a word holds at every rate alive")
    if any(look.steadier.values()):
        out.print("  in brackets: alive because more seeds learn there; words on who learns more often hold there too")
    unlearned = [name for name, kind in look.learning.items() if kind != looks.LEARNS]
    if unlearned:
        out.print(f"  at no rate tried better than the head alone on select: {', '.join(unlearned)}")


def _table(family: Family, look: Look) -> Grid:
    """The contrasts of a look. Those of a reference say at length what they are and which seeds failed; all pairs,
    which are many, are a line each on 80 columns."""
    is_of_pairs = family.declaration.reference is None
    has_failed = any(sum(finding.n_failed) for finding in look.findings)
    failed = ("failed",) if has_failed and not is_of_pairs else ()
    headings = ("contrast", "difference", "interval", "it is", "seeds", *failed, "p", "p tied")
    table = Grid(headings, texts=["contrast", "it is", *failed])
    for finding in look.findings:
        table.add_row(
            f"{finding.first} − {finding.second}",
            signed(finding.difference),
            interval(*looks.ends(asdict(finding)), signed),
            _in_brief(finding) if is_of_pairs else looks.spoken(asdict(finding), n_last=family.declaration.looks[-1]),
            str(finding.n_seeds),
            *(looks.failed_in_words(asdict(finding)) or "-" for _ in failed),
            p_value(finding.p_different),
            p_value(finding.p_tied),
        )
    return table


def _in_brief(finding: Finding) -> str:
    if finding.word == looks.OPEN and math.isfinite(finding.chance):
        return f"open, {100 * finding.chance:.0f} %"
    return pairwise.BRIEF.get(finding.word, finding.word)


def _explain_pairs(family: Family, look: Look, out: Console) -> None:
    """What several of the pairs share, said once."""
    chances = [finding.chance for finding in look.findings if finding.word == looks.OPEN]
    if any(map(math.isfinite, chances)):
        n_last = family.declaration.looks[-1]
        out.print(
            f"  open: the chance of a word at {n_last} seeds; below {100 * looks.FUTILE:.0f} % none are added for it"
        )
    failed: dict[str, str] = {}
    for finding in sorted(look.findings, key=lambda finding: finding.n_seeds):
        failed |= looks.failed_shares(asdict(finding))
    if failed:
        out.print(f"  failed seeds: {', '.join(failed.values())}")


def conclude(families: Sequence[Family], courses: Sequence[Course], out: Console) -> None:
    """What is settled and what is open: a line each family, and a matrix of words where all pairs were declared."""
    for family, course in zip(families, courses, strict=True):
        findings = course.findings
        if not findings:
            out.print(f"{family.title}: no look yet ({course.stage})")
            continue
        start = f"{family.title}, {counted(course.looks[-1].n_seeds, 'seed')}"
        if family.declaration.reference is None:
            _conclude_pairs(start, family.declaration.placements, findings, out)
            continue
        by_word: dict[str, list[str]] = {}
        for finding in findings:
            by_word.setdefault(finding.word, []).append(f"{finding.first} − {finding.second}")
        words = "; ".join(f"{word}: {', '.join(pairs)}" for word, pairs in by_word.items())
        out.print(f"{start}: {words}")


def _conclude_pairs(start: str, names: Sequence[str], findings: Sequence[Finding], out: Console) -> None:
    worded = [(finding.first, finding.second, finding.word) for finding in findings]
    table = Grid(("it is, against", *names), texts=["it is, against", *names])
    for name, row in zip(names, pairwise.matrix(names, worded), strict=True):
        table.add_row(name, *row)
    out.print(table)
    out.print(f"{start}: {pairwise.sentence(names, worded)}")


# ---------------------------------------------------------------- before anything is trained


def describe(family: Family, course: Course, out: Console, *, seconds_of_run: float, bytes_of_run: float) -> None:
    """What a study will do: rates, looks, runs at least and at most, hours, disk, and the chance of a word.

    Args:
        seconds_of_run, bytes_of_run: what a run takes here, nan where unknown.
    """
    least, most = runs_at_least(family), runs_at_most(family)
    out.print(f"  it is at: {course.stage}")
    if spent := adapters_in_words(family):
        out.print(f"  ranks and parameters: {spent}")
    out.print(f"  runs in all, those that are there included: {least} at least, {most} at most")
    if math.isfinite(seconds_of_run):
        times = [duration(seconds_of_run * n) for n in (least, most)]
        out.print(f"  about {times[0]} to {times[1]} here, {size(bytes_of_run * most)} at most")
    for line in chances(family):
        out.print(f"  {line}")


def describe_all(families: Sequence[Family], out: Console) -> None:
    """What several families come to together."""
    least, most = _runs_of_all(families)
    out.print(f"{len(families)} families: {least} runs at least, {most} at most")


def tell_size(families: Sequence[Family], out: Console) -> None:
    """Before the first run: how many there will be, and how to see more without training."""
    least, most = _runs_of_all(families)
    works = "dry_run=true tells hours and chances without training; stopped with Ctrl-C, the same line goes on"
    out.print(f"  {least} to {most} runs in all, step by step; {works}")


def _runs_of_all(families: Sequence[Family]) -> tuple[int, int]:
    return sum(map(runs_at_least, families)), sum(map(runs_at_most, families))


def declared_in_words(family: Family) -> str:
    declared = family.declaration
    others = [name for name in declared.placements if name != declared.reference]
    against = "all pairs of" if declared.reference is None else f"{declared.reference} against"
    return (
        f"study of {family.title}: {against} {', '.join(others)}; rates from "
        f"{starts_in_words(asdict(declared))}, looks at {', '.join(map(str, declared.looks))} seeds, "
        f"margin {100 * declared.margin:g}, first seed {declared.first_seed}"
    )


def adapters_in_words(family: Family) -> str:
    """The ranks that each placement has on this backbone and what it costs: `q: 8 (276,480), mlp: 3 to 4 (276,096)`;
    empty where no placement has ranks."""
    declared, parts = family.declaration, []
    for name in declared.placements:
        run = family.cells.run(name, declared.start(name)[0], declared.first_seed)
        ranks = sorted({matrix.rank for matrix in run.matrices})
        if ranks:
            span = f"{ranks[0]}" if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"
            parts.append(f"{name}: {span} ({run.adapter_parameters:,})")
    return ", ".join(parts)


def runs_at_least(family: Family) -> int:
    """Everything settled at the first look, with one rate alive each."""
    declared = family.declaration
    n_fine = 3 * scheme.FINE_SEEDS - 1  # the best of the coarse rates has its first seed
    n_coarse = sum(len(declared.start(name)) for name in declared.placements)
    n_looks = len(declared.placements) * (n_fine + declared.looks[0] - scheme.FINE_SEEDS)
    return n_coarse + n_looks + declared.looks[0]


def runs_at_most(family: Family) -> int:
    """Nothing settled, as many rates alive as may be, the search going beyond its edges and given second chances."""
    declared = family.declaration
    n_rates = sum(len(declared.start(name)) + scheme.MAX_EXTENSIONS for name in declared.placements)
    n_coarse = n_rates * (scheme.FINE_SEEDS + scheme.SECOND_CHANCE)
    n_alive = scheme.MAX_ALIVE + 1  # the steadier one
    n_looks = n_alive * declared.looks[0]
    for before, n in itertools.pairwise(declared.looks):
        # all that were alive go on, or a new rate beside the best and the steadier one
        n_looks += max(n_alive * (n - before), 2 * (n - before) + n)
    return n_coarse + len(declared.placements) * n_looks + declared.looks[-1]


def chances(family: Family) -> list[str]:
    """How likely a contrast gets a word at each look, for a true difference of none and of two margins, where
    seed-wise differences have the sd that small tasks show: a margin, or two."""
    declared = family.declaration
    k = len(declared.pairs)
    lines = []
    for sd in (declared.margin, 2 * declared.margin):
        parts = []
        for number, n in enumerate(declared.looks):
            level = declared.level(number) / k
            seen = float(power.detection_power(2 * declared.margin, sd, n, error=level))
            tied = power.tie_power(declared.margin, sd, n, error=level)
            parts.append(f"{n} seeds {100 * seen:.0f} and {100 * tied:.0f} %")
        lines.append(
            f"chance of a word for a difference of two margins, and for none, if differences vary by {100 * sd:.1f} "
            f"over seeds: {', '.join(parts)}"
        )
    return lines


def _rates(rates_of: Mapping[str, Sequence[float]], steadier: Mapping[str, float | None] | None = None) -> str:
    steadier = steadier or {}
    return ", ".join(f"{name} {looks.rates_in_words(rates, steadier.get(name))}" for name, rates in rates_of.items())
