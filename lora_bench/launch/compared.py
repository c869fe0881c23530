"""A look as a journal has it, held against what the records give: field by field, and the first that differs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

SEEDS, RATES, WORDS, SCORES = "seeds", "rates", "words", "scores"
OF_LOOK = {
    "n_seeds": SEEDS,
    "alive": RATES,
    "chosen": RATES,
    "steadier": RATES,
    "learning": "seeds that learn",
}
OF_FINDING = {
    **dict.fromkeys(("first", "second"), "contrasts"),
    **dict.fromkeys(("n_failed", "n_pairs", "n_seeds"), SEEDS),
    **dict.fromkeys(("word", "look"), WORDS),
    **dict.fromkeys(("difference", "sd"), SCORES),
    **dict.fromkeys(("low", "high"), "intervals"),
    **dict.fromkeys(("p_different", "p_tied"), "p-values"),
    "chance": "chances",
}
BESIDE = {"number": "number", "level": "level", "spent": "error spent", "environment": "environment", "runs": "runs"}
ROUNDING = 1e-9
"""By which numbers may differ of what another version of a library computes, of themselves and at the least."""


def first_difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """What two entries of one look disagree about, in words; what other fields rest on first. None where they agree.

    Args:
        before: as the journal has it, which anybody may have edited.
        now: as the records give it, in plain values.
    """
    return next(_differences(before, now), None)


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    yield from _unlike(before, now, OF_LOOK, "")
    findings = before.get("findings")
    if not isinstance(findings, list) or len(findings) != len(now["findings"]):
        yield "contrasts"
        return
    for finding, other in zip(findings, now["findings"], strict=True):
        contrast = f" of {other['first']} \N{MINUS SIGN} {other['second']}"
        yield from _unlike(finding, other, OF_FINDING, contrast)
    yield from _unlike(before, now, BESIDE, "")


def _unlike(before: Any, now: Mapping[str, Any], words: Mapping[str, str], about: str) -> Iterator[str]:
    known = before if isinstance(before, Mapping) else {}
    for key, word in words.items():
        if key not in known or not _is_same(known[key], now[key]):
            numbers = (known.get(key), now[key])
            is_shown = all(isinstance(number, (int, float, str)) for number in numbers)
            yield word + about + (" ({}, now {})".format(*map(_shown, numbers)) if is_shown else "")


def _is_same(before: Any, now: Any) -> bool:
    """Alike in all: numbers up to rounding, the rest as it is."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        return before.keys() == now.keys() and all(_is_same(before[key], now[key]) for key in now)
    if isinstance(before, list) and isinstance(now, list):
        return len(before) == len(now) and all(map(_is_same, before, now))
    if isinstance(before, float) and isinstance(now, float):
        return math.isclose(before, now, rel_tol=ROUNDING, abs_tol=ROUNDING)
    return type(before) is type(now) and before == now


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
