"""What people read: numbers, counts, lists, times and sizes in words, on any terminal."""

from __future__ import annotations

import contextlib
import io
import math
import os
import re
import shlex
import shutil
import string
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TextIO

METHODS = {
    "lora": "LoRA", "lora_plus": "LoRA+", "dora": "DoRA", "pissa": "PiSSA", "olora": "OLoRA", "rslora": "rsLoRA",
    "bitfit": "BitFit", "full": "full fine-tuning", "head_only": "head only",
}  # fmt: skip
"""What papers call the presets of conf/adapter."""


def points(value: object, digits: int = 1) -> str:
    """A score as points (hundredths); a dash when there is none."""
    return _number(value, lambda x: f"{100 * x:.{digits}f}".replace("-", "−"))


def signed(value: object, digits: int = 1) -> str:
    """A difference as points with its sign."""
    return _number(value, lambda x: f"{100 * x:+.{digits}f}".replace("-", "−"))


def p_value(value: object) -> str:
    """A p-value as papers print it."""
    return _number(value, lambda x: "<.001" if x < 0.001 else f"{x:.3f}".lstrip("0") if x < 1 else "1")


def count(value: object) -> str:
    """A whole number with thousands separated."""
    return _number(value, lambda x: f"{round(x):,}")


def plain(value: object) -> str:
    """A number in its shortest form."""
    return _number(value, lambda x: f"{x:g}")


def seconds(value: object) -> str:
    """A time in seconds, to a tenth."""
    return _number(value, lambda x: f"{round(x, 1):g}")


def text(value: object) -> str:
    """A text; empty when there is none."""
    return "" if value is None or (isinstance(value, float) and math.isnan(value)) else str(value)


def interval(low: float, high: float, show: Callable[[object], str] = points) -> str:
    """`low to high`; a dash when there is none."""
    return "–" if math.isnan(low) or math.isnan(high) else f"{show(low)} to {show(high)}"


def plus_minus(mean: float, high: float, show: Callable[[object], str] = points) -> str:
    """`mean ± half`, of a symmetric interval; the mean alone when there is none."""
    return show(mean) if math.isnan(high) else f"{show(mean)} ± {points(high - mean)}"


def listed(words: Sequence[str]) -> str:
    """`a, b and c`."""
    words = list(words)
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}" if words else "none"


def _number(value: object, show: Callable[[float], str]) -> str:
    import pandas as pd  # the caller has a table; what else is said here needs none

    if value is None or value is pd.NA:
        return "–"
    number = float(value)  # type: ignore[arg-type]
    return show(number) if math.isfinite(number) else "–"


def duration(seconds: float) -> str:
    """A time for people: 8 s, 3 min 20 s, 2 h 05 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def size(n_bytes: float) -> str:
    """A size for people, in decimal units: 40 kB, 1.2 GB."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6)):
        if n_bytes >= scale:
            return f"{n_bytes / scale:.1f} {unit}"
    return f"{math.ceil(n_bytes / 1e3)} kB"


def counted(n: int, noun: str) -> str:
    """`1 run`, `2 runs`: a count with its noun, whose plural takes an s."""
    return f"{n} {noun}{'' if n == 1 else 's'}"


def percent(value: object) -> str:
    return points(value)


def command_line(words: Sequence[str]) -> str:
    """A command as one line to paste into a shell, whatever its words hold: each is read back as it is.

    Control characters, and what the terminal cannot write, are spelled as bytes: `$'a\\012b'` (bash, zsh, ksh).
    """
    return " ".join(map(_shell_word, words))


def words_of(line: str) -> list[str]:
    """The words of such a line."""
    return shlex.split(line)


def _shell_word(word: str) -> str:
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    if word.isprintable() and word.encode(encoding, "ignore").decode(encoding) == word:
        return shlex.quote(word)
    given = _NO_BYTE.sub("\N{REPLACEMENT CHARACTER}", word).encode("utf-8", "surrogateescape")
    return "$'" + "".join(chr(byte) if chr(byte) in _AS_IT_IS else f"\\{byte:03o}" for byte in given) + "'"


