"""A study: a loop of plan, carry out and look, until every contrast has its word or its last look.

    follow the families -> the runs of their next step -> a plan, as of any sweep -> train -> follow again

The families are followed from the records alone, so the same command goes on wherever it was stopped. What was declared
and each look are in the store's journal before they are shown.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console

from lora_bench.config.errors import ConfigError
from lora_bench.launch import tell, tell_study
from lora_bench.launch.carry_out import LATE, drop_adapters, log_findings
from lora_bench.launch.compared import first_difference
from lora_bench.launch.estimate import estimate
from lora_bench.launch.families import Family
from lora_bench.launch.lost import require_looks
from lora_bench.launch.plan import Candidate, Plan
from lora_bench.launch.seen import anew, require_unseen
from lora_bench.launch.surroundings import go_on_alike
from lora_bench.store import StoreReader
from lora_bench.store.journal import plain
from lora_bench.store.record import utc_now
from lora_bench.verdicts import scheme
from lora_bench.verdicts.looks import Look
from lora_bench.verdicts.scheme import Course
from lora_bench.wording import command_line, counted

Rows = Mapping[str, Mapping[str, Any]]
"""Run id -> its row of the store's frame."""


@dataclass(frozen=True)
class Ended:
    """How a launch of a study ended.

    Attributes:
        courses: of each family, as far as it came.
        plan: of the last step that was carried out, which may lack runs; None when nothing had to be trained.
        stopped: why it ended before the families were over, or None.
        is_asked: whether a user or a signal asked for that.
    """

    courses: Sequence[Course]
    plan: Plan | None
    stopped: str | None = None
    is_asked: bool = False

    @property
    def is_over(self) -> bool:
        return all(course.is_over for course in self.courses)


def carry_through(
    families: Sequence[Family],
    store: StoreReader,
    out: Console,
    *,
    make: Callable[[Sequence[Candidate]], Plan],
    train: Callable[[Plan], tuple[str | None, bool]],
    is_late: Callable[[], bool],
) -> Ended:
    """Follow the families as far as time and luck let them.

    Args:
        make: a plan of these runs.
        train: carries a plan out; returns why it ended early, or None, and whether that was asked for.
        is_late: whether the time that was given is over.

    Raises:
        ConfigError: when the journal of a family and what is asked or recorded disagree.
    """
    plan = None
    for before, family in zip([None, *families], families, strict=False):
        tell_study.introduce(family, out, before=before)
        _require_new(family, _rows(store))
    while True:
        rows = _rows(store)
        courses = _follow_all(families, rows, out)
        steps = [(family, course) for family, course in zip(families, courses, strict=True) if course.step]
        if not steps:
            return Ended(courses, plan)
        if is_late():
            return Ended(courses, plan, stopped=LATE, is_asked=True)
        candidates = [candidate for family, course in steps for candidate in family.candidates(course.step)]
        if plan is None:
            tell_study.tell_size(families, out)
        plan = make(candidates)
        for family, course in steps:
            go_on_alike(family, course.step, plan, rows, store)
            tell_study.announce(family, course, plan, out)
        stopped, is_asked = train(plan)
        rows = _rows(store)
        if stopped or plan.pending() or _has_gaps(plan, rows):
            return Ended(_follow_all(families, rows, out), plan, stopped, is_asked)


def _rows(store: StoreReader) -> Rows:
    """The store's rows by run id, as they are now."""
    frame: Any = store.frame()
    return {str(row["run_id"]): row for row in frame.to_dict("records")}


def _follow_all(families: Sequence[Family], rows: Rows, out: Console) -> list[Course]:
    """How far these rows take each family; looks that its journal did not have are kept, then shown."""
    courses = []
    for family in families:
        courses.append(_course(family, rows))
        for look in keep(family, courses[-1]):
            tell_study.show_look(family, look, out)
    return courses


def _course(family: Family, rows: Rows) -> Course:
    family.rows = rows
    return scheme.follow(family.declaration, family)


def _has_gaps(plan: Plan, rows: Rows) -> bool:
    """Whether runs failed in another way than that they diverged: the step cannot be judged without them."""
    failed = [rows[run_id] for run_id in plan.runs if run_id in rows and rows[run_id]["status"] == "failed"]
    return any(row["error_kind"] != "nonfinite" for row in failed)


# ---------------------------------------------------------------- the journal


def _require_new(family: Family, rows: Rows) -> None:
    written = family.journal.read()
    if not (written and written["looks"]):
        require_unseen(family)
        require_looks(family, written, rows)


def keep(family: Family, course: Course) -> list[Look]:
    """Hold a family's looks against its journal, and write down those that are new.

    Returns:
        the looks that the journal did not have, which may be shown now.

    Raises:
        ConfigError: when the journal holds another declaration, or looks that the records do not give.
    """
    written = family.journal.read()
    declared, setting = plain(asdict(family.declaration)), plain(family.setting)
    is_other = written and (written["declaration"], written["setting"]) != (declared, setting)
    if written is None or (is_other and not written["looks"]):
        written = {
            "title": family.title,
            "metric": family.metric,
            "declared": utc_now(),
            "declaration": declared,
            "setting": setting,
            "train_rows": family.train_rows,
            "looks": [],
        }
        family.journal.write(written)
    if written["looks"]:
        beside = {"metric": family.metric, "train_rows": family.train_rows}
        kept = {key: written.get(key, beside[key]) for key in beside}  # journals from before it lack train_rows
        _require_setting(family, written["setting"] | kept, setting | beside)
        earlier = {"rates_of": {}, **written["declaration"]}  # journals from before it lack it
        _require_declaration(family, earlier, declared)
        _require_looks(family, written["looks"], course)
    new = list(course.looks[len(written["looks"]) :])
    written["looks"] += [_entry(family, look) for look in new]
    if new:
        family.journal.write(written)
    return new


