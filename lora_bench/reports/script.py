"""What the commands share: their options, and the way from these to what is shown and written."""

from __future__ import annotations

import argparse
import contextlib
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
from rich.console import Console

from lora_bench import wording
from lora_bench.config.options import parsed
from lora_bench.config.schema import LORA_METHODS
from lora_bench.paths import argument, output_folder
from lora_bench.reports.figures import compose
from lora_bench.reports.output import print_section, write_section
from lora_bench.reports.scope import Scope
from lora_bench.reports.section import Section
from lora_bench.store.errors import StoreError
from lora_bench.verdicts.settings import NothingToShow


def parser(doc: str | None, name: str, *, by_method: bool = True) -> argparse.ArgumentParser:
    """The options that every one has; the first line of the docstring is the help's sentence, which any terminal can
    show from here on."""
    wording.spell_out()
    made = argparse.ArgumentParser(
        prog=f"lora-bench {name}",
        description=(doc or "").strip().split("\n\n")[0],
        epilog=f"example: lora-bench {name} store=runs out=report",
    )
    add_folders(made, written="tables/ and figures/ go")
    made.add_argument("--task", metavar="NAME", help="only this task (default: every one)")
    made.add_argument("--model", metavar="NAME", help="only this backbone (default: every one)")
    made.add_argument("--metric", metavar="NAME", help="score by this metric (default: the task's primary one)")
    made.add_argument(
        "--margin",
        type=_above_zero,
        metavar="POINTS",
        help="largest difference that counts as a tie, in points (default: by metric)",
    )
    made.add_argument(
        "--width",
        type=_width,
        metavar="INCHES",
        help="of every figure: 3.03 (ACL), 3.25 (ICML), 5.5 (NeurIPS, ICLR), 6.3 (a page of ACL; default: 3.25 or 6.3)",
    )
    made.add_argument("--mix-environments", action="store_true", help="compare runs of different machines and software")
    if by_method:
        methods = ", ".join(LORA_METHODS)
        made.add_argument("--method", default="lora", metavar="NAME", help=f"one of {methods} (default: lora)")
    return made


def add_paper(parser: argparse.ArgumentParser) -> None:
    """--paper, of questions that the LoRA paper asked too."""
    parser.add_argument("--paper", action="store_true", help="show the scores that the LoRA paper has for GPT-3 beside")


def add_folders(parser: argparse.ArgumentParser, *, written: str) -> None:
    """--store and --out; `written` is what the help says of the latter."""
    parser.add_argument(
        "--store",
        type=argument,
        default=Path("runs"),
        metavar="DIR",
        help="folder of records, or an archive (default: runs); lora-bench archive joins several",
    )
    parser.add_argument(
        "--out", type=output_folder, default="report", metavar="DIR", help=f"where {written} (default: report)"
    )


def parse(made: argparse.ArgumentParser, argv: Sequence[str] | None) -> tuple[Scope, Path, argparse.Namespace]:
    """What a command was asked, where its files go, and the options of its own."""
    options = parsed(made, argv)
    scope = Scope(
        options.store,
        model=options.model,
        task=options.task,
        method=getattr(options, "method", "lora"),
        metric=options.metric,
        margin=options.margin and options.margin / 100,
        mix_environments=options.mix_environments,
        width=options.width,
        with_paper=getattr(options, "paper", False),
    )
    return scope, options.out, options


def _above_zero(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 < (value := float(text)) < math.inf:
            return value
    raise argparse.ArgumentTypeError(f"{text!r}; give points above 0")


def _width(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 3 <= (value := float(text)) <= 12:
            return value
    raise argparse.ArgumentTypeError(f"{text!r}; give inches from 3 to 12, such as 3.03 or 6.3")


def refuse(name: str, error: Exception) -> int:
    """Say what the command of this name cannot do, a line each reason. Returns the exit status 2."""
    for line in str(error).splitlines():
        print(f"lora-bench {name}: {line}", file=sys.stderr)
    return 2


def run_script(name: str, make: Callable[[pd.DataFrame], Sequence[Section]], scope: Scope, out: Path) -> int:
    """Read the store, make the sections, show and write them; `name` is the command's. Returns the exit status."""
    try:
        with compose.printed(scope.width):
            sections = make(scope.read())
    except (NothingToShow, StoreError) as error:
        return refuse(name, error)
    screen = console()
    for section in sections:
        show_and_write(section, out, screen)
    return 0


def console() -> Console:
    """Standard output, at least 100 columns wide where it is no terminal."""
    return wording.console(least_width=100)


def show_and_write(section: Section, folder: Path, out: Console) -> None:
    """The section on the terminal and on the disk."""
    print_section(section, out)
    paths = write_section(section, folder)
    out.print(f"written: {', '.join(str(path) for path in paths)}\n", style="dim", soft_wrap=True)
