"""The command of `lora_bench.questions.rank`."""

from __future__ import annotations

from lora_bench.questions import rank
from lora_bench.reports import script


def main(argv: list[str] | None = None) -> int:
    parser = script.parser(rank.__doc__, "rank")
    options = parser.parse_args(argv)
    return script.run_script(lambda runs: rank.sections(runs, options), options)


if __name__ == "__main__":
    raise SystemExit(main())
