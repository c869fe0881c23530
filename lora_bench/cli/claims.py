"""The command of `lora_bench.questions.claims`."""

from __future__ import annotations

from lora_bench.paths import argument
from lora_bench.questions import claims
from lora_bench.reports import script


def main(argv: list[str] | None = None) -> int:
    parser = script.parser(claims.__doc__, "claims")
    parser.add_argument(
        "--claims", type=argument, default=claims.SHIPPED, metavar="FILE", help="the claims (default: those shipped)"
    )
    scope, out, options = script.parse(parser, argv)
    try:
        judged = claims.read_claims(options.claims)
    except claims.ClaimError as error:
        parser.error(str(error))
    return script.run_script(lambda runs: claims.sections(runs, scope, judged), scope, out)
