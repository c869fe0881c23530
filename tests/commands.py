"""The commands of analysis/, run in this process."""

from pathlib import Path

from analysis import (
    amplification,
    claims,
    factor,
    learning_rate,
    pareto,
    predictors,
    rank,
    report,
    rescore,
    spread,
    subspace,
    weight_types,
)

COMMANDS = {
    module.__name__.rpartition(".")[2]: module.main
    for module in (
        *(amplification, claims, factor, learning_rate, pareto, predictors),
        *(rank, report, rescore, spread, subspace, weight_types),
    )
}


def run(name: str, store: Path, out: Path, *options: str) -> int:
    """The exit status of `python analysis/NAME.py --store STORE --out OUT ...`."""
    return COMMANDS[name](["--store", str(store), "--out", str(out), *options])
