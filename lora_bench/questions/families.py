"""Studies of one question side by side, as of two backbones: where they give the same word, and where not."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from lora_bench import wording
from lora_bench.questions.studies import StudySection
from lora_bench.reports.figures import verdicts
from lora_bench.reports.section import Column, Section, Table
from lora_bench.verdicts import looks


def side_by_side(studies: Sequence[StudySection]) -> list[Section]:
    """A section for each list of contrasts that several of the studies have."""
    alike: dict[tuple[str, ...], list[StudySection]] = {}
    for study in studies:
        alike.setdefault(tuple(study.words["contrast"]), []).append(study)
    several = [group for group in alike.values() if len(group) > 1]
    return [_section(group, number if len(several) > 1 else 0) for number, group in enumerate(several, start=1)]


def _section(group: Sequence[StudySection], number: int) -> Section:
    words = pd.DataFrame({study.about: study.words.set_index("contrast")["word"] for study in group})
    is_same = words.nunique(axis=1) == 1
    is_settled = ~words.isin([looks.OPEN, looks.UNTOLD]).any(axis=1)
    name = f"studies{f'_{number}' if number else ''}"
    table = pd.DataFrame({"contrast": words.index})
    columns = [Column("contrast", "contrast", is_number=False)]
    for study in group:
        table[study.about] = study.words.apply(_in_words, axis=1).to_numpy()
        columns.append(Column(study.about, study.about, is_number=False))
    title = "Studies side by side" + (f", {number}" if number else "")
    return Section(
        title,
        f"{len(group)} studies give {int((is_same & is_settled).sum())} of {wording.counted(len(words), 'contrast')} "
        f"the same word{_apart(words[~is_same])}{_unsettled(words.index[is_same & ~is_settled])}.",
        tables=[Table(name, f"{title}: difference, interval over contrasts and looks, word", table, columns)],
        figures={
            name: verdicts.contrasts_beside(
                {head: (study.words.assign(label=study.words["contrast"], verdict=study.words["word"]), study.margin)
                 for head, study in zip(_heads(group), group, strict=True)}
            )
        },
        captions={name: "All on one scale; intervals hold over a study's contrasts and looks."},
    )  # fmt: skip


def _heads(group: Sequence[StudySection]) -> list[str]:
    """What stands over the panels: the short titles, or the whole ones where those would be alike."""
    heads = [study.head for study in group]
    return heads if len(set(heads)) == len(heads) else [study.about for study in group]


def _in_words(row: pd.Series) -> str:
    """`+16.3 (+3.0 to +29.7), better`."""
    known = f"{wording.signed(row['difference'])} ({row['interval_shown']}), " if pd.notna(row["difference"]) else ""
    return f"{known}{row['word']}"


def _unsettled(contrasts: pd.Index) -> str:
    """`; qv − qkvo is settled by none`, of contrasts that are open everywhere."""
    names = [str(name) for name in contrasts]
    return f"; {wording.listed(names)} {'is' if len(names) == 1 else 'are'} settled by none" if names else ""


def _apart(words: pd.DataFrame) -> str:
    """`; qv − v is better on one, tied on the other`, of contrasts whose words differ; `open on 3` of three studies."""
    parts = [
        f"{contrast} is {', '.join(_where(word, row.index[row == word]) for word in row.unique())}"
        for contrast, row in words.iterrows()
    ]
    return f"; {'; '.join(parts)}" if parts else ""


def _where(word: str, titles: pd.Index) -> str:
    """The only study that gives a word by its title, several by their number: the table beside has their names."""
    return f"{word} on {titles[0] if len(titles) == 1 else len(titles)}"
