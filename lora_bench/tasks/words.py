"""Labels as words: what of one is seen when all that is easily mistyped is left out, and which words are no label.

    Don’t know, don't  know, "don't know"      one class in three spellings
    nan, NULL, <NA>, #N/A                      what tools write where there is no label
    none, NA                                   the same, or a class: the stance of nobody, a country, a language

What of these is meant only their owner knows, so `labels.py` asks.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Collection

_ALIKE = str.maketrans(
    dict.fromkeys("\u2018\u2019\u201a\u201b\u2032\u02bc\u00b4`", "'")
    | dict.fromkeys("\u201c\u201d\u201e\u201f\u2033\u00ab\u00bb", '"')
    | dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2015\u2212", "-")
)
_OF_TOOLS = ("nan", "-nan", "null", "<na>", "n/a", "#n/a", "#na")
_OF_PEOPLE_TOO = ("none", "na")


def looks(name: str) -> str:
    """A label without what is easily mistyped: case, forms of a letter, kinds of quotes and dashes, quotes around it,
    blanks but for one between words, and marks without width."""
    plain = unicodedata.normalize("NFKC", name.translate(_ALIKE)).lower()
    visible = "".join(letter for letter in unicodedata.normalize("NFKC", plain) if unicodedata.category(letter) != "Cf")
    words = " ".join(visible.split())
    is_quoted = len(words) > 2 and words[0] == words[-1] and words[0] in "'\""
    return words[1:-1].strip() if is_quoted else words


def is_absent(name: str, others: Collection[str]) -> bool:
    """Whether a label is what tools write where there is none, beside the other labels of its column.

    Of words that are classes too the case tells: `none` beside `favor`, `None` beside `Favor` is a class, and `None`
    beside `favor` or beside numbers is Python's.
    """
    plain = name.lower()
    if plain in _OF_TOOLS:
        return True
    if plain not in _OF_PEOPLE_TOO:
        return False
    words = [other for other in others if other.lower() != plain and any(map(str.isalpha, other))]
    return not any(_is_alike_in_case(name, word) for word in words if word not in ("true", "false"))


def _is_alike_in_case(first: str, second: str) -> bool:
    if len(second) > 1 and first[1:].isupper() != second[1:].isupper():
        return False
    return first[0].isupper() == second[0].isupper()
