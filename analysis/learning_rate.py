"""The command of `lora_bench.questions.learning_rate`."""

from __future__ import annotations

from lora_bench.questions import learning_rate
from lora_bench.reports import script


def main(argv: list[str] | None = None) -> int:
    parser = script.parser(learning_rate.__doc__, "learning_rate")
    options = parser.parse_args(argv)
    return script.run_script(lambda runs: learning_rate.sections(runs, options), options)


if __name__ == "__main__":
    raise SystemExit(main())
