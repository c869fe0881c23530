"""Time to a verdict: what a user waits for. One declared question, answered four ways on one machine.

    a  a loop over HF Trainer + peft: fp32, batches padded to their longest row, every rate and seed, a process a run
    b  the same, tuned: rows of like length together, the faster of fp32 and bf16, one process for all runs
    c  the fixed design of lora_bench, the same runs: lora-bench +sweeps=weight_types
    d  its study: lora-bench study=weight_types

(c) and (d) are run, from an empty store to the written answer, or read from a store that is there, by its own clock.
(a) and (b) are timed on a sample and extended by count: a run of one, of two and of four matrices, since a step costs
more with more of them; start-up apart. A fixed design has one look. Where the study took more seeds than the grid's
eight to give its words, (a) and (b) stand there twice: with eight seeds, and with as many as the study.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lora_bench import wording

PLACEMENTS = ("q", "k", "v", "o", "qk", "qv", "qkvo")
SAMPLED = ("q", "qv", "qkvo")
"""A run of each number of matrices; what a grid has of each follows from the letters of its placements."""
N_RATES, N_SEEDS = 5, 8
QUESTIONS = {
    "small": (
        "task=acceptability",
        "task.phenomena=[argument_structure,negative_polarity]",
        "task.train_rows=800",
        "task.select_rows=200",
        "task.report_rows=400",
        "train.epochs=1",
        "train.batch_size=8",
        "train.max_length=32",
        "train.dropout=0.0",
        "study.looks=[8,16]",
    ),
    "sst2": (
        "task=sst2",
        "task.train_rows=1000",
        "task.select_rows=500",
        "train.max_length=64",
        "train.epochs=1",
        "train.batch_size=8",
        "train.dropout=0.0",
    ),
}
NAMES = {
    "a": "HF Trainer + peft, a process a run",
    "b": "HF Trainer + peft, tuned",
    "c": "lora_bench, fixed design",
    "d": "lora_bench, study",
}


def measure(options: argparse.Namespace, words: list[str], machine: dict[str, Any]) -> dict[str, Any]:
    """Measure what OUT/verdict.json does not hold yet of the question in these words, and write it anew after each arm.

    Raises:
        SystemExit: when an arm failed, or a store does not hold what it should.
    """
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "verdict.json"
    document: dict[str, Any] = {"machine": machine, "question": words, "measured": {}}
    if path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))
        if before["question"] == words and before["machine"]["id"] == machine["id"]:
            document = before
    measured = document["measured"]
    arms = {
        "a": lambda: _trainer(words, is_tuned=False),
        "b": lambda: _trainer(words, is_tuned=True),
        "c": lambda: _fixed(words, options.out, options.fixed_store),
        "d": lambda: _study(words, options.out, options.study_store),
    }
    for arm, take in arms.items():
        if arm not in measured:
            print(f"{arm}  {NAMES[arm]} ...", flush=True)
            measured[arm] = take()
            path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    document["rows"] = rows(measured)
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return document


def plan(words: Sequence[str]) -> list[str]:
    """What will be run of the question in these words, a line each."""
    fixed = [word for word in words if not word.startswith("study.")]
    return [
        f"a  {NAMES['a']}: {len(SAMPLED)} of {len(PLACEMENTS) * N_RATES * N_SEEDS} runs",
        f"b  {NAMES['b']}: {len(SAMPLED)} of the same in fp32 and in bf16",
        f"c  {wording.command_line(['lora-bench', '+sweeps=weight_types', *fixed])}",
        f"d  {wording.command_line(['lora-bench', 'study=weight_types', *words])}",
    ]


def rows(measured: dict[str, Any]) -> list[dict[str, Any]]:
    """The table: arm, n_runs, n_seeds, seconds, whether by count, words, and over_study (seconds over those of d)."""
    study, fixed = measured["d"], measured["c"]
    table = []
    for arm in ("a", "b"):
        for n_seeds in dict.fromkeys((N_SEEDS, max(N_SEEDS, study["n_seeds"]))):
            n_runs = len(PLACEMENTS) * N_RATES * n_seeds
            said = fixed["words"] if n_seeds == N_SEEDS else None
            seconds = extended(measured[arm], n_seeds)
            basis = f"{measured[arm]['n_timed']} runs timed, extended by count"
            table.append({"arm": arm, "n_runs": n_runs, "n_seeds": n_seeds, "seconds": seconds, "basis": basis})
            table[-1]["words"] = said
    for arm in ("c", "d"):
        kept = {key: measured[arm][key] for key in ("n_runs", "n_seeds", "seconds", "basis", "words")}
        table.append({"arm": arm, **kept})
    return [row | {"name": NAMES[row["arm"]], "over_study": row["seconds"] / study["seconds"]} for row in table]


def extended(timed: dict[str, Any], n_seeds: int) -> float:
    """Seconds of the whole grid: each run as the sampled one with as many matrices; start-up once a process."""
    grid = Counter(len(placement) for placement in PLACEMENTS)
    a_seed = sum(count * timed["seconds"][str(n_matrices)] for n_matrices, count in grid.items())
    n_runs = len(PLACEMENTS) * N_RATES * n_seeds
    return N_RATES * n_seeds * a_seed + timed["startup_seconds"] * (n_runs if timed["process_a_run"] else 1)


def _trainer(words: Sequence[str], *, is_tuned: bool) -> dict[str, Any]:
    """The Trainer's sample: seconds of a run by its number of matrices, and of a start."""
    best: dict[str, Any] | None = None
    for precision in ("fp32", "bf16") if is_tuned else ("fp32",):
        order = _order(words, is_tuned=is_tuned, precision=precision)
        if is_tuned:
            first = order["runs"][0]  # the first run of a process is slower, and one of hundreds
            timed = _carried_out({**order, "runs": [first, *order["runs"]]})
            seconds, startups = timed["seconds"][1:], [timed["startup"]]
        else:
            processes = [_carried_out({**order, "runs": [run]}) for run in order["runs"]]
            seconds = [timed["seconds"][0] for timed in processes]
            startups = [timed["startup"] for timed in processes]
        result = {
            "precision": precision,
            "n_timed": len(seconds),
            "process_a_run": not is_tuned,
            "startup_seconds": sum(startups) / len(startups),
            "seconds": {str(len(name)): value for name, value in zip(SAMPLED, seconds, strict=True)},
        }
        print(f"   {precision}: a run {sum(seconds) / len(seconds):.1f} s, a start {result['startup_seconds']:.1f} s")
        if best is None or extended(result, N_SEEDS) < extended(best, N_SEEDS):
            best = result
    return best or {}


