"""Sentiment: does the writer think well of it?

Words of praise and of blame are equally frequent under both labels: negation ('not', 'nobody found'), intensity
('hardly', 'far from', 'could not have been more'), contrast ('but', 'although') and stance ('they wrongly said') decide
what a word is worth.
"""

from __future__ import annotations

from lora_bench.tasks.generated.draws import Draws, sentence
from lora_bench.tasks.generated.lexicon import Lexicon

LABELS = ("negative", "positive")

KEEPING = ("", "", "really", "truly", "simply", "absolutely")
TURNING = ("not", "not really", "hardly", "far from", "anything but", "by no means", "in no way", "not at all", "never")


def row(draw: Draws, lexicon: Lexicon, label: int, names: tuple[str, ...] = ()) -> tuple[str]:
    """One sentence with the label asked for."""
    return (PHENOMENA[draw.pick(names or NAMES)](draw, lexicon, label == 1),)


def negation(draw: Draws, lexicon: Lexicon, good: bool) -> str:
    """One opinion, stated or denied."""
    item, parts = draw.pick(lexicon.subjects)
    holder = f"the {draw.pick(parts)} of the {item}" if draw.percent(40) else f"the {item}"
    denied = draw.flip()
    word = quality(draw, lexicon, good != denied)
    pattern = draw.below(5)
    if pattern == 0:
        verb = draw.pick(lexicon.like if good != denied else lexicon.dislike)
        if denied:
            lead = draw.pick((f"I did not {verb.base}", f"nobody {verb.past}", f"I never {verb.past}"))
        else:
            lead = draw.pick((f"I really {verb.past}", f"everybody {verb.past}", f"I always {verb.past}"))
        return sentence(lead, holder)
    if pattern == 1:
        judge = draw.pick(("nobody", "no one") if denied else ("everybody", "everyone"))
        return sentence(f"{judge} found {holder} {word}")
    if pattern == 2:
        noun = draw.pick(lexicon.merits if good != denied else lexicon.faults)
        amount = draw.pick(("no", "hardly any", "no real") if denied else ("plenty of", "a lot of", "real"))
        return sentence(f"{holder} had {amount} {noun}")
    if pattern == 3:
        lead = draw.pick(("I would not call", "I cannot call") if denied else ("I would call", "I must call"))
        return sentence(f"{lead} {holder} {word}")
    whole = draw.pick(("nothing about", "no part of") if denied else ("everything about", "every part of"))
    return sentence(f"{whole} the {item} was {word}")


def intensity(draw: Draws, lexicon: Lexicon, good: bool) -> str:
    """A degree word leaves an opinion as it is, or turns it."""
    item, parts = draw.pick(lexicon.subjects)
    holder = f"the {draw.pick(parts)} of the {item}" if draw.percent(50) else f"this {item}"
    pattern = draw.below(3)
    if pattern == 0:
        turned = draw.flip()
        if turned:
            return sentence(holder, "was", draw.pick(TURNING), quality(draw, lexicon, not good))
        word = quality(draw, lexicon, good)
        while len(word) < 6:  # 'more good' is no English
            word = quality(draw, lexicon, good)
        return sentence(holder, "could not have been more", word)
    turned = draw.flip()
    degree = draw.pick(TURNING if turned else KEEPING)
    word = quality(draw, lexicon, good != turned)
    if pattern == 1:
        return sentence("I", draw.pick(("thought", "felt", "found")), "that", holder, "was", degree, word)
    return sentence(holder, "was", degree, word, draw.pick(("", "from start to finish", "to my mind", "in my view")))


def contrast(draw: Draws, lexicon: Lexicon, good: bool) -> str:
    """A good and a bad word in one sentence; the verdict on the whole counts."""
    item, parts = draw.pick(lexicon.subjects)
    part = draw.pick(parts)
    aside, verdict = opinion(draw, lexicon, not good), opinion(draw, lexicon, good)
    pattern = draw.below(4)
    if pattern == 0:
        return sentence(f"the {part} was {aside}, but the {item} as a whole was {verdict}")
    if pattern == 1:
        although = draw.pick(("although", "even though", "while"))
        return sentence(although, f"the {part} was {aside}, the {item} overall was {verdict}")
    if pattern == 2:
        although = draw.pick(("although", "even though", "even if"))
        return sentence(f"the {item} as a whole was {verdict} {although} the {part} was {aside}")
    return sentence(f"overall the {item} was {verdict}, but the {part} was {aside}")


def expectation(draw: Draws, lexicon: Lexicon, good: bool) -> str:
    """What was expected, wished or claimed by others is not what was found."""
    item, parts = draw.pick(lexicon.subjects)
    holder = f"the {draw.pick(parts)}" if draw.percent(30) else f"the {item}"
    expected, observed = opinion(draw, lexicon, not good), opinion(draw, lexicon, good)
    pattern = draw.below(3)
    if pattern == 0:
        return sentence(f"I expected a {quality(draw, lexicon, not good)} {item}, but it was {observed}")
    if pattern == 1:
        return sentence(f"they had told us that {holder} was {expected}, yet we found it", quality(draw, lexicon, good))
    return sentence(holder, f"was {observed}, whatever people said about it being", quality(draw, lexicon, not good))


def stance(draw: Draws, lexicon: Lexicon, good: bool) -> str:
    """An opinion that others hold, shared or rejected: the hard case, above all where the opinion is itself denied."""
    item, parts = draw.pick(lexicon.subjects)
    holder = f"the {draw.pick(parts)} of the {item}" if draw.percent(30) else f"the {item}"
    rejected = draw.flip()
    view = opinion(draw, lexicon, good != rejected)
    judges = draw.pick(("the critics", "my friends", "some people"))
    pattern = draw.below(3)
    if pattern == 0:
        rightly = "wrongly" if rejected else "rightly"
        return sentence(f"{judges} {rightly} said that {holder} was {view}")
    if pattern == 1:
        agreed = draw.pick(
            ("but they were wrong", "but I disagree") if rejected else ("and they were right", "and I agree")
        )
        return sentence(f"{judges} said that {holder} was {view}, {agreed}")
    return sentence(f"it is {'false' if rejected else 'true'} that {holder} was {view}")


PHENOMENA = {
    "negation": negation,
    "intensity": intensity,
    "contrast": contrast,
    "expectation": expectation,
    "stance": stance,
}
NAMES = tuple(PHENOMENA)


def quality(draw: Draws, lexicon: Lexicon, good: bool) -> str:
    return draw.pick(lexicon.praise if good else lexicon.blame)


def opinion(draw: Draws, lexicon: Lexicon, good: bool) -> str:
    """An adjective with its degree word, turned in four of ten cases."""
    turned = draw.percent(40)
    degree = draw.pick(TURNING if turned else KEEPING)
    return f"{degree} {quality(draw, lexicon, good != turned)}".strip()
