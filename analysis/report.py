"""The command of `lora_bench.questions.page`: one page over all settings of a store, with its tables and figures."""

from __future__ import annotations

import sys
import time

from lora_bench.questions import page
from lora_bench.reports import script
from lora_bench.store.errors import StoreError
from lora_bench.verdicts import settings


def main(argv: list[str] | None = None) -> int:
    parser = script.parser(page.__doc__, "report")
    parser.add_argument(
        "--title", default="Which weight matrices should LoRA adapt?", metavar="TEXT", help="the page's title"
    )
    options = parser.parse_args(argv)
    options.budget, options.targets, options.ranks, options.layer, options.step_zero = None, "", "", None, False
    options.reference = settings.REFERENCE_TARGETS
    clock = time.perf_counter()
    try:
        frame = script.read_frame(options.store)
        runs = settings.prepare(frame, metric=options.metric)
        made = page.build(runs, options)
    except (settings.NothingToShow, StoreError) as error:
        print(error, file=sys.stderr)
        return 2
    path = options.out / "index.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(made["html"], encoding="utf-8")
    out = script.console()
    for sentence in made["verdict"]:
        out.print(sentence, style="bold", soft_wrap=True)
    seconds = time.perf_counter() - clock
    told = f"written: {path} with {made['n_figures']} figures, {len(frame)} runs, {seconds:.0f} s"
    out.print(told, style="dim", soft_wrap=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
