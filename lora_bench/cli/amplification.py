"""The command of `lora_bench.questions.amplification`."""

from __future__ import annotations

from lora_bench.cli.weights import weights_of
from lora_bench.questions import amplification
from lora_bench.reports import script


def main(argv: list[str] | None = None) -> int:
    parser = script.parser(amplification.__doc__, "amplification")
    parser.add_argument("--targets", default="", metavar="ROLES", help="only this placement (default: every one)")
    parser.add_argument(
        "--leading",
        action="store_true",
        help="the leading direction of runs whose records lack it, from kept adapters and the backbone; imports torch",
    )
    scope, out, options = script.parse(parser, argv)
    asked = {"targets": options.targets, "weights": weights_of if options.leading else None}
    return script.run_script("amplification", lambda runs: amplification.sections(runs, scope, **asked), scope, out)
