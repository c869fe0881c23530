"""Random choices that are the same on every platform and Python version, and the last touches of a sentence."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from typing import TypeVar

Item = TypeVar("Item")


class Draws:
    """A stream of choices named by a text key.

    Only `getrandbits` of the Mersenne Twister is used, whose output Python guarantees for a given seed; `hash()`,
    `sample` and `shuffle` have changed between versions.
    """

    def __init__(self, key: str):
        self._bits = random.Random(int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")).getrandbits

    def below(self, n: int) -> int:
        """A whole number in 0 .. n - 1."""
        width = n.bit_length()
        number = self._bits(width)
        while number >= n:
            number = self._bits(width)
        return number

    def pick(self, items: Sequence[Item]) -> Item:
        return items[self.below(len(items))]

    def pick_two(self, items: Sequence[Item]) -> tuple[Item, Item]:
        """Two different items, in random order."""
        first = self.below(len(items))
        second = self.below(len(items) - 1)
        return items[first], items[second + (second >= first)]

    def flip(self) -> bool:
        return self._bits(1) == 1

    def percent(self, chance: int) -> bool:
        """True in `chance` of 100 cases."""
        return self.below(100) < chance


def sentence(*parts: str) -> str:
    """Join parts, some of them empty, with a capital and a full stop; 'a' becomes 'an' where the next word asks."""
    words = " ".join(parts).split()
    for position, word in enumerate(words[:-1]):
        follower = words[position + 1]
        if word in ("a", "A") and follower[0] in "aeiou" and not follower.startswith("use"):
            words[position] = word + "n"
    text = " ".join(words).replace(" ,", ",")
    return text[0].upper() + text[1:] + "."
