"""The command of `lora_bench.questions.amplification`."""

from __future__ import annotations

from lora_bench.questions import amplification
from lora_bench.reports import script


def main(argv: list[str] | None = None) -> int:
    parser = script.parser(amplification.__doc__, "amplification")
    parser.add_argument("--targets", default="", metavar="ROLES", help="only this placement (default: every one)")
    scope, out, options = script.parse(parser, argv)
    return script.run_script(lambda runs: amplification.sections(runs, scope, targets=options.targets), scope, out)
