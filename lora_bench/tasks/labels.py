"""Labels of the user's own rows: which classes there are, in which order, and what a number is.

Labels never pass through a float. A class is a text, a whole number or true/false, and it is one class in every file
format: 1 and 1.0 are one (a typed column writes either), and no other two spellings are. Two spellings of one number
(01 and 1, 12e3 and 12000, +1 and 1), wherever in the splits, are refused: whether they are one class only their owner
knows. So are two words that look alike, and words that tools write where there is no label (`words.py`). Classes are
learnt from train, in the order of their numbers, else that of their text; where the file is parquet with a ClassLabel
of the `datasets` library, its numbers have their names.

-1 is a class like any other, except where every label of a split is -1: so GLUE and others mark hidden labels.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lora_bench.config.errors import ConfigError
from lora_bench.tasks import words
from lora_bench.tasks.readers import DOUBLE_BITS

KEY = "task.label_column"
MOST_LABELS = 1_000
LONGEST_LABEL = 1_000
"""Letters. A longer one is a text in the wrong column."""
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_WHOLE_FLOAT = re.compile(r"(-?(?:0|[1-9][0-9]*))\.0")
_SINGLE = 3.4028234663852886e38


class Label(NamedTuple):
    """One label. Equal values are one class.

    Attributes:
        value: a Decimal of a number, else the text.
        spelling: how it is written, 1.0 as 1; no number may have two.
        name: what people call it.
    """

    value: Decimal | str
    spelling: str
    name: str


@dataclass(frozen=True)
class Classes:
    """The classes of a task, in order.

    Attributes:
        names: for people.
        keys: for the fingerprint: numbers by value, however they are spelled or named.
        labels: split -> position of each row's class.
    """

    names: tuple[str, ...]
    keys: tuple[str, ...]
    labels: dict[str, list[int]]


@dataclass(frozen=True)
class LabelColumn:
    """The label column of one split's file.

    Attributes:
        class_names: those of its ClassLabel, in order.
        float_bits: of a whole number that the file's floats hold exactly.
    """

    values: Sequence[Any]
    path: Path
    class_names: tuple[str, ...] = ()
    float_bits: int = DOUBLE_BITS


def classes(columns: Mapping[str, LabelColumn]) -> Classes:
    """The classes that train has, and every split's labels as their positions.

    Raises:
        ConfigError: on an absent label (also in a word for it, such as nan) or one that is no class, two spellings of
            one number or word, hidden labels, a class that train lacks, fewer than two classes or more than
            `MOST_LABELS`.
    """
    labels = {split: _labels_of(column) for split, column in columns.items()}
    for split, in_split in labels.items():
        if all(label.value == -1 for label in in_split):
            raise ConfigError(
                f"{KEY}: every label of {str(columns[split].path)!r} is -1, which marks hidden labels; give a split "
                "whose labels are known, or call a class that is -1 in every row by a word"
            )
    class_names = _class_names(columns)
    if class_names:
        labels = {split: _named(in_split, class_names, columns[split]) for split, in_split in labels.items()}
    _refuse_absent(labels, columns)
    _refuse_two_spellings(labels, columns)
    if not class_names:  # a list of names says itself that they are two
        _refuse_look_alikes(labels, columns)
    ordered = _in_order(labels["train"], columns["train"])
    position = {label.value: number for number, label in enumerate(ordered)}
    for split, in_split in labels.items():
        for row, label in enumerate(in_split, start=1):
            if label.value not in position:
                raise ConfigError(_unknown(label, row, columns[split], ordered))
    keys = tuple(_key(label, is_number=all(map(_is_number, ordered))) for label in ordered)
    positions = {split: [position[label.value] for label in in_split] for split, in_split in labels.items()}
    return Classes(tuple(label.name for label in ordered), keys, positions)


def regression_labels(values: Sequence[Any], *, where: Path | str, key: str = KEY) -> list[float]:
    """Labels as finite numbers; text such as '3.8' is read as one.

    Raises:
        ConfigError: naming the row whose label is none, or is beyond single precision.
    """
    labels = []
    for row, value in enumerate(values, start=1):
        number = _finite(value)
        if number is None:
            raise ConfigError(
                f"{key}: row {row} of {str(where)!r} has the label {_shown(value)}; regression needs finite numbers"
            )
        if abs(number) > _SINGLE:
            raise ConfigError(
                f"{key}: row {row} of {str(where)!r} has the label {_shown(value)}; numbers go up to 3.4e38"
            )
        labels.append(number)
    return labels


def refuse_hidden(labels: Sequence[float], *, where: Path | str) -> None:
    """Refuse a split of a regression task whose every label is -1."""
    if all(label == -1 for label in labels):
        raise ConfigError(
            f"{KEY}: every label of {str(where)!r} is -1, which marks hidden labels; "
            "give a split whose labels are known"
        )


def refuse_rounded(labels: Sequence[float], *, where: Path | str) -> None:
    """Refuse numbers that differ by so little that single precision, in which they are learnt and scored, merges them.

    Labels are refused where rounding moves them by more than a tenth of their standard deviation.

    Raises:
        ConfigError: with the least and the greatest label.
    """
    numbers = np.asarray(labels, dtype=np.float64)
    moved = np.sqrt(np.mean((numbers - numbers.astype(np.float32)) ** 2))
    if moved > 0.1 * numbers.std() > 0:
        raise ConfigError(
            f"{KEY}: the labels of {str(where)!r} go from {min(labels)!r} to {max(labels)!r}, so close for their "
            "size that single precision cannot tell them apart; subtract one number from the labels of all splits"
        )


def class_label(metadata: Mapping[str, str], column: str) -> tuple[str, ...]:
    """The names that a parquet file's ClassLabel gives the numbers of a column; empty without one."""
    feature: Any = json_object(metadata.get("huggingface"))
    for step in ("info", "features", column):
        feature = feature.get(step) if isinstance(feature, dict) else None
    given: Any = feature.get("names") if isinstance(feature, dict) else None
    names = given if isinstance(given, list) and all(isinstance(name, str) and name.strip() for name in given) else []
    return tuple(names) if len(set(names)) == len(names) else ()


