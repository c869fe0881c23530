"""What the scripts in analysis/ share: their options, and how a result reaches the screen and the disk.

A section is one question answered for one setting: a sentence, tables, figures, and what the reader must know.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from lora_bench import cells, figures, stats, terminal, tuning
from lora_bench.paths import argument
from lora_bench.store import Store, StoreError

T = TypeVar("T")


@dataclass(frozen=True)
class Column:
    """How one column of a tidy table is shown."""

    name: str
    title: str
    show: Callable[[object], str] = str
    is_number: bool = True
    on_screen: bool = True  # a terminal has 80 columns; files and the page show all


@dataclass(frozen=True)
class Table:
    """A tidy frame (full precision, goes to CSV) and how it is shown to people (screen, LaTeX, page)."""

    name: str  # of its files
    title: str
    frame: pd.DataFrame
    columns: list[Column] = field(default_factory=list)  # none: for the CSV alone

    def shown(self) -> list[list[str]]:
        """The cells as text, row by row."""
        rows = self.frame.to_dict("records")
        return [[one.show(row[one.name]) for one in self.columns] for row in rows]


@dataclass
class Section:
    """One question answered for one setting."""

    title: str
    sentence: str
    tables: list[Table] = field(default_factory=list)
    figures: dict = field(default_factory=dict)  # file name -> matplotlib Figure
    captions: dict[str, str] = field(default_factory=dict)  # file name -> what the figure shows
    notes: list[str] = field(default_factory=list)
    facts: dict = field(default_factory=dict)  # machine-readable results: what the page's overview is made of


# ---------------------------------------------------------------- options


def parser(doc: str | None, name: str, *, by_method: bool = True) -> argparse.ArgumentParser:
    """The options that every script has; the first line of the docstring is the help's sentence."""
    made = argparse.ArgumentParser(
        prog=f"python analysis/{name}.py",
        description=(doc or "").strip().split("\n\n")[0],
        epilog=f"example: python analysis/{name}.py --store runs --out report",
    )
    made.add_argument(
        "--store",
        type=argument,
        default=Path("runs"),
        metavar="DIR",
        help="folder of records, or a results pack (default: runs)",
    )
    made.add_argument(
        "--out",
        type=argument,
        default=Path("report"),
        metavar="DIR",
        help="where tables/ and figures/ go (default: report)",
    )
    made.add_argument("--task", metavar="NAME", help="only this task (default: every one)")
    made.add_argument("--model", metavar="NAME", help="only this backbone (default: every one)")
    made.add_argument("--metric", metavar="NAME", help="score by this metric (default: the task's primary one)")
    made.add_argument(
        "--margin",
        type=_above_zero,
        metavar="POINTS",
        help="largest difference that counts as a tie, in points (default: by metric)",
    )
    made.add_argument("--mix-environments", action="store_true", help="compare runs of different machines and software")
    if by_method:
        told = ", ".join(cells.LORA_METHODS)
        made.add_argument("--method", default="lora", metavar="NAME", help=f"one of {told} (default: lora)")
    return made


def margin(options: argparse.Namespace, metric: str) -> float:
    """The largest difference that counts as a tie, as a fraction: as given in points, else the metric's."""
    return stats.margin_of(metric) if options.margin is None else options.margin / 100


def each_setting(
    runs: pd.DataFrame, options: argparse.Namespace, make: Callable[[cells.Setting], list[Section]]
) -> list[Section]:
    """The sections of every setting that has them; what the others lack is noted under the last.

    Raises:
        NothingToShow: when none has any, with what each lacks.
    """
    found, refused = gather(settings(runs, options), make)
    found[-1].notes.extend(refused)
    return found


def settings(runs: pd.DataFrame, options: argparse.Namespace) -> list[cells.Setting]:
    """The settings that the options leave."""
    return cells.settings(
        runs, model=options.model, task=options.task, method=options.method, mix_environments=options.mix_environments
    )


