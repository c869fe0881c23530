"""The command of `lora_bench.questions.next_stage`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from lora_bench import wording
from lora_bench.config.options import parsed
from lora_bench.config.overrides import override
from lora_bench.paths import argument, output_file
from lora_bench.questions import next_stage
from lora_bench.reports import scope, script, tables
from lora_bench.store import open_store
from lora_bench.store.errors import StoreError
from lora_bench.verdicts import settings


def main(argv: list[str] | None = None) -> int:
    wording.spell_out()
    parser = argparse.ArgumentParser(
        prog="lora-bench next_stage",
        description=(next_stage.__doc__ or "").split("\n    lora-bench")[0],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--store", type=argument, default=Path("runs"), metavar="DIR", help="its records (default: runs)"
    )
    parser.add_argument("--sweep", required=True, metavar="NAME", help="the stage before: a file of sweeps/, or a path")
    parser.add_argument(
        "--rates", type=int, choices=(1, 2, 3), default=3,
        help="1: the best rate; 2: with the second-best, for all seeds; 3: with one each side",
    )  # fmt: skip
    parser.add_argument("--seeds", type=int, default=2, metavar="N", help="seeds 0 to N - 1 (default: 2)")
    parser.add_argument("--head-only", action="store_true", help="the head alone too, at the same seeds")
    parser.add_argument("--out", type=output_file, required=True, metavar="FILE", help="the sweep file to write")
    parser.add_argument("--overwrite", action="store_true", help="replace a file that is there")
    argv = sys.argv[1:] if argv is None else argv
    options = parsed(parser, argv)
    if options.seeds < 1:
        parser.error("--seeds: at least 1")
    if options.out.exists() and not options.overwrite:
        parser.error(f"--out: {options.out} is there already; add --overwrite to replace it")
    command = wording.command_line(["lora-bench", "next_stage", *argv])
    name = Path(options.sweep).stem if options.sweep.endswith((".yaml", ".yml")) else options.sweep
    try:
        sweep = next_stage.read_sweep(options.sweep)
        chosen, run_id = next_stage.chosen_rates(scope.read_frame(options.store), sweep, name=name)
        stage = next_stage.next_stage(
            sweep, chosen, n_rates=options.rates, n_seeds=options.seeds, head_only=options.head_only
        )
        started = open_store(options.store).record(run_id)["invocation"].get("overrides") or []
    except (next_stage.StageError, StoreError, settings.NothingToShow) as error:
        return script.refuse("next_stage", error)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(next_stage.told_as_file(stage, before=name, command=command), encoding="utf-8")
    for placement in chosen:
        name_of, rates = " ".join(placement.point.values()), placement.next_rates(options.rates)
        print(f"{name_of}: {placement.rate:g} ({placement.certificate}) -> {next_stage.text_of(rates)}")
    kept = tables.settled_overrides(started)
    sweep_and_store = override("+sweeps", options.out.stem), override("store", str(options.store))
    print(wording.command_line(["lora-bench", sweep_and_store[0], *kept, sweep_and_store[1]]))
    return 0
