"""The scoreboard as a document: what is decided, which side the records take where claims contradict each other, every
claim with its status, and what each rests on, from a card and nothing else."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from lora_bench import wording
from lora_bench.questions import claim_sides
from lora_bench.questions.claims import STATUSES, Card
from lora_bench.verdicts.settings import slug_of

SEPARATOR = " · "
BAR = r"\|"
HEAD = """# Claims of the field, judged by records

Written by `{command}`; nothing here is typed by hand.

A claim is a contrast with a rule, written before the run, for what refutes it. Its status comes from the records and
journals of a store: supported, refuted, open (the seeds do not settle it), did not learn (a side is no better than the
head alone), or not run, with the command that runs it. Behind ± is half of a 95 % interval. p is corrected over the
contrasts of placements and ranks that a setting's claims ask for, or over its trends, so that it may differ from
another page's; a claim on levels of a factor is a family of its own. "tie within" is two one-sided tests. That one
placement learns more often than another is no difference of scores, and leaves a claim about one open.
"""


def document(card: Card, *, command: str) -> str:
    """The scoreboard as Markdown.

    Args:
        command: that writes it, for whoever reads it.
    """
    rows: Mapping[Any, Mapping[Any, Any]] = {
        (row["claim"], row["setting"]): row for row in card.rows.to_dict("records")
    }
    titles = _heads(list(dict.fromkeys(card.rows["setting"])))
    parts = [HEAD.format(command=command), f"{card.sentence}\n", _counts(rows, titles), *_legend(titles)]
    parts += [f"{_decided(card, titles)}\n", "## Claims that contradict each other\n", _contradictions(card, titles)]
    parts += ["## Every claim\n", _board(card.claims, rows, titles)]
    parts += ["## What each rests on\n", *(_details(claim, rows, titles) for claim in card.claims)]
    return "\n".join(parts)


def _heads(titles: Sequence[str]) -> dict[str, str]:
    """Each setting's title, and as much of it as tells it from the others, in Markdown: backbone and task at least."""
    heads = {}
    for title in titles:
        parts, others = title.split(SEPARATOR), [other for other in titles if other != title]
        starts = (SEPARATOR.join(parts[:n]) for n in range(min(2, len(parts)), len(parts) + 1))
        heads[title] = _plain(
            next(
                start
                for start in starts
                if start == title or not any((other + SEPARATOR).startswith(start + SEPARATOR) for other in others)
            )
        )
    return heads


def _legend(titles: Mapping[str, str]) -> list[str]:
    """What else tells apart settings whose titles are cut."""
    written = [(_plain(title), head) for title, head in titles.items()]
    cut = [f"- {head}: {title.removeprefix(head + SEPARATOR)}" for title, head in written if head != title]
    return ["\n".join([*cut, ""])] if cut else []


def _counts(rows: Mapping, titles: Mapping[str, str]) -> str:
    """A line for each setting: how many claims have each status."""
    of_setting = {title: [row["status"] for (_, at), row in rows.items() if at == title] for title in titles}
    body = [[titles[title], *(words.count(status) or "" for status in STATUSES)] for title, words in of_setting.items()]
    return _table(["setting", *STATUSES], body)


def _decided(card: Card, titles: Mapping[str, str]) -> str:
    """What is supported and what is refuted somewhere, with links."""
    lines = []
    for status in (claim_sides.SUPPORTED, claim_sides.REFUTED):
        claims = [
            f"{_link(entry.claim)} ({len(entry.settings)} of {wording.counted(len(titles), 'setting')})"
            for entry in claim_sides.decided(card.rows, card.claims, status)
        ]
        lines += [f"{status[:1].upper()}{status[1:]}:\n", *(f"- {claim}" for claim in claims), ""] if claims else []
    return "\n".join(lines).rstrip()


def _board(claims: Sequence[Mapping[str, Any]], rows: Mapping, titles: Mapping[str, str]) -> str:
    body = [[_link(claim), *(rows[claim["id"], title]["status"] for title in titles)] for claim in claims]
    return _table(["claim", *titles.values()], body)


def _contradictions(card: Card, titles: Mapping[str, str]) -> str:
    body = [
        [_link(sides.first), _link(sides.second), *(sides.taken[title] for title in titles)]
        for sides in claim_sides.contradictions(card.rows, card.claims)
    ]
    return _table(["the first says", "the second says", *(f"taken: {head}" for head in titles.values())], body)


def _details(claim: Mapping[str, Any], rows: Mapping, titles: Mapping[str, str]) -> str:
    lines = [f'<a id="{slug_of(claim["id"])}"></a>', f"**{_plain(claim['text'])}** {_plain(claim['source'])}."]
    if claim.get("refuted"):
        lines.append(f"Refuted when: {_plain(claim['refuted'])}.")
    lines.append("")
    for title, head in titles.items():
        row = rows[claim["id"], title]
        evidence = re.sub(r"; run (lora-bench .*?)(?=; against it: |$)", r"; run `\1`", row["evidence"])
        lines.append(f"- {head}: **{row['status']}**. {_sentence(evidence)}")
    return "\n".join([*lines, ""])


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}." if text else ""


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(f"| {' | '.join(str(cell).replace('|', BAR) for cell in line)} |\n" for line in lines)


def _link(claim: Mapping[str, Any]) -> str:
    return f"[{_cell(claim['text'])}](#{slug_of(claim['id'])})"


def _plain(text: str) -> str:
    """A user's words as words: no tag, link or emphasis of theirs is one of the document's."""
    return re.sub(r"([\\`*\[\]<>])", r"\\\1", " ".join(str(text).split()))


def _cell(text: str) -> str:
    return _plain(text).rstrip(".")
