"""The command of `lora_bench.questions.page`: one page over all settings of a store, with its tables and figures."""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from lora_bench.cli.texts import texts_of
from lora_bench.cli.weights import weights_of
from lora_bench.questions import page
from lora_bench.reports import script
from lora_bench.reports.anew import anew
from lora_bench.reports.scope import Scope
from lora_bench.store.errors import StoreError
from lora_bench.verdicts import settings

OUT = Path("report")
"""Where the page goes unless another folder is asked for."""
PAGE = "index.html"
USUAL_STORE = "runs"
TITLE = "Which weight matrices should LoRA adapt?"


def folder_of(store: Path) -> Path:
    """Where a study's report goes: `report` for the store `runs`, `report_mine` for `mine`. So the studies of several
    stores do not replace each other's."""
    parts = store.parts
    if store.is_absolute():
        parts = store.relative_to(Path.cwd()).parts if store.is_relative_to(Path.cwd()) else (store.name,)
    name = "_".join(part for part in parts if part not in ("..", "."))
    return OUT if name == USUAL_STORE else OUT.with_name(f"{OUT.name}_{name}")


class Written(NamedTuple):
    """A page that was written: what it says first, and a line that tells where it is."""

    verdict: Sequence[str]
    summary: str


def main(argv: list[str] | None = None) -> int:
    parser = script.parser(page.__doc__, "report")
    parser.add_argument("--title", default=TITLE, metavar="TEXT", help="the page's title")
    script.add_paper(parser)
    parser.add_argument("--no-texts", action="store_true", help="show report rows by their numbers alone")
    scope, out, options = script.parse(parser, argv)
    screen = script.console()
    try:
        with screen.status("reading the store and drawing; a large store takes a minute"):
            verdict, summary = write(scope, out, title=options.title, with_texts=not options.no_texts)
    except (settings.NothingToShow, StoreError) as error:
        return script.refuse("report", error)
    for sentence in verdict:
        screen.print(sentence, style="bold", soft_wrap=True)
    screen.print(summary, style="dim", soft_wrap=True)
    return 0


def write(scope: Scope, out: Path = OUT, *, title: str = TITLE, with_texts: bool = True) -> Written:
    """Write the page, its tables and its figures. What an earlier report wrote there is replaced when the new one is
    whole, and what the new one no longer has goes; other files stay (`reports.anew`).

    Args:
        with_texts: show the texts of report rows, where the task's rows are at hand.

    Raises:
        NothingToShow: when the store has nothing for a page.
        StoreError: when it cannot be read.
        OSError: when the page cannot be written.
    """
    clock = time.perf_counter()
    runs = scope.read()
    texts = functools.partial(texts_of, store=scope.store) if with_texts else None
    with anew(out) as folder:
        made = page.build(runs, replace(scope, weights=weights_of), out=folder, title=title, texts=texts)
        (folder / PAGE).write_text(made["html"], encoding="utf-8")
    seconds = time.perf_counter() - clock
    summary = f"written: {out / PAGE} with {made['n_figures']} figures, {len(runs)} runs, {seconds:.0f} s"
    return Written(made["verdict"], summary)
