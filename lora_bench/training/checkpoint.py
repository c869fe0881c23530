"""Checkpoints of a long pack, so that a killed one resumes where it was and ends with the same bits.

    STORE/.checkpoints/<pack>.safetensors      weights, moments and generators; position and curves as its metadata

Training is a function of weights, moments, generators and the step alone, so only these are kept. A file belongs
to one pack on one kind of machine: its name hashes the runs, in order, and the environment. It is written under a
temporary name and renamed, at most every `EVERY_SECONDS`, and removed when the pack's records are written.
"""

import contextlib
import hashlib
import json
import logging
import os
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

EVERY_SECONDS = 300.0
"""Shorter packs never write one: training them again takes less time than this."""
FOLDER = ".checkpoints"
FORMAT = 1
_NAME = re.compile(r"[0-9a-f]{16}\.safetensors")

log = logging.getLogger(__name__)


@dataclass
class State:
    """The content of a checkpoint: tensors by name, and values that JSON holds exactly."""

    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)


class Checkpoint:
    """The file of one pack."""

    def __init__(self, store_root: Path, run_ids: Sequence[str], environment_id: str) -> None:
        name = hashlib.sha256(json.dumps([list(run_ids), environment_id]).encode()).hexdigest()[:16]
        self.path = store_root / FOLDER / f"{name}.safetensors"
        self._run_ids = list(run_ids)
        self._last = time.monotonic()
        self._has_said = False

    def is_due(self) -> bool:
        """Whether it is time for a checkpoint, since the last one or since this process began the pack."""
        return time.monotonic() - self._last >= EVERY_SECONDS

    def save(self, state: State) -> None:
        """Write the state of the pack. If the disk refuses, only the checkpoint is lost."""
        temporary = self.path.with_name(f".{self.path.name}.{uuid4().hex[:8]}")
        tensors = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in state.tensors.items()}
        metadata = {"format": str(FORMAT), "values": json.dumps(state.values, allow_nan=True)}
        metadata["runs"] = json.dumps(self._run_ids)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            save_file(tensors, temporary, metadata=metadata)
            os.replace(temporary, self.path)
        except (OSError, SafetensorError) as error:
            if not self._has_said:
                log.warning("checkpoint: %s cannot be written (%s); training goes on", self.path, error)
            self._has_said = True
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
        self._last = time.monotonic()

    def clear_finished(self, is_finished: Callable[[str], bool]) -> None:
        """Remove the other files whose runs have all finished, left by a kill between record and removal, or by other
        packs of the same runs; log how many there are of packs that are not finished."""
        others = [path for path in self.path.parent.glob("*.safetensors") if _NAME.fullmatch(path.name)]
        kept = []
        for path in others:
            run_ids = _runs_of(path)
            if path != self.path and run_ids and all(map(is_finished, run_ids)):
                log.info("checkpoint: %s is removed: its %d runs are finished", path, len(run_ids))
                with contextlib.suppress(OSError):
                    path.unlink()
            elif path != self.path:
                kept.append(path)
        if kept:
            log.info("checkpoint: %d in %s are of packs that are not finished", len(kept), self.path.parent)

    def load(self) -> State | None:
        """The state of the pack, or None without one; a file that cannot be read is removed."""
        try:
            with safe_open(self.path, framework="pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != str(FORMAT):
                    return None
                values = json.loads(metadata["values"])
                return State({name: file.get_tensor(name) for name in file.keys()}, values)  # noqa: SIM118
        except FileNotFoundError:
            return None
        except (OSError, SafetensorError, ValueError, KeyError) as error:
            log.warning("checkpoint: %s cannot be read (%s); the pack starts anew", self.path, error)
            self.remove()
            return None

    def remove(self) -> None:
        """Remove the file: the pack's records are written, or it starts anew."""
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)


def _runs_of(path: Path) -> list[str]:
    """The runs of a checkpoint's pack; none where it does not say, or cannot be read."""
    try:
        with safe_open(path, framework="pt") as file:
            return [str(run_id) for run_id in json.loads((file.metadata() or {})["runs"])]
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        return []
