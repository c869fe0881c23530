"""The command of `lora_bench.questions.claims`."""

from __future__ import annotations

import pandas as pd

from lora_bench import wording
from lora_bench.paths import argument
from lora_bench.questions import claim_document, claims
from lora_bench.reports import script


def main(argv: list[str] | None = None) -> int:
    parser = script.parser(claims.__doc__, "claims")
    parser.add_argument(
        "--claims", type=argument, default=claims.SHIPPED, metavar="FILE", help="the claims (default: those shipped)"
    )
    parser.add_argument("--markdown", type=argument, metavar="FILE", help="write the scoreboard as a document, too")
    scope, out, options = script.parse(parser, argv)
    try:
        judged = claims.read_claims(options.claims)
    except claims.ClaimError as error:
        parser.error(str(error))
    made: list[claims.Card] = []

    def judge(runs: pd.DataFrame) -> list[claims.Card]:
        made.extend(claims.sections(runs, scope, judged))
        return made

    status = script.run_script(judge, scope, out)
    if options.markdown and made:
        words = ["lora-bench", "claims", f"store={scope.store}", f"markdown={options.markdown}"]
        text = claim_document.document(made[0], command=wording.command_line(words))
        options.markdown.parent.mkdir(parents=True, exist_ok=True)
        options.markdown.write_text(text, encoding="utf-8")
    return status
