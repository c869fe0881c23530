"""A card at one look: which claims are decided, and which side the records take where two contradict each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

SUPPORTED, REFUTED, OPEN, NOT_RUN = "supported", "refuted", "open", "not run"


@dataclass(frozen=True)
class Decided:
    """A claim that has a status in one setting or more."""

    claim: Mapping[str, Any]
    settings: tuple[str, ...]  # that gave it this status


@dataclass(frozen=True)
class Sides:
    """Two claims that cannot both hold, and by setting which the records take."""

    first: Mapping[str, Any]
    second: Mapping[str, Any]
    taken: Mapping[str, str]

    @property
    def is_run(self) -> bool:
        return set(self.taken.values()) != {NOT_RUN}


def decided(rows: pd.DataFrame, claims: Sequence[Mapping[str, Any]], status: str) -> list[Decided]:
    """The claims that have this status somewhere, those of most settings first."""
    of_status = rows[rows["status"] == status]
    settings = {claim: tuple(of_claim["setting"]) for claim, of_claim in of_status.groupby("claim", sort=False)}
    known = [Decided(claim, settings[claim["id"]]) for claim in claims if claim["id"] in settings]
    return sorted(known, key=lambda claim: -len(claim.settings))


def contradictions(rows: pd.DataFrame, claims: Sequence[Mapping[str, Any]]) -> list[Sides]:
    """Every pair once, those that were run somewhere first."""
    status = {(claim, setting): word for claim, setting, word in rows[["claim", "setting", "status"]].itertuples(False)}
    settings = list(dict.fromkeys(rows["setting"]))
    made = [
        Sides(first, second, {at: side(status[first["id"], at], status[second["id"], at]) for at in settings})
        for first, second in _pairs(claims)
    ]
    return sorted(made, key=lambda sides: not sides.is_run)


def side(first: str, second: str) -> str:
    """Which of two claims that contradict each other their statuses speak for, in words."""
    if first == second:
        return {SUPPORTED: "both", REFUTED: "neither", NOT_RUN: NOT_RUN}.get(first, OPEN)
    for name, status, other in (("first", first, second), ("second", second, first)):
        if status == SUPPORTED:
            return f"the {name}"
        if status == REFUTED and other != SUPPORTED:
            return f"not the {name}"
    return OPEN


def _pairs(claims: Sequence[Mapping[str, Any]]) -> Iterator[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    by_id = {claim["id"]: claim for claim in claims}
    seen = set()
    for claim in claims:
        for other in claim.get("contradicts", ()):
            if frozenset((claim["id"], other)) not in seen:
                seen.add(frozenset((claim["id"], other)))
                yield claim, by_id[other]
