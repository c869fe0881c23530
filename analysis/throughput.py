"""How soon is a question answered, and how fast is packed training, beside what people run today?

    python analysis/throughput.py --verdict small --out report              time to a verdict (speed/verdict.py)
    python analysis/throughput.py --curve --out report                      where packing pays (speed/crossover.py)
    python analysis/throughput.py --profile quick --out report              where the time of a whole command goes

Or the step alone, with the same rows, epochs, batch size and dropout in every arm:

    python analysis/throughput.py --data-dir FOLDER --out report            the arms below, side by side, in one go
    python analysis/throughput.py --arms trainer,packed --packs 1,7,28      some of them

    trainer       HF Trainer + peft, fp32, dynamic padding, one run after another
    trainer_auto  the same in the hardware's fast precision, with group_by_length
    solo          lora_bench, one run after another
    packed        lora_bench, K runs at once
    passive       packed, with threads that sleep while they wait for each other
    side_by_side  a process with one thread for each core, and K runs in each: how a sweep on a CPU trains
    processes     K solo processes on one GPU (--device cuda only)

With --neighbours N, N processes keep the machine busy beside every arm.

Every arm trains in a process of its own, so that its peak memory is its own. The clock runs over the training loop,
from its third step; loading, tokenising and the first steps are outside it in every arm. Rounds are interleaved and the
best round of each arm counts, because other work on the machine can only slow an arm down. The yardstick is this
machine's own GEMM rate at the arm's precision, measured in the same rounds: fraction = FLOPs per second / rate, with
the FLOPs that a record holds (training/cost.py).
"""

import argparse
import contextlib
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from lora_bench import wording
from lora_bench.config.schema import RunConfig
from lora_bench.models import machine
from lora_bench.paths import argument, resource_root

PLACEMENTS = ("q", "k", "v", "o", "qk", "qv", "qkvo")
SKIPPED_STEPS = 2
ROBERTA_BASE = {
    "model_type": "roberta",
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "max_position_embeddings": 514,
    "vocab_size": 50265,
}
"""A backbone of RoBERTa-base's size with random weights: measuring speed needs no download."""


def main(argv: list[str] | None = None) -> int:
    """Measure the arms and write OUT/throughput.json, OUT/tables/throughput.csv and OUT/figures/throughput.*"""
    wording.spell_out()
    options = parse(argv)
    if options.child:
        print(json.dumps(measure_arm(options)))
        return 0
    if options.verdict:
        return _time_to_verdict(options)
    if options.curve:
        return _crossover(options)
    if options.profile:
        return _whole_command(options)
    results: list[dict[str, Any]] = []
    for number in range(options.rounds):
        for arm, pack in _arms(options):
            row = _in_own_process(options, arm, pack)
            results.append({**row, "round": number})
            print(f"round {number + 1}  {arm:13} K={pack:<3} {_line(row)}", flush=True)
    best = summarise(results)
    document = {"machine": _machine(options), "options": _public(options), "best": best, "rounds": results}
    write(document, options.out)
    return 0


def _time_to_verdict(options: argparse.Namespace) -> int:
    """Write OUT/verdict.json, OUT/tables/verdict.csv and OUT/figures/verdict.*, and print the table."""
    from speed import verdict, written  # beside this file

    words = _words("verdict", verdict.QUESTIONS, options)
    if options.dry_run:
        print("\n".join(verdict.plan(words)))
        return 0
    written.verdict(verdict.measure(options, words, _machine(options)), options.out)
    return 0


def _crossover(options: argparse.Namespace) -> int:
    """Write OUT/curve.json, OUT/tables/curve.csv and OUT/figures/curve.*"""
    from speed import crossover, written  # beside this file

    if options.dry_run:
        print(f"{len(crossover.grid(options))} points")
        return 0
    written.curve(crossover.measure(options, _machine(options)), options.out)
    return 0


def _whole_command(options: argparse.Namespace) -> int:
    """Write OUT/profile.json, OUT/tables/profile.csv and estimates.csv and OUT/figures/profile.*, and print the
    tables."""
    from speed import whole_command, written  # beside this file

    words = _words("profile", whole_command.COMMANDS, options)
    if options.dry_run:
        print(wording.command_line(["lora-bench", *words]))
        return 0
    written.profile(whole_command.measure(options, words, _machine(options)), options.out)
    return 0


