"""The command of `lora_bench.questions.rank`."""

from __future__ import annotations

from lora_bench.questions import rank
from lora_bench.reports import script


def main(argv: list[str] | None = None) -> int:
    parser = script.parser(rank.__doc__, "rank")
    script.add_paper(parser)
    scope, out, _ = script.parse(parser, argv)
    return script.run_script("rank", lambda runs: rank.sections(runs, scope), scope, out)
