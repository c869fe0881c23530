"""The command of `lora_bench.questions.subspaces`."""

from __future__ import annotations

import argparse

from lora_bench.questions import subspaces
from lora_bench.reports import script


def main(argv: list[str] | None = None) -> int:
    parser = script.parser(subspaces.__doc__, "subspace")
    parser.add_argument("--targets", default="", metavar="ROLES", help="placement (default: the one with most ranks)")
    parser.add_argument(
        "--ranks", type=two_ranks, metavar="LOW,HIGH", help="two ranks (default: 8 and the highest, or the two highest)"
    )
    parser.add_argument("--layer", type=int, metavar="N", help="layer of the heatmaps (default: the middle one)")
    parser.add_argument("--step-zero", action="store_true", help="add the overlap of A before training; imports torch")
    scope, out, options = script.parse(parser, argv)
    asked = {name: getattr(options, name) for name in ("targets", "ranks", "layer", "step_zero")}
    return script.run_script("subspace", lambda runs: subspaces.sections(runs, scope, **asked), scope, out)


def two_ranks(text: str) -> tuple[int, int]:
    """`8,64` as the lower and the higher rank."""
    try:
        low, high = sorted(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"cannot read {text!r}; give two, such as 8,64") from None
    return low, high