def _entry(family: Family, look: Look) -> dict[str, Any]:
    """A look as the journal keeps it, with the runs that it judged: what was settled before it rests on earlier ones,
    and further seeds that another sweep trained are none of its own."""
    judged = {name for finding in look.findings if finding.n_seeds == look.n_seeds for name in finding.pair}
    run_ids = [
        family.cells.run(placement, rate, seed).run_id
        for placement, rates in look.alive.items()
        if placement in judged
        for rate in rates
        for seed in family.declaration.seeds(look.n_seeds)
    ]
    environments = sorted({str(family.rows[run_id]["environment"]) for run_id in run_ids})
    if len(environments) > 1:
        raise ConfigError(
            f"study: look {look.number + 1} of {family.title} would compare runs of {len(environments)} environments "
            f"({', '.join(environments)}): go on with the software and machine of its first runs, or {anew(family)}"
        )
    return {**plain(asdict(look)), "held": utc_now(), "environment": environments[0], "runs": run_ids}


def _require_setting(family: Family, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    if before != now:
        differing = ", ".join(key for key in now if before.get(key) != now[key])
        raise ConfigError(
            f"study: {family.journal.path} is of a family with another {differing}; put back that of {family.title}, "
            f"or {anew(family)}"
        )


def _require_declaration(family: Family, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    rule = before.get("rule", 1)
    if rule != now["rule"]:
        raise ConfigError(
            f"study: {family.title} was looked at under rule {rule} of rates and words, and this version has rule "
            f"{now['rule']}; its words stand in the report: finish it with the version that declared it, or "
            f"{anew(family)}"
        )
    differing = [
        f"{key} {_shown(before.get(key))} (now {_shown(now[key])})" for key in now if before.get(key) != now[key]
    ]
    if differing:
        raise ConfigError(
            f"study: {family.title} was declared with {'; '.join(differing)}, and has been looked at; "
            f"run it as it was declared, or {anew(family)}"
        )


def _require_looks(family: Family, written: Sequence[Mapping[str, Any]], course: Course) -> None:
    rests_on = {run_id for look in written for run_id in look.get("runs", ())}
    if len(course.looks) < len(written):  # a step before them lacks runs
        rests_on |= {*family.run_ids(course.step)}
    absent = sorted(rests_on - family.rows.keys())
    if absent:
        shown = ", ".join(absent[:3]) + (", ..." if len(absent) > 3 else "")
        raise ConfigError(
            f"study: looks of {family.title} rest on {counted(len(absent), 'run')} that the store no longer has "
            f"({shown}); put them back, or {anew(family)}"
        )
    for number, before in enumerate(written):
        is_given = number < len(course.looks)
        changed = first_difference(before, _entry(family, course.looks[number])) if is_given else "runs"
        if changed:
            raise ConfigError(
                f"study: look {number + 1} of {family.title} was held with other {changed} than the records give now; "
                f"put back the records that it rests on, and {family.journal.path}, or {anew(family)}"
            )


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_shown, value))
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_shown(item)}" for key, item in value.items()) or "none"
    return f"{value:g}" if isinstance(value, float) else "none" if value is None else str(value)


# ---------------------------------------------------------------- before and after


def dry_run(
    families: Sequence[Family], store: StoreReader, out: Console, *, make: Callable[[Sequence[Candidate]], Plan]
) -> None:
    """Print what a study will do, and stop."""
    rows = _rows(store)
    for before, family in zip([None, *families], families, strict=False):
        _require_new(family, rows)
        course = _course(family, rows)
        seconds = n_bytes = math.nan
        plan = make(family.candidates(course.step)) if course.step else None
        n_pending = len(plan.pending()) if plan else 0
        if plan and n_pending:
            expected = estimate(plan, store)
            seconds, n_bytes = expected.seconds / n_pending, expected.bytes / n_pending
        tell_study.introduce(family, out, before=before)
        tell_study.describe(family, course, out, seconds_of_run=seconds, bytes_of_run=n_bytes)
        if plan and n_pending:
            out.print(f"  {tell.memory_in_words(plan)}")
    if len(families) > 1:
        tell_study.describe_all(families, out)


def finish(
    families: Sequence[Family], store: StoreReader, out: Console, *, make: Callable[[Sequence[Candidate]], Plan]
) -> None:
    """What follows the last look: adapters that are not to be kept go, and the findings are mirrored."""
    plan = make([candidate for family in families for candidate in family.cells.asked()])
    drop_adapters(plan, store, out)
    log_findings(plan, store)


def conclude(
    families: Sequence[Family], ended: Ended, store: StoreReader, out: Console, *, command: Sequence[str]
) -> int:
    """Print what is settled and, unless the study is over, the next command. Returns the exit status: 0 unless a run
    failed or is missing."""
    out.print()
    tell_study.conclude(families, ended.courses, out)
    if ended.plan is not None:
        tell.tell_offline(ended.plan, store, out)
    again = command_line(command)
    if ended.is_over:
        out.print("the study is over")
        return 0
    if ended.plan is not None and (failures := list(tell.failures(ended.plan, tell.frame_of_plan(ended.plan, store)))):
        out.print("runs failed, and the next look needs them:", style="bold")
        for line in failures:
            out.print(f"  {line}")
        retry = "hydra.sweeper.retry_failed=true"
        out.print(f"Try them again with:\n  {again if retry in command else f'{again} {retry}'}")
        return 1
    out.print(
        f"stopped early: {ended.stopped or 'runs are missing'}; every finished run is kept. Go on with:\n  {again}"
    )
    return 0 if ended.stopped == LATE else 1
