"""The sweeper: a union of grids into checked runs, packs and one plan; packs into the chosen launcher.

    hydra.sweeper.params: {adapter.targets: "q,qv", seed: range(3)}      one grid
    hydra.sweeper.grids: [{adapter.rank: 1}, {adapter.rank: 8, ...}]     each over params, for axes that are coupled

An override on the command line replaces the axis of its name in every grid.
"""

import copy
import functools
import itertools
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType, ValueType
from hydra.core.plugins import Plugins
from hydra.core.utils import JobStatus
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, RunMode, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from lora_bench.config.arguments import as_typed
from lora_bench.config.compose import Template, parse, schema_override, with_rank_yielding
from lora_bench.config.errors import ConfigError
from lora_bench.config.overrides import quote
from lora_bench.config.schema import RunConfig

FLOOR = "head_only"
BASIC_LAUNCHER = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"


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
store.store(name="schema", node=OmegaConf.to_container(OmegaConf.structured(RunConfig)), provider="lora_bench")


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
        from lora_bench.launch.plan import make
        from lora_bench.store import open_store, recover

        set_up_logging()
        _check_options(self.switches, pack_size=self.pack_size, workers=self.workers)
        if self.hours is not None and not self.switches["as_study"]:
            raise ConfigError("hours: a study stops when they are over; run one with study=NAME")
        if self._config.get("show"):
            raise ConfigError(f"show: {self._config.show!r} is about one run; leave out +sweeps and -m")
        if self._config.get("pack"):
            raise ConfigError("pack: one pack is one job; leave out +sweeps and -m")
        if self.switches["as_study"]:
            self._study(arguments)
            return
        candidates = self._candidates(arguments)
        records = open_store(candidates[0].config.store)
        if not self.switches["dry_run"]:
            recover(records)
        plan = make(
            candidates,
            records,
            pack_size=self.pack_size,
            retry_failed=self.switches["retry_failed"],
            sweep=_sweep_name(arguments),
            command=_needed(sys.argv[1:]),
            places=self._places(candidates[0].config.device),
        )
        from lora_bench.launch import (
            carry_out,
            tell,  # imports what judges and draws: only for a sweep that can run
        )

        out = tell.console()
        tell.describe(plan, records, out, every_cell=self.switches["dry_run"], is_launched=self._is_launched())
        if self.switches["dry_run"]:
            return
        has_work = bool(plan.pending())
        stopped, is_asked = carry_out.carry_out(
            plan, records, out, launch=self._launcher(plan, records), fail_fast=self.switches["fail_fast"]
        )
        if not stopped:
            carry_out.drop_adapters(plan, records, out)
        status = tell.conclude(plan, records, out, stopped=stopped, command=_command())
        if has_work and not stopped:
            carry_out.log_findings(plan, records)
        carry_out.remove_job_folder(records)
        if status:
            raise SystemExit(130 if is_asked else status)

    # A study

    def _study(self, arguments: list[str]) -> None:
        """Follow the families that the sweep file declares. Ends the process with status 1 if a run failed."""
        from lora_bench.launch import carry_out, study, tell
        from lora_bench.launch.families import SEARCHED, Declared, families
        from lora_bench.launch.plan import Candidate, make
        from lora_bench.store import open_store

        name = _sweep_name(arguments) or ""
        declared = Declared.read(self.declared, sweep=name)
        is_late = _deadline(self.hours)
        asked = [one for one in arguments if one.lstrip("+").partition("=")[0] in SEARCHED]
        if asked:
            raise ConfigError(
                f"{asked[0]}: a study searches its rates and counts its seeds; see study.rates, study.looks"
            )
        params, *grids = (
            {key: value for key, value in grid.items() if key not in SEARCHED} for grid in (self.params, *self.grids)
        )
        composer = Composer(self._context.config_loader, self._config)

        def compose(overrides: Sequence[str]) -> Candidate:
            shown = tuple(one for one in overrides if not one.lstrip("+").startswith("sweeps="))
            return Candidate(composer.parse(overrides), shown)

        points = [point for point in expand(params, grids, arguments) if f"adapter={FLOOR}" not in point]
        start = (f"train.lr={declared.rates[0]:g}", "seed=0")
        first = compose([*points[0], *start]).config
        records = open_store(first.store)
        out = tell.console()
        found = families(name, declared, points, compose, records)
        if self.switches["dry_run"]:
            study.dry_run(found, records, out, make=lambda candidates: make(candidates, records))
            return

        def plan(candidates: Sequence[Candidate]) -> Any:
            return make(
                candidates,
                records,
                pack_size=self.pack_size,
                retry_failed=self.switches["retry_failed"],
                sweep=name,
                command=_needed(sys.argv[1:]),
                places=self._places(first.device, is_steady=True),
            )

        def train(plan: Any) -> tuple[str | None, bool]:
            launch = self._launcher(plan, records)
            fail_fast = self.switches["fail_fast"]
            return carry_out.carry_out(plan, records, out, launch=launch, fail_fast=fail_fast, is_late=is_late)

        ended = study.carry_through(found, records, out, make=plan, train=train, is_late=is_late)
        if ended.is_over and ended.plan is not None:
            study.finish(found, records, out, make=plan)
        status = study.conclude(found, ended, records, out, command=_command())
        carry_out.remove_job_folder(records)
        if status:
            raise SystemExit(130 if ended.is_asked and ended.stopped != carry_out.LATE else status)

    # Grids

    def _candidates(self, arguments: Sequence[str]) -> list[Any]:
        from lora_bench.launch.plan import Candidate, PlanError, tell_problems

        composer = Composer(self._context.config_loader, self._config)
        points = expand(self.params, self.grids, arguments)
        candidates, problems = [], []
        for overrides in points:
            shown = tuple(one for one in overrides if not one.lstrip("+").startswith("sweeps="))
            try:
                candidates.append(Candidate(composer.parse(overrides), shown))
            except ConfigError as error:
                problems.append((str(error), shown))
        if problems:
            raise PlanError(tell_problems(problems, len(points)))
        return candidates

    # Jobs

    def _places(self, device: str, *, is_steady: bool = False) -> Any:
        """Where packs can train at once: on every core of a CPU, a GPU each, or as many as joblib is told; a launcher
        that leaves this machine has its own ways.

        Args:
            is_steady: every process gets the same threads, though a step may have packs for one alone: runs that are
                compared share an environment, and threads are part of it.
        """
        from lora_bench.launch.gpus import visible_gpus
        from lora_bench.launch.plan import Places
        from lora_bench.models import machine

        n_gpus = len(visible_gpus()) if device != "cpu" else 0
        if not self._is_launched():
            if n_gpus:
                if self.workers not in ("auto", 1):
                    works = "hydra/launcher=workers trains a pack on each GPU"
                    raise ConfigError(f"hydra.sweeper.workers: {self.workers} is for CPUs; {works}")
                return Places()
            asked = machine.threads_asked()
            n_workers = self.workers if self.workers != "auto" else max(1, machine.cores() // (asked or 1))
            threads = (asked or max(1, machine.cores() // n_workers)) if is_steady and n_workers > 1 else None
            return Places(n_workers, on_these_cores=True, threads=threads)
        if self.workers != "auto":
            raise ConfigError("hydra.sweeper.workers: the launcher has its own number of workers; leave it out")
        asked = self._config.hydra.launcher.get("n_jobs", 1)
        n_workers = machine.cores() if asked < 0 else asked
        return Places(min(n_workers, n_gpus)) if n_gpus else Places(n_workers, on_these_cores=n_workers > 1)

    def _is_launched(self) -> bool:
        return self._config.hydra.launcher["_target_"] != BASIC_LAUNCHER

    def _launcher(self, plan: Any, records: Any) -> Any:
        """A function that trains packs through the chosen launcher, or side by side here; None for this process."""
        if not self._is_launched():
            from lora_bench.launch.jobs import side_by_side

            return None if plan.threads is None else functools.partial(side_by_side, n_workers=plan.n_workers)
        folder = (records.root / ".plans" / "jobs").absolute()
        with open_dict(self._config):
            if self._config.hydra.launcher["_target_"].endswith("RayLauncher"):
                # Ray would run a pack again whose worker died, without a word; a restart of the sweep says so.
                self._config.hydra.launcher.ray.remote.setdefault("max_retries", 0)
            self._config.hydra.sweep.dir = str(folder)
            # A job composes anew from these and its own override: its folder must not fall back to the default store.
            self._config.hydra.overrides.hydra = [
                *(one for one in self._config.hydra.overrides.hydra if not one.startswith("hydra.sweep.dir=")),
                f"hydra.sweep.dir={quote(str(folder))}",
            ]
        launcher = Plugins.instance().instantiate_launcher(
            hydra_context=self._context, task_function=self._task_function, config=self._config
        )

        def launch(references: list[str]) -> list[Any]:
            ended = launcher.launch([[f"pack={quote(one)}"] for one in references], initial_job_idx=0)
            return [one.return_value if one.status == JobStatus.COMPLETED else None for one in ended]

        return launch


class Composer:
    """Composes once per choice of config groups, and sets plain values on a copy: composing costs 60 ms."""

    def __init__(self, config_loader: Any, config: DictConfig):
        self._loader = config_loader
        self._config_name = config.hydra.job.config_name
        self._hydra_overrides = list(config.hydra.overrides.hydra)
        self._bases: dict[tuple[str, ...], DictConfig] = {}
        self._templates: dict[tuple, Template] = {}
        self._parsed: dict[str, Override] = {}
        self._groups: dict[str, bool] = {}
        self._parser = OverridesParser.create()

    def parse(self, overrides: Sequence[str]) -> RunConfig:
        """The checked configuration of one point of the grid.

        Raises:
            HydraException: for a group or key that does not exist.
            ConfigError: for a value that cannot be.
        """
        overrides = with_rank_yielding(overrides)
        parsed = [self._parse(one) for one in overrides]
        # What a template cannot set, such as `model.architecture.hidden_size`, gets a template of its own, as groups
        # do.
        settable = [not self._is_group(each) and Template.can_set(each.key_or_group) for each in parsed]
        plain = [each for each, is_settable in zip(parsed, settable, strict=True) if is_settable]
        values = {each.key_or_group: each.value() for each in plain}
        fixed = tuple(one for one, is_settable in zip(overrides, settable, strict=True) if not is_settable)
        shape = (fixed, tuple(values))
        if shape not in self._templates:
            config = self.compose(overrides)
            is_plain = all(each.type == OverrideType.CHANGE for each in plain)
            if not is_plain or not Template.is_fit(config, values):
                return parse(config)
            self._templates[shape] = Template(config)
        return self._templates[shape].parse(values)

    def compose(self, overrides: Sequence[str]) -> DictConfig:
        """The configuration of one point of the grid, not yet checked."""
        parsed = [self._parse(one) for one in overrides]
        groups = tuple(one for one, each in zip(overrides, parsed, strict=True) if self._is_group(each))
        values = [each for each in parsed if not self._is_group(each)]
        if groups not in self._bases:
            base = self._loader.load_configuration(
                config_name=self._config_name,
                overrides=[*self._hydra_overrides, *groups],
                run_mode=RunMode.RUN,
                from_shell=False,
            )
            with open_dict(base):
                del base["hydra"]
            self._bases[groups] = base
        config = copy.deepcopy(self._bases[groups])
        ConfigLoaderImpl._apply_overrides_to_config(values, config)
        return config

    def _parse(self, override: str) -> Override:
        if override not in self._parsed:
            self._parsed[override] = self._parser.parse_override(override)
        return self._parsed[override]

    def _is_group(self, override: Override) -> bool:
        key = override.key_or_group
        if key not in self._groups:
            self._groups[key] = "@" in key or bool(self._loader.get_group_options(key))
        return self._groups[key]


def expand(params: Mapping[str, Any], grids: Sequence[Any], arguments: Sequence[str]) -> list[tuple[str, ...]]:
    """The points of the union of grids, each as overrides; the command line's replace the axes of the same name.

    Raises:
        ConfigError: for a grid that is no mapping, an axis without values, or a sweep of named sweeps.
    """
    parser = OverridesParser.create()
    points: list[tuple[str, ...]] = []
    for number, grid in enumerate(grids):
        if not isinstance(grid, Mapping):
            raise ConfigError(f"hydra.sweeper.grids[{number}]: {grid!r} is no grid; give keys and values, as in params")
        lines = [schema_override(f"{key}={_value_text(value)}") for key, value in {**params, **grid}.items()]
        axes: dict[str, list[str]] = {}
        for override in parser.parse_overrides([*lines, *arguments]):
            axes[override.key_or_group] = _values(override)
        points += itertools.product(*axes.values())
    return list(dict.fromkeys(points))


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


def _values(override: Override) -> list[str]:
    if override.is_delete():
        return [override.input_line or ""]
    if not override.is_sweep_override():
        return [f"{override.get_key_element()}={override.get_value_element_as_str()}"]
    key = override.key_or_group
    if key == "sweeps":
        raise ConfigError(f"sweeps: one at a time, not {override.get_value_string()}")
    if override.value_type is ValueType.GLOB_CHOICE_SWEEP:
        pattern = override.get_value_string()
        raise ConfigError(f"{key}: {pattern} is a pattern, and a sweep lists its values; give them, as a,b")
    if not override.is_discrete_sweep():
        raise ConfigError(f"{key}: an interval has no list of values; give values, such as 1e-3,3e-3, or range(8)")
    values = [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]
    if not values:
        raise ConfigError(f"{key}: no value in {override.get_value_string()}")
    return values


def _value_text(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):  # of values; a list inside it is one value
        return ",".join(f"[{_value_text(one)}]" if isinstance(one, list) else _value_text(one) for one in value)
    return str(value)


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


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


def _sweep_name(arguments: Sequence[str]) -> str | None:
    """The sweep's name, without the quotes that the command line may need."""
    named = [word for word in arguments if word.lstrip("+").startswith("sweeps=")]
    return str(OverridesParser.create().parse_override(named[0]).value()) if named else None


def _command() -> list[str]:
    """The command as it was given, in a form that can be given again."""
    name = Path(sys.argv[0]).name
    start = ["python", "-m", "lora_bench"] if name == "__main__.py" else [name or "lora-bench"]
    return [*start, *_needed(as_typed())]


def _needed(words: Sequence[str]) -> list[str]:
    """A command's arguments, without the switch that a named sweep does not need."""
    is_named = _sweep_name(sys.argv[1:]) is not None
    return [word for word in words if not (is_named and word in ("-m", "--multirun"))]
