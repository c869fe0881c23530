"""The command of `lora_bench.questions.subspaces`."""

from __future__ import annotations

from lora_bench.questions import subspaces
from lora_bench.reports import script


def main(argv: list[str] | None = None) -> int:
    parser = script.parser(subspaces.__doc__, "subspace")
    parser.add_argument("--targets", default="", metavar="ROLES", help="placement (default: the one with most ranks)")
    parser.add_argument(
        "--ranks", default="", metavar="LOW,HIGH", help="two ranks (default: 8 and the highest, or the two highest)"
    )
    parser.add_argument("--layer", type=int, metavar="N", help="layer of the heatmaps (default: the middle one)")
    parser.add_argument("--step-zero", action="store_true", help="add the overlap of A before training; imports torch")
    options = parser.parse_args(argv)
    return script.run_script(lambda runs: subspaces.sections(runs, options), options)


if __name__ == "__main__":
    raise SystemExit(main())
