"""The command of `lora_bench.questions.weight_types`."""

from __future__ import annotations

from lora_bench.questions import weight_types
from lora_bench.reports import script
from lora_bench.verdicts import settings


def main(argv: list[str] | None = None) -> int:
    parser = script.parser(weight_types.__doc__, "weight_types")
    parser.add_argument(
        "--budget", type=int, metavar="N", help="adapter parameters (default: where most placements meet)"
    )
    parser.add_argument(
        "--reference",
        default=settings.REFERENCE_TARGETS,
        metavar="TARGETS",
        help=f"the placement that the others are held against (default: {settings.REFERENCE_TARGETS})",
    )
    script.add_paper(parser)
    scope, out, options = script.parse(parser, argv)
    asked = {"budget": options.budget, "reference": options.reference}
    return script.run_script("weight_types", lambda runs: weight_types.sections(runs, scope, **asked), scope, out)