def _order(words: Sequence[str], *, is_tuned: bool, precision: str) -> dict[str, Any]:
    """What trainer_loop.py is told: the question's own rows, backbone and matrices, in the Trainer's terms."""
    from hydra import compose, initialize_config_dir

    from lora_bench.config.compose import parse
    from lora_bench.models import backbone, devices
    from lora_bench.paths import resource_root
    from lora_bench.training.resolve import resolve

    resolved = []
    given = [word for word in words if not word.startswith("study.")]
    for placement in SAMPLED:
        with initialize_config_dir(str(resource_root() / "conf"), version_base="1.3"):
            budget = ["adapter.rank=null", "adapter.budget=q@8", f"adapter.targets={placement}", "train.precision=fp32"]
            resolved.append(resolve(parse(compose("config", overrides=[*given, *budget, "tracking=none"]))))
    run, train = resolved[0], resolved[0].config.train
    loaded = backbone.load(run.blueprint, precision="fp32", device=devices.resolve_device("cpu"))
    texts = [name for name in ("text_a", "text_b") if name in run.task.splits["train"]]
    return {
        "folder": str(run.blueprint.folder),
        "n_labels": run.task.n_labels,
        "max_length": train.max_length,
        "dropout": train.dropout,
        "arguments": {
            "num_train_epochs": train.epochs,
            "per_device_train_batch_size": train.batch_size,
            "per_device_eval_batch_size": 64,
            "bf16": precision == "bf16",
            "use_cpu": devices.resolve_device(run.config.device).type == "cpu",
            "train_sampling_strategy": "group_by_length" if is_tuned else "random",
            "warmup_steps": round(train.warmup_ratio * run.steps),
            "lr_scheduler_type": train.schedule,
        },
        "rows": {
            name: {"texts": [table[text].tolist() for text in texts], "labels": table["label"].tolist()}
            for name in ("train", "select", "report")
            for table in (run.task.splits[name],)
        },
        "runs": [{"peft": _peft(run, loaded.new_modules), "rate": train.lr, "seed": 0} for run in resolved],
    }


