"""What studies found: the words of their journals, as they were given, with what is open.

A study's words hold over its looks and the rates that it tried; those of the other tables are for one look at the rates
that were chosen. Both can stand on one page, and where both judge a contrast the study's count.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from lora_bench import wording
from lora_bench.config.grammar import layers_in_words
from lora_bench.config.overrides import key_of, value_of
from lora_bench.reports import tables
from lora_bench.reports.figures import style, verdicts
from lora_bench.reports.section import Column, Section, Table
from lora_bench.store import StoreReader, open_store
from lora_bench.store.errors import StoreError
from lora_bench.store.journal import journals
from lora_bench.verdicts import looks, pairwise
from lora_bench.verdicts.family import starts_in_words
from lora_bench.verdicts.note import Note, gap
from lora_bench.verdicts.settings import slug_of

_PACKED = re.compile(r"([.-](I?Q\d\w*|B?F16|F32))?\.gguf$")  # how a file's weights are packed
PHRASES = {  # word -> verb and rest of how the sentence puts it, of the first placement against those named
    looks.BETTER: ("is", "better than {}"),
    looks.WORSE: ("is", "worse than {}"),
    looks.TIED: ("is", "tied with {}"),
    looks.MORE_OFTEN: ("learns", "more often than {}"),
    looks.LESS_OFTEN: ("learns", "less often than {}"),
    looks.OPEN: ("is", "open against {}"),
    looks.NOT_LEARNED: ("is", "not compared with {}, since one of {} did not learn at any rate tried"),
    looks.UNTOLD: ("is", "not compared with {}, since one of {} is not told from the head alone"),
}
UNLEARNED = {
    looks.FLAT: "no better than the head alone on select, at any rate tried",
    looks.UNPROVEN: "not told from the head alone on select, nor shown to be no better",
}
"""What is so of a placement that is not shown to learn."""


@dataclass(kw_only=True)
class StudySection(Section):
    """What one family found.

    Attributes:
        words: contrast, difference, low, high, word, extra (text after the word), interval_shown; a row per contrast.
        margin: as a fraction.
        head: backbone, layers, task and rows, in few words, over a panel of its own.
    """

    words: pd.DataFrame
    margin: float
    head: str


def sections(store: Path) -> list[StudySection]:
    """One section per family whose journal holds a look, in order of their titles and of when they were declared.

    Raises:
        StoreError: when a journal cannot be read.
    """
    written = [journal.read() for journal in journals(store)]
    looked_at = [content for content in written if content and content["looks"]]
    families = sorted(looked_at, key=lambda content: (_title(content), content["declared"]))
    made = []
    for title, alike in itertools.groupby(families, key=_title):
        contents = list(alike)
        titles = _told_apart(title, [content["setting"] for content in contents])
        made += [
            section(name, content, head=head(content, store)) for name, content in zip(titles, contents, strict=True)
        ]
    return made


def head(content: Mapping[str, Any], store: Path) -> str:
    """`SmolLM2-135M-Instruct, last 6 of 30 layers`, and below it `sst2, 1,000 rows`."""
    backbone, _, task = content["title"].partition(" · ")
    backbone = _PACKED.sub("", backbone)
    layers = content["setting"].get("adapter", {}).get("layers", "all")
    if layers != "all":
        backbone += f", {_layers(layers, content['looks'][0]['runs'], open_store(store))}"
    rows = content["setting"].get("task", {}).get("train_rows")
    return f"{backbone}\n{task}" + (f", {rows:,} rows" if rows else "")


def _layers(layers: Sequence[int], run_ids: Sequence[str], store: StoreReader) -> str:
    """Layers as they were asked for: `last 6 of 30 layers`; by number where no run's command tells."""
    given = []
    with contextlib.suppress(StoreError, KeyError):
        given = store.record(run_ids[0])["invocation"]["overrides"]
    if f"last:{len(layers)}" in [value_of(word) for word in given if key_of(word) == "adapter.layers"]:
        return f"last {len(layers)} of {layers[-1] + 1} layers"
    if list(layers) == list(range(len(layers))):
        return f"first {wording.counted(len(layers), 'layer')}"
    return f"layers {layers_in_words(layers)}"


def _title(content: Mapping[str, Any]) -> str:
    """Backbone and task, with the layers where not all are adapted: it is another question there."""
    layers = content["setting"].get("adapter", {}).get("layers", "all")
    if layers == "all":
        return content["title"]
    return f"{content['title']} · layers {layers_in_words(layers)}"


