"""Splits in several files as the Hub numbers them: `train-00000-of-00002.parquet`, with or without a hash behind it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from lora_bench.config.errors import ConfigError
from lora_bench.tasks.readers import SUFFIXES

_NAME = re.compile(
    rf"(.*?)(?:-(\d+)-of-(\d+)(?:-[0-9a-f]+)?)?({'|'.join(map(re.escape, SUFFIXES))})", re.IGNORECASE | re.DOTALL
)


class Shard(NamedTuple):
    """What a data file's name says: `train`, and where it is one of several, which and of how many."""

    split: str
    number: int | None
    count: int | None


def parse(path: Path) -> Shard | None:
    """The parts of a data file's name; None for a file of another kind."""
    matched = _NAME.fullmatch(path.name)
    if not matched:
        return None
    return Shard(matched[1], *(int(part) if part else None for part in matched.group(2, 3)))


def lacking(numbers: Iterable[int], count: int) -> list[int]:
    """Shards that are not there."""
    return sorted(set(range(count)) - set(numbers))


def refuse_part(path: Path, *, key: str) -> None:
    """Refuse a file that is one of several: the others' rows would be missing, and nothing else tells.

    Raises:
        ConfigError: with the shards that are missing.
    """
    shard = parse(path)
    if shard is None or not shard.count or shard.number is None:
        return
    others = lacking([shard.number], shard.count)
    if others:
        shown = ", ".join(map(str, others[:5])) + (", ..." if len(others) > 5 else "")
        raise ConfigError(
            f"{key}: {str(path)!r} is shard {shard.number} of {shard.count}, and a split is read from one file, so the "
            f"rows of shard {shown} would be missing; write all shards into one file, without -of- in its name"
        )
