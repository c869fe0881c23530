"""Can the verdicts be trusted? The instrument's own test: studies with known truth through the code that judges real
ones.

Parts that need no store: `study` (simulated studies, rates included: how often do they say what is not so, and what do
their words cost?) and `power` (known effects in a fixed design: how often are they found, against what the plan
promises?). Parts that read a store: `noise` (what scores vary by, of which simulated studies are made; results/study),
`aa` (runs that differ in nothing but the adapter's init; sweeps/calibration_aa.yaml), `coverage` (do the intervals of
few seeds hold the mean of many? calibration_reference.yaml) and `planted` (teachers of known placement and rank;
calibration_planted.yaml).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from lora_bench import wording
from lora_bench.calibration import parts
from lora_bench.calibration.section import CalibrationSection
from lora_bench.calibration.simulate import Trials
from lora_bench.reports import script
from lora_bench.reports.scope import Scope
from lora_bench.store.errors import StoreError
from lora_bench.verdicts import settings


def main(argv: list[str] | None = None) -> int:
    wording.spell_out()
    scope, out, options = _parse(argv)
    trials = Trials(
        sd=options.sd / 100,
        n_studies=options.studies,
        n_processes=options.processes,
        n_sweeps=options.sweeps,
        n_power_sweeps=options.power_sweeps,
        seed=options.seed,
    )
    wanted = options.parts or parts.PARTS
    made: list[CalibrationSection] = []
    absent: list[tuple[str, str]] = []
    for part in wanted:
        try:
            made += parts.sections(part, scope, trials)
        except (settings.NothingToShow, StoreError) as error:
            absent.append((part, str(error)))
    screen = script.console()
    for section in (*made, parts.summary(made, absent)):
        script.show_and_write(section, out, screen)
    for part, why in absent:
        print(f"lora-bench calibration: {part}: {why}", file=sys.stderr)
    is_all_absent = len(absent) == len(wanted)
    return 2 if is_all_absent or (options.parts and absent) else 0


def _parse(argv: list[str] | None) -> tuple[Scope, Path, argparse.Namespace]:
    parser = script.parser(__doc__, "calibration", by_method=False)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(parts.PARTS)} (default: all)")
    parser.add_argument(
        "--studies", type=int, default=2000, metavar="N", help="simulated studies of each pattern (default: 2000)"
    )
    parser.add_argument("--processes", type=int, default=2, metavar="N", help="that share the studies (default: 2)")
    parser.add_argument(
        "--sd", type=float, default=2.0, metavar="POINTS", help="simulated noise of a paired difference (default: 2)"
    )
    parser.add_argument(
        "--sweeps", type=int, default=2000, metavar="N", help="sweeps of A/A differences (default: 2000)"
    )
    parser.add_argument(
        "--power-sweeps", type=int, default=300, metavar="N", help="sweeps per effect and seeds (default: 300)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the simulation (default: 0)")
    scope, out, options = script.parse(parser, argv)
    unknown = [part for part in options.parts if part not in parts.PARTS]
    if unknown:
        parser.error(f"no part {unknown[0]!r}; parts are {', '.join(parts.PARTS)}")
    counts = (options.studies, options.processes, options.sweeps, options.power_sweeps)
    if not options.sd > 0 or min(counts) < 1 or options.seed < 0:
        parser.error("--sd, --studies, --processes, --sweeps and --power-sweeps must be above 0, --seed not below")
    return scope, out, options
