"""What a reader must know beside a result."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Note:
    """A sentence beside a result; a gap is what the store lacks, or what failed or is in doubt, for that result."""

    text: str
    is_gap: bool = False

    def __str__(self) -> str:
        return self.text


def gap(text: str) -> Note:
    """The note of a gap."""
    return Note(text, is_gap=True)
