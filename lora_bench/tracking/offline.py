"""W&B runs that were kept offline and wait to be sent."""

from __future__ import annotations

from pathlib import Path

from lora_bench.wording import command_line, counted


def kept_offline(directory: Path) -> str | None:
    """How many W&B runs wait below `directory` to be sent, and the line that sends them; None when none does."""
    waiting = [path for path in directory.glob("wandb/offline-run-*/*.wandb") if not sent_mark(path).exists()]
    if not waiting:
        return None
    folder = command_line(["wandb", "sync", str(directory / "wandb")])
    return f"{counted(len(waiting), 'run')} kept offline for W&B. With a key, send with:\n  {folder}/offline-run-*"


def sent_mark(path: Path) -> Path:
    """The file by which wandb knows that an offline run was sent."""
    return path.with_suffix(".wandb.synced")
