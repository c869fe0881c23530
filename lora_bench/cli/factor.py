"""The command of `lora_bench.questions.factor`."""

from __future__ import annotations

from lora_bench.questions import factor
from lora_bench.reports import script
from lora_bench.verdicts import settings


def main(argv: list[str] | None = None) -> int:
    parser = script.parser(factor.__doc__, "factor", by_method=False)
    parser.add_argument(
        "--by",
        required=True,
        choices=list(settings.FACTORS),
        metavar="FACTOR",
        help=f"one of {', '.join(settings.FACTORS)}",
    )
    parser.add_argument(
        "--reference",
        metavar="LEVEL",
        help=f"the level that the others are held against (default: {', '.join(factor.USUAL.values())}, or the lowest)",
    )
    scope, out, options = script.parse(parser, argv)
    asked = {"by": options.by, "reference": options.reference and factor.plain_level(options.reference)}
    return script.run_script("factor", lambda runs: factor.sections(runs, scope, **asked), scope, out)
