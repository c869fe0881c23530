"""What the commands of analysis/ share: their options, and the way from a store to its sections."""

from __future__ import annotations

import argparse
import contextlib
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import pandas as pd
from rich.console import Console

from lora_bench import wording
from lora_bench.config.schema import LORA_METHODS
from lora_bench.paths import argument
from lora_bench.reports.output import print_section, write_section
from lora_bench.reports.section import Section
from lora_bench.store import open_store
from lora_bench.store.errors import StoreError
from lora_bench.verdicts import settings as comparisons
from lora_bench.verdicts import stats

T = TypeVar("T")


def parser(doc: str | None, name: str, *, by_method: bool = True) -> argparse.ArgumentParser:
    """The options that every script has; the first line of the docstring is the help's sentence, which any terminal can
    show from here on."""
    wording.spell_out()
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
        help="folder of records, or an archive (default: runs)",
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
        told = ", ".join(LORA_METHODS)
        made.add_argument("--method", default="lora", metavar="NAME", help=f"one of {told} (default: lora)")
    return made


def margin(options: argparse.Namespace, metric: str) -> float:
    """The largest difference that counts as a tie, as a fraction: as given in points, else the metric's."""
    return stats.margin_of(metric) if options.margin is None else options.margin / 100


def each_setting(
    runs: pd.DataFrame, options: argparse.Namespace, make: Callable[[comparisons.Setting], list[Section]]
) -> list[Section]:
    """The sections of every setting that has them; what the others lack is noted under the last.

    Raises:
        NothingToShow: when none has any, with what each lacks.
    """
    found, refused = gather(settings(runs, options), make)
    found[-1].notes.extend(refused)
    return found


def settings(runs: pd.DataFrame, options: argparse.Namespace) -> list[comparisons.Setting]:
    """The settings that the options leave."""
    return comparisons.settings(
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
        except comparisons.NothingToShow as error:
            refused.append(str(error))
    if not made:
        raise comparisons.NothingToShow("\n".join(refused))
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
        made = sections(comparisons.prepare(frame, metric=options.metric))
    except (comparisons.NothingToShow, StoreError) as error:
        print(f"{error}", file=sys.stderr)
        return 2
    out = console()
    for section in made:
        show_and_write(section, options.out, out)
    return 0


def console() -> Console:
    """Standard output, at least 100 columns wide where it is no terminal."""
    return wording.console(least_width=100)


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
        raise comparisons.NothingToShow(
            f"--store: no folder {str(root)!r}; give the folder that the sweep wrote (store=...)"
        )
    frame = open_store(root).frame()
    if frame.empty:
        raise comparisons.NothingToShow(f"--store: {str(root)!r} holds no run; start with: lora-bench +sweeps=quick")
    return frame
