"""The command `lora-bench`: help at once, everything else through Hydra."""

import os
import sys

if __name__ == "__main__" and not sys.flags.safe_path:
    # Python puts the current folder before its own modules: a `queue.py` there would run, in every process of a sweep.
    _folder = sys.path.pop(0)
    if _folder == os.path.dirname(os.path.dirname(os.path.abspath(__file__))) and _folder not in sys.path:
        sys.path.append(_folder)  # a checkout that is not installed: processes to come find it, too
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), _folder]))

import contextlib
import functools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from lora_bench import __version__, wording
from lora_bench.cli import commands, studies
from lora_bench.config import arguments
from lora_bench.config.errors import ConfigError

HELP = """\
lora-bench: which weight matrices should LoRA adapt, at which rank, and how sure can we be?

  lora-bench study weight_types task=cola                 a study: until every contrast has its word
  lora-bench study weight_types task=cola dry_run=true    its runs, hours and chances; stop
  lora-bench study quick task=files task.train_file=train.csv task.report_file=test.csv
                                                          the same of your own rows: q, v and both
  lora-bench report store=runs                            what a store says, as one page
  lora-bench task=cola adapter.rank=4 adapter.targets=qv  one run
  lora-bench -m adapter.targets=q,v seed=range(3)         a grid
  lora-bench +sweeps=quick                                a sweep: its runs that the store lacks

commands {commands}

         options as store=runs or --store runs; lora-bench help NAME lists them

studies  {studies}
         and every sweeps/NAME.yaml of the current folder with a study section
sweeps   {sweeps}
         every sweeps/NAME.yaml of the current folder is one

key=value
  model=           {model}
  model.name       any Hub name or local folder; model.revision; model.gguf (a GGUF file)
  task=            {task}
  task.            train_file, report_file, text_columns, label_column (task=files: your own rows), \
data_dir (local files), train_rows, train_draw (seed: each seed its own rows), select_rows, report_rows, \
phenomena (embedded tasks), planted_targets, planted_rank, planted_noise (task=planted)
  adapter=         {adapter}
  adapter.         {of_adapter}
  train=           {train}
  train.           {of_train}
  seed             a number (default 0); range(8) in sweeps
  store            the folder of records (default runs)
  keep_adapters    all, best (each placement's runs at the rate that select chose) or none; scores always stay
  tracking=        {tracking}; tracking.project, .entity, .mode (auto, online, offline), .artifacts (none, records, all)
  dry_run          true: what a sweep or a study would do, and stop
  hours            a study stops when they are over; the same line goes on
  study.           rates, looks, margin, reference, pairs, first_seed: another declaration
  hydra.sweeper.   pack_size, workers (packs at once on a CPU; both auto or a number), fail_fast, retry_failed, grids
  hydra/launcher=  where the packs of a sweep train: basic, joblib, submitit_local, submitit_slurm, ray; \
presets {launchers}

exit status        0 all finished; 1 a run failed or is missing; 2 a configuration that cannot run; 130 stopped
version            {version}; hydra's own switches (-m, --cfg job, --info, ...) work as everywhere
"""


WIDTH = 100
"""Columns of the help where the terminal has them."""


def main() -> None:
    """Entry point of `lora-bench` and `python -m lora_bench`."""
    wording.spell_out()
    words = ["--version"] if sys.argv[1:] == ["version"] else sys.argv[1:]
    if words[:1] == ["help"]:
        words = [*words[1:], "--help"]
    if words and _is_bare(words[0]):
        name = words[0].replace("-", "_")
        if name in commands.COMMANDS:
            sys.exit(_run_command(name, words[1:]))
        if name not in arguments.FIRST_WORDS:
            sys.exit(commands.refuse_unknown(words[0]))
    if not words or any(word in ("-h", "--help") for word in words):
        print(help_text(wording.columns(at_most=WIDTH)), end="")
        return
    if words == ["study"]:
        print(studies.listed(), end="")
        return
    if "--version" in words or words == ["-V"]:
        print(f"lora-bench {__version__}")
        return
    try:
        spelled = arguments.spelled_out(words)
    except ConfigError as error:
        print(f"lora-bench: {error}", file=sys.stderr)
        sys.exit(2)
    names_sweep = any(word.lstrip("+").startswith("sweeps=") for word in spelled)
    if names_sweep and not any(word.startswith("-") for word in spelled):
        spelled = ["-m", *spelled]  # never a single run, whatever is wrong with the sweep
    sys.exit(run_hydra(spelled))


def _is_bare(word: str) -> bool:
    """Whether it is a word for a command: no override and no switch."""
    return bool(word) and "=" not in word and word[0] not in "-+~"


def _run_command(name: str, options: Sequence[str]) -> int:
    try:
        return commands.run(name, options)
    except KeyboardInterrupt:
        print(f"lora-bench {name}: stopped", file=sys.stderr)
        return 130