_NO_BYTE = re.compile("[\ud800-\udc7f\udd00-\udfff]")
"""Surrogates that stand for no byte of a file's name."""
_AS_IT_IS = frozenset(string.ascii_letters + string.digits + string.punctuation + " ") - set("'\\")


# Where they read it


_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff]"
    "|[\U000e0000-\U000e007f]"
)
"""What a terminal obeys or hides: control characters but tab and line feed, marks of direction, tags, surrogates."""


def visible(text: str) -> str:
    """The text with its control characters and marks of direction spelled out: a name must not steer a terminal."""
    return _UNSEEN.sub(lambda hidden: hidden[0].encode("unicode_escape").decode(), text)


def spell_out() -> None:
    """Make standard output and error fit for whatever is printed and wherever it goes.

    A character that the terminal's encoding lacks is written as its escape: `±`, `−` and `·` stand in most tables, and
    LC_ALL=C has none of them. Control characters are spelled out (`visible`). A stream that cannot be written, on a
    full disk or to a reader that has gone, falls silent: what is trained and stored matters more than the telling.
    """
    for number in range(3):  # else the next file to be opened would take the messages
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115    as long as the process
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
            setattr(sys, name, _Plain(stream))


class Steady:
    """A text stream that falls silent where it cannot be written."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            self._stream.write(text)
        except OSError:
            self._fall_silent()
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            self._fall_silent()

    def _fall_silent(self) -> None:
        """Send the rest nowhere, what is still in the buffer included: else the interpreter's end would fail on it."""
        with contextlib.suppress(OSError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
            self._stream.flush()


class _Plain(Steady):
    """A stream for text without control characters, but for those of progress bars."""

    _BAR = re.compile(r"(\r*)(.*?)(\r*)", flags=re.DOTALL)
    _MOVES = re.compile(r"(?:\n|\r|\x1b\[A)+")

    def write(self, text: str) -> int:
        if self._MOVES.fullmatch(text):
            return super().write(text)
        start, body, end = self._BAR.fullmatch(text).groups()  # type: ignore[union-attr]  # it matches any text
        super().write(f"{start}{visible(body)}{end}")
        return len(text)

    @property
    def rich_proxied_file(self) -> Steady:
        """Where rich writes, whose own control characters are meant."""
        return Steady(self._stream)


def console(*, least_width: int, **options: Any) -> Any:
    """A rich console on standard output that shows text as it is: brackets are no markup, control characters are
    spelled out. Where there is no terminal to ask, it has `least_width` columns or more."""
    from rich.console import Console

    spell_out()
    made = Console(
        file=getattr(sys.stdout, "rich_proxied_file", sys.stdout), highlight=False, markup=False, emoji=False, **options
    )
    made.push_render_hook(_Spelled())  # type: ignore[arg-type]
    if not made.is_terminal:
        made.width = max(made.width, least_width)
    return made


class _Spelled:
    """A hook of rich's: what it renders, with the control characters of the text spelled out, and prose folded at
    words (`folded`) where a terminal would break it anywhere."""

    def __init__(self, content: Any = None) -> None:
        self._content = content

    def process_renderables(self, renderables: list[Any]) -> list[Any]:
        return [_Spelled(renderable) for renderable in renderables]

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        from rich.text import Text

        content = self._content
        if console.is_terminal and isinstance(content, Text) and not content.spans:
            content = Text(folded(content.plain, options.max_width), style=content.style, end=content.end)
        for segment in console.render(content, options):
            yield segment if segment.control else type(segment)(visible(segment.text), segment.style)


def columns(*, at_most: int) -> int:
    """Of the terminal that standard output is; `at_most` where it is none, or wider."""
    if not sys.stdout.isatty():
        return at_most
    return min(at_most, shutil.get_terminal_size().columns or at_most)


def folded(text: str, width: int) -> str:
    """Text whose lines break at blanks before `width` columns, and go on a little further in.

    A word that is longer stays whole, and so does what follows a line that ends in a colon: it is there to be pasted.
    """
    lines: list[str] = []
    is_pasted = False
    for line in text.split("\n"):
        lines += [line] if is_pasted else _fold(line, width)
        is_pasted = line.endswith(":") or (is_pasted and line.startswith("  "))
    return "\n".join(lines)


def _fold(line: str, width: int) -> list[str]:
    from rich.cells import cell_len

    if cell_len(line) <= width:
        return [line]
    start = line[: len(line) - len(line.lstrip())]
    pieces = [start]
    for word in re.split(r"(?<=\S)(?= )", line.lstrip()):  # a blank begins a word: what stood apart stays so
        if pieces[-1].strip() and cell_len(pieces[-1] + word) > width:
            pieces.append(f"{start}  {word.lstrip()}")
        else:
            pieces[-1] += word
    return pieces


class Grid:
    """A table for a terminal of any width: headings and texts fold, numbers stay whole, and columns for which there is
    no room stand below, behind the names of the rows again.

    Args:
        headings: of the columns, in their order.
        texts: those that hold texts, at the left; the others hold numbers, at the right.
        style: of the table, in the words of rich.

    Attributes:
        notes: sentences that belong below it.
    """

    LONGEST_WORD = 24
    """Columns that a word of a text keeps together, at most."""

    def __init__(self, headings: Sequence[str], *, texts: Iterable[str], **style: Any) -> None:
        self.headings, self.texts = list(headings), frozenset(texts)
        self.rows: list[tuple[str, ...]] = []
        self.notes: list[str] = []
        self._style = {"box": None, "pad_edge": False, "header_style": "bold", "title_justify": "left"} | style

    def add_row(self, *cells: str) -> None:
        self.rows.append(cells)

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        from rich.text import Text

        style = dict(self._style)
        if title := style.pop("title", None):  # rich folds it to the table, which may be narrower than the terminal
            yield Text(title, style=str(style.get("title_style", "")))
        for places in self._parts(options.max_width):
            yield self._table(places, style, is_tight=self._width(places, self._natural) > options.max_width)

    def _parts(self, width: int) -> list[list[int]]:
        """The columns that stand side by side, each part with the names of the rows."""
        names = self._names(width)
        parts: list[list[int]] = [[]]
        for place in range(len(self.headings)):
            if len(parts[-1]) > len(names) and self._width([*parts[-1], place], self._least) > width:
                parts.append(list(names))
            parts[-1].append(place)
        return parts

    def _names(self, width: int) -> list[int]:
        """The columns that tell rows apart: the first, and the second where both are short texts (`qv` against `o`)."""
        both = [place for place, heading in enumerate(self.headings[:2]) if heading in self.texts]
        return both if len(both) == 2 and 2 * self._width(both, self._natural) < width else [0]

    def _width(self, places: Sequence[int], width_of: Callable[[int], int]) -> int:
        edges = 0 if self._style["box"] is None or not self._style.get("show_edge", True) else 3
        return sum(map(width_of, places)) + 2 * (len(places) - 1) + edges

    def _natural(self, place: int) -> int:
        return _widest([self.headings[place], *self._cells(place)])

    def _least(self, place: int) -> int:
        words = self.headings[place].split()
        if self.headings[place] in self.texts:
            words += [word for cell in self._cells(place) for word in cell.split()]
            return min(_widest(words), self.LONGEST_WORD)
        return _widest([*words, *self._cells(place)])

    def _cells(self, place: int) -> list[str]:
        return [line for row in self.rows for line in row[place].split("\n")]

    def _table(self, places: Sequence[int], style: dict[str, Any], *, is_tight: bool) -> Any:
        from rich.table import Table

        table = Table(**style)
        for place in places:
            heading, is_text = self.headings[place], self.headings[place] in self.texts
            if is_tight and not is_text:
                heading = "\n".join(_fold(heading, self._least(place)))
                heading = "\n".join(line.strip() for line in heading.split("\n"))
            table.add_column(
                heading, justify="left" if is_text else "right", no_wrap=not is_text, overflow="fold", vertical="top"
            )
        for row in self.rows:
            table.add_row(*(row[place] for place in places))
        return table


def _widest(texts: Iterable[str]) -> int:
    from rich.cells import cell_len

    return max(map(cell_len, texts), default=0)
