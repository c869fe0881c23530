"""The command of `lora_bench.questions.claims`."""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from lora_bench import __version__, wording
from lora_bench.cli.weights import weights_of
from lora_bench.paths import PathError, argument, cache_folder, output_file
from lora_bench.questions import claim_document, claims
from lora_bench.reports import publish, script
from lora_bench.store import StoreReader, existing, open_store
from lora_bench.store.errors import StoreError
from lora_bench.store.reader import MANIFEST, is_archive
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
            scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lora_bench-")))
            try:
                stores = [existing(scope.store), *(existing(root, key="beside") for root in options.beside)]
                folder = joined_in(scratch, stores)
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


def joined_in(scratch: Path, stores: Sequence[StoreReader]) -> Path:
    """The stores as one. Of archives it is kept in the cache, under their manifests, so that the next call finds it; of
    a folder of runs, which grows, it is made in `scratch`.

    Raises:
        NothingToShow, StoreError: as `publish.write_archive` does.
    """
    if all(is_archive(store.root) for store in stores):
        parts = [__version__.encode(), *((store.root / MANIFEST).read_bytes() for store in stores)]
        with contextlib.suppress(StoreError, PathError):  # a cache that cannot be written is none
            kept = cache_folder() / "joined" / hashlib.sha256(b"\0".join(parts)).hexdigest()[:32]
            with contextlib.suppress(StoreError):  # somebody cut a file of it: it is made again
                if is_archive(kept):
                    return open_store(kept).root
            return publish.write_archive(stores, kept, adapters=None, overwrite=True).root
    return publish.write_archive(stores, scratch / "joined", adapters=None).root
