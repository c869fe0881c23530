"""The file of a plan: all that a job needs, read without torch.

STORE/.plans/<id>.json      packs of run ids, and by run id a resolved configuration and what its record will hold
"""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any
from uuid import uuid4

from lora_bench.config.compose import parse
from lora_bench.config.errors import ConfigError
from lora_bench.config.identity import PROTOCOL
from lora_bench.config.schema import RunConfig
from lora_bench.store import StoreReader

FORMAT = 1


@dataclass(frozen=True)
class Entry:
    """A run of a plan as plain values: what training it needs, and the record of one that dies before it can."""

    run_id: str
    cell_id: str
    config: dict[str, Any]
    overrides: list[str]
    science: dict[str, Any]
    manifest: list[dict[str, Any]]
    adapter_parameters: int | None

    def checked_config(self) -> RunConfig:
        return parse(self.config)


@dataclass(frozen=True)
class PlanFile:
    """What the planner wrote, for whoever trains its packs.

    Attributes:
        packs: the runs that are trained together.
        retry: ids of failed runs that are to be trained again.
        threads: of each process that trains; None where it has all that it may use.
        folder: where the sweep was started.
        command, sweep: what the records say of their origin.
    """

    runs: dict[str, Entry]
    packs: list[list[Entry]]
    retry: frozenset[str] = frozenset()
    threads: int | None = None
    folder: str | None = None
    command: tuple[str, ...] = ()
    sweep: str | None = None

    @property
    def invocation(self) -> dict[str, Any]:
        """As records hold it."""
        return {"overrides": list(self.command), "sweep": self.sweep}

    def pending(self, number: int, store: StoreReader) -> list[Entry]:
        """The runs of a pack that the store lacks, or that failed and are to be trained again."""
        statuses = {entry.run_id: store.status(entry.run_id) for entry in self.packs[number]}
        again = {run_id for run_id, status in statuses.items() if status == "failed" and run_id in self.retry}
        return [entry for entry in self.packs[number] if statuses[entry.run_id] is None or entry.run_id in again]

    @classmethod
    def load(cls, path: Path) -> "PlanFile":
        """Read a plan.

        Raises:
            ConfigError: when it is absent or no plan.
        """
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"pack: cannot read the plan {str(path)!r} ({error}); start the sweep again") from None
        try:
            if document["format"] == FORMAT:
                return cls._of(document)
        except (KeyError, TypeError, AttributeError):
            pass
        raise ConfigError(f"pack: {str(path)!r} is no plan of this version; start the sweep again")

    @classmethod
    def _of(cls, document: Mapping[str, Any]) -> "PlanFile":
        names = [field.name for field in fields(Entry) if field.name != "run_id"]
        runs = {
            run_id: Entry(run_id, **{name: values[name] for name in names})
            for run_id, values in document["runs"].items()
        }
        return cls(
            runs=runs,
            packs=[[runs[run_id] for run_id in pack] for pack in document["packs"]],
            retry=frozenset(document["retry"]),
            threads=document.get("threads"),
            folder=document.get("folder"),
            command=tuple(document["command"]),
            sweep=document["sweep"],
        )

    def save(self, path: Path) -> None:
        """Write the plan, in one rename."""
        document = {
            "format": FORMAT,
            "protocol": PROTOCOL,
            "sweep": self.sweep,
            "command": self.command,
            "folder": self.folder,
            "retry": sorted(self.retry),
            "threads": self.threads,
            "packs": [[entry.run_id for entry in pack] for pack in self.packs],
            "runs": {
                run_id: {name: value for name, value in vars(entry).items() if name != "run_id"}
                for run_id, entry in self.runs.items()
            },
        }
        temporary = path.with_name(f".{path.name}.{uuid4().hex[:8]}")
        try:
            temporary.write_text(json.dumps(document, indent=1, allow_nan=False), encoding="utf-8")
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


_REFERENCE = re.compile(r"(.+)#([0-9]+)(?:@([0-9a-f]+))?", flags=re.DOTALL)


def reference(path: Path, number: int, launch: str) -> str:
    """What a job is given: `PLAN#i@launch`, a pack of a plan and the launch that wants it trained."""
    return f"{path.absolute()}#{number}@{launch}"


def parse_reference(text: str) -> tuple[Path, int]:
    """`PLAN#i` as a path and a number, whatever launch it names.

    Raises:
        ConfigError: when it is something else.
    """
    matched = _REFERENCE.fullmatch(str(text))
    if not matched:
        raise ConfigError(f"pack: cannot read {text!r}; give PLAN#i, the file of a plan and the number of a pack")
    return Path(matched[1]), int(matched[2])


def launch_of(text: str) -> str | None:
    """The launch that a reference names; None for a pack that a user asks for."""
    matched = _REFERENCE.fullmatch(str(text))
    return matched[3] if matched else None