def _words(option: str, known: Mapping[str, Sequence[str]], options: argparse.Namespace) -> list[str]:
    """The words for `lora-bench` of what an option names; what has the name of its task needs that task's files.

    Raises:
        SystemExit: when their folder was not given.
    """
    name = getattr(options, option)
    words = list(known[name])
    if f"task={name}" not in words:
        return words
    if not options.data_dir:
        raise SystemExit(f"throughput: --{option} {name} needs --data-dir, the folder of the files of {name}")
    return [*words, f"task.data_dir={Path(options.data_dir).resolve()}"]


def measure_arm(options: argparse.Namespace) -> dict[str, Any]:
    """Train one arm in this process: {"examples_per_second", "peak_bytes", "precision", "gemm_flops", "fraction",
    ...}."""
    from lora_bench.models import devices

    devices.set_threads()
    arms: dict[str, Callable[[argparse.Namespace], Iterator[tuple[float, int]]]] = {
        "trainer": _trainer,
        "trainer_auto": _trainer,
        "solo": _packed,
        "packed": _packed,
        "passive": _packed,
        "side_by_side": _packed,
        "processes": _packed,
    }
    seconds, cell_examples = 0.0, 0
    for spent, rows in arms[options.child](options):
        seconds, cell_examples = seconds + spent, cell_examples + rows
    runs = _runs(options)
    lengths = runs[0].tokens()["train"].lengths
    rate = _gemm_rate(options, _precision(options))
    per_second = cell_examples / seconds
    return {
        "arm": options.child,
        "pack": options.pack,
        "precision": _precision(options),
        "examples_per_second": per_second,
        "peak_bytes": _peak_bytes(options),
        "tokens_per_example": float(lengths.mean()),
        "gemm_flops": rate,
        "fraction": _flops_per_example(runs, lengths) * per_second / rate,
    }


def _flops_per_example(runs: list[Any], lengths: Any) -> float:
    """Of one row and one run, on average."""
    from lora_bench.training.cost import run_flops

    flops = [run_flops(run.blueprint, run.config, run.matrices, int(lengths.sum())) for run in runs]
    return sum(flops) / len(flops) / len(lengths)