def gather(found: Sequence[T], make: Callable[[T], list]) -> tuple[list, list[str]]:
    """What settings (or pairs that hold one) give, in one list, and what those that give nothing lack.

    Raises:
        NothingToShow: when none gives anything, with what each lacks.
    """
    made, refused = [], []
    for setting in found:
        try:
            made += make(setting)
        except cells.NothingToShow as error:
            refused.append(str(error))
    if not made:
        raise cells.NothingToShow("\n".join(refused))
    return made, refused


def _above_zero(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 < (value := float(text)) < math.inf:
            return value
    raise argparse.ArgumentTypeError(f"{text!r}; give points above 0")


def run_script(sections: Callable[[pd.DataFrame], list[Section]], options: argparse.Namespace) -> int:
    """Read the store, make the sections, show and write them. Returns the exit status."""
    try:
        frame = read_frame(options.store)
        made = sections(cells.prepare(frame, metric=options.metric))
    except (cells.NothingToShow, StoreError) as error:
        print(f"{error}", file=sys.stderr)
        return 2
    out = console()
    for section in made:
        show_and_write(section, options.out, out)
    return 0


def console() -> Console:
    """Standard output, at least 100 columns wide where it is no terminal; brackets in a text are text, not markup."""
    terminal.spell_out()
    made = Console(highlight=False, markup=False, emoji=False)
    if not made.is_terminal:
        made.width = max(made.width, 100)
    return made


def show_and_write(section: Section, folder: Path, out: Console) -> None:
    """The section on the terminal and on the disk."""
    print_section(section, out)
    paths = write_section(section, folder)
    out.print(f"written: {', '.join(str(path) for path in paths)}\n", style="dim", soft_wrap=True)


def read_frame(root: Path) -> pd.DataFrame:
    """The store's frame.

    Raises:
        NothingToShow: when the folder does not exist or holds no run.
    """
    if not Path(root).is_dir():
        raise cells.NothingToShow(f"--store: no folder {str(root)!r}; give the folder that the sweep wrote (store=...)")
    frame = Store(root).frame()
    if frame.empty:
        raise cells.NothingToShow(f"--store: {str(root)!r} holds no run; start with: lora-bench +sweeps=quick")
    return frame


# ---------------------------------------------------------------- output


def print_section(section: Section, console: Console) -> None:
    """The section on the terminal."""
    console.rule(Text(section.title, style="bold"))
    for table in section.tables:
        if not any(column.on_screen for column in table.columns):
            continue
        shown = RichTable(
            title=table.title,
            title_justify="left",
            header_style="bold",
            title_style="bold",
            box=box.SIMPLE_HEAD,
            padding=(0, 1, 0, 0),
        )
        for column in table.columns:
            if column.on_screen:
                shown.add_column(
                    column.title, justify="right" if column.is_number else "left", no_wrap=not wraps(table, column)
                )
        for row in table.shown():
            shown.add_row(*(cell for cell, column in zip(row, table.columns, strict=True) if column.on_screen))
        console.print(shown)
    console.print(section.sentence, style="bold", soft_wrap=True)
    for note in section.notes:
        console.print(f"- {note}", soft_wrap=True)


def wraps(table: Table, column: Column) -> bool:
    """Whether a column holds prose, which may run over several lines."""
    return not column.is_number and any(len(column.show(value)) > 30 for value in table.frame[column.name])


def write_section(section: Section, out: Path) -> list[Path]:
    """Tables as CSV and LaTeX, figures as PDF, PNG and SVG; returns the main paths."""
    written = [write_table(table, out / "tables") for table in section.tables]
    for name, figure in section.figures.items():
        written.append(figures.save(figure, out / "figures", name))
    return written


def write_table(table: Table, folder: Path) -> Path:
    """NAME.csv with the full numbers and NAME.tex (booktabs) with the shown ones; returns the CSV's path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{table.name}.csv"
    tidy = table.frame.loc[:, [name for name in table.frame if not str(name).endswith("_shown")]]
    tidy.to_csv(path, index=False, lineterminator="\n")
    if table.columns:
        path.with_suffix(".tex").write_text(latex(table), encoding="utf-8")
    return path


def latex(table: Table) -> str:
    """A booktabs tabular; needs \\usepackage{booktabs}."""
    align = "".join("r" if column.is_number else "l" for column in table.columns)
    head = " & ".join(escape_latex(column.title) for column in table.columns)
    body = "\n".join(" & ".join(escape_latex(cell) for cell in row) + r" \\" for row in table.shown())
    return (
        f"% {table.title}\n\\begin{{tabular}}{{{align}}}\n\\toprule\n{head} \\\\\n\\midrule\n{body}\n"
        "\\bottomrule\n\\end{tabular}\n"
    )


_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "×": r"$\times$", "−": r"$-$",
    "Δ": r"$\Delta$", "φ": r"$\phi$", "·": r"$\cdot$", "≥": r"$\geq$", "≤": r"$\leq$", "<": r"$<$", ">": r"$>$",
    "–": "--", "‖": r"$\Vert$", "α": r"$\alpha$",
}  # fmt: skip


def escape_latex(text: str) -> str:
    """Text that LaTeX prints as it stands."""
    return "".join(_LATEX.get(letter, letter) for letter in text)


def cell_frame(setting: cells.Setting, estimates: pd.DataFrame, rates: pd.DataFrame) -> pd.DataFrame:
    """Estimates as a tidy frame with the rate's certificate, and the columns that are shown in words."""
    frame = estimates.drop(columns=["scores", "failures"]).rename_axis("cell").reset_index()
    drawn = [_bootstrap(tuple(scores.values())) for scores in estimates["scores"]]
    frame["bootstrap_low"], frame["bootstrap_high"] = np.array(drawn, dtype=float).reshape(-1, 2).T
    frame.insert(0, "task", setting.facts["task"])
    frame.insert(0, "model", setting.facts["model"])
    frame["metric"] = setting.metric
    chosen = rates.loc[frame["cell"]]
    frame["certificate"], frame["select"] = chosen["certificate"].to_numpy(), chosen["select"].to_numpy()
    frame["seeds_shown"] = [
        f"{n}" + (f" ({failed} failed)" if failed else "") + (f" ({lacks} missing)" if lacks else "")
        for n, failed, lacks in zip(frame["n_seeds"], frame["n_failed"], frame["n_missing"], strict=True)
    ]
    frame["score_shown"] = [plus_minus(mean, high) for mean, high in zip(frame["mean"], frame["high"], strict=True)]
    frame["cell_shown"] = [
        cell if " r=" in cell or not ranks else f"{cell} r={ranks}"
        for cell, ranks in zip(frame["cell"], frame["ranks"], strict=True)
    ]
    mark = dict.fromkeys(tuning.UNCERTIFIED, "*") | {"none": " (no score)"}
    frame["rate_shown"] = [
        f"{rate:g}" + ("" if method == cells.FLOOR else mark.get(certificate, ""))
        for rate, certificate, method in zip(frame["lr"], frame["certificate"], frame["method"], strict=True)
    ]
    return frame


@functools.lru_cache(maxsize=4096)  # a report shows one cell in several sections
def _bootstrap(scores: tuple[float, ...]) -> tuple[float, float]:
    """The percentile interval of a cell's mean, for the files: seeds resampled, the same draws for the same number."""
    if len(scores) < 2:
        return math.nan, math.nan
    return stats.bootstrap_interval(np.array(scores)[:, None], rng=np.random.default_rng(0))


def verdict_phrases(margin: float) -> dict[str, str]:
    """Each verdict as words before and after the other cell, in the order in which they are told."""
    return {
        "better": "better than {}",
        "worse": "worse than {}",
        "tied": f"tied with {{}} within {100 * margin:g} point{'s' if margin != 0.01 else ''}",
        "unresolved": "unresolved against {}",
    }


def with_contrasts(frame: pd.DataFrame, contrasts: pd.DataFrame, *, side: str, prefix: str) -> pd.DataFrame:
    """A frame of `cell_frame` with the difference, p and verdict of the contrast whose `side` the cell is."""
    mine = contrasts.set_index(side)
    columns = ("difference", "p_holm", "verdict")
    return frame.assign(**{f"{prefix}_{column}": frame["cell"].map(mine[column]) for column in columns})


def _marks(estimates: pd.DataFrame, rates: pd.DataFrame) -> list[str]:
    """What a figure puts behind a cell's name: † failed seeds, * a rate that is not certified."""
    certificates = rates.loc[estimates.index, "certificate"]
    return [
        "†" * (failed > 0) + "*" * (certificate in tuning.UNCERTIFIED and method != cells.FLOOR)
        for failed, method, certificate in zip(estimates["n_failed"], estimates["method"], certificates, strict=True)
    ]


def _labelled(contrasts: pd.DataFrame) -> pd.DataFrame:
    """Contrasts as `figures.contrasts` draws them: a label, and the seeds that an unresolved one needs."""
    pairs = zip(contrasts["seeds_needed"], contrasts["verdict"], strict=True)
    return contrasts.assign(
        label=contrasts["first"] + " − " + contrasts["second"],
        extra=[f", needs {int(n)} seeds" if verdict == "unresolved" and not pd.isna(n) else "" for n, verdict in pairs],
    )


def arm_figures(
    name: str,
    judged: cells.Judgement,
    *,
    metric: str,
    margin: float,
    with_ranks: bool = False,
    paper: pd.DataFrame | None = None,
    differences: pd.DataFrame | None = None,
) -> dict[str, Figure]:
    """The score of every arm, and the contrasts where seeds are shared; none without a score.

    Args:
        with_ranks: the arms' names have their ranks behind them.
        paper: what another study scored, as `figures.placements` takes it.
        differences: the same for `figures.contrasts`.
    """
    if not np.isfinite(judged.estimates["mean"]).any():
        return {}
    drawn = judged.estimates.assign(is_floor=judged.estimates["method"] == cells.FLOOR)
    drawn["label"] = [
        ("head only" if is_floor else f"{arm}  r={ranks}" if with_ranks else str(arm)) + mark
        for arm, ranks, is_floor, mark in zip(
            drawn.index, drawn["ranks"], drawn["is_floor"], _marks(drawn, judged.rates), strict=True
        )
    ]
    made = {name: figures.placements(drawn, metric=metric, published=paper)}
    shown = judged.contrasts[judged.contrasts["n_pairs"] > 0]
    if len(shown):
        made[f"{name}_contrasts"] = figures.contrasts(_labelled(shown), margin=margin, published=differences)
    return made


def contrast_table(name: str, table: pd.DataFrame, margin: float) -> Table:
    """Paired contrasts as a table; the screen leaves the second-rank columns to the files."""
    columns = [
        Column("first", "cell", text, is_number=False),
        Column("second", "against", text, is_number=False),
        Column("n_pairs", "n", count),
        Column("difference_shown", "difference", text),
        Column("p", "p", p_value, on_screen=False),
        Column("p_holm", "p Holm", p_value),
        Column("p_sign_flip", "p flip", p_value),
        Column("p_equivalent_holm", "p tie", p_value),
        Column("verdict", "verdict", text, is_number=False),
        Column("seeds_needed", "seeds needed", count),
        Column("smallest_difference", "can see", points, on_screen=False),
        Column("note", "note", text, is_number=False, on_screen=False),
    ]
    shown = table.assign(
        difference_shown=[
            plus_minus(mean, high, signed) for mean, high in zip(table["difference"], table["high"], strict=True)
        ],
        interval_shown=[interval(low, high, signed) for low, high in zip(table["low"], table["high"], strict=True)],
    )
    return Table(name, f"Paired contrasts in points (± 95 %); a tie is within {100 * margin:g}", shown, columns)


def run_notes(runs: pd.DataFrame, rates: pd.DataFrame, estimates: pd.DataFrame, metric: str) -> list[str]:
    """What the reader of a table of cells must know: what failed, what has few seeds, which rates are in doubt."""
    told = []
    failed = cells.failures(runs)
    if failed:
        told.append(f"runs without a score, kept out of the means and counted: {'; '.join(failed)}")
    few = sorted({int(n) for n in estimates["n_seeds"] if n < stats.MIN_PAIRS})
    if few:
        told.append(
            f"some cells have only {listed([str(n) for n in few])} scored seed(s): "
            f"no verdict is possible below {stats.MIN_PAIRS}"
        )
    return [*told, *rate_notes(rates.loc[estimates.index]), *seed_notes(estimates, metric)]


def rate_notes(rates: pd.DataFrame) -> list[str]:
    """Which chosen rates are not certified, with what to add, and which rates could not compete."""
    told = []
    doubtful = rates[rates["certificate"].isin(tuning.UNCERTIFIED)]
    for (certificate, _), arms in doubtful.groupby([doubtful["certificate"], doubtful["add"].map(tuple)], sort=False):
        names = listed(list(arms.index))
        have = {rate for grid in arms["rates"] for rate in grid}
        values = ",".join(f"{rate:g}" for rate in arms["add"].iloc[0])
        at = {
            "single": "one rate only was tried",
            "edge": f"is best at the edge of its rates ({', '.join(f'{r:g}' for r in sorted(have))})",
            "behind": "a rate with fewer seeds scores higher on those that both have",
        }[str(certificate)]
        told.append(f"learning rate of {names}: {at}; add train.lr={values}")
    passed_over = rates["passed_over"].map(", ".join)
    for which, arms in rates[passed_over != ""].groupby(passed_over, sort=False):
        told.append(f"learning rate of {listed(list(arms.index))}: {which} could not compete")
    return told


def settled_overrides(overrides: Sequence[str]) -> list[str]:
    """Of the overrides that started a run, what a further sweep shares with it: no axis, sweep, store or launcher."""
    axes = {"adapter.targets", "adapter.rank", "train.lr", "seed", "store"}
    names = {one: one.partition("=")[0].lstrip("+~") for one in map(str, overrides)}
    return [
        one
        for one, name in names.items()
        if name not in axes
        and name != "sweeps"
        and not name.startswith("hydra")
        and one not in ("-m", "--multirun")
        and one != "adapter.budget=null"
    ]


def seed_notes(estimates: pd.DataFrame, metric: str) -> list[str]:
    """Cells whose seeds all score the same, and cells whose seeds fall in two groups five margins apart."""
    told = []
    flat = [str(cell) for cell, sd in estimates["sd"].items() if sd == 0]
    if flat:
        told.append(f"the score of {listed(flat)} is the same in every seed: is the metric stuck?")
    split = []
    for cell, scores in estimates["scores"].items():
        groups = stats.two_groups(np.array(list(scores.values())), gap=5 * stats.margin_of(metric))
        if groups:
            parts = (f"{len(one)} at about {points(one.mean(), 0)}" for one in groups)
            split.append(f"{cell} ({' and '.join(parts)})")
    if split:
        told.append(f"the seeds fall in two groups for {listed(split)}: an interval of few such seeds is too narrow")
    return told


# ---------------------------------------------------------------- numbers as text


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
    if value is None or value is pd.NA:
        return "–"
    number = float(value)  # type: ignore[arg-type]
    return show(number) if np.isfinite(number) else "–"