def json_object(text: str | None) -> dict[str, Any]:
    """A JSON object of a file's metadata; empty where it is none."""
    try:
        value = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def is_missing(value: Any) -> bool:
    """Whether a cell holds nothing: null, NaN."""
    return value is None or (isinstance(value, (float, Decimal)) and math.isnan(value))


# Reading one label


def _labels_of(column: LabelColumn) -> list[Label]:
    known: dict[tuple[type, Any], Label] = {}
    labels = []
    for row, value in enumerate(column.values, start=1):
        try:
            label = known.get((type(value), value))
        except TypeError:  # a list, an object: no label, and no key either
            label = None
        if label is None:
            label = _label_of(value, f"{KEY}: row {row} of {str(column.path)!r}", column.float_bits)
            known[type(value), value] = label
        labels.append(label)
    return labels


def _label_of(value: Any, where: str, float_bits: int) -> Label:
    """One label; `where` begins the message of a value that is none or no class."""
    if is_missing(value) or (isinstance(value, (str, bytes)) and not value.strip()):
        raise ConfigError(f"{where} has no label ({value!r}); every row needs one")
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError:
            raise ConfigError(f"{where} has the label {_shown(value)}, which is no UTF-8; write text") from None
    if isinstance(value, bool):
        return Label(str(value).lower(), str(value).lower(), str(value).lower())
    if isinstance(value, str):
        return _of_text(value, where)
    if not isinstance(value, (int, float, Decimal)) or not Decimal(value).is_finite():
        kind = type(value).__name__
        raise ConfigError(
            f"{where} has the label {_shown(value)}, a {kind}; give text, whole numbers or true and false"
        )
    if isinstance(value, float) and abs(value) >= 2**float_bits:
        raise ConfigError(
            f"{where} has the label {value!r}, a float beyond 2^{float_bits}, where whole numbers run together; "
            "write integers or text"
        )
    number = Decimal(repr(value) if isinstance(value, float) else value)
    if number.adjusted() >= LONGEST_LABEL:
        raise ConfigError(f"{where} has a label of {number.adjusted() + 1} digits; at most {LONGEST_LABEL}")
    name = str(int(number)) if number == number.to_integral_value() else str(number.normalize())
    return Label(number, name, name)