def summarise(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The best round of each arm, and its ratio to the two Trainer arms."""
    best: dict[tuple[str, int], dict[str, Any]] = {}
    for row in results:
        key = (row["arm"], row["pack"])
        if key not in best or row["examples_per_second"] > best[key]["examples_per_second"]:
            best[key] = dict(row)
    rates = {arm: best[arm, 1]["examples_per_second"] for arm in ("trainer", "trainer_auto") if (arm, 1) in best}
    fastest_gemm: dict[str, float] = {}
    for row in results:
        fastest_gemm[row["precision"]] = max(row["gemm_flops"], fastest_gemm.get(row["precision"], 0.0))
    for row in best.values():
        row["fraction"] *= row["gemm_flops"] / fastest_gemm[row["precision"]]
        row["gemm_flops"] = fastest_gemm[row["precision"]]
        row |= {f"over_{arm}": row["examples_per_second"] / rate for arm, rate in rates.items()}
    return list(best.values())


def write(document: dict[str, Any], out: Path) -> None:
    """JSON, CSV, a figure and a table on the terminal."""
    import pandas as pd
    from rich.table import Table

    from lora_bench.reports.figures import instrument, style

    (out / "tables").mkdir(parents=True, exist_ok=True)
    (out / "throughput.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    frame = pd.DataFrame(document["best"])
    frame.to_csv(out / "tables" / "throughput.csv", index=False)
    style.save(instrument.throughput(frame), out / "figures", "throughput")
    table = Table(title=document["machine"]["told"], title_justify="left", box=None, pad_edge=False)
    headings = (
        "arm",
        "K",
        "precision",
        "cell-examples/s",
        "over trainer",
        "over trainer_auto",
        "of GEMM rate",
        "peak GiB",
    )
    for heading in headings:
        table.add_column(heading, justify="left" if heading in ("arm", "precision") else "right")
    for row in document["best"]:
        ratios = [f"{row[key]:.2f}" if key in row else "-" for key in ("over_trainer", "over_trainer_auto")]
        peak = f"{row['peak_bytes'] / 2**30:.2f}"
        table.add_row(
            row["arm"],
            str(row["pack"]),
            row["precision"],
            f"{row['examples_per_second']:.0f}",
            *ratios,
            f"{row['fraction']:.0%}",
            peak,
        )
    wording.console(least_width=100).print(table)
    print(f"wrote {out / 'throughput.json'}, tables/throughput.csv and figures/throughput.png, .pdf, .svg")


def _packed(options: argparse.Namespace) -> Iterator[tuple[float, int]]:
    """Our own loop over a pack; solo is a pack of one, placement after placement."""
    import torch

    from lora_bench.models import adapters, backbone, devices
    from lora_bench.packing.pack import Pack
    from lora_bench.training.loop import train_pack

    runs = _runs(options)
    groups = [[run] for run in runs] if options.child == "solo" else [runs]
    for group in groups:
        first = group[0]
        loaded = backbone.load(
            first.blueprint, precision=first.precision, device=devices.resolve_device(options.device)
        )
        tokens = first.tokens()["train"]
        head = backbone.head_state(loaded, 0)
        states = [adapters.make(loaded, run.config.adapter, run.matrices, head, 0) for run in group]
        clock = _Clock(loaded.device, first.steps)

        def on_step(step: int, clock: _Clock = clock, **_: torch.Tensor) -> None:
            clock(step)

        with Pack(loaded, states, dropout=options.dropout, compile=first.config.train.compile) as pack:
            train_pack(
                pack,
                tokens,
                [run.config for run in group],
                total_steps=first.steps,
                on_step=on_step,
                on_epoch=lambda *_: None,
            )
        yield clock.seconds, len(group) * clock.steps * options.batch_size


def _trainer(options: argparse.Namespace) -> Iterator[tuple[float, int]]:
    """transformers.Trainer and get_peft_model, placement after placement."""
    import tempfile

    import torch
    from peft import get_peft_model
    from transformers import DataCollatorWithPadding, Trainer, TrainerCallback, TrainingArguments

    from lora_bench.models import adapters, backbone, devices

    is_fast = options.child == "trainer_auto"
    for run in _runs(options):
        loaded = backbone.load(run.blueprint, precision="fp32", device=devices.resolve_device(options.device))
        tokens = run.tokens()["train"]
        model = get_peft_model(
            loaded.untouched(),
            adapters.lora_config(run.config.adapter, run.matrices, loaded.new_modules),
        )
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = options.dropout
        rows = [
            {"input_ids": tokens.input_ids[a:b].tolist(), "labels": int(label)}
            for a, b, label in zip(tokens.offsets, tokens.offsets[1:], tokens.labels, strict=False)
        ]
        clock = _Clock(loaded.device, run.steps)

        class Steps(TrainerCallback):
            """Ticks the clock at the end of every step."""

            def on_step_end(self, args: Any, state: Any, control: Any, clock: _Clock = clock, **_: Any) -> None:
                clock(state.global_step - 1)

        with tempfile.TemporaryDirectory() as folder:
            arguments = TrainingArguments(
                output_dir=folder,
                per_device_train_batch_size=options.batch_size,
                num_train_epochs=options.epochs,
                learning_rate=3e-3,
                bf16=is_fast and _precision(options) == "bf16",
                train_sampling_strategy="group_by_length" if is_fast else "random",
                report_to=[],
                save_strategy="no",
                logging_strategy="no",
                disable_tqdm=True,
                use_cpu=options.device == "cpu",
            )
            collator = DataCollatorWithPadding(run.blueprint.tokenizer)
            Trainer(
                model=model,
                args=arguments,
                train_dataset=rows,  # pyright: ignore[reportArgumentType]    any sequence of rows will do
                data_collator=collator,
                callbacks=[Steps()],
            ).train()
        yield clock.seconds, clock.steps * options.batch_size


class _Clock:
    """Seconds between the end of the skipped steps and the end of the last one."""

    def __init__(self, device: Any, total_steps: int) -> None:
        self._device, self._last = device, total_steps - 1
        self._start = self.seconds = 0.0
        self.steps = total_steps - SKIPPED_STEPS

    def __call__(self, step: int) -> None:
        if step in (SKIPPED_STEPS - 1, self._last):
            if self._device.type == "cuda":
                import torch

                torch.cuda.synchronize()
            now = time.perf_counter()
            if step == self._last:
                self.seconds = now - self._start
            else:
                self._start = now


def _runs(options: argparse.Namespace) -> list[Any]:
    """Resolved runs of this arm."""
    from lora_bench.training.resolve import resolve

    return [resolve(config) for config in configurations(options)]


def configurations(options: argparse.Namespace) -> list[RunConfig]:
    """The runs of this arm: the seven placements, again at other learning rates where a pack is larger."""
    from lora_bench.config.compose import Template

    count = len(PLACEMENTS) if options.child in ("trainer", "trainer_auto", "solo") else options.pack
    template = Template(_composed(options))
    values = {
        "task.data_dir": options.data_dir,
        "task.train_rows": options.rows,
        "task.report_rows": 64,
        "adapter.rank": None,
        "adapter.budget": "q@8",
        "train.epochs": options.epochs,
        "train.batch_size": options.batch_size,
        "train.max_length": options.max_length,
        "train.precision": _precision(options),
        "train.compile": options.compile,
        "device": options.device,
    }
    configs = []
    for number in range(count):
        placement = "qv" if count == 1 else PLACEMENTS[number % len(PLACEMENTS)]
        rate = 1e-3 * (1 + number // len(PLACEMENTS))
        configs.append(template.parse(values | {"adapter.targets": placement, "train.lr": rate}))
    return configs


def _composed(options: argparse.Namespace) -> DictConfig:
    from lora_bench.config.compose import compose

    words = [f"task={options.task}", f"model={options.backbone}", "adapter=lora", "train=default", "tracking=none"]
    if options.backbone == "roberta_base":
        words += ["model.name=roberta-base-sized", "model.weights=random"]
        words += [f"+model.architecture.{name}={value}" for name, value in ROBERTA_BASE.items()]
    return compose(words)


def _precision(options: argparse.Namespace) -> str:
    from lora_bench.models import devices

    if options.child == "trainer":
        return "fp32"
    return devices.resolve_precision(options.precision, devices.resolve_device(options.device))


def _gemm_rate(options: argparse.Namespace, precision: str) -> float:
    """FLOP per second of a large product at this precision, the best of several: the machine's own limit."""
    import torch

    from lora_bench.models.devices import DTYPES, resolve_device

    device = resolve_device(options.device)
    sizes = (2048, 384, 1536) if device.type == "cpu" else (8192, 8192, 8192)
    a = torch.randn(sizes[0], sizes[1], dtype=DTYPES[precision], device=device)
    b = torch.randn(sizes[1], sizes[2], dtype=DTYPES[precision], device=device)
    best = 0.0
    for _ in range(12):
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(8):
            torch.matmul(a, b)
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = max(best, 8 * 2 * sizes[0] * sizes[1] * sizes[2] / (time.perf_counter() - start))
    return best


def _peak_bytes(options: argparse.Namespace) -> int:
    if options.device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _arms(options: argparse.Namespace) -> Iterator[tuple[str, int]]:
    for arm in options.arms.split(","):
        if arm in ("trainer", "trainer_auto", "solo"):
            yield arm, 1
        else:
            yield from ((arm, int(pack)) for pack in options.packs.split(","))


def _in_own_process(options: argparse.Namespace, arm: str, pack: int) -> dict[str, Any]:
    """Run one arm in a child; for `processes` and `side_by_side` in several at once, whose rates add up."""
    command = [
        sys.executable,
        os.path.abspath(__file__),
        "--child",
        arm,
        "--pack",
        str(1 if arm == "processes" else pack),
    ]
    for name, value in _public(options).items():
        if name not in ("arms", "packs", "rounds", "out", "neighbours") and value not in (None, False):
            command += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    count = {"processes": pack, "side_by_side": machine.cores()}.get(arm, 1)
    settings = {"passive": {"OMP_WAIT_POLICY": "PASSIVE"}, "side_by_side": {"OMP_NUM_THREADS": "1"}}.get(arm, {})
    with _neighbours(options.neighbours):
        children = [
            subprocess.Popen(command, stdout=subprocess.PIPE, encoding="utf-8", env=os.environ | settings)
            for _ in range(count)
        ]
        outputs = [child.communicate()[0] for child in children]
    if any(child.returncode for child in children):
        raise SystemExit(f"throughput: the arm {arm} with K={pack} failed; its messages are above")
    rows = [json.loads(output.strip().splitlines()[-1]) for output in outputs]
    merged = rows[0] | {"pack": pack}
    for key in ("examples_per_second", "peak_bytes", "fraction"):
        merged[key] = sum(row[key] for row in rows)
    if arm == "side_by_side":  # each fraction is of the rate of one core
        merged["fraction"] /= count
        merged["gemm_flops"] = sum(row["gemm_flops"] for row in rows)
    return merged


@contextlib.contextmanager
def _neighbours(count: int) -> Iterator[None]:
    """Processes that want a core each, for as long as the block takes."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def _line(row: dict[str, Any]) -> str:
    speed = f"{row['examples_per_second']:7.0f} cell-examples/s  {row['fraction']:4.0%} of GEMM rate"
    return f"{row['precision']}  {speed}  {row['peak_bytes'] / 2**30:.2f} GiB"


def _machine(options: argparse.Namespace) -> dict[str, Any]:
    from lora_bench.training.run import environment_here

    facts = environment_here(options.device)
    name = facts["cpu"] if facts["device"] == "cpu" else facts["device"]
    line = f"{name}, {facts['threads']} threads, torch {facts['torch']}, {platform.system()}"
    return {**facts, "told": line}


def _public(options: argparse.Namespace) -> dict[str, Any]:
    values = {name: value for name, value in vars(options).items() if name not in ("child", "pack")}
    return values | {"out": str(options.out)}


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The options of a command line."""
    parser = argparse.ArgumentParser(
        prog="throughput", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--verdict", choices=("small", "sst2"), help="time to a verdict on a question: twelve minutes, or an hour"
    )
    parser.add_argument(
        "--fixed-store", type=argument, metavar="FOLDER", help="--verdict: a finished +sweeps=weight_types"
    )
    parser.add_argument(
        "--study-store", type=argument, metavar="FOLDER", help="--verdict: a finished study=weight_types"
    )
    parser.add_argument("--curve", action="store_true", help="where packing pays (speed/crossover.py)")
    parser.add_argument("--shapes", default="384x6,768x12,smollm2", help="--curve: backbones (default: %(default)s)")
    parser.add_argument("--precisions", default="fp32,bf16", help="--curve: (default: %(default)s)")
    parser.add_argument("--lengths", default="4,16,64", help="--curve: tokens of a row, of 8 (default: %(default)s)")
    parser.add_argument("--curve-packs", default="2,4,8", help="--curve: runs of a pack (default: %(default)s)")
    parser.add_argument(
        "--profile",
        choices=("quick", "study", "cola"),
        help="where the time of a sweep goes, and how well its dry run told it (speed/whole_command.py)",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="--verdict, --curve, --profile: say what will be run, and stop"
    )
    parser.add_argument(
        "--task",
        default="acceptability",
        choices=sorted(path.stem for path in (resource_root() / "conf" / "task").glob("*.yaml")),
        metavar="NAME",
        help="an embedded task, or a GLUE task with --data-dir (default: acceptability)",
    )
    parser.add_argument("--data-dir", help="folder of the GLUE task's files")
    parser.add_argument("--rows", type=int, default=1024, help="train rows (default: 1024)")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--max-length", type=int, default=128, help="tokens (default: 128)")
    parser.add_argument("--dropout", type=float, default=0.0, help="of the backbone, in every arm (default: 0)")
    parser.add_argument(
        "--precision", default="auto", choices=("auto", "fp32", "bf16"), help="of all arms but trainer (default: auto)"
    )
    parser.add_argument(
        "--backbone",
        default="minilm",
        choices=("minilm", "roberta_base", "smollm2"),
        help="roberta_base has random weights (default: minilm)",
    )
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument(
        "--compile", action="store_true", help="torch.compile our arms; its time is inside the skipped steps"
    )
    parser.add_argument("--arms", default="trainer,trainer_auto,solo,packed", help="(default: %(default)s)")
    parser.add_argument("--packs", default="1,2,4,8,16,28", help="K of packed and processes (default: %(default)s)")
    parser.add_argument(
        "--neighbours", type=int, default=0, metavar="N", help="busy processes beside every arm (default: 0)"
    )
    parser.add_argument(
        "--rounds", type=int, default=2, help="how often each arm is measured; the best counts (default: 2)"
    )
    parser.add_argument("--out", type=argument, default="report", metavar="FOLDER")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--pack", type=int, default=1, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


if __name__ == "__main__":
    raise SystemExit(main())
