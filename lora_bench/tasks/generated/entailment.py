"""Entailment: if the first sentence is true, must the second be?

Every pattern is used in both directions, or with both settings of the word that decides, so neither sentence alone nor
the words that they share give the label. Logic as in MacCartney and Manning 2009 (natural logic, section 2); 'all Ns'
is read as there being some, as people read it.
"""

from __future__ import annotations

from lora_bench.tasks.generated.draws import Draws, sentence
from lora_bench.tasks.generated.lexicon import Lexicon

LABELS = ("not_entailment", "entailment")


def row(draw: Draws, lexicon: Lexicon, label: int, names: tuple[str, ...] = ()) -> tuple[str, str]:
    """(premise, hypothesis) with the label asked for."""
    return PHENOMENA[draw.pick(names or NAMES)](draw, lexicon, label == 1)


WIDENING = ("some", "some of the", "not all", "at least one of the")  # their noun may be widened
NARROWING = ("all", "no", "every one of the", "none of the", "not one of the")  # their noun may be narrowed


def monotonicity(draw: Draws, lexicon: Lexicon, good: bool) -> tuple[str, str]:
    """'some dogs' may widen to 'some animals'; 'all animals' and 'no animals' may narrow to dogs."""
    hypernym, hyponyms = draw.pick(lexicon.kinds)
    wide = hypernym.plural
    narrow = draw.pick(hyponyms).plural
    kind = draw.below(3)
    if kind == 1:
        wide, narrow = narrow, f"{draw.pick(lexicon.traits)} {narrow}"
    elif kind == 2:
        wide, narrow = narrow, f"{narrow} in the {draw.pick(lexicon.sites)}"
    widens = draw.flip()
    quantifier = draw.pick(WIDENING if widens else NARROWING)
    premise, hypothesis = (narrow, wide) if widens == good else (wide, narrow)
    if draw.flip():
        return clauses(draw, lexicon, quantifier, premise, hypothesis)
    fate = draw.pick(lexicon.fates)
    return (
        sentence(quantifier, premise, number(quantifier), fate),
        sentence(quantifier, hypothesis, number(quantifier), fate),
    )


def hypernym(draw: Draws, lexicon: Lexicon, good: bool) -> tuple[str, str]:
    """A violin is an instrument, but no flute; who got it, and what it was like, may be dropped but not changed."""
    kind, members = draw.pick(lexicon.kinds)
    member, sibling = draw.pick_two(members)
    agent, stranger = draw.pick_two(lexicon.women + lexicon.men)
    trait, verb, place = draw.pick(lexicon.traits), draw.pick(lexicon.handle).past, f"in the {draw.pick(lexicon.sites)}"
    narrow, wide = f"a {member.singular}", f"a {kind.singular}"
    described = f"a {trait} {member.singular}"
    premise, hypothesis = draw.pick(((narrow, wide), (described, narrow), (described, wide)))
    change = "none" if good else draw.pick(("direction", "sibling", "sibling", "agent", "agent"))
    if change == "direction":
        premise, hypothesis = hypothesis, premise
    elif change == "sibling":
        hypothesis = f"a {sibling.singular}"
    other = stranger if change == "agent" else agent
    return sentence(agent, verb, premise, place if draw.flip() else ""), sentence(other, verb, hypothesis)


def number(quantifier: str) -> str:
    return "was" if " one of the" in quantifier or quantifier.startswith("each") else "were"


def clauses(draw: Draws, lexicon: Lexicon, quantifier: str, premise: str, hypothesis: str) -> tuple[str, str]:
    """The quantified noun as the object of a person's deed."""
    agent, verb = draw.pick(lexicon.women + lexicon.men), draw.pick(lexicon.handle)
    if quantifier.startswith("not"):
        lead = f"did not {verb.base}"
        quantifier = "all" if quantifier == "not all" else "a single one of the"
    else:
        lead = verb.past
    return sentence(agent, lead, quantifier, premise), sentence(agent, lead, quantifier, hypothesis)


