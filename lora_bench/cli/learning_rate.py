"""The command of `lora_bench.questions.learning_rate`."""

from __future__ import annotations

from lora_bench.questions import learning_rate
from lora_bench.reports import script


def main(argv: list[str] | None = None) -> int:
    scope, out, _ = script.parse(script.parser(learning_rate.__doc__, "learning_rate"), argv)
    return script.run_script("learning_rate", lambda runs: learning_rate.sections(runs, scope), scope, out)
