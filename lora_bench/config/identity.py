"""What of a configuration can change its result, and the id that follows from it.

    run_id = sha256(canonical JSON of the science without display names)[:16]

The same science has the same id wherever, and with whatever neighbours, it ran.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from lora_bench.config.facts import ALWAYS
from lora_bench.config.schema import KEYS, RunConfig, scientific

PROTOCOL = 1
"""Version of everything that turns a configuration into scores. Raised whenever old records stop being comparable."""

LATER_FIELDS: dict[str, Any] = {key.path: key.fact.later for key in KEYS if key.fact.later is not ALWAYS}
"""Scientific fields added after protocol 1, by dotted path, with the value that earlier versions amounted to.

They enter a run's science only where they differ from it, so records and journals from before stay those of the same
runs.
"""


def science(
    config: RunConfig,
    *,
    model_fingerprint: str,
    task_fingerprint: str,
    metrics: Sequence[str],
    train_rows: int,
    targets: str,
    rank: int | dict[str, int] | None,
    layers: str | Sequence[int],
    precision: str,
) -> dict[str, Any]:
    """What can change a run's result, canonically: resolved values in, ignored fields out.

    Args:
        targets: canonical roles of this backbone (`spell_targets`); empty for methods without targets.
        rank: one rank, or module path -> rank where they differ.
        layers: `all`, or the layer numbers.
        train_rows: rows of the train split after cutting.
    """
    train = config.train
    resolved = {
        "adapter.targets": targets,
        "adapter.rank": rank,
        "adapter.layers": layers if isinstance(layers, str) else list(layers),
        "train.head_lr": train.lr if train.head_lr is None else train.head_lr,
        "train.precision": precision,
    }
    model = {"name": display_name(config.model.name), "fingerprint": model_fingerprint}
    if config.model.revision:
        model["revision"] = config.model.revision
    task = {
        "name": config.task.name,
        "fingerprint": task_fingerprint,
        "metrics": list(metrics),
        "train_rows": train_rows,
    }
    document = {
        "protocol": PROTOCOL,
        "model": model,
        "task": task | _part("task", config, resolved),
        "adapter": _part("adapter", config, resolved),
        "train": _part("train", config, resolved),
        **_part("run", config, resolved),
    }
    return _without_later(document)


def _part(part: str, config: RunConfig, resolved: Mapping[str, Any]) -> dict[str, Any]:
    """The scientific fields of a part that count for the run's method, resolved where that is another value."""
    return {
        key.name: resolved[key.path] if key.path in resolved else key.of(config)
        for key in scientific(part)
        if key.counts(config.adapter.method)
    }


def run_id(science: Mapping[str, Any]) -> str:
    """Sixteen hexadecimal digits of the science's hash. Display names and revisions do not enter, weights do."""
    identity = _without_later(science)
    identity["model"] = {"fingerprint": science["model"]["fingerprint"]}
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _without_later(science: Mapping[str, Any]) -> dict[str, Any]:
    """The science without the fields of LATER_FIELDS that have the value of before."""
    kept = dict(science)
    for path, before in LATER_FIELDS.items():
        section, _, name = path.rpartition(".")
        part = kept.get(section) if section else kept
        if isinstance(part, Mapping) and name in part and part[name] == before:
            part = {key: value for key, value in part.items() if key != name}
            kept = kept | {section: part} if section else part
    return kept


def cell_id(science: Mapping[str, Any]) -> str:
    """The id of a run's cell: its science without the seed."""
    return run_id({key: value for key, value in science.items() if key != "seed"})


def display_name(name: str) -> str:
    """A backbone's name for people: the Hub name, or the last part of a local folder."""
    is_path = name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name
    return re.split(r"[/\\]", name.rstrip("/\\"))[-1] if is_path else name