# Every quantifier stands in the first and the second place of both lists about equally often.
STRONGER = (
    ("all the", "some of the"),
    ("all the", "most of the"),
    ("most of the", "some of the"),
    ("each of the", "all the"),
    ("some of the", "at least one of the"),
    ("none of the", "not all the"),
    ("not one of the", "none of the"),
    ("not one of the", "not all the"),
)
NOT_STRONGER = (
    ("all the", "none of the"),
    ("all the", "not all the"),
    ("most of the", "all the"),
    ("each of the", "not all the"),
    ("some of the", "all the"),
    ("none of the", "some of the"),
    ("not all the", "none of the"),
    ("none of the", "at least one of the"),
    ("not one of the", "some of the"),
    ("not one of the", "most of the"),
)


def quantifier(draw: Draws, lexicon: Lexicon, good: bool) -> tuple[str, str]:
    """Stronger quantifiers entail weaker ones."""
    hypernym, hyponyms = draw.pick(lexicon.kinds)
    noun = draw.pick((*hyponyms, hypernym)).plural
    place = f"in the {draw.pick(lexicon.sites)}" if draw.flip() else ""
    fate = draw.pick(lexicon.fates)
    if draw.flip():
        low = draw.below(len(lexicon.numbers) - 1)
        high = low + 1 + draw.below(len(lexicon.numbers) - 1 - low)
        bound, rising = draw.pick((("at least", False), ("more than", False), ("at most", True), ("fewer than", True)))
        pair = [f"{bound} {lexicon.numbers[low]} {noun}", f"{bound} {lexicon.numbers[high]} {noun}"]
        if rising != good:
            pair.reverse()
    else:
        pair = [f"{word} {noun}" for word in draw.pick(STRONGER if good else NOT_STRONGER)]
    premise, hypothesis = (sentence(subject, place, number(subject), fate) for subject in pair)
    return premise, hypothesis


def role_swap(draw: Draws, lexicon: Lexicon, good: bool) -> tuple[str, str]:
    """Who did it to whom, whatever the wording."""
    first, second = (f"the {noun.singular}" for noun in draw.pick_two(lexicon.people))
    left, right = (first, second) if good else (second, first)
    pattern = draw.below(4)
    if pattern == 0:
        verb = draw.pick(lexicon.treat)
        pair = [sentence(first, verb.past, second), sentence(right, "was", verb.participle, "by", left)]
        if draw.flip():
            pair.reverse()
        return pair[0], pair[1]
    if pattern == 1:
        up, down = draw.pick(lexicon.converses)
        if draw.flip():
            up, down = down, up
        return sentence(first, "was", up, "than", second), sentence(right, "was", down, "than", left)
    if pattern == 2:
        giving, to, taking, source = draw.pick(lexicon.exchanges)
        thing = f"the {draw.pick(lexicon.things).singular}"
        pair = [sentence(first, giving, thing, to, second), sentence(right, taking, thing, source, left)]
        if draw.flip():
            pair.reverse()
        return pair[0], pair[1]
    treat, act = draw.pick(lexicon.treat).past, draw.pick(lexicon.act).past
    if draw.flip():
        return sentence(first, "who", treat, second, act), sentence(left, act)
    return sentence(first, "that", second, treat, act), sentence(left, act)


def connective(draw: Draws, lexicon: Lexicon, good: bool) -> tuple[str, str]:
    """'and' gives each part, 'or' does not; under a negation it is the other way round."""
    agent, verb = draw.pick(lexicon.women + lexicon.men), draw.pick(lexicon.handle)
    things = tuple(f"the {noun.singular}" for noun in draw.pick_two(lexicon.things))
    kept = draw.pick(things)
    denied = draw.flip()
    if draw.percent(40):
        # the part that is not denied
        first, second = (
            (draw.pick(lexicon.women), draw.pick(lexicon.men))
            if draw.flip()
            else (draw.pick(lexicon.men), draw.pick(lexicon.women))
        )
        stated = first if good != denied else second
        lead = f"did not {verb.base}" if denied else verb.past
        return sentence(f"{first}, but not {second},", verb.past, things[0]), sentence(stated, lead, things[0])
    joined = f"both {things[0]} and {things[1]}" if good != denied else f"either {things[0]} or {things[1]}"
    did = f"did not {verb.base}" if denied else verb.past
    return sentence(agent, did, joined), sentence(agent, did, kept)


PHENOMENA = {
    "hypernym": hypernym,
    "monotonicity": monotonicity,
    "quantifier": quantifier,
    "role_swap": role_swap,
    "connective": connective,
}
NAMES = (*PHENOMENA, "hypernym", "hypernym")  # lexical steps are three times as frequent as any other
