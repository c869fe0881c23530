"""The command of `lora_bench.questions.pareto`."""

from __future__ import annotations

from lora_bench.questions import pareto
from lora_bench.reports import script


def main(argv: list[str] | None = None) -> int:
    parser = script.parser(pareto.__doc__, "pareto")
    options = parser.parse_args(argv)
    return script.run_script(lambda runs: pareto.sections(runs, options), options)


if __name__ == "__main__":
    raise SystemExit(main())
