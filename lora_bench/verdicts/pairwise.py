"""All pairs of a family: as a matrix of words, and as a sentence that names who is better, whichever stands first."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from lora_bench.verdicts import looks
from lora_bench.wording import listed

OPPOSITE = {
    looks.BETTER: looks.WORSE,
    looks.WORSE: looks.BETTER,
    looks.MORE_OFTEN: looks.LESS_OFTEN,
    looks.LESS_OFTEN: looks.MORE_OFTEN,
}
"""What a word of the first is of the second; every other word is the same of both."""
UNRESOLVED = "unresolved"
BRIEF = {looks.NOT_LEARNED: "flat", looks.UNTOLD: "not told", UNRESOLVED: "open"}
"""Words that are too long for a cell of the matrix."""
NAMED = 3
"""Pairs that a sentence names one by one, at most."""

Worded = tuple[str, str, str]
"""The first, the second, and the word that the first has of the second."""


def matrix(names: Sequence[str], pairs: Iterable[Worded]) -> list[list[str]]:
    """The word of every row against every column, both in the order of the names; empty where there is none.

    Args:
        names: at least those of the pairs.
    """
    of = {}
    for first, second, word in pairs:
        of[first, second] = BRIEF.get(word, word)
        of[second, first] = BRIEF.get(word, OPPOSITE.get(word, word))
    return [[of.get((row, column), "") for column in names] for row in names]


def sentence(names: Sequence[str], pairs: Iterable[Worded]) -> str:
    """`qv is better than q and k; q is tied with k; 3 of 6 pairs are open`.

    Args:
        names: the order in which the better ones are told.
    """
    pairs = list(pairs)
    by_word: dict[str, list[tuple[str, str]]] = {}
    for first, second, word in pairs:
        is_turned = word in (looks.WORSE, looks.LESS_OFTEN)
        key, pair = (OPPOSITE[word], (second, first)) if is_turned else (word, (first, second))
        by_word.setdefault(key, []).append(pair)
    parts = []
    for word, phrase in {looks.BETTER: "is better than", looks.MORE_OFTEN: "learns more often than"}.items():
        for name in names:
            others = [second for first, second in by_word.get(word, ()) if first == name]
            parts += [f"{name} {phrase} {listed(others)}"] if others else []
    for word, phrase in {
        looks.TIED: "tied",
        looks.OPEN: "open",
        UNRESOLVED: "unresolved",
        looks.NOT_LEARNED: "not compared, since one of the two did not learn at any rate tried",
        looks.UNTOLD: "not compared, since one of the two is not told from the head alone",
    }.items():
        of_word = [" and ".join(pair) for pair in by_word.get(word, ())]
        if of_word:
            share = f"all {len(pairs)}" if len(of_word) == len(pairs) else f"{len(of_word)} of {len(pairs)}"
            shown = ", ".join(of_word) if len(of_word) <= NAMED else f"{share} pairs"
            parts.append(f"{shown} are {phrase}")
    return "; ".join(parts)
