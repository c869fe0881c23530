"""What `lora-bench` does with a composed configuration: one run, one pack of a plan, or something to show."""

import logging
import os
import re
import shutil
import sys
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lora_bench import wording
from lora_bench.cli import outcome
from lora_bench.config.arguments import as_typed
from lora_bench.config.compose import parse, to_dict, unknown_key
from lora_bench.config.errors import ConfigError, did_you_mean
from lora_bench.config.habits import targets_here
from lora_bench.config.overrides import override as spelled
from lora_bench.config.schema import KEYS
from lora_bench.config.sweep_file import SWEEPER_KEYS
from lora_bench.store.errors import StoreError
from lora_bench.store.reader import is_archive

SHOWS = ("targets", "store", "config")
LAUNCHER_EXTRAS = {"joblib": "joblib", "submitit_local": "slurm", "submitit_slurm": "slurm", "ray": "ray"}


def run(composed: DictConfig) -> Any:
    """Hydra's task function; jobs of a launcher call it with `pack=PLAN#i`."""
    wording.spell_out()
    set_up_logging()
    try:
        if composed.get("pack"):
            return _one_pack(str(composed.pack))
        if composed.get("show"):
            return show(str(composed.show), composed)
        status = _one_run(composed)
    except (ConfigError, StoreError) as error:  # told here: Hydra would print the overrides first
        status = tell(error)
    if status:
        raise SystemExit(status)
    return None


def set_up_logging() -> None:
    """Our own messages on standard error, one line each; those of the libraries from warnings up."""
    log = logging.getLogger("lora_bench")
    if not log.handlers:
        handler = _Notices()
        handler.setFormatter(logging.Formatter("%(message)s"))
        log.addHandler(handler)
        log.setLevel(logging.INFO)
        log.propagate = False


