"""The command of `lora_bench.questions.predicted`."""

from __future__ import annotations

from lora_bench.paths import argument
from lora_bench.questions import predicted
from lora_bench.reports import script


def main(argv: list[str] | None = None) -> int:
    parser = script.parser(predicted.__doc__, "predictors")
    parser.add_argument(
        "--predictions",
        type=argument,
        metavar="FILE",
        help=f"what was predicted (default: {predicted.FILE} in the store, or beside the sweep of its runs)",
    )
    scope, out, options = script.parse(parser, argv)
    predictions = options.predictions
    return script.run_script(
        "predictors", lambda runs: predicted.sections(runs, scope, predictions=predictions), scope, out
    )
