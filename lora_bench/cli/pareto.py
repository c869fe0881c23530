"""The command of `lora_bench.questions.pareto`."""

from __future__ import annotations

from lora_bench.questions import pareto
from lora_bench.reports import script


def main(argv: list[str] | None = None) -> int:
    scope, out, _ = script.parse(script.parser(pareto.__doc__, "pareto"), argv)
    return script.run_script("pareto", lambda runs: pareto.sections(runs, scope), scope, out)
