"""Where a long pack stands, so that a killed one goes on where it was and ends with the same bits.

    STORE/.checkpoints/<pack>.safetensors      weights, moments and generators; position and curves as its metadata

Training is a function of weights, moments, generators and the step alone, so these are all that is kept. A file belongs
to one pack on one kind of machine: its name hashes the runs, in order, and the environment. It is written under a
temporary name and renamed, at most every `EVERY_SECONDS`, and goes when the pack's records are written.
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
"""Shorter packs never write one: training them again costs less than this."""
FOLDER = ".checkpoints"
FORMAT = 1
_NAME = re.compile(r"[0-9a-f]{16}\.safetensors")

log = logging.getLogger(__name__)


@dataclass
class State:
    """What is kept: tensors by name, and values that JSON holds exactly."""

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
        """Whether enough time has passed since the last one, or since this process began the pack."""
        return time.monotonic() - self._last >= EVERY_SECONDS

    def save(self, state: State) -> None:
        """Keep where the pack stands. A disk that refuses costs the checkpoint and nothing else."""
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
        """Remove the files beside this one whose runs have all finished, as a kill between record and removal, or other
        packs of the same runs, leave them; say how many others there are, of packs that were not finished."""
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
        """Where the pack stood, or None; a file that cannot be read is removed."""
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
        """The pack is written, or starts anew."""
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)


def _runs_of(path: Path) -> list[str]:
    """The runs of a checkpoint's pack; none where it does not say, or cannot be read."""
    try:
        with safe_open(path, framework="pt") as file:
            return [str(run_id) for run_id in json.loads((file.metadata() or {})["runs"])]
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        return []
