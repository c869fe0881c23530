"""The commands beside training: what each is for, and the module that it is.

lora-bench report store=runs        options as key=value, or as --store runs
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from lora_bench.config import habits
from lora_bench.config.errors import did_you_mean

READS = {
    "report": "one page: every table, figure and verdict of a store",
    "weight_types": "which matrices, at one budget",
    "rank": "which rank",
    "factor": "any other setting: by=layers, method, alpha, ...",
    "learning_rate": "the rates, and the rate that each placement chose",
    "pareto": "score against adapter parameters, time and memory",
    "spread": "what makes a score vary: the adapter's start, the seed or the rate",
    "subspace": "how far the subspaces of two ranks agree (section 7.2)",
    "amplification": "what an update amplifies (section 7.3)",
    "predictors": "do the maps that predict chose find where the adapter should go?",
    "claims": "the paper's claims, each held against the store",
    "calibration": "can the verdicts be trusted?",
}
"""Commands that read a store and write tables and figures."""

KEEPS = {
    "predict": "where the adapter should go, before anything trains: roles and a map of ranks",
    "next_stage": "writes the sweep that refines another one",
    "archive": "packs a finished store into a few files, or joins stores",
    "rescore": "computes every score again from the stored predictions",
    "dashboard": "builds or updates the dashboard on W&B",
    "sync": "compares the store with W&B and uploads what is missing",
}

WORDS = {
    "study": "runs a study: lora-bench study NAME; alone, it lists them",
    "show": "targets, store or config: prints it and stops",
    "help": "this, or a command's options: lora-bench help report",
}
"""Words that stand for keys of the command line; `config.arguments` spells them out."""

COMMANDS = READS | KEEPS


def listed(*, indent: int) -> str:
    """Every command with what it is for, a line each; all but the first begin with so many blanks."""
    groups = (WORDS, READS, KEEPS)
    width = max(map(len, COMMANDS | WORDS))
    return ("\n" + " " * indent).join(
        f"{name:<{width}}  {purpose}" for group in groups for name, purpose in group.items()
    )


def refuse_unknown(word: str) -> int:
    """Say in one line that a first word is no command, and what there is. Returns status 2."""
    names = (*WORDS, *COMMANDS)
    if here := habits.COMMANDS.get(word.lower()):
        print(f"lora-bench: no command {word!r}; {here}", file=sys.stderr)
        return 2
    hint = did_you_mean(word.replace("-", "_"), names)
    said = f"lora-bench: no command {word!r}; commands are {', '.join(names)}{hint}; a run is described by key=value"
    print(said, file=sys.stderr)
    return 2


def run(name: str, argv: Sequence[str]) -> int:
    """Run a command of `READS` or `KEEPS` with its options. Returns the exit status."""
    if name == "sync":
        from lora_bench.tracking import sync

        return sync.main(list(argv))
    if name == "predict":
        from lora_bench.cli import predict

        return predict.main(list(argv))
    # They share what costs time to import: pandas, and what draws.
    from lora_bench.cli import (
        amplification,
        archive,
        calibration,
        claims,
        dashboard,
        factor,
        learning_rate,
        next_stage,
        pareto,
        predictors,
        rank,
        report,
        rescore,
        spread,
        subspace,
        weight_types,
    )

    mains = {
        "amplification": amplification.main,
        "archive": archive.main,
        "calibration": calibration.main,
        "claims": claims.main,
        "dashboard": dashboard.main,
        "factor": factor.main,
        "learning_rate": learning_rate.main,
        "next_stage": next_stage.main,
        "pareto": pareto.main,
        "predictors": predictors.main,
        "rank": rank.main,
        "report": report.main,
        "rescore": rescore.main,
        "spread": spread.main,
        "subspace": subspace.main,
        "weight_types": weight_types.main,
    }
    return mains[name](list(argv))