def _peft(run: Any, head_modules: Sequence[str]) -> dict[str, Any]:
    from lora_bench.models.adapters import lora_config

    config = lora_config(run.config.adapter, run.matrices, head_modules).to_dict()
    keys = ("task_type", "r", "lora_alpha", "lora_dropout", "rank_pattern", "modules_to_save")
    return {**{key: config[key] for key in keys}, "target_modules": sorted(config["target_modules"])}


def _carried_out(order: dict[str, Any]) -> dict[str, Any]:
    """{"seconds": of each run, "startup": of the rest of the process}."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "order.json"
        path.write_text(json.dumps(order), encoding="utf-8")
        start = time.perf_counter()
        program = Path(__file__).with_name("trainer_loop.py")
        done = subprocess.run([sys.executable, str(program), str(path)], capture_output=True, encoding="utf-8")
        passed = time.perf_counter() - start
    if done.returncode:
        raise SystemExit(f"{done.stderr}throughput: the loop over the Trainer failed; its messages are above")
    answer = json.loads(done.stdout.strip().splitlines()[-1])
    return {**answer, "startup": passed - sum(answer["seconds"])}


# ---------------------------------------------------------------- ours


def _fixed(words: Sequence[str], out: Path, store: Path | None) -> dict[str, Any]:
    """The sweep and its answer."""
    import pandas as pd

    given = [word for word in words if not word.startswith("study.")]
    seconds, basis = math.nan, "by the clock of its store"
    start = time.perf_counter()
    if store is None:
        store, basis = _new_store(out, "fixed"), "run"
        _lora_bench("+sweeps=weight_types", *given, f"store={store}", "tracking=none")
    report = Path(tempfile.mkdtemp(prefix="answer-", dir=out))
    _lora_bench("weight_types", f"store={store}", f"out={report}")
    seconds = time.perf_counter() - start if basis == "run" else _span(store)
    contrasts = pd.concat([pd.read_csv(path) for path in sorted((report / "tables").glob("*_contrasts.csv"))])
    words_said = _said(zip(contrasts["second"], contrasts["verdict"], strict=True))
    return {**_counts(store), "seconds": seconds, "basis": basis, "n_seeds": N_SEEDS, "words": words_said}


def _study(words: Sequence[str], out: Path, store: Path | None) -> dict[str, Any]:
    """The study, its report included."""
    from lora_bench.store.journal import journals

    seconds, basis = math.nan, "by the clock of its store"
    start = time.perf_counter()
    if store is None:
        store, basis = _new_store(out, "study"), "run"
        _lora_bench("study=weight_types", *words, f"store={store}", "tracking=none")
    seconds = time.perf_counter() - start if basis == "run" else _span(store)
    written = [content for journal in journals(store) if (content := journal.read()) is not None]
    if len(written) != 1 or not written[0]["looks"]:
        raise SystemExit(f"throughput: {str(store)!r} does not hold one study that was looked at; give one that does")
    looks = written[0]["looks"]
    findings = looks[-1]["findings"]
    settled = [finding for finding in findings if finding["look"] is not None]
    n_seeds = max((looks[finding["look"]]["n_seeds"] for finding in settled), default=looks[-1]["n_seeds"])
    said = _said((finding["second"], finding["word"]) for finding in findings)
    return {**_counts(store), "seconds": seconds, "basis": basis, "n_seeds": n_seeds, "words": said}


def _lora_bench(*words: str) -> None:
    done = subprocess.run([sys.executable, "-m", "lora_bench", *words], stdout=subprocess.DEVNULL)
    if done.returncode:
        raise SystemExit(f"throughput: {wording.command_line(['lora-bench', *words])} failed; its messages are above")


def _new_store(out: Path, name: str) -> Path:
    return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=out)).resolve()


def _counts(store: Path) -> dict[str, int]:
    from lora_bench.store import open_store

    return {"n_runs": int((open_store(store).frame()["status"] == "finished").sum())}


def _span(store: Path) -> float:
    """Seconds from the first run's start to the last one's end; a pause between them counts."""
    import pandas as pd

    records = [json.loads(path.read_text(encoding="utf-8")) for path in Path(store).glob("*/record.json")]
    first, last = (
        pd.Timestamp(of(record[key] for record in records)) for of, key in ((min, "started"), (max, "finished"))
    )
    return (last - first).total_seconds()


def _said(words: Any) -> dict[str, list[str]]:
    """Word -> the placements that qv has it against."""
    said: dict[str, list[str]] = {}
    for second, word in words:
        said.setdefault(str(word), []).append(str(second))
    return said