class _Notices(logging.StreamHandler):
    """Writes to what standard error is by then: a bar takes its place while it is drawn, and prints what comes above
    itself."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return wording.folded(text, shutil.get_terminal_size().columns) if sys.stderr.isatty() else text


def _one_pack(reference: str) -> dict[str, Any]:
    """Train one pack. For a launcher nothing is raised, since it would drop the packs behind this one."""
    from hydra.core.hydra_config import HydraConfig

    from lora_bench.launch.jobs import run_isolated
    from lora_bench.launch.plan_file import parse_reference

    is_job = HydraConfig.initialized() and not OmegaConf.is_missing(HydraConfig.get().job, "num")
    if not is_job:
        parse_reference(reference)
    outcome = run_isolated(reference)
    if not is_job:
        counts = f"{outcome['finished']} finished, {outcome['failed']} failed, {outcome['missing']} missing"
        print(f"{reference}: {counts}" + (f" ({outcome['message']})" if outcome["message"] else ""))
        if outcome["message"] or outcome["failed"] or outcome["missing"]:
            raise SystemExit(1)
    return outcome


def _refuse_what_is_of_sweeps() -> None:
    from hydra.core.hydra_config import HydraConfig

    if HydraConfig.initialized() and getattr(HydraConfig.get().sweeper, "dry_run", False):
        key = "dry_run" if any(word.startswith("dry_run=") for word in as_typed()) else "hydra.sweeper.dry_run"
        works = "add -m or +sweeps=NAME; what a single run would be, show=config prints"
        raise ConfigError(f"{key}: it plans a sweep; {works}")
    if HydraConfig.initialized() and getattr(HydraConfig.get().sweeper, "hours", None) is not None:
        raise ConfigError("hours: a study stops when they are over, a single run does not; leave it out")


def _one_run(composed: DictConfig) -> int:
    """Train one run, a pack of one, and print its scores."""
    from hydra.core.hydra_config import HydraConfig

    from lora_bench.launch import tell_tasks
    from lora_bench.launch.gpus import claim_gpu
    from lora_bench.launch.precision import keep_precision, settle
    from lora_bench.launch.progress import StepProgress
    from lora_bench.models import machine
    from lora_bench.store import open_store, recover
    from lora_bench.store.folder import Store
    from lora_bench.store.locks import owner_of, remedy
    from lora_bench.tracking.live import open_tracking
    from lora_bench.tracking.offline import kept_offline
    from lora_bench.training import inputs

    _refuse_what_is_of_sweeps()
    config = parse(composed)
    known = open_store(config.store)
    inputs.check(config)
    machine.be_considerate()
    with machine.importing():
        from lora_bench.launch.tell import console
        from lora_bench.training.resolve import resolve  # imports torch: what can be refused without it has been
        from lora_bench.training.run import run_pack

    run = resolve(settle(config, known))
    recover(known)
    out = console()
    if run.blueprint.remark:
        out.print(run.blueprint.remark)
    if known.has(run.run_id):
        out.print(f"{run.run_id} is in the store already; remove its folder to train it again")
        return outcome.tell(run.run_id, known, out, is_new=False)
    store = Store(config.store)
    store.require_writable()
    keep_precision(store)
    for line in tell_tasks.lines([run]):
        out.print(line)
    overrides = list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []
    tracking = open_tracking(config.tracking, directory=store.root / ".tracking")
    invocation = {"overrides": overrides}
    try:
        with claim_gpu(config.device, any_of_them=False), StepProgress(console=out) as listener:
            records = run_pack(
                [run], store, tracking=tracking, invocation=invocation, on_progress=listener, own_process=True
            )
    finally:
        tracking.close()
    if not records:
        lock = store.claim_file(run.run_id)
        out.print(f"{run.run_id} is being trained by another process: {owner_of(lock) or lock}; {remedy(lock)}")
        return 1
    status = outcome.tell(run.run_id, known, out)
    if config.tracking.backend != "none" and (waiting := kept_offline(store.root / ".tracking")):
        out.print(waiting)
    return status


def show(what: str, composed: DictConfig) -> None:
    """Print the targets of a backbone, the store in figures, or the checked configuration.

    Raises:
        ConfigError: when there is no such thing to show.
    """
    if what not in SHOWS:
        raise ConfigError(f"show: no {what!r}; choices are {', '.join(SHOWS)}{did_you_mean(what, SHOWS)}")
    config = parse(composed)
    {"targets": show_targets, "store": show_store, "config": show_config}[what](config)


def show_config(config: Any) -> None:
    """The configuration as the run would read it, and what `auto` comes to here."""
    print(OmegaConf.to_yaml(OmegaConf.create(to_dict(config))), end="")
    if config.train.precision != "auto":
        return
    from lora_bench.launch.precision import settle
    from lora_bench.models import devices
    from lora_bench.store import open_store

    device = devices.resolve_device(config.device)
    settled = settle(config, open_store(config.store)).train.precision
    line = f"# train.precision=auto: {devices.resolve_precision(settled, device)} on this {device.type}"
    if device.type == "cpu":
        rates = "; ".join(f"{name} {rate / 1e9:.0f} GFLOP/s" for name, rate in devices.cpu_rates().items())
        line += f" ({rates} on one thread; bf16 where it is {devices.BF16_GAIN:g} times as fast)"
    print(line)


def show_targets(config: Any) -> None:
    """Every matrix of every role of the backbone, and what each role costs per rank.

    Nothing of the task is read: it may not be at hand yet, or not fit the backbone, and no role rests on it.
    """
    from lora_bench.training import inputs

    inputs.check_backbone(config.model)
    from lora_bench.launch.tell import console
    from lora_bench.models.blueprint import blueprint
    from lora_bench.models.budget import adapter_parameters
    from lora_bench.models.roles import manifest_table
    from lora_bench.training.resolve import select

    backbone = blueprint(config.model, n_labels=2)  # the head is not shown
    adapted, *_ = select(config, backbone)
    ranks = {matrix.module: matrix.rank for matrix in adapted}
    out = console()
    headings = ("role", "layers", "shape", "fused in", "parameters per rank", "rank here", "module")
    table = wording.Grid(headings, texts=[name for name in headings if "rank" not in name])
    matrices = [replace(matrix, rank=ranks.get(matrix.module, 0)) for matrix in backbone.matrices]
    for row in manifest_table(matrices):
        fused, per_rank = row["fused"].rpartition(".")[2], f"{row['parameters_per_rank']:,}"
        rank = "-" if row["rank"] == "0" else row["rank"]
        table.add_row(row["role"], row["layers"], row["shape"], fused, per_rank, rank, row["module"])
    out.print(f"{backbone.name}: {config.adapter.method}, {adapter_parameters(adapted):,} adapter parameters")
    out.print(table)


def show_store(config: Any) -> None:
    """How many runs of what, how they ended and why, what they take on the disk, and what could not be read."""
    from lora_bench.launch.tell import console
    from lora_bench.store import existing, holds_no_run
    from lora_bench.wording import size

    store = existing(config.store)
    frame: Any = store.frame()
    if frame.empty and not store.unreadable and not store.quarantined:
        raise holds_no_run(store.root)
    out = console()
    failed = frame[frame["status"] == "failed"]
    runs = wording.counted(len(frame), "run")
    out.print(f"{store.root}: {runs}, {len(frame) - len(failed)} finished, {len(failed)} failed")
    if len(frame):
        parts = store.bytes_by_part()
        listed = ", ".join(
            f"{name.removesuffix('s')}s {size(n_bytes)}" for name, (n_runs, n_bytes) in parts.items() if n_runs
        )
        out.print(f"  {size(sum(n_bytes for _, n_bytes in parts.values()))}: {listed}")
        lacking = len(frame) - len(failed) - parts["adapter"][0]
        if lacking:
            why = "the archive's --adapters" if is_archive(store.root) else "store.keep_adapters"
            out.print(f"  {wording.counted(lacking, 'finished run')} without an adapter ({why})")
        out.print(_store_table(frame))
    for (kind, message), group in failed.groupby(["error_kind", "error_message"], dropna=False):
        reason = message if isinstance(message, str) else "no message"
        first = f"{group['run_id'].iloc[0]}/record.json"
        out.print(f"failed: {kind}: {reason} ({wording.counted(len(group), 'run')}, the first: {first})")
    for run_id, why in store.unreadable.items():
        out.print(f"not counted: {store.path(run_id)}: {why}")
    for folder in store.quarantined:
        out.print(f"set aside: {folder}: {_why_set_aside(folder)}")


def _store_table(frame: Any) -> Any:
    from lora_bench.wording import duration

    keys = ("sweep", "task", "model", "method")
    table = wording.Grid((*keys, "cells", "seeds", "finished", "failed", "time"), texts=keys)
    for values, group in frame.groupby(list(keys), dropna=False):
        ended = group["status"].value_counts()
        table.add_row(
            *(value if isinstance(value, str) else "-" for value in values),
            str(group["cell_id"].nunique()),
            str(group["seed"].nunique()),
            str(ended.get("finished", 0)),
            str(ended.get("failed", 0)),
            duration(float(group["attributed_seconds"].fillna(0).sum())),
        )
    return table


def _why_set_aside(folder: Path) -> str:
    try:
        return (folder / "WHY.txt").read_text(encoding="utf-8").strip()
    except OSError:
        return "no reason was kept"


# Errors


def tell(error: BaseException, *, command: str = "lora-bench") -> int:
    """Print what a user can put right as one line (with HYDRA_FULL_ERROR=1, its traceback too). Returns status 2."""
    if os.environ.get("HYDRA_FULL_ERROR") == "1":
        traceback.print_exception(error)
    print(f"{command}: {explain(error)}", file=sys.stderr)
    return 2


def explain(error: BaseException) -> str:
    """What a user can put right, in our words: the key, the value, what would work."""
    if isinstance(error, ConfigError):
        return str(error)
    if override := getattr(error, "override", None):  # OverrideParseException
        return f"{override}: cannot be read as key=value; put special characters in quotes, as \"key='value'\""
    text = str(error).strip()
    cause = error.__cause__ or error.__context__
    text = text or str(cause or type(error).__name__).strip()
    if absent := re.search(r"Could not find '([^']+)'\s+Available options in '[^']+':\s+(.*)", text, re.DOTALL):
        group, _, name = absent[1].rpartition("/")
        options = absent[2].partition("Config search path")[0].split()
        if group == "hydra/launcher" and name in LAUNCHER_EXTRAS:
            extra = LAUNCHER_EXTRAS[name]
            return f"hydra/launcher: {name!r} is not installed; in the clone, pip install -e '.[{extra}]' brings it"
        section, _, place = absent[1].partition("/")
        if works := _instead_of_choice(section, place):
            return f"{section}: no {place!r}; {works}"
        hub = f"; any other, on the Hub or a folder, is {spelled('model.name', name)}" if group == "model" else ""
        return f"{group}: no {name!r}; choices are {', '.join(options)}{did_you_mean(name, options)}{hub}"
    if absent := re.search(r"In 'hydra/launcher/(\w+)': Could not load 'hydra/launcher/(\w+)'", text):
        extra = LAUNCHER_EXTRAS.get(absent[2], absent[2])
        return f"hydra/launcher: {absent[1]!r} needs {absent[2]}; in the clone, pip install -e '.[{extra}]' brings it"
    if several := re.search(r"Ambiguous value for argument '([^=]+)=([^']*)'", text):
        key = several[1].lstrip("+")
        if key == "sweeps":
            return f"sweeps: one at a time, not {several[2]}"
        return _several(key, several[2])
    if several := re.search(r"Sweep parameters '([^=]+)=(.*)' requires --multirun", text):
        return _several(several[1].lstrip("+"), several[2])
    if absent := re.search(r"Could not (?:override|append to|find) '([^']+)'", text):
        key = absent[1].partition("@")[0].lstrip("+~")
        if key.startswith("hydra.sweeper."):
            return f"{key}: no such key; keys are {', '.join(SWEEPER_KEYS)}{did_you_mean(key[14:], SWEEPER_KEYS)}"
        if key.startswith("hydra"):
            return f"{key}: Hydra has no such key"
        if key.startswith("sweeps"):
            return "sweeps: add it with a plus sign, as +sweeps=NAME"
        return unknown_key(key)
    said = " ".join(line.strip() for line in text.splitlines() if line.strip() and "HYDRA_FULL_ERROR" not in line)
    key = getattr(error, "full_key", None)
    return f"{key}: {said}" if key and key not in said else said


def _several(key: str, given: str) -> str:
    """What works where several values were given for one run."""
    kinds = {known.path: known.type for known in KEYS}
    if key not in kinds and key not in {known.section for known in KEYS}:
        return unknown_key(key)
    here = targets_here(given) or "qv"
    both = "both" if here == "qv" else "all of them"
    works = ", or write a list as [a,b]" if "list" in str(kinds.get(key)) else ""
    works = f", or {here} is {both} at once" if key == "adapter.targets" else works
    return f"{key}: {given!r} is several values; add -m to sweep over them{works}"


def _instead_of_choice(section: str, given: str) -> str:
    """What works where a folder, a file or a name on the Hub was given instead of a choice; empty for any other."""
    is_place = "/" in given or given.startswith("~") or Path(given).exists()
    if section == "model" and given.endswith(".gguf"):
        return f"a GGUF file is {spelled('model.gguf', given)}"
    if section == "model" and is_place:
        return f"a folder, or a name on the Hub, is {spelled('model.name', given)}"
    is_file = Path(given).suffix.lower() in (".csv", ".tsv", ".json", ".jsonl", ".parquet", ".txt")
    if section == "task" and (is_place or is_file):
        if is_file:
            own = f"task=files {spelled('task.train_file', given)} task.report_file=FILE task.label_column=NAME"
            return f"files of your own are {own} 'task.text_columns=[NAME]'"
        return f"a folder of GLUE files is {spelled('task.data_dir', given)} beside task=cola; your own are task=files"
    return ""
