"""The scoreboard as a document: every claim with its status, those that contradict each other side by side, and what
each rests on, from a card and nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lora_bench.questions.claims import Card
from lora_bench.verdicts.settings import slug_of

SEPARATOR = " · "
HEAD = """# Claims of the field, judged by records

Written by `{command}`; nothing here is typed by hand.

A claim is a contrast with a rule, written before the run, for what refutes it. Its status comes from the records and
journals of a store: supported, refuted, open (the seeds do not settle it), did not learn (a side is no better than the
head alone), or not run, with the command that runs it.
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
    parts = [HEAD.format(command=command), f"{card.sentence}\n", *_legend(titles), _board(card.claims, rows, titles)]
    parts += ["## Claims that contradict each other\n", _contradictions(card.claims, rows, titles)]
    parts += ["## What each rests on\n", *(_details(claim, rows, titles) for claim in card.claims)]
    return "\n".join(parts)


def _heads(titles: Sequence[str]) -> dict[str, str]:
    """Each setting's title, and as much of it as tells it from the others: backbone and task at least."""
    heads = {}
    for title in titles:
        parts, others = title.split(SEPARATOR), [other for other in titles if other != title]
        starts = (SEPARATOR.join(parts[:n]) for n in range(min(2, len(parts)), len(parts) + 1))
        heads[title] = next(
            start
            for start in starts
            if start == title or not any((other + SEPARATOR).startswith(start + SEPARATOR) for other in others)
        )
    return heads


def _legend(titles: Mapping[str, str]) -> list[str]:
    """What else tells apart settings whose titles are cut."""
    cut = [f"- {head}: {title.removeprefix(head + SEPARATOR)}" for title, head in titles.items() if head != title]
    return ["\n".join([*cut, ""])] if cut else []


def _board(claims: Sequence[Mapping[str, Any]], rows: Mapping, titles: Mapping[str, str]) -> str:
    body = [
        [
            f"[{_cell(claim['text'])}](#{slug_of(claim['id'])})",
            *(rows[claim["id"], title]["status"] for title in titles),
        ]
        for claim in claims
    ]
    return _table(["claim", *titles.values()], body)


def _contradictions(claims: Sequence[Mapping[str, Any]], rows: Mapping, titles: Mapping[str, str]) -> str:
    text = {claim["id"]: claim["text"] for claim in claims}
    pairs = {tuple(sorted((claim["id"], other))) for claim in claims for other in claim.get("contradicts", ())}
    body = [
        [_cell(text[first]), _cell(text[second]), *(_sides(rows, first, second, title) for title in titles)]
        for first, second in sorted(pairs)
    ]
    return _table(["one says", "another says", *titles.values()], body)


def _sides(rows: Mapping, first: str, second: str, title: str) -> str:
    return " / ".join(rows[name, title]["status"] for name in (first, second))


def _details(claim: Mapping[str, Any], rows: Mapping, titles: Mapping[str, str]) -> str:
    lines = [f'<a id="{slug_of(claim["id"])}"></a>', f"**{claim['text']}** {claim['source']}."]
    if claim.get("refuted"):
        lines.append(f"Refuted when: {claim['refuted']}.")
    lines.append("")
    for title, head in titles.items():
        row = rows[claim["id"], title]
        lines.append(f"- {head}: **{row['status']}**. {_sentence(row['evidence'])}")
    return "\n".join([*lines, ""])


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}." if text else ""


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


def _cell(text: str) -> str:
    return text.rstrip(".").replace("|", r"\|")
