"""The command of `lora_bench.questions.page`: one page over all settings of a store, with its tables and figures."""

from __future__ import annotations

import sys
import time

from lora_bench.cli.texts import texts_of
from lora_bench.questions import page
from lora_bench.reports import script
from lora_bench.store import open_store
from lora_bench.store.errors import StoreError
from lora_bench.verdicts import settings


def main(argv: list[str] | None = None) -> int:
    parser = script.parser(page.__doc__, "report")
    parser.add_argument(
        "--title", default="Which weight matrices should LoRA adapt?", metavar="TEXT", help="the page's title"
    )
    parser.add_argument("--no-texts", action="store_true", help="show report rows by their numbers alone")
    scope, out, options = script.parse(parser, argv)
    clock = time.perf_counter()
    try:
        runs = scope.read()
        texts = {} if options.no_texts else texts_of(scope.within(runs), open_store(scope.store))
        made = page.build(runs, scope, out=out, title=options.title, texts=texts)
    except (settings.NothingToShow, StoreError) as error:
        print(error, file=sys.stderr)
        return 2
    path = out / "index.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(made["html"], encoding="utf-8")
    screen = script.console()
    for sentence in made["verdict"]:
        screen.print(sentence, style="bold", soft_wrap=True)
    seconds = time.perf_counter() - clock
    summary = f"written: {path} with {made['n_figures']} figures, {len(runs)} runs, {seconds:.0f} s"
    screen.print(summary, style="dim", soft_wrap=True)
    return 0