def _of_text(text: str, where: str) -> Label:
    plain = text.strip()
    if len(plain) > LONGEST_LABEL:
        raise ConfigError(f"{where} has a label of {len(plain)} letters, the most is {LONGEST_LABEL}; is it a text?")
    if "\0" in plain or any("\ud800" <= letter <= "\udfff" for letter in plain):
        what = "a NUL" if "\0" in plain else "half a surrogate pair"
        raise ConfigError(f"{where} holds {what} in its label {_shown(plain)}; use valid text")
    if plain.lower() in ("true", "false"):
        return Label(plain.lower(), plain.lower(), plain.lower())
    number = _number(plain)
    if number is None:
        return Label(plain, plain, plain)
    matched = _WHOLE_FLOAT.fullmatch(plain)
    name = matched[1] if matched else plain
    return Label(number, name if plain == text else text, name)


def _number(text: str) -> Decimal | None:
    """The finite number that a text can be read as, by any rule that some reader has: 01, +1, 12e3, 1_000, ٣."""
    try:
        number = Decimal(text.replace("\N{MINUS SIGN}", "-"))
    except InvalidOperation:
        return None
    return number if number.is_finite() else None


def _finite(value: Any) -> float | None:
    """A value as a finite float; None where it is none."""
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    if isinstance(value, str):
        value = float(value) if _NUMBER.fullmatch(value.strip()) else None
    if isinstance(value, bool) or not isinstance(value, (int, float, Decimal)):
        return None
    try:
        number = float(value)
    except (OverflowError, ValueError):  # an integer, or a decimal, that no float can hold
        return None
    return number if math.isfinite(number) else None


# All labels together


def _class_names(columns: Mapping[str, LabelColumn]) -> tuple[str, ...]:
    """The one list of names that the files' ClassLabels give."""
    given = {column.class_names: column.path for column in columns.values() if column.class_names}
    if len(given) > 1:
        (first, path), (second, other) = list(given.items())[:2]
        raise ConfigError(
            f"{KEY}: {str(path)!r} numbers its classes {', '.join(first)}, {str(other)!r} {', '.join(second)}; "
            "give both one ClassLabel"
        )
    return next(iter(given), ())


def _named(labels: Sequence[Label], class_names: tuple[str, ...], column: LabelColumn) -> list[Label]:
    """Labels with the names that a ClassLabel gives their numbers.

    In the file that has the ClassLabel a label is a number; in another it may be the name, unless that is the number of
    another class.
    """
    number_of = {} if column.class_names else {name: Decimal(number) for number, name in enumerate(class_names)}
    named = []
    for row, label in enumerate(labels, start=1):
        number = number_of.get(label.name, label.value)
        is_known = isinstance(number, Decimal) and number in range(len(class_names))
        if not is_known or (isinstance(label.value, Decimal) and number != label.value):
            works = ", ".join(f"{number} ({name})" for number, name in list(enumerate(class_names))[:10])
            hint = "; -1 marks hidden labels, drop those rows" if label.value == -1 else ""
            raise ConfigError(
                f"{KEY}: row {row} of {str(column.path)!r} has the label {label.name!r}, which is none of the task's "
                f"ClassLabel; that has {works}{hint}"
            )
        spelling = label.spelling if isinstance(label.value, Decimal) else str(number)
        named.append(Label(number, spelling, class_names[int(number)]))
    return named


def _refuse_absent(labels: Mapping[str, Sequence[Label]], columns: Mapping[str, LabelColumn]) -> None:
    """Refuse words that tools write where there is no label, as pandas and SQL do: they would be a class."""
    others = {label.name for label in labels["train"] if isinstance(label.value, str)}
    checked: set[str] = set()
    for split, in_split in labels.items():
        for row, label in enumerate(in_split, start=1):
            if label.name in checked or isinstance(label.value, Decimal):
                continue
            if words.is_absent(label.name, others):
                raise ConfigError(
                    f"{KEY}: row {row} of {str(columns[split].path)!r} has no label ({label.name!r}, as tools write an "
                    "absent one); label such rows or drop them, and give a class that is called so another name"
                )
            checked.add(label.name)


