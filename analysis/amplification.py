"""The command of `lora_bench.questions.amplification`."""

from __future__ import annotations

from lora_bench.questions import amplification
from lora_bench.reports import script


def main(argv: list[str] | None = None) -> int:
    parser = script.parser(amplification.__doc__, "amplification")
    parser.add_argument("--targets", default="", metavar="ROLES", help="only this placement (default: every one)")
    options = parser.parse_args(argv)
    return script.run_script(lambda runs: amplification.sections(runs, options), options)


if __name__ == "__main__":
    raise SystemExit(main())
