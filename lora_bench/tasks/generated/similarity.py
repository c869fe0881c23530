"""Similarity: how much of the meaning do two sentences share, from 0 (nothing) to 5 (all of it)?

The second sentence is the first after a few edits. Every edit has a price in meaning, and the score is 5 minus the sum
of the prices:

    score = 5 - sum of PRICES[edit]          (0: two events that share nothing)

Rewording is free (passive voice, a synonym, an adjunct moved to the front), and who did it to whom costs much although
no word changes, so counting shared words falls short. The scale is that of STS (Agirre et al. 2012, section 3): 5 is
the same meaning, 4 differs in a detail, 3 in what matters, 2 shares some details, 1 the topic only, 0 nothing.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

from lora_bench.tasks.generated.draws import Draws, sentence
from lora_bench.tasks.generated.lexicon import Lexicon, Noun, Verb

PRICES = {
    "time": 0.5,  # another time, or one that only one sentence tells
    "place": 0.5,
    "agent_look": 0.5,  # another adjective, or one that only one sentence tells
    "patient_look": 0.5,
    "number": 0.5,
    "agent": 1.5,
    "patient": 1.5,
    "verb": 2.0,
    "swap": 2.5,  # agent and patient change places
    "negation": 3.0,
}
LEVELS = 11  # scores 0.0, 0.5 ... 5.0, equally frequent


@dataclass(frozen=True)
class Party:
    """Someone or something in an event."""

    noun: Noun
    look: str
    is_plural: bool = False


@dataclass(frozen=True)
class Event:
    """What a sentence tells, apart from its wording."""

    agent: Party
    verb: Verb
    patient: Party
    place: str
    time: str
    is_denied: bool = False


def row(draw: Draws, lexicon: Lexicon, level: int) -> tuple[str, str]:
    """(first sentence, second sentence) whose score is `level` half points."""
    event = draw_event(draw, lexicon, is_personal=draw.flip())
    if level == 0:
        other = draw_event(draw, lexicon, is_personal=draw.flip())
        while content(other) & content(event):
            other = draw_event(draw, lexicon, is_personal=draw.flip())
    else:
        edits = draw.pick(EDITS[LEVELS - 1 - level])
        while "swap" in edits and event.patient.noun not in lexicon.people:
            edits = draw.pick(EDITS[LEVELS - 1 - level])
        other = event
        for edit in edits:
            other = edited(draw, lexicon, other, edit)
    texts = [wording(draw, lexicon, event, is_base=True), wording(draw, lexicon, other, is_base=False)]
    while texts[0] == texts[1]:  # the same sentence twice asks for nothing
        texts[1] = wording(draw, lexicon, other, is_base=False)
    if draw.flip():
        texts.reverse()
    return texts[0], texts[1]


def combinations() -> dict[int, list[tuple[str, ...]]]:
    """Sets of edits by their price in half points; 'swap' only beside small edits, where it stays recognisable."""
    by_cost: dict[int, list[tuple[str, ...]]] = {cost: [] for cost in range(LEVELS - 1)}
    for size in range(5):
        for edits in itertools.combinations(PRICES, size):
            cost = int(2 * sum(PRICES[edit] for edit in edits))
            large = [edit for edit in edits if PRICES[edit] > 0.5]
            if cost < LEVELS - 1 and not ("swap" in large and len(large) > 1):
                by_cost[cost].append(edits)
    return by_cost


def draw_event(draw: Draws, lexicon: Lexicon, *, is_personal: bool) -> Event:
    agent, person = draw.pick_two(lexicon.people)
    if is_personal:
        patient, verb = Party(person, maybe(draw, lexicon.moods)), draw.pick(lexicon.treat)
    else:
        patient, verb = Party(draw.pick(lexicon.things), maybe(draw, lexicon.looks)), draw.pick(lexicon.handle)
    return Event(
        agent=Party(agent, maybe(draw, lexicon.moods)),
        verb=verb,
        patient=replace(patient, is_plural=draw.percent(30)),
        place=maybe(draw, tuple(f"in the {place.singular}" for place in lexicon.places)),
        time=maybe(draw, lexicon.times),
    )


def content(event: Event) -> set[str]:
    parts = (
        event.agent.noun.singular,
        event.patient.noun.singular,
        event.verb.base,
        event.agent.look,
        event.patient.look,
        event.place,
        event.time,
    )
    return {part for part in parts if part}


def edited(draw: Draws, lexicon: Lexicon, event: Event, edit: str) -> Event:
    """The event with one thing changed."""
    agent, patient = event.agent, event.patient
    personal = patient.noun in lexicon.people
    if edit == "time":
        return replace(event, time=changed(draw, lexicon.times, event.time))
    if edit == "place":
        places = tuple(f"in the {place.singular}" for place in lexicon.places)
        return replace(event, place=changed(draw, places, event.place))
    if edit == "agent_look":
        return replace(event, agent=replace(agent, look=changed(draw, lexicon.moods, agent.look)))
    if edit == "patient_look":
        looks = lexicon.moods if personal else lexicon.looks
        return replace(event, patient=replace(patient, look=changed(draw, looks, patient.look)))
    if edit == "number":
        return replace(event, patient=replace(patient, is_plural=not patient.is_plural))
    if edit == "agent":
        return replace(event, agent=replace(agent, noun=another(draw, lexicon.people, agent.noun, patient.noun)))
    if edit == "patient":
        nouns = lexicon.people if personal else lexicon.things
        return replace(event, patient=replace(patient, noun=another(draw, nouns, agent.noun, patient.noun)))
    if edit == "verb":
        return replace(event, verb=another(draw, lexicon.treat if personal else lexicon.handle, event.verb))
    if edit == "swap":
        return replace(event, agent=patient, patient=agent)
    return replace(event, is_denied=not event.is_denied)


def wording(draw: Draws, lexicon: Lexicon, event: Event, *, is_base: bool) -> str:
    """One of the ways to tell an event; only the second sentence uses synonyms."""

    def word(text: str) -> str:
        pairs = lexicon.synonyms
        return text if is_base or text not in pairs or draw.flip() else pairs[text]

    def party(who: Party) -> str:
        noun = who.noun.form(who.is_plural)
        return " ".join(part for part in ("the", word(who.look), word(noun)) if part)

    if draw.percent(35):
        was = ("was", "were")[event.patient.is_plural]
        core = [
            party(event.patient),
            was,
            "not" if event.is_denied else "",
            word(event.verb.participle),
            "by",
            party(event.agent),
        ]
    elif event.is_denied:
        core = [party(event.agent), "did not", word(event.verb.base), party(event.patient)]
    else:
        core = [party(event.agent), word(event.verb.past), party(event.patient)]
    adjuncts = [part for part in (event.place, event.time) if part]
    if adjuncts and draw.percent(40):
        return sentence(adjuncts[-1], *core, *adjuncts[:-1])
    return sentence(*core, *adjuncts)


def maybe(draw: Draws, options: tuple[str, ...]) -> str:
    return draw.pick(options) if draw.flip() else ""


def changed(draw: Draws, options: tuple[str, ...], old: str) -> str:
    """Another option; where there was one, leaving it out counts as well."""
    if old and draw.percent(30):
        return ""
    return another(draw, options, old)


def another(draw: Draws, options, *old):
    new = draw.pick(options)
    while new in old:
        new = draw.pick(options)
    return new


EDITS = combinations()
