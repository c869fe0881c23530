"""The command of `lora_bench.questions.spread`."""

from __future__ import annotations

from lora_bench.questions import spread
from lora_bench.reports import script


def main(argv: list[str] | None = None) -> int:
    scope, out, _ = script.parse(script.parser(spread.__doc__, "spread"), argv)
    return script.run_script("spread", lambda runs: spread.sections(runs, scope), scope, out)
