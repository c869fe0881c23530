"""Archive a finished study's store: a few files that can be published with the code, and that every script reads.

Writes OUT/records.jsonl.gz (every run), OUT/predictions.parquet (the two best learning rates of each cell and the runs
that a study looked at, of which is read whether they learn), if asked OUT/adapters (the chosen rates), OUT/studies (the
journals) and OUT/manifest.json with their checksums.
`store=OUT` then reads as the folder did.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console

from lora_bench import wording
from lora_bench.config.options import parsed
from lora_bench.paths import argument, output_folder
from lora_bench.reports import publish, script
from lora_bench.store import existing, open_store
from lora_bench.store.errors import StoreError
from lora_bench.store.secrets import scrub
from lora_bench.verdicts import settings


def main(argv: list[str] | None = None) -> int:
    wording.spell_out()
    parser = argparse.ArgumentParser(
        prog="lora-bench archive",
        description=(__doc__ or "").split("\n\n")[0],
        epilog="example: lora-bench archive store=runs out=results/my_study 'adapters=qv r=4'",
    )
    parser.add_argument(
        "--store",
        type=argument,
        nargs="+",
        default=[Path("runs")],
        metavar="DIR",
        help="folders of records, or archives, joined into one (default: runs)",
    )
    parser.add_argument(
        "--out",
        type=output_folder,
        required=True,
        metavar="DIR",
        help="the archive: a folder that is new, empty or an archive",
    )
    parser.add_argument("--task", metavar="NAME", help="only this task (default: every one)")
    parser.add_argument(
        "--adapters",
        default="",
        metavar="CELLS",
        help="keep the adapters of these cells, as tables name them, at their chosen learning rates: 'q r=8,qv r=4', "
        "of one task and two seeds 'sst2/qv r=64:2', or all (default: none: subspace then has nothing to read)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an archive that differs")
    parser.add_argument(
        "--keep-first",
        action="store_true",
        help="of runs that several stores hold with different results, as two labs may, keep that of the first store",
    )
    argv = sys.argv[1:] if argv is None else argv
    options = parsed(parser, argv)
    wanted = [name.strip() for name in options.adapters.split(",") if name.strip()]
    try:
        archive = publish.write_archive(
            [existing(root) for root in options.store],
            options.out,
            task=options.task,
            adapters=wanted,
            command=scrub(wording.command_line(["lora-bench", "archive", *argv])),
            overwrite=options.overwrite,
            keep_first=options.keep_first,
        )
    except (settings.NothingToShow, StoreError) as error:
        return script.refuse("archive", error)
    tell(archive, script.console(), has_adapters=bool(wanted))
    return 0


def tell(archive: publish.Published, console: Console, *, has_adapters: bool) -> None:
    """What was kept, and how large it is."""
    manifest, by_part = archive.manifest, open_store(archive.root).bytes_by_part()
    looked = " and those that a study looked at" if manifest["studies"] else ""
    state = "written" if archive.is_new else "unchanged, as it was there already"
    console.print(f"{archive.root}: {wording.size(archive.n_bytes)}, {state}", style="bold", soft_wrap=True)
    lines = [
        f"records: {wording.counted(manifest['runs'], 'run')}, {manifest['finished']:,} of them finished; "
        f"{wording.size(by_part['record'][1])}",
        f"predictions: {wording.counted(manifest['runs_with_predictions'], 'run')}, those at the two best rates of "
        f"each cell{looked}; {wording.size(by_part['predictions'][1])}; {manifest['float16_rows']:,} rows at the "
        f"precision of float16, {manifest['float32_rows']:,} at that of float32, where rounding could move a score",
        f"adapters: {wording.counted(manifest['runs_with_adapter'], 'run')}; {wording.size(by_part['adapter'][1])}"
        + ("" if has_adapters else "; adapters=all keeps those at the chosen rates"),
    ]
    for line in lines:
        console.print(f"- {line}", soft_wrap=True)
    if archive.n_bytes > publish.LARGEST_BYTES:
        largest = max(by_part, key=lambda part: by_part[part][1])
        console.print(
            f"warning: larger than {wording.size(publish.LARGEST_BYTES)}, mostly for its {largest.removesuffix('s')}s; "
            "narrow it with task=NAME and adapters=CELLS",
            soft_wrap=True,
        )
