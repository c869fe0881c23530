"""Plans and their packs, as the sweeper's options and the chosen launcher want them made and trained."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

from hydra.core.plugins import Plugins
from hydra.core.utils import JobStatus
from hydra.types import HydraContext, TaskFunction
from omegaconf import open_dict

from hydra_plugins.lora_bench import command
from lora_bench.config.errors import ConfigError
from lora_bench.config.overrides import quote

BASIC_LAUNCHER = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"


class Launching:
    """Makes the plans of one command and carries them out.

    Args:
        config: the composed configuration, Hydra's own part included.
        pack_size, workers: `auto` or a number.
        switches: `retry_failed`, `fail_fast` and `as_study`.
        is_steady: every process gets the same threads, though a plan may have packs for one alone: runs that are
            compared share an environment, and threads are part of it.
    """

    def __init__(
        self,
        context: HydraContext,
        task_function: TaskFunction,
        config: Any,
        *,
        pack_size: Any,
        workers: Any,
        switches: dict[str, bool],
        is_steady: bool = False,
    ) -> None:
        self._context, self._task_function, self._config = context, task_function, config
        self._pack_size, self._workers, self._switches = pack_size, workers, switches
        self._is_steady = is_steady

    @property
    def is_elsewhere(self) -> bool:
        """Whether a launcher was chosen, which may leave this machine."""
        return self._config.hydra.launcher["_target_"] != BASIC_LAUNCHER

    def make(self, candidates: Sequence[Any], records: Any, *, sweep: str | None) -> Any:
        """A plan of these runs; see `lora_bench.launch.plan.make`."""
        from lora_bench.launch.plan import make

        return make(
            candidates,
            records,
            pack_size=self._pack_size,
            retry_failed=self._switches["retry_failed"],
            sweep=sweep,
            command=command.arguments(),
            places=self._places(candidates[0].config.device),
        )

    def carry_out(
        self, plan: Any, records: Any, out: Any, crew: Any, *, is_late: Callable[[], bool] = lambda: False
    ) -> tuple[str | None, bool]:
        """Train a plan; see `lora_bench.launch.carry_out.carry_out`.

        Args:
            crew: who trains packs side by side on this machine.
        """
        from lora_bench.launch.carry_out import carry_out

        launch = self._launcher(plan, records, crew)
        switches = {"fail_fast": self._switches["fail_fast"], "is_step": self._switches["as_study"]}
        return carry_out(plan, records, out, launch=launch, is_late=is_late, **switches)

    def _places(self, device: str) -> Any:
        """Where packs can train at once: on every core of a CPU, a GPU each, or as many as joblib is told; a launcher
        that leaves this machine has its own ways."""
        from lora_bench.launch.gpus import visible_gpus
        from lora_bench.launch.plan import Places
        from lora_bench.models import machine

        n_gpus = len(visible_gpus()) if device != "cpu" else 0
        if not self.is_elsewhere:
            if n_gpus:
                if self._workers not in ("auto", 1):
                    works = "hydra/launcher=workers trains a pack on each GPU"
                    raise ConfigError(f"hydra.sweeper.workers: {self._workers} is for CPUs; {works}")
                return Places()
            asked = machine.threads_asked()
            n_workers = self._workers if self._workers != "auto" else max(1, machine.cores() // (asked or 1))
            threads = (asked or max(1, machine.cores() // n_workers)) if self._is_steady and n_workers > 1 else None
            return Places(n_workers, on_these_cores=True, threads=threads)
        if self._workers != "auto":
            raise ConfigError("hydra.sweeper.workers: the launcher has its own number of workers; leave it out")
        asked = self._config.hydra.launcher.get("n_jobs", 1)
        n_workers = machine.cores() if asked < 0 else asked
        return Places(min(n_workers, n_gpus)) if n_gpus else Places(n_workers, on_these_cores=n_workers > 1)

    def _launcher(self, plan: Any, records: Any, crew: Any) -> Any:
        """A function that trains packs through the chosen launcher, or side by side here; None for this process."""
        if not self.is_elsewhere:
            return None if plan.threads is None else functools.partial(crew.train, n_workers=plan.n_workers)
        folder = (records.root / ".plans" / "jobs").absolute()
        with open_dict(self._config):
            if self._config.hydra.launcher["_target_"].endswith("RayLauncher"):
                # Ray would run a pack again whose worker died, without a word; a restart of the sweep says so.
                self._config.hydra.launcher.ray.remote.setdefault("max_retries", 0)
            self._config.hydra.sweep.dir = str(folder)
            # A job composes anew from these and its own override: its folder must not fall back to the default store.
            overrides = self._config.hydra.overrides
            overrides.hydra = [
                *(override for override in overrides.hydra if not override.startswith("hydra.sweep.dir=")),
                f"hydra.sweep.dir={quote(str(folder))}",
            ]
        launcher = Plugins.instance().instantiate_launcher(
            hydra_context=self._context, task_function=self._task_function, config=self._config
        )

        def launch(references: list[str]) -> list[Any]:
            jobs = launcher.launch([[f"pack={quote(reference)}"] for reference in references], initial_job_idx=0)
            return [job.return_value if job.status == JobStatus.COMPLETED else None for job in jobs]

        return launch
