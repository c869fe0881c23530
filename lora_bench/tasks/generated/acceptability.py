"""Acceptability: is this sentence English?

Every phenomenon is written so that both labels draw on the same words: the corruption moves a form to where it does not
belong, or pairs two forms that are both fine elsewhere. Counting words therefore says nothing, structure everything.
The phenomena follow BLiMP (Warstadt et al. 2020, arXiv:1912.00582); sentences and lexicon are our own.
"""

from __future__ import annotations

from lora_bench.tasks.generated.draws import Draws, sentence
from lora_bench.tasks.generated.lexicon import Lexicon

LABELS = ("unacceptable", "acceptable")


def row(draw: Draws, lexicon: Lexicon, label: int, names: tuple[str, ...] = ()) -> tuple[str]:
    """One sentence with the label asked for."""
    return (PHENOMENA[draw.pick(names or NAMES)](draw, lexicon, label == 1),)


def agreement(draw: Draws, lexicon: Lexicon, good: bool) -> str:
    """The verb agrees with the head of its subject, not with the noun beside it."""
    head, attractor = draw.pick_two(lexicon.people)
    plural, attractor_plural = draw.flip(), draw.flip()
    marked_plural = plural if good else not plural
    pattern = draw.below(5)
    if pattern == 0:
        subject = f"the {head.form(plural)} near the {attractor.form(attractor_plural)}"
    elif pattern == 1:
        subject = f"the {head.form(plural)} that the {attractor.form(attractor_plural)} {draw.pick(lexicon.treat).past}"
    elif pattern == 2:
        subject = f"the {head.form(plural)} who {draw.pick(lexicon.treat).past} the {attractor.form(attractor_plural)}"
    elif pattern == 3:
        subject = f"near the {attractor.form(attractor_plural)} the {head.form(plural)}"
    else:
        head, attractor = draw.pick(lexicon.things), draw.pick(lexicon.people)
        subject = f"the {head.form(plural)} of the {attractor.form(attractor_plural)}"
    if pattern < 4 and draw.flip():
        verb = draw.pick(lexicon.act)
        return sentence(subject, verb.base if marked_plural else verb.third, draw.pick(("often", "too", "")))
    copula = draw.pick((("is", "are"), ("was", "were"), ("has been", "have been")))[marked_plural]
    return sentence(subject, copula, draw.pick(lexicon.moods if pattern < 4 else lexicon.looks))


def reflexive(draw: Draws, lexicon: Lexicon, good: bool) -> str:
    """A reflexive takes gender and number from the subject of its own clause."""
    candidates = (
        ("himself", lexicon.masculine, False),
        ("herself", lexicon.feminine, False),
        ("themselves", lexicon.masculine + lexicon.feminine, True),
    )
    (own, own_nouns, own_plural), (other, other_nouns, other_plural) = draw.pick_two(candidates)
    subject, bystander = draw.pick(own_nouns), draw.pick(other_nouns)
    while bystander == subject:
        bystander = draw.pick(other_nouns)
    subject, bystander = f"the {subject.form(own_plural)}", f"the {bystander.form(other_plural)}"
    reflexive_form = own if good else other
    verb = draw.pick(lexicon.treat).past
    pattern = draw.below(6)
    if pattern == 0:
        return sentence(bystander, draw.pick(lexicon.report_that), "that", subject, verb, reflexive_form)
    if pattern == 1:
        return sentence(subject, "near", bystander, verb, reflexive_form, adjunct(draw, lexicon, 50))
    if pattern == 2:
        return sentence(subject, "who", draw.pick(lexicon.treat).past, bystander, verb, reflexive_form)
    if pattern == 3:
        return sentence(subject, "that", bystander, draw.pick(lexicon.treat).past, verb, reflexive_form)
    return sentence(subject, verb, reflexive_form, draw.pick(("", f"near {bystander}")), adjunct(draw, lexicon, 80))


