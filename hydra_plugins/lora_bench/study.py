"""A study: the families that a sweep file declares, followed plan by plan."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hydra_plugins.lora_bench import command
from hydra_plugins.lora_bench.grids import Composer, expand
from hydra_plugins.lora_bench.launching import Launching
from lora_bench.config.errors import ConfigError
from lora_bench.config.overrides import key_of, override


def run(
    declared: Any,
    params: Mapping[str, Any],
    grids: Sequence[Mapping[str, Any]],
    arguments: Sequence[str],
    composer: Composer,
    launching: Launching,
    *,
    hours: Any,
    is_dry: bool,
) -> int:
    """Follow the families until they are over, the time is, or something is amiss. Returns the exit status.

    Args:
        declared: the study section of the sweep file.
        params, grids: as in the sweep file; axes that a study searches by itself are left out.
        hours: after so many no further pack is begun; None has no end.
        is_dry: print what the study will do, and stop.

    Raises:
        ConfigError: for a study that cannot be.
    """
    from lora_bench.launch import carry_out, study, tell
    from lora_bench.launch.families import Declared, families
    from lora_bench.launch.jobs import Crew
    from lora_bench.launch.plan import Candidate
    from lora_bench.launch.worker import INTERRUPTED
    from lora_bench.store import open_store
    from lora_bench.wording import command_line

    name = command.sweep_name(arguments) or ""
    section = Declared.read(declared, sweep=name)
    is_late = _deadline(hours)
    points = _placements(params, grids, arguments)

    def compose(overrides: Sequence[str]) -> Candidate:
        return Candidate(composer.parse(overrides), command.without_sweep(overrides))

    first = compose([*points[0], f"train.lr={section.rates[0]:g}", "seed=0"]).config
    records = open_store(first.store)
    out = tell.console()
    declared_families = families(name, section, points, compose, records)

    def make(candidates: Sequence[Candidate]) -> Any:
        return launching.make(candidates, records, sweep=name)

    if is_dry:
        study.dry_run(declared_families, records, out, make=make)
        return 0
    try:
        with Crew() as crew:
            ended = study.carry_through(
                declared_families,
                records,
                out,
                make=make,
                train=lambda plan: launching.carry_out(plan, records, out, crew, is_late=is_late),
                is_late=is_late,
            )
    except KeyboardInterrupt as error:  # between two plans; within one, `carry_out` takes it
        again = command_line(command.command())
        out.print(f"stopped early: {str(error) or 'Ctrl-C'}; every finished run is kept. Go on with:\n  {again}")
        return INTERRUPTED
    if ended.is_over and ended.plan is not None:
        study.finish(declared_families, records, out, make=make)
    status = study.conclude(declared_families, ended, records, out, command=command.command())
    carry_out.remove_job_folder(records)
    ran_out = ended.stopped == carry_out.LATE
    if status and ended.is_asked and not ran_out:
        return INTERRUPTED
    if ended.is_over or ran_out:
        write_report(records, out)
    return status


def write_report(records: Any, out: Any) -> None:
    """The page of `lora-bench report`, in a place of the store's own. A page that cannot be written takes nothing from
    the study: the store has all that it shows."""
    from lora_bench.cli import report
    from lora_bench.reports.scope import Scope
    from lora_bench.wording import command_line, visible

    folder = report.folder_of(records.root)
    where = [] if folder == report.OUT else [override("out", str(folder))]
    again = command_line(["lora-bench", "report", override("store", str(records.root)), *where])
    try:
        ending = report.write(Scope(records.root), folder).summary
    except KeyboardInterrupt as error:
        ending = f"no report: stopped ({str(error) or 'Ctrl-C'}); write it with {again}"
    except Exception as error:
        reason = " ".join(visible(str(error)).split())
        ending = f"no report ({type(error).__name__}: {reason}); write it with {again}"
    out.print(ending, markup=False, highlight=False, soft_wrap=True)


def _placements(
    params: Mapping[str, Any], grids: Sequence[Mapping[str, Any]], arguments: Sequence[str]
) -> list[tuple[str, ...]]:
    """Points of the grids without what a study goes over by itself, and without the floor, which each family has.

    Raises:
        ConfigError: when the command line asks for rates or seeds.
    """
    from lora_bench.launch.families import SEARCHED
    from lora_bench.verdicts.settings import FLOOR

    searched = [word for word in arguments if key_of(word) in SEARCHED]
    if searched:
        raise ConfigError(
            f"{searched[0]}: a study searches its rates and counts its seeds; see study.rates, study.looks"
        )
    params, *grids = ({key: value for key, value in grid.items() if key not in SEARCHED} for grid in (params, *grids))
    return [point for point in expand(params, grids, arguments) if f"adapter={FLOOR}" not in point]


def _deadline(hours: Any) -> Callable[[], bool]:
    """Whether so many hours from now are over.

    Raises:
        ConfigError: when it is no number of hours.
    """
    if hours is None:
        return lambda: False
    if isinstance(hours, bool) or not isinstance(hours, (int, float)) or not hours > 0:
        raise ConfigError(f"hours: no {hours!r}; give a number above 0, such as 2 or 0.5")
    end = time.monotonic() + 3600 * hours
    return lambda: time.monotonic() >= end