def help_text(width: int = WIDTH) -> str:
    """The help, with the groups' names as the files say and the keys as the schema has them."""
    from lora_bench.config.schema import KEYS
    from lora_bench.paths import resource_root

    root = resource_root()
    fold = functools.partial(_folded, width=width)
    sections = ("model", "task", "adapter", "train", "tracking")
    groups = {section: fold(_names(root / "conf" / section), indent=19) for section in sections}
    groups["launchers"] = ", ".join(_names(root / "conf" / "hydra" / "launcher"))
    sweeps = _sweeps(root / "sweeps", width)
    listings = {"commands": commands.listed(indent=9), "studies": fold(list(studies.shipped()), indent=9)}
    briefs = {part: [key.brief for key in KEYS if key.section == part] for part in ("adapter", "train")}
    keys = {f"of_{part}": _keys(of_part, width) for part, of_part in briefs.items()}
    return _narrowed(HELP.format(**groups, **keys, **listings, sweeps=sweeps, version=__version__), width)


def _names(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.glob("*.yaml"))


def _sweeps(shipped: Path, width: int) -> str:
    """The sweeps that there are, those that a user has or would run first."""
    own, names = _names(Path("sweeps")), _names(shipped)
    of_instrument = [name for name in names if name.startswith("calibration_")]
    asked = [name for name in names if name not in of_instrument]
    parts = {"yours, in ./sweeps: ": own, "": asked, "for calibration: ": of_instrument}
    shown = [[f"{about}{names[0]}", *names[1:]] for about, names in parts.items() if names]
    lines = [_folded(names, indent=9, width=width) for names in shown]
    return ("\n" + " " * 9).join(lines)


def _narrowed(text: str, width: int) -> str:
    """Text in two columns whose lines are no longer than a terminal: what is longer goes on in its second column."""
    lines = []
    for line in text.split("\n"):
        start = max((gap.end() for gap in re.finditer(r"(?:^| ) +(?=\S)", line)), default=0)
        room = width - start
        while len(line) > width and room >= 10 and (end := line.rfind(" ", start + 1, width + 1)) > start:
            lines.append(line[:end])
            line = " " * start + line[end:].lstrip()
        lines.append(line)
    return "\n".join(lines)


def _keys(briefs: Sequence[str], width: int) -> str:
    """The keys of a section; one that takes many words has a line of its own."""
    long = [brief for brief in briefs if len(brief) > 60]
    short = [brief for brief in briefs if 0 < len(brief) <= 60]
    return ("\n" + " " * 19).join([*long, _folded(short, indent=19, width=width)])


def _folded(names: Sequence[str], *, indent: int, width: int) -> str:
    lines = [""]
    for name in names:
        piece = name if not lines[-1] else f", {name}"
        if len(lines[-1]) + len(piece) + indent >= width:  # a comma may follow
            lines[-1] += ","
            lines.append(name)
        else:
            lines[-1] += piece
    return ("\n" + " " * indent).join(lines)


def run_hydra(spelled: Sequence[str]) -> int:
    """Compose and run, turning what a user can put right into one line and status 2."""
    import hydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from lora_bench import paths
    from lora_bench.cli import runs
    from lora_bench.config.compose import schema_override, with_rank_yielding
    from lora_bench.launch import signals, worker
    from lora_bench.paths import resource_root
    from lora_bench.store.errors import StoreError

    is_sweep = any(word in ("-m", "--multirun") for word in spelled)  # whose points are completed one by one
    read = spelled if is_sweep else with_rank_yielding(spelled)
    entry = hydra.main(config_path=str(resource_root() / "conf"), config_name="config", version_base="1.3")(runs.run)
    restore = signals.stop_on_signals()
    try:
        with _safe_children(), _raising(), arguments.read_as(list(map(schema_override, read))):
            paths.settle_caches()
            entry()
    except (ConfigError, StoreError, paths.PathError, HydraException, OmegaConfBaseException) as error:
        return runs.tell(error)
    except KeyboardInterrupt as error:
        print(f"lora-bench: stopped ({error or 'Ctrl-C'}); what is finished is kept", file=sys.stderr)
        return worker.INTERRUPTED
    finally:
        restore()
    return 0


@contextlib.contextmanager
def _safe_children() -> Iterator[None]:
    """Let no process that a launcher starts take modules from its current folder; PYTHONPATH stays as it is."""
    former = os.environ.get("PYTHONSAFEPATH")
    os.environ["PYTHONSAFEPATH"] = former or "1"
    try:
        yield
    finally:
        if former is None:
            del os.environ["PYTHONSAFEPATH"]


@contextlib.contextmanager
def _raising() -> Iterator[None]:
    """Let Hydra raise its errors, where it would print and exit by itself."""
    from hydra._internal import utils

    former = utils.is_under_debugger
    utils.is_under_debugger = lambda: True
    try:
        yield
    finally:
        utils.is_under_debugger = former


if __name__ == "__main__":
    main()
