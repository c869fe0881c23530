"""The command of `lora_bench.questions.claims`."""

from __future__ import annotations

import contextlib
import tempfile
from dataclasses import replace
from pathlib import Path

import pandas as pd

from lora_bench import wording
from lora_bench.cli.weights import weights_of
from lora_bench.paths import argument, output_file
from lora_bench.questions import claim_document, claims
from lora_bench.reports import publish, script
from lora_bench.store import existing
from lora_bench.store.errors import StoreError
from lora_bench.verdicts.settings import NothingToShow


def main(argv: list[str] | None = None) -> int:
    parser = script.parser(claims.__doc__, "claims")
    parser.add_argument(
        "--claims", type=argument, default=claims.SHIPPED, metavar="FILE", help="the claims (default: those shipped)"
    )
    parser.add_argument(
        "--beside",
        type=argument,
        nargs="+",
        default=[],
        metavar="DIR",
        help="more stores or archives, whose settings stand beside those of the first",
    )
    parser.add_argument("--markdown", type=output_file, metavar="FILE", help="write the scoreboard as a document, too")
    scope, out, options = script.parse(parser, argv)
    try:
        judged = claims.read_claims(options.claims)
    except claims.ClaimError as error:
        parser.error(str(error))
    made: list[claims.Card] = []
    with contextlib.ExitStack() as stack:
        joined = replace(scope, weights=weights_of)
        if options.beside:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lora_bench-"))) / "joined"
            try:
                stores = [existing(scope.store), *(existing(root, key="beside") for root in options.beside)]
                publish.write_archive(stores, folder, adapters=None)
            except (NothingToShow, StoreError) as error:
                return script.refuse("claims", error)
            joined = replace(joined, store=folder, home=scope.store)

        def judge(runs: pd.DataFrame) -> list[claims.Card]:
            made.extend(claims.sections(runs, joined, judged))
            return made

        status = script.run_script("claims", judge, joined, out)
    if options.markdown and made:
        given = [f"store={scope.store}", *(f"beside={root}" for root in options.beside)]
        words = ["lora-bench", "claims", *given, f"markdown={options.markdown}"]
        text = claim_document.document(made[0], command=wording.command_line(words))
        options.markdown.parent.mkdir(parents=True, exist_ok=True)
        options.markdown.write_text(text, encoding="utf-8")
    return status