def _told_apart(title: str, settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """The titles of families that share one: by the settings in which they differ, as the other sections name them. Of
    more than two, by the first one or two that tell them apart, of the task, the training and the adapter in turn.
    Families that none tells apart are numbered as they were declared."""
    if len(settings) == 1:
        return [title]
    leaves = [_leaves(setting) for setting in settings]
    keys = {key for leaf in leaves for key in leaf if len({other.get(key) for other in leaves}) > 1}
    keys = sorted(keys, key=lambda key: (not key.startswith("task."), not key.startswith("train."), key))
    lasts = [key.rpartition(".")[2] for leaf in leaves[:1] for key in leaf]
    names = {key: last if lasts.count(last := key.rpartition(".")[2]) < 2 else key for key in keys}
    several = (*((key,) for key in keys), *itertools.combinations(keys, 2))
    for telling in several if len(keys) > 2 else [keys]:
        titles = [
            " · ".join([title, *(f"{names[key].replace('_', ' ')} {leaf[key]}" for key in telling if key in leaf)])
            for leaf in leaves
        ]
        if len(set(titles)) == len(titles):
            return titles
    return [f"{title}, family {number}" for number in range(1, len(settings) + 1)]


def _leaves(setting: Mapping[str, Any], above: str = "") -> dict[str, str]:
    """The settings as text, by their keys on the command line. Hashes, which tell a reader nothing, are left out."""
    made: dict[str, str] = {}
    for key, value in setting.items():
        if isinstance(value, Mapping):
            made |= _leaves(value, f"{above}{key}.")
        elif key not in ("model", "fingerprint"):
            made[f"{above}{key}"] = f"{value:g}" if isinstance(value, float) else str(value)
    return made


def looked_at(store: Path, run_ids: Collection[str]) -> list[Mapping[str, Any]]:
    """The declarations of the studies that have looked at some of these runs. A journal that cannot be read is said
    where its own section is made."""
    declarations = []
    for journal in journals(store):
        try:
            content = journal.read()
        except StoreError:
            continue
        if content and not {*run_ids}.isdisjoint(run_id for look in content["looks"] for run_id in look["runs"]):
            declarations.append(content["declaration"])
    return declarations


def section(title: str, content: Mapping[str, Any], *, head: str) -> StudySection:
    """The section of one family.

    Args:
        content: its journal, as `Journal.read` gives it.
        head: its title over a panel.
    """
    declared, last = content["declaration"], content["looks"][-1]
    is_of_pairs = declared["reference"] is None
    frame = _frame(declared, content["looks"])
    about, words = f"{title}: each placement against each other", _worded(last["findings"])
    name = f"study_{slug_of(title)}"
    metric = content["metric"]
    n_last = declared["looks"][-1]
    failed = Column("failed_shown", "failed seeds", wording.text, is_number=False)
    return StudySection(
        words=frame,
        margin=declared["margin"],
        head=head,
        title=f"Study: {title}",
        sentence=sentence(title, content),
        tables=[
            Table(
                name,
                f"{title}: words after look {last['number'] + 1} of {len(declared['looks'])}",
                frame,
                [
                    Column("contrast", "contrast", is_number=False),
                    Column("difference", "difference", wording.signed),
                    Column("interval_shown", "interval", is_number=False),
                    Column("word_shown", "the first is", is_number=False),
                    Column("n_seeds", "seeds", wording.count),
                    *([failed] if any(frame["failed_shown"]) else []),
                    Column("rates_shown", "rates alive", wording.text, is_number=False, on_screen=False),
                ],
            ),
            *([tables.word_matrix(f"{name}_matrix", about, declared["placements"], words)] if is_of_pairs else []),
        ],
        figures={
            name: verdicts.contrasts(
                frame.assign(label=frame["contrast"], verdict=frame["word"], extra=frame["extra"]),
                margin=declared["margin"],
                is_corrected=True,
            )
        },
        captions={
            name: f"{style.short_metric(metric)}, first minus second, paired by seed, each at the rate that select "
            f"ranks first; intervals hold over all {len(frame)} contrasts and "
            f"{wording.counted(len(declared['looks']), 'look')}, and "
            f"the band is the margin of {100 * declared['margin']:g}."
        },
        notes=_notes(content, n_last),
        about=title,
    )


def sentence(title: str, content: Mapping[str, Any]) -> str:
    """`On minilm · cola, after look 1 of 3 (8 seeds): qv is better than q and k, open against v.`"""
    declared, last = content["declaration"], content["looks"][-1]
    start = f"On {title}, after look {last['number'] + 1} of {len(declared['looks'])}"
    start += f" ({wording.counted(last['n_seeds'], 'seed')})"
    if declared["reference"] is None:
        return f"{start}: {pairwise.sentence(declared['placements'], _worded(last['findings']))}."
    by_first: dict[str, dict[str, list[str]]] = {}
    for finding in last["findings"]:
        by_first.setdefault(finding["first"], {}).setdefault(finding["word"], []).append(finding["second"])
    phrases = [f"{first} {_said(by_word)}" for first, by_word in by_first.items()]
    return f"{start}: {'; '.join(phrases)}."


def _said(by_word: Mapping[str, Sequence[str]]) -> str:
    """`is better than q and k, tied with v, learns more often than o`, from word -> the placements it is against."""
    parts, before = [], ""
    for word in filter(by_word.__contains__, PHRASES):
        verb, rest = PHRASES[word]
        of_pair = "the two" if len(by_word[word]) == 1 else "each pair"
        parts.append(f"{verb} " * (verb != before) + rest.format(wording.listed(by_word[word]), of_pair))
        before = verb
    return ", ".join(parts)


def _worded(findings: Iterable[Mapping[str, Any]]) -> list[pairwise.Worded]:
    return [(finding["first"], finding["second"], finding["word"]) for finding in findings]


def _notes(content: Mapping[str, Any], n_last: int) -> list[Note]:
    declared, last = content["declaration"], content["looks"][-1]
    rates, seeds = starts_in_words(declared), wording.listed([*map(str, declared["looks"])])
    notes = [
        Note(
            f"declared {content['declared'][:10]}: rates from {rates}, looks at {seeds} seeds "
            f"from seed {declared['first_seed']} on, margin {100 * declared['margin']:g}; error spent "
            f"{last['spent']:.4f} of {declared['error']:.4f}"
        ),
        Note("words are of the rates tried: each holds at every rate that was alive, and is final"),
    ]
    for kind, is_so in UNLEARNED.items():
        names = [name for name, of_name in last["learning"].items() if of_name == kind]
        if names:
            notes.append(gap(f"{is_so}: {wording.listed(names)}"))
    findings = last["findings"]
    waiting = {(row["first"], row["second"]): row["chance"] for row in findings if row["look"] is None}
    if last["n_seeds"] >= n_last:
        return notes
    futile = {pair for pair, chance in waiting.items() if chance is not None and chance < looks.FUTILE}
    spending = {name for pair in waiting if pair not in futile for name in pair}
    for is_on, what in {
        True: "the same command goes on",
        False: f"no more seeds, since the chance of a word at {n_last} is below {100 * looks.FUTILE:.0f} %",
    }.items():
        pairs = [" − ".join(pair) for pair in waiting if spending.issuperset(pair) == is_on]  # as scheme.follow has it
        are_told = declared["reference"] is not None or len(pairs) <= pairwise.NAMED
        open_ones = wording.listed(pairs) if are_told else f"{len(pairs)} of {len(findings)} pairs"
        if pairs:
            notes.append(gap(f"open: {open_ones}; {what}"))
    return notes


def _frame(declared: Mapping[str, Any], looked: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    last = looked[-1]
    rows = []
    for finding in last["findings"]:
        numbers = {key: math.nan if finding[key] is None else finding[key] for key in ("difference", "sd")}
        numbers |= dict(zip(("low", "high"), looks.ends(finding), strict=True))
        look = looked[finding["look"]] if finding["look"] is not None else _latest(looked, finding)
        rates = "; ".join(
            f"{name} {looks.rates_in_words(look['alive'][name], look.get('steadier', {}).get(name))}"
            for name in (finding["first"], finding["second"])
        )
        rows.append(
            {
                "contrast": f"{finding['first']} − {finding['second']}",
                **{key: finding[key] for key in ("first", "second", "word", "n_seeds", "n_pairs")},
                **numbers,
                "p_different": finding["p_different"],
                "p_tied": finding["p_tied"],
                "look": math.nan if finding["look"] is None else finding["look"] + 1,
                "interval_shown": wording.interval(numbers["low"], numbers["high"], wording.signed),
                "word_shown": looks.spoken(finding, n_last=declared["looks"][-1]),
                "failed_shown": looks.failed_in_words(finding),
                "rates_shown": rates,
                "extra": f", {wording.counted(finding['n_seeds'], 'seed')}"
                + tables.fewer_pairs(finding["n_pairs"], finding["n_seeds"]),
            }
        )
    return pd.DataFrame(rows)


def _latest(looked: Sequence[Mapping[str, Any]], finding: Mapping[str, Any]) -> Mapping[str, Any]:
    """The look that gave an open contrast its numbers: the last with so many seeds."""
    return next((look for look in looked if look["n_seeds"] == finding["n_seeds"]), looked[-1])