def _refuse_two_spellings(labels: Mapping[str, Sequence[Label]], columns: Mapping[str, LabelColumn]) -> None:
    first: dict[Decimal, tuple[str, str]] = {}
    for split, in_split in labels.items():
        for row, label in enumerate(in_split, start=1):
            if not isinstance(label.value, Decimal):
                continue
            place = f"{label.spelling!r} (row {row} of {str(columns[split].path)!r})"
            spelling, earlier = first.setdefault(label.value, (label.spelling, place))
            if spelling != label.spelling:
                raise ConfigError(
                    f"{KEY}: {earlier} and {place} are two spellings of one number; spell one class in one way, and "
                    f"set classes that differ apart by a letter, such as c{label.name}"
                )


def _refuse_look_alikes(labels: Mapping[str, Sequence[Label]], columns: Mapping[str, LabelColumn]) -> None:
    """Refuse two classes that differ in nothing but what is easily mistyped or not seen at all."""
    names: dict[str, str] = {}
    first: dict[str, tuple[str, str]] = {}
    for split, in_split in labels.items():
        for row, label in enumerate(in_split, start=1):
            if label.name in names:
                continue
            looks = names[label.name] = words.looks(label.name)
            place = f"{label.name!a} (row {row} of {str(columns[split].path)!r})"
            name, earlier = first.setdefault(looks, (label.name, place))
            if name != label.name:
                raise ConfigError(
                    f"{KEY}: {earlier} and {place} look alike, but for case, blanks, quotes, dashes or forms of a "
                    "letter; spell one class in one way, and classes that differ with other letters"
                )


def _in_order(train: Sequence[Label], column: LabelColumn) -> list[Label]:
    """The classes of train, each once: numbers by value, else by text."""
    distinct = list({label.value: label for label in reversed(train)}.values())
    if all(map(_is_number, distinct)):
        broken = next((label for label in train if not _is_whole(label)), None)
        if broken is not None:
            raise ConfigError(
                f"{KEY}: {broken.name!r} is no class; set task.kind=regression, or give whole numbers or text"
            )
        ordered = sorted(distinct, key=lambda label: label.value)
    else:
        ordered = sorted(distinct, key=lambda label: label.name)
    if len(ordered) < 2:
        raise ConfigError(f"{KEY}: train holds one label, {ordered[0].name!r}; classification needs at least two")
    if len(ordered) > MOST_LABELS:
        raise ConfigError(
            f"{KEY}: train holds {len(ordered)} labels; at most {MOST_LABELS}, or set task.kind=regression"
        )
    return ordered


def _is_number(label: Label) -> bool:
    """Whether a label is a number as people write them: 1_000 is one for Python alone."""
    return isinstance(label.value, Decimal) and "_" not in label.spelling


def _is_whole(label: Label) -> bool:
    return isinstance(label.value, Decimal) and label.value == label.value.to_integral_value()


def _key(label: Label, *, is_number: bool) -> str:
    if is_number and isinstance(label.value, Decimal) and label.value.adjusted() < LONGEST_LABEL:
        return str(int(label.value))
    return label.name


def _unknown(label: Label, row: int, column: LabelColumn, ordered: Sequence[Label]) -> str:
    shown = ", ".join(known.name for known in ordered[:10]) + (", ..." if len(ordered) > 10 else "")
    hint = "; -1 often marks hidden labels, which cannot be scored" if label.value == -1 else ""
    return (
        f"{KEY}: row {row} of {str(column.path)!r} has the label {label.name!r}, which train lacks; "
        f"train has {shown}{hint}"
    )


def _shown(value: Any) -> str:
    """A value in a message of one line."""
    try:
        text = repr(value)
    except ValueError:  # an integer of more digits than Python prints
        text = f"a number of {value.bit_length()} bits"
    return text if len(text) <= 60 else f"{text[:57]}..."
