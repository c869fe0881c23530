"""Labels as words: what of one is seen when all that is easily mistyped is left out.

    Don’t know, don't  know, "don't know"      one class in three spellings

Whether they are one only their owner knows, so `labels.py` asks.
"""

from __future__ import annotations

import unicodedata

_ALIKE = str.maketrans(
    dict.fromkeys("\u2018\u2019\u201a\u201b\u2032\u02bc\u00b4`", "'")
    | dict.fromkeys("\u201c\u201d\u201e\u201f\u2033\u00ab\u00bb", '"')
    | dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2015\u2212", "-")
)


def looks(name: str) -> str:
    """A label without what is easily mistyped: case, forms of a letter, kinds of quotes and dashes, quotes around it,
    blanks but for one between words, and marks without width."""
    plain = unicodedata.normalize("NFKC", name.translate(_ALIKE)).lower()
    visible = "".join(letter for letter in unicodedata.normalize("NFKC", plain) if unicodedata.category(letter) != "Cf")
    words = " ".join(visible.split())
    is_quoted = len(words) > 2 and words[0] == words[-1] and words[0] in "'\""
    return words[1:-1].strip() if is_quoted else words