def determiner_noun(draw: Draws, lexicon: Lexicon, good: bool) -> str:
    """A determiner agrees with its noun in number, and in whether the noun can be counted."""
    agent = draw.pick(lexicon.women + lexicon.men)
    first, second = draw.pick_two(lexicon.things)
    verb = draw.pick(lexicon.handle).past
    if draw.percent(30):
        mass, count = draw.pick(lexicon.masses), first.plural
        more, fewer = draw.pick((("much", "many"), ("less", "fewer"), ("little", "few")))
        lead = "too" if more == "much" else draw.pick(("very", "too")) if more == "little" else ""
        (left, left_noun), (right, right_noun) = draw.pick(
            (((more, mass), (fewer, count)), ((fewer, count), (more, mass)))
        )
        if not good:
            left, right = right, left
        return sentence(agent, verb, lead, left, left_noun, "and", lead, right, right_noun, adjunct(draw, lexicon, 30))
    plural = draw.flip()
    singulars, plurals = ("this", "that"), ("these", "those")
    here, there = draw.pick((singulars, plurals)[plural]), draw.pick((plurals, singulars)[plural])
    if draw.percent(60):
        if not good:
            here, there = there, here
        middle = draw.pick(("near", "and", "with"))
        left = f"{here} {adjective(draw, lexicon, 30)} {first.form(plural)}"
        right = f"{there} {adjective(draw, lexicon, 30)} {second.form(not plural)}"
        return sentence(agent, verb, left, middle, right)
    if not good:
        here = there
    noun = f"{adjective(draw, lexicon, 40)} {first.form(plural)}"
    return sentence(agent, verb, here, noun, "near the", second.form(draw.flip()), adjunct(draw, lexicon, 30))


def negative_polarity(draw: Draws, lexicon: Lexicon, good: bool) -> str:
    """'ever' and 'any' need a negation above them, not merely one in the sentence."""
    first, second = (noun.singular for noun in draw.pick_two(lexicon.people))
    treat, done = draw.pick(lexicon.treat), draw.pick(lexicon.act)
    handle, thing = draw.pick(lexicon.handle), draw.pick(lexicon.things).plural
    pattern = draw.below(4)
    if pattern == 0:
        left, right = ("no", "the") if good else ("the", "no")
        return sentence(left, first, "that", right, second, treat.past, "has ever", done.participle)
    if pattern == 1:
        left, right = ("no", "the") if good else ("the", "no")
        return sentence(left, first, "who", treat.past, right, second, handle.past, "any", thing)
    if pattern == 2:
        inner_denied = draw.flip()
        left = f"did not {treat.base}" if inner_denied else treat.past
        right = f"did not {handle.base}" if good else handle.past
        return sentence("the", first, "who", left, "the", second, right, "any", thing)
    said = draw.pick(lexicon.report_that)
    if good:
        return sentence("the", first, said, "that no", second, "had ever", done.participle)
    speaker = f"the {first} that no {second} {treat.past}"
    return sentence(speaker, said, "that the", draw.pick(lexicon.people).singular, "had ever", done.participle)


def argument_structure(draw: Draws, lexicon: Lexicon, good: bool) -> str:
    """A verb that needs an object has one, and a verb that takes none has none."""
    first, second = (noun.singular for noun in draw.pick_two(lexicon.people))
    thing = draw.pick(lexicon.things).singular
    handle, act = draw.pick(lexicon.handle), draw.pick(lexicon.act)
    pattern = draw.below(4)
    if pattern == 0:
        with_object, without = (handle.past, act.past) if good else (act.past, handle.past)
        parts = [f"the {first} {with_object} the {thing}", f"the {second} {without}"]
        if draw.flip():
            parts.reverse()
        return sentence(parts[0], draw.pick(("and", "before", "because")), parts[1])
    if pattern == 1:
        with_object, without = (handle.past, act.past) if good else (act.past, handle.past)
        return sentence("the", first, "who", without, with_object, "the", adjective(draw, lexicon, 40), thing)
    if pattern == 2:
        verb = handle if good else act
        patient = f"the {adjective(draw, lexicon, 50)} {thing}"
        return sentence(patient, "was", verb.participle, "by the", first, adjunct(draw, lexicon, 50))
    verb = act if good else handle
    return sentence("the", mood(draw, lexicon, 60), first, verb.past, "near the", thing, adjunct(draw, lexicon, 60))


def tense(draw: Draws, lexicon: Lexicon, good: bool) -> str:
    """After 'have' stands the participle, after 'did' the base form, and alone the past."""
    first, second = (noun.singular for noun in draw.pick_two(lexicon.people))
    left, right = draw.pick(lexicon.irregular_act), draw.pick(lexicon.irregular_handle)
    thing = draw.pick(lexicon.things).singular
    pattern = draw.below(4)
    if pattern == 0:
        past, participle = (left.past, right.participle) if good else (left.participle, right.past)
        parts = [f"the {first} {past}", f"the {second} had {participle} the {thing}"]
        if draw.flip():
            parts.reverse()
        return sentence(parts[0], draw.pick(("and", "because")), parts[1])
    if pattern == 1:
        participle, past = (left.participle, right.past) if good else (left.past, right.participle)
        return sentence("the", first, "who had", participle, past, "the", thing, adjunct(draw, lexicon, 50))
    if pattern == 2:
        base, participle = (right.base, left.participle) if good else (right.participle, left.base)
        parts = [f"the {first} did not {base} the {thing}", f"the {second} has not {participle}"]
        if draw.flip():
            parts.reverse()
        return sentence(parts[0], "and", parts[1])
    verb = draw.pick(lexicon.handle + lexicon.treat)
    base, past = (verb.base, left.past) if good else (verb.past, left.base)
    target = thing if verb in lexicon.handle else draw.pick(lexicon.people).singular
    return sentence("the", first, past, "and the", second, "will", base, "the", target)


