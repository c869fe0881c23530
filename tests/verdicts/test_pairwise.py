"""All pairs in words: each is told once, by the one that is ahead, and the matrix says the same of both sides."""

import itertools

import pytest

from lora_bench.verdicts import looks, pairwise

WORDS = (*looks.DIFFERENT, looks.TIED, looks.OPEN, looks.NOT_LEARNED, looks.UNTOLD, pairwise.UNRESOLVED)
NAMES = ("q", "k", "v", "qkvo")


@pytest.mark.parametrize("word", WORDS)
def test_a_pair_is_said_of_both_sides(word):
    """Whoever reads along a row must not miss what stands in another: better here is worse there, all else is alike."""
    table = pairwise.matrix(NAMES, [("q", "v", word)])
    ours, theirs = table[0][2], table[2][0]
    ahead = {looks.BETTER: looks.WORSE, looks.MORE_OFTEN: looks.LESS_OFTEN}
    assert (ours, theirs) in {*ahead.items(), *((b, a) for a, b in ahead.items())} or (ours == theirs)
    assert (ours == theirs) == (word not in looks.DIFFERENT)
    assert sum(cell != "" for row in table for cell in row) == 2


@pytest.mark.parametrize("word", WORDS)
def test_turning_a_pair_round_changes_no_sentence(word):
    """Which of two stands first is the order of the command line."""
    opposite = pairwise.OPPOSITE.get(word, word)
    ours, theirs = (pairwise.sentence(NAMES, [pair]) for pair in (("q", "v", word), ("v", "q", opposite)))
    assert ours.replace("q and v", "v and q") == theirs.replace("q and v", "v and q")
    assert word not in looks.DIFFERENT or (ours.count("than") == 1 and "worse" not in ours and "less" not in ours)


def test_every_pair_is_in_the_sentence():
    """A few by name, many by their number."""
    pairs = list(itertools.combinations(NAMES, 2))
    words = [looks.WORSE, looks.BETTER, looks.TIED, looks.OPEN, looks.OPEN, looks.OPEN]
    said = pairwise.sentence(NAMES, [(*pair, word) for pair, word in zip(pairs, words, strict=True)])
    assert said == (
        "q is better than v; k is better than q; q and qkvo are tied; k and v, k and qkvo, v and qkvo are open"
    )
    assert pairwise.sentence(NAMES, [(*pair, looks.OPEN) for pair in pairs]) == "all 6 pairs are open"
