"""A study goes on as it began: on the same software, and with as many threads to a process.

Runs are compared within one environment, so a step that would be of two is refused before it trains; threads are part
of one, and a launch that would give each process another number of them is told that of the runs that are there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lora_bench.config.errors import ConfigError
from lora_bench.launch.families import Family
from lora_bench.launch.plan import Plan
from lora_bench.launch.seen import anew
from lora_bench.store import StoreReader
from lora_bench.store.environment import SOFTWARE_KEYS
from lora_bench.verdicts.family import Wanted


def go_on_alike(
    family: Family, step: Sequence[Wanted], plan: Plan, rows: Mapping[str, Mapping[str, Any]], store: StoreReader
) -> None:
    """Hold a step's runs that are to be trained against those that are there, and set the plan's threads to theirs.

    Raises:
        ConfigError: when other software trained those.
    """
    from lora_bench.training.run import environment_here

    run_ids = family.run_ids(step)
    before = next((run_id for run_id in run_ids if rows.get(run_id, {}).get("status") == "finished"), None)
    if before is None or not plan.pending(run_ids):
        return
    there = store.record(before)["environment"]
    here = environment_here(plan.runs[before].run.config.device, plan.threads)
    differing = [
        f"{key} {there[key]} (here {here[key]})" for key in SOFTWARE_KEYS if there.get(key, here[key]) != here[key]
    ]
    if differing:
        raise ConfigError(
            f"study: runs of {family.title} were trained with {', '.join(differing)}, and no look compares two "
            f"environments: go on with that software, or {anew(family)}"
        )
    if there.get("device") == "cpu" and there.get("threads", here["threads"]) != here["threads"]:
        plan.threads = there["threads"]
