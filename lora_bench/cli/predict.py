"""Predict where the adapter should go, before anything trains: a ranking of the roles and a map of ranks at a budget.

The budget is what the adapter of the configuration costs; a line of every predictor can be pasted behind lora-bench.

    lora-bench predict task=acceptability model=minilm adapter.budget=qv@4
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from lora_bench import wording
from lora_bench.cli import runs
from lora_bench.config.compose import parse, schema_override, with_rank_yielding
from lora_bench.config.errors import ConfigError
from lora_bench.config.grammar import layers_in_words
from lora_bench.config.overrides import key_of, override
from lora_bench.config.schema import RunConfig
from lora_bench.paths import output_file, resource_root

if TYPE_CHECKING:
    from lora_bench.predictors.evidence import Evidence

MAPPED = tuple(f"adapter.{name}" for name in ("targets", "layers", "rank", "budget", "rank_pattern", "like"))
"""What of an adapter a map says itself; all else that was given holds for training it."""
OPTIONS = ("rows", "batch", "head_steps", "by", "draws", "out", "sweep")


def main(argv: list[str] | None = None) -> int:
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    wording.spell_out()
    argv = sys.argv[1:] if argv is None else argv
    words = [f"--{word}" if word.partition("=")[0] in OPTIONS else word for word in argv]
    options = _parser().parse_intermixed_args(words)
    try:
        config = _configured(options.overrides)
        predictions, about = _predictions(config, options)
    except (ConfigError, HydraException, OmegaConfBaseException) as error:
        return runs.tell(error, command="lora-bench predict")
    document = about | {"predictions": [prediction.document() for prediction in predictions]}
    beside = None
    if options.sweep:
        from lora_bench.questions import predicted  # heavy, as what draws its figures is

        beside = options.sweep.with_suffix("") / predicted.FILE  # for `lora-bench predictors`
    for path in filter(None, (options.out, beside)):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(document, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    _print(predictions, about, options.overrides, config.adapter.layers)
    if options.sweep:
        kept = _beside_the_map(options.overrides)
        print(wording.command_line(["lora-bench", f"study={options.sweep.stem}", *kept, "dry_run=true"]))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lora-bench predict", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="a configuration, as of a run")
    parser.add_argument("--rows", type=_at_least(2), default=100, metavar="N", help="train rows (default: 100)")
    parser.add_argument("--batch", type=_at_least(1), default=10, metavar="N", help="rows a batch (default: 10)")
    parser.add_argument(
        "--head_steps",
        type=_at_least(0),
        default=20,
        metavar="N",
        help="of the head, before (default: 20)",
    )
    parser.add_argument("--by", default="all", metavar="NAMES", help="predictors, joined by commas (default: all)")
    parser.add_argument(
        "--draws", type=_at_least(1), default=1, metavar="N", help="other rows and heads, for stability (default: 1)"
    )
    parser.add_argument("--out", type=output_file, metavar="FILE", help="every score, as JSON")
    parser.add_argument(
        "--sweep",
        type=output_file,
        metavar="FILE",
        help="a study of the maps beside seven placements (sweeps/NAME.yaml)",
    )
    return parser


def _at_least(low: int) -> Any:
    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < low:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {low}")
        return int(text)

    return number


def _configured(overrides: Sequence[str]) -> RunConfig:
    from hydra import compose, initialize_config_dir

    spelled = with_rank_yielding([schema_override(word) for word in overrides])
    with initialize_config_dir(str(resource_root() / "conf"), version_base="1.3"):
        return parse(compose("config", overrides=list(spelled)))


def _predictions(config: RunConfig, options: argparse.Namespace) -> tuple[list[Any], dict[str, Any]]:
    """The predictions that were asked for, and what they rest on.

    Raises:
        ConfigError: for a configuration, a predictor or rows that cannot be.
    """
    from lora_bench.models.roles import select_layers
    from lora_bench.predictors import bake_off
    from lora_bench.predictors.predict import PREDICTORS
    from lora_bench.predictors.stability import stability
    from lora_bench.training.resolve import resolve

    names = list(PREDICTORS) if options.by == "all" else options.by.split(",")
    for name in names:
        if name not in PREDICTORS:
            raise ConfigError(f"by: no predictor {name!r}; predictors are {', '.join(PREDICTORS)}")
    run = resolve(config)
    if not run.matrices:
        raise ConfigError(f"adapter.method: {config.adapter.method} has no matrices to place; give lora")
    known = run.blueprint.matrices
    layers = select_layers(known, config.adapter.layers)
    matrices = [matrix for matrix in known if matrix.layer in layers]
    tokens = run.tokens()["train"]
    n_rows = min(options.rows, len(tokens))
    evidences = _draws(run, matrices, tokens, n_rows, options)
    draws, left_out = _asked(names, evidences, run.adapter_parameters, options)
    kept = {name: said for name, said in draws.items() if name not in left_out}
    predictions = [said[0] for said in kept.values()]
    about = {
        "model": run.blueprint.name,
        "task": run.task.name,
        "seed": config.seed,
        "rows": n_rows,
        "batch": options.batch,
        "head_steps": options.head_steps,
        "budget": run.adapter_parameters,
        "layers": "all" if len(matrices) == len(known) else layers,
        "left_out": left_out,
        "draws": options.draws,
        "stability": {name: stability(said, matrices) for name, said in kept.items() if options.draws > 1},
    }
    if options.sweep:
        options.sweep.parent.mkdir(parents=True, exist_ok=True)
        bake_off.write(options.sweep, predictions, matrices, about, layers=config.adapter.layers)
    return predictions, about


def _asked(
    names: Sequence[str], evidences: Iterator[Evidence], budget: int, options: argparse.Namespace
) -> tuple[dict[str, list[Any]], dict[str, str]]:
    """What each predictor says of each draw, and why one says nothing; how far it is is shown meanwhile.

    Raises:
        ConfigError: where one that was named says nothing.
    """
    from lora_bench.launch.progress import Meter
    from lora_bench.launch.tell import console
    from lora_bench.predictors.predict import predict

    said: dict[str, list[Any]] = {name: [] for name in names}
    left_out: dict[str, str] = {}
    n_asked, meter = 0, Meter(console=console())
    meter.start()
    try:
        meter.show("loading, and training the head alone", 0.0, "", about="")
        for draw, evidence in enumerate(evidences, 1):
            for name in names:
                share = n_asked / (options.draws * len(names))
                head = name if options.draws == 1 else f"draw {draw} of {options.draws}: {name}"
                meter.show(head, share, "  ".join(meter.times(share)), about=head)
                n_asked += 1
                if name in left_out:
                    continue
                try:
                    said[name].append(predict(name, evidence, budget))
                except ValueError as error:
                    if options.by != "all":
                        raise ConfigError(str(error)) from None
                    left_out[name] = str(error)
    finally:
        meter.stop()
    return said, left_out


def _value_of(layers: Any) -> str:
    """`adapter.layers` as people write it: one value, which a sweep does not split."""
    return layers if isinstance(layers, str) else f"[{','.join(map(str, layers))}]"


def _draws(
    run: Any, matrices: Sequence[Any], tokens: Any, n_rows: int, options: argparse.Namespace
) -> Iterator[Evidence]:
    """The evidence of each draw: the next n_rows of train, from the start again where there are no more, with the head
    of the next seed."""
    from lora_bench.models import backbone, devices
    from lora_bench.predictors.evidence import gather
    from lora_bench.tasks.tokens import batch
    from lora_bench.training.evaluate import to_tensors

    device = devices.resolve_device(run.config.device)
    loaded = backbone.load(run.blueprint, precision="fp32", device=device)
    pad_id = int(run.blueprint.tokenizer.pad_token_id or 0)
    for draw in range(options.draws):
        rows = [(draw * n_rows + place) % len(tokens) for place in range(n_rows)]
        parts = [rows[start : start + options.batch] for start in range(0, n_rows, options.batch)]
        batches = [to_tensors(batch(tokens, part, pad_id), device) for part in parts]
        yield gather(loaded, matrices, batches, seed=run.config.seed + draw, head_steps=options.head_steps)


def _print(predictions: Sequence[Any], about: dict[str, Any], overrides: Sequence[str], layers: Any) -> None:
    from rich.table import Table

    from lora_bench.launch.tell import console

    out = console()
    within = "" if about["layers"] == "all" else f" in layers {layers_in_words(about['layers'])}"
    budget = f"budget {about['budget']:,} adapter parameters{within}"
    out.print(f"{about['model']}, {about['task']}: {about['rows']} train rows, {budget}")
    table = Table(box=None, pad_edge=False, header_style="bold")
    measured = ("parameters", "seconds", "memory", *(("same top", "same map") if about["stability"] else ()))
    for name in ("predictor", "roles, best first", "adapted", *measured):
        table.add_column(name, justify="right" if name in measured else "left")
    for said in predictions:
        memory = "-" if said.peak_bytes is None else wording.size(said.peak_bytes)
        roles = " ".join(said.roles) if len(set(said.role_scores)) > 1 else "all alike"
        stable = [f"{share:.0%}" for share in about["stability"].get(said.predictor, {}).values()]
        cost = (f"{said.parameters:,}", f"{said.seconds:.2f}", memory)
        table.add_row(said.predictor, roles, said.targets, *cost, *stable)
    out.print(table)
    for name, why in about["left_out"].items():
        out.print(f"{name}: left out: {why}", markup=False)
    kept = _beside_the_map(overrides)
    if about["layers"] != "all":
        kept.append(f"adapter.layers={_value_of(layers)}")
    for said in predictions:
        given = (("adapter.targets", said.targets), ("adapter.rank_pattern", said.rank_pattern))
        words = [override(key, value) for key, value in given]
        out.print(f"{said.predictor}: {wording.command_line(['lora-bench', *kept, *words])}", markup=False)


def _beside_the_map(overrides: Sequence[str]) -> list[str]:
    """The words of a configuration that hold for training a map: all but where the adapter lies, and its ranks."""
    return [word for word in overrides if key_of(word) not in MAPPED]
