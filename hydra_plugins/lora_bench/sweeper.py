"""The sweeper: a union of grids into checked runs, packs and one plan; packs into the chosen launcher.

    hydra.sweeper.params: {adapter.targets: "q,qv", seed: range(3)}      one grid
    hydra.sweeper.grids: [{adapter.rank: 1}, {adapter.rank: 8, ...}]     each over params, for axes that are coupled

An override on the command line replaces the axis of its name in every grid.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from hydra_plugins.lora_bench import command, study
from hydra_plugins.lora_bench.grids import Composer, expand
from hydra_plugins.lora_bench.launching import Launching
from lora_bench.config.errors import ConfigError
from lora_bench.config.schema import RunConfig


@dataclass
class SweeperConf:
    _target_: str = "hydra_plugins.lora_bench.sweeper.LoraBenchSweeper"
    params: dict[str, Any] = field(default_factory=dict)
    grids: list[Any] = field(default_factory=list)
    pack_size: Any = "auto"
    workers: Any = "auto"
    dry_run: Any = False
    fail_fast: Any = False
    retry_failed: Any = False
    study: Any = None
    as_study: Any = False
    hours: Any = None


store = ConfigStore.instance()
store.store(group="hydra/sweeper", name="lora_bench", node=SweeperConf, provider="lora_bench")
# Every key that a run has, so that it can be set without a plus sign; values come from conf/.
schema = OmegaConf.create(OmegaConf.to_container(OmegaConf.structured(RunConfig)))
OmegaConf.set_struct(schema.model.roles, False)  # its keys are roles, which `check` knows
store.store(name="schema", node=schema, provider="lora_bench")


class LoraBenchSweeper(Sweeper):
    """Plans a sweep with `lora_bench.launch.plan` and carries it out with `lora_bench.launch.carry_out`."""

    def __init__(
        self, params: Any, grids: Any, *, pack_size: Any, workers: Any, study: Any, hours: Any, **switches: Any
    ):
        self.params = _plain(params) or {}
        self.grids = _plain(grids) or [{}]
        self.pack_size, self.workers = pack_size, workers
        self.declared, self.hours = _plain(study), hours
        self.switches = switches

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self._context: HydraContext = hydra_context
        self._task_function: TaskFunction = task_function
        self._config: Any = config

    def sweep(self, arguments: list[str]) -> None:
        """Plan, train, conclude. Ends the process with status 1 if a run failed or is missing."""
        from lora_bench.cli.runs import set_up_logging
        from lora_bench.store import open_store, recover

        set_up_logging()
        self._check()
        composer = Composer(self._context.config_loader, self._config)
        launching = self._launching()
        if self.switches["as_study"]:
            self._study(arguments, composer, launching)
            return
        candidates = self._candidates(arguments, composer)
        records = open_store(candidates[0].config.store)
        if not self.switches["dry_run"]:
            recover(records)
        plan = launching.make(candidates, records, sweep=command.sweep_name(arguments))
        from lora_bench.launch import (
            carry_out,
            jobs,
            tell,  # imports what judges and draws: only for a sweep that can run
        )

        out = tell.console()
        tell.describe(plan, records, out, every_cell=self.switches["dry_run"], is_launched=launching.is_elsewhere)
        if self.switches["dry_run"]:
            return
        has_work = bool(plan.pending())
        with jobs.Crew() as crew:
            stopped, is_asked = launching.carry_out(plan, records, out, crew)
        if not stopped:
            carry_out.drop_adapters(plan, records, out)
        status = tell.conclude(plan, records, out, stopped=stopped, command=command.command())
        if has_work and not stopped:
            carry_out.log_findings(plan, records)
        carry_out.remove_job_folder(records)
        if status:
            raise SystemExit(130 if is_asked else status)

    def _study(self, arguments: Sequence[str], composer: Composer, launching: Launching) -> None:
        status = study.run(
            self.declared,
            self.params,
            self.grids,
            arguments,
            composer,
            launching,
            hours=self.hours,
            is_dry=self.switches["dry_run"],
        )
        if status:
            raise SystemExit(status)

    def _check(self) -> None:
        _check_options(self.switches, pack_size=self.pack_size, workers=self.workers)
        if self.hours is not None and not self.switches["as_study"]:
            raise ConfigError("hours: a study stops when they are over; run one with study=NAME")
        if self._config.get("show"):
            raise ConfigError(f"show: {self._config.show!r} is about one run; leave out +sweeps and -m")
        if self._config.get("pack"):
            raise ConfigError("pack: one pack is one job; leave out +sweeps and -m")

    def _launching(self) -> Launching:
        return Launching(
            self._context,
            self._task_function,
            self._config,
            pack_size=self.pack_size,
            workers=self.workers,
            switches=self.switches,
            is_steady=self.switches["as_study"],
        )

    def _candidates(self, arguments: Sequence[str], composer: Composer) -> list[Any]:
        from lora_bench.launch.plan import Candidate, PlanError, tell_problems

        points = expand(self.params, self.grids, arguments)
        candidates, problems = [], []
        for overrides in points:
            shown = command.without_sweep(overrides)
            try:
                candidates.append(Candidate(composer.parse(overrides), shown))
            except ConfigError as error:
                problems.append((str(error), shown))
        if problems:
            raise PlanError(tell_problems(problems, len(points)))
        return candidates


def _check_options(switches: dict[str, Any], **numbers: Any) -> None:
    """The sweeper's own options: switches, and numbers that may be `auto`.

    Raises:
        ConfigError: naming the option, the value and what would work.
    """
    for name, value in switches.items():
        if not isinstance(value, bool):
            raise ConfigError(f"hydra.sweeper.{name}: {value!r} is no switch; give true or false")
    of = {"pack_size": "runs", "workers": "packs that train at once"}
    for name, value in numbers.items():
        if value != "auto" and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise ConfigError(f"hydra.sweeper.{name}: no {value!r}; give auto or a number of {of[name]}, at least 1")


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