def pronoun_case(draw: Draws, lexicon: Lexicon, good: bool) -> str:
    """Subjects are nominative and objects accusative; 'their' is neither."""
    subject, other = draw.pick_two((("he", "him"), ("she", "her"), ("they", "them"), ("we", "us")))
    noun = draw.pick(lexicon.people).singular
    treat, act = draw.pick(lexicon.treat).past, draw.pick(lexicon.act).past
    nominative, accusative = (subject[0], other[1]) if good else (subject[1], other[0])
    pattern = draw.below(4)
    if pattern == 0:
        return sentence(draw.pick(lexicon.times), nominative, treat, accusative, "near the", noun)
    if pattern == 1:
        return sentence("the", noun, treat, accusative, draw.pick(("because", "before", "after")), nominative, act)
    if pattern == 2:
        said = draw.pick(lexicon.report_that)
        return sentence(f"the {noun} {said} that {nominative} {treat} {accusative}", adjunct(draw, lexicon, 40))
    possessive, accusative = ("their", "them") if good else ("them", "their")
    return sentence(possessive, mood(draw, lexicon, 50), noun, treat, accusative, adjunct(draw, lexicon, 60))


def relative_clause(draw: Draws, lexicon: Lexicon, good: bool) -> str:
    """A relative clause leaves one place empty; 'who' stands for people and 'which' for things."""
    first, second = (noun.singular for noun in draw.pick_two(lexicon.people))
    thing, thing_two = (noun.singular for noun in draw.pick_two(lexicon.things))
    handle, handle_two = (verb.past for verb in draw.pick_two(lexicon.handle))
    pattern = draw.below(4)
    if pattern == 0:
        last = draw.pick(lexicon.handle).past
        while last in (handle, handle_two):
            last = draw.pick(lexicon.handle).past
        inner, outer = ("", "it") if good else ("it", "")
        described = f"the {thing} that the {second} {handle_two} {inner}"
        if draw.flip():
            return sentence(f"the {first} {handle} {outer} and then {last} {described}")
        return sentence(f"the {first} {handle} {described}, and then {last} {outer}")
    if pattern == 1:
        inner, outer = ("", f"the {thing_two}") if good else (f"the {thing_two}", "")
        return sentence("the", thing, "that the", first, handle, inner, draw.pick(("was near", "was under")), outer)
    if pattern == 2:
        person, matter = ("who", "which") if good else ("which", "who")
        parts = [
            f"the {first} {person} was {draw.pick(lexicon.moods)}",
            f"the {thing} {matter} was {draw.pick(lexicon.looks)}",
        ]
        if draw.flip():
            return sentence(parts[0], handle, parts[1])
        return sentence(parts[1], "was", draw.pick(lexicon.handle).participle, "by", parts[0])
    treat = draw.pick(lexicon.treat).past
    middle = f"{treat} the {second} {handle}" if good else f"{treat} {handle} the {second}"
    return sentence("the", first, "that", middle, "the", adjective(draw, lexicon, 30), thing)


PHENOMENA = {
    "agreement": agreement,
    "reflexive": reflexive,
    "determiner_noun": determiner_noun,
    "negative_polarity": negative_polarity,
    "argument_structure": argument_structure,
    "tense": tense,
    "pronoun_case": pronoun_case,
    "relative_clause": relative_clause,
}
NAMES = tuple(PHENOMENA)


def adjunct(draw: Draws, lexicon: Lexicon, chance: int) -> str:
    """A phrase of time or place, in `chance` of 100 cases."""
    if not draw.percent(chance):
        return ""
    return draw.pick(lexicon.times) if draw.flip() else f"in the {draw.pick(lexicon.places).singular}"


def adjective(draw: Draws, lexicon: Lexicon, chance: int) -> str:
    return draw.pick(lexicon.looks) if draw.percent(chance) else ""


def mood(draw: Draws, lexicon: Lexicon, chance: int) -> str:
    return draw.pick(lexicon.moods) if draw.percent(chance) else ""
