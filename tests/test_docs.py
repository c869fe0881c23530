"""The documentation is true: its commands work, its keys and defaults are the code's, its links lead somewhere."""

import contextlib
import functools
import io
import re
import runpy
import shlex
import subprocess
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

import lora_bench
from fake_store import depth_records, fake_record, weight_types_records, write_store
from hydra_plugins.lora_bench.sweeper import SweeperConf
from lora_bench.calibration import simulated
from lora_bench.cli import commands as named
from lora_bench.cli import report
from lora_bench.config.schema import RunConfig
from lora_bench.store import open_store
from lora_bench.training.run import environment_here
from patience import PATIENCE_SECONDS

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
OWN = r"\+sweeps=halves|\bmy_"  # the reader's own sweeps, which have tests of their own
OWN_KEYS = ("show", "pack")  # of the command, not of a run


def shell_blocks(page: Path) -> list[str]:
    return re.findall(r"```bash\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)


def commands() -> list[str]:
    """Every command of a shell block, and every one in backticks, without comments and placeholders."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        lines = [line for block in shell_blocks(page) for line in block.splitlines()]
        lines += [
            " ".join(line.split()) for line in re.findall(r"`((?:RAY_ADDRESS=\w+ )?(?:lora-bench|python )[^`]*)`", text)
        ]
        found += [line.split("  #")[0].strip() for line in lines if "..." not in line and not re.search(OWN, line)]
    return sorted({line for line in found if line and not line.startswith(("pip ", "python3 -m venv"))})


@pytest.fixture
def neighbours(monkeypatch):
    """Scripts find the others of analysis/."""
    monkeypatch.syspath_prepend(str(ROOT / "analysis"))


NAMED = rf"lora-bench ({'|'.join(named.COMMANDS)})\b"
COMMANDS = [
    line for line in commands() if re.match(r"(RAY_ADDRESS=\w+ )?lora-bench ", line) and not re.match(NAMED, line)
]
SCRIPTS = [line for line in commands() if line not in COMMANDS]
SINGLE = [line for line in COMMANDS if not re.search(r"\+sweeps=|show[= ]|--help|study", line)]
READ_STORES = [
    line
    for line in SCRIPTS
    if re.match(NAMED, line)
    and re.search(r"lora-bench (?!calibration|dashboard|archive|sync).* store=(runs|study|results/study)\b", line)
]
READ_ONCE = sorted(
    {line.replace(" store=study", " store=results/study") for line in READ_STORES}
    - {"lora-bench predictors store=runs"}
)  # one store; test_predicted.py writes what is read of predictors
SHORTENED = {  # what takes minutes, an account or a folder of GLUE, as short as its options make it
    "calibration": ("studies=1", "processes=1", "sweeps=6", "power_sweeps=2"),
    "dashboard": ("dry_run=true",),
    "embedded_tasks.py": ("--task", "acceptability", "--rows", "32", "--report-rows", "32", "--epochs", "1"),
    "--noise": ("--seeds", "2", "--rates", "1e-3"),
    "archive": (),
    "throughput.py": ("--rows", "32", "--batch-size", "8", "--arms", "packed", "--packs", "2", "--rounds", "1"),
}
SHORT = {"task.train_rows": 16, "task.select_rows": 8, "task.report_rows": 8, "train.epochs": 1, "train.batch_size": 8}


OF_A_WRITTEN_SWEEP = {line for line in COMMANDS if "study=predictors" in line}  # test_predictors.py writes one first


def test_the_pages_hold_commands():
    assert len(COMMANDS) > 10 and len(SCRIPTS) > 8 and len(SINGLE) >= 3


def embedded(line: str) -> tuple[str, ...]:
    """The arguments of a command, on the embedded backbone and task; where packs train is test_launchers.py's."""
    words = shlex.split(line)
    elsewhere = ("hydra/launcher", "hydra.launcher", "task=", "task.", "model=", "model.", "adapter.layers=[")
    given = [word for word in words[words.index("lora-bench") + 1 :] if not word.startswith(elsewhere)]
    planted = "+sweeps=calibration_planted" in given  # about its own task, whose labels take the backbone in fp64
    task = ["task.train_rows=32", "task.select_rows=8", "task.report_rows=8"] if planted else ["task=acceptability"]
    large = ("rank", "weight_types", "variance", "calibration_aa", "calibration_reference", "calibration_planted")
    if {f"+sweeps={name}" for name in large} & {*given}:
        task.append("seed=0,1")  # test_sweeper.py plans hundreds of runs
    if any(word.startswith("study") for word in given) and "quick" not in line and "dry_run=true" not in given:
        task.append("study.looks=[4]")  # test_study_command.py holds more
    return tuple(given) if given == ["--help"] else (*given, *task, "model=minilm", "tracking=none")


@pytest.mark.usefixtures("uncounted")
@pytest.mark.parametrize(
    "arguments",
    sorted({embedded(line) for line in COMMANDS if line not in {*SINGLE, *OF_A_WRITTEN_SWEEP}}),
    ids=lambda words: " ".join(words),
)
def test_sweeps_of_the_documentation_run(arguments, command, tmp_path, training, monkeypatch):
    """To their end, with training that takes no time; lines that differ in launcher, task or backbone count once."""
    write_store(tmp_path / "runs", [fake_record()] if "show=store" in arguments else [])
    page = report.Written(verdict=[], summary="written: report/index.html")  # which tests of its own draw
    monkeypatch.setattr(report, "write", lambda scope, out: page)
    ended = command(*arguments)
    assert ended.status == 0, ended.text
    if any(word.startswith("+sweeps=") for word in arguments) and "dry_run=true" not in arguments:
        assert training.packs and "runs finished. Next:" in ended.text
    if any(word.startswith("study=") for word in arguments) and "dry_run=true" not in arguments:
        assert training.packs and "written: report/index.html" in ended.text


@pytest.mark.parametrize("line", SINGLE)
def test_single_runs_of_the_documentation_train(line, command, tmp_path):
    """For two steps, on the embedded task or on rows that lie where the line says."""
    given = [word for word in shlex.split(line)[1:] if word.partition("=")[0] not in SHORT]
    for name in ("train.csv", "test.csv"):
        rows = "".join(f"{word} {place},{place % 2}\n" for place in range(20) for word in ("so", "well"))
        (tmp_path / name).write_text("text,label\n" + rows, encoding="utf-8")
    given = ["task=acceptability" if word == "task=cola" else word for word in given]
    ended = command(*given, "tracking=none", *(f"{key}={value}" for key, value in SHORT.items()))
    assert ended.status == 0, ended.text
    assert set(open_store(tmp_path / "runs").frame()["status"]) == {"finished"}


@pytest.mark.usefixtures("unrehearsed", "uncounted")
def test_the_sweep_of_the_tutorial_is_planned(command, tmp_path):
    text = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
    (sweep,) = re.findall(r"```yaml\n(.*?)```", text, flags=re.DOTALL)
    (tmp_path / "sweeps").mkdir()
    (tmp_path / "sweeps" / "halves.yaml").write_text(sweep, encoding="utf-8")
    ended = command("+sweeps=halves", "tracking=none", "dry_run=true")
    assert ended.status == 0, ended.text
    assert "6 cells, 8 seeds, 48 runs" in ended.out


@pytest.mark.usefixtures("uncounted")
def test_the_study_of_the_tutorial_runs_through(command, training, unrendered, tmp_path):
    """Line by line, with training that takes no time."""
    training.saves_adapters = True
    block = next(one for one in shell_blocks(ROOT / "docs" / "tutorial.md") if "store=study dry_run=true" in one)
    elsewhere = ("model.name=", "task=", "task.")
    for words in map(shlex.split, block.strip().splitlines()):
        given = [word for word in words[1:] if not word.startswith(elsewhere)]
        ours = [] if words[1] in named.COMMANDS else ["task=acceptability", "tracking=none"]
        ended = command(*given, *ours)
        assert ended.status == 0, ended.text
    frame = open_store(tmp_path / "results" / "my_study").frame()
    assert set(frame["sweep"]) == {"weight_types"}
    assert frame.query("method == 'lora'").groupby("targets")["seed"].nunique().min() >= 8
    assert (tmp_path / "results" / "my_study" / "studies").is_dir()


def shortened(line: str) -> tuple[str, ...]:
    """A script and its arguments with settings that take seconds, on an embedded task; `store=runs` is the default."""
    script, given = shlex.split(line)[1], [word for word in shlex.split(line)[2:] if word != "store=runs"]
    ours = SHORTENED[script.removeprefix("analysis/")] + (SHORTENED["--noise"] if "--noise" in given else ())
    if {"--verdict", "--curve", "--profile"} & set(given):  # sweeps and studies, or minutes of steps
        ours = ("--data-dir", ".", "--dry-run")
    for option in ("--task", "--data-dir", "--backbone", *ours):
        if option.startswith("--") and option in given:
            del given[given.index(option) : given.index(option) + 2]
    keys = {word.partition("=")[0] for word in ours}
    return (script, *(word for word in given if word.partition("=")[0] not in keys), *ours)


LONG = [line for line in SCRIPTS if line not in READ_STORES]
SHORTENABLE = [
    line for line in LONG if any(word.removeprefix("analysis/") in SHORTENED for word in shlex.split(line)[:2])
]


@pytest.mark.parametrize("words", sorted({shortened(line) for line in SHORTENABLE}), ids=" ".join)
def test_long_scripts_of_the_documentation_run_shortened(words, command, tmp_path, monkeypatch, unrendered, neighbours):
    """In this process, and so do the sweeps that a script starts."""
    monkeypatch.setattr(simulated, "SEEDS", (3, 8))  # the power of three designs at six effects is as many curves
    monkeypatch.setattr(simulated, "EFFECTS", (0.0, 2.0))
    if "--noise" in words:
        start = subprocess.run

        def run(words, **options):
            if words[:3] != [sys.executable, "-m", "lora_bench"]:
                return start(words, **options)
            ended = command(*words[3:], "model=tiny")
            assert options["check"] and ended.status == 0, ended.text
            return ended

        monkeypatch.setattr(subprocess, "run", run)
    for name in ("runs", "calibration", "here", "there"):
        write_store(tmp_path / name, weight_types_records(n_seeds=3))
    Path("study").symlink_to(ROOT / "results" / "study")
    Path("results").mkdir()
    for archive in (ROOT / "results").iterdir():
        (Path("results") / archive.name).symlink_to(archive)
    is_script = words[0].startswith("analysis/")
    names = runpy.run_path(str(ROOT / words[0])) if is_script else {"main": functools.partial(named.run, words[0])}
    if "phenomena_scores" in names:
        names["phenomena_scores"].__defaults__ = (20,)  # rows of each phenomenon
    if "measure_arm" in names:
        environment_here("cpu")  # asks programs the first time, and every program is an arm from here on
        monkeypatch.setattr(subprocess, "Popen", functools.partial(InThisProcess, names["main"]))
    assert names["main"](list(words[1:])) == 0


class InThisProcess:
    """A program that ends before it is asked, without the imports of a process of its own."""

    def __init__(self, main, command, **options):
        assert options["stdout"] == subprocess.PIPE
        written = io.StringIO()
        with contextlib.redirect_stdout(written):
            self.returncode = main(command[2:])
        self.written = written.getvalue()

    def communicate(self):
        return self.written, None


@pytest.mark.parametrize("line", [line for line in LONG if line not in SHORTENABLE])
def test_programs_of_the_documentation_know_their_options(line, command):
    """The synchronisation, which needs an account, and the harness that kills sweeps for an hour."""
    words = shlex.split(line)
    if re.match(NAMED, line):
        ended = command(words[1], "--help")
        assert ended.status == 0, ended.text
        text = ended.out
        keys = [word.partition("=")[0] for word in words[2:] if words[1] != "predict"]  # which takes those of a run
        words = [f"--{key.replace('_', '-')}" for key in keys]
    else:
        asked = subprocess.run(
            [sys.executable, str(ROOT / words[1]), "--help"],
            capture_output=True,
            encoding="utf-8",
            timeout=PATIENCE_SECONDS,
            cwd=ROOT,
        )
        assert asked.returncode == 0, asked.stderr
        text = asked.stdout
    for option in (word for word in words if word.startswith("--")):
        assert option in text, option


@pytest.mark.parametrize("line", READ_ONCE)
def test_commands_of_the_documentation_read_a_store(line, command, tmp_path, unrendered):
    """The published study, or invented scores."""
    words = shlex.split(line)
    if "store=runs" in words:
        write_store(tmp_path / "runs", depth_records() if "factor" in line else weight_types_records(n_seeds=3))
    else:
        Path("results").mkdir()
        for archive in (ROOT / "results").iterdir():
            (Path("results") / archive.name).symlink_to(archive)
    ended = command(*words[1:])
    assert ended.status == 0, ended.text
    if "next_stage" in words:
        assert list(tmp_path.glob("sweeps/*.yaml"))
    elif "claims" in words:
        assert Path("docs/claims.md").read_text("utf-8") == (ROOT / "docs" / "claims.md").read_text("utf-8")
    elif "rescore" not in words:
        assert list(tmp_path.glob("report/figures/*.svg"))


def test_the_python_of_the_pages_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("results").mkdir()
    Path("results/study").symlink_to(ROOT / "results" / "study")
    pages = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    found: dict = {}
    for block in re.findall(r"```python\n(.*?)```", pages, flags=re.DOTALL):
        exec(block, found)
    assert len(found["rows"]) == 1_000  # of docs/embedded_tasks.md
    assert len(found["logits"]) == 1_000 + 872  # select and report, of docs/gallery.md


def test_the_key_reference_has_every_key_with_its_default():
    text = (ROOT / "docs" / "config.md").read_text(encoding="utf-8")
    told = dict(re.findall(r"^\| `([^`]+)` \| `([^`]*)` \| \S", text, flags=re.MULTILINE))
    with initialize_config_dir(str(ROOT / "conf"), version_base=None):
        composed = compose("config")
    wanted = {}
    for part in fields(RunConfig):
        held = getattr(RunConfig(), part.name) if is_dataclass(part.default_factory) else None
        names = [f"{part.name}.{one.name}" for one in fields(held)] if held is not None else [part.name]
        wanted |= {name: OmegaConf.select(composed, name) for name in names}
    wanted |= {name: OmegaConf.select(composed, name) for name in OWN_KEYS}
    sweeper = SweeperConf()
    wanted |= {f"hydra.sweeper.{one.name}": getattr(sweeper, one.name) for one in fields(sweeper)}
    del wanted["hydra.sweeper._target_"]
    assert set(told) == set(wanted)
    for name, value in wanted.items():
        plain = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
        shown = told[name]
        if shown.endswith("…"):
            assert str(plain).startswith(shown[:-1]), name
        else:
            written = yaml.safe_load(shown)
            assert (written, isinstance(written, bool)) == (plain, isinstance(plain, bool)), name  # 0 is not false


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_named_files_exist(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target
    for name in re.findall(r"`((?:conf|sweeps|lora_bench|analysis|tests|docs)/[\w./]+\.\w+)`", text):
        assert (ROOT / name).exists(), name


def test_the_glossary_has_every_word_that_a_verdict_or_a_certificate_can_say():
    """A reader of a table must be able to look a word up."""
    import inspect

    from lora_bench.verdicts import stats, tuning

    words = {*tuning.UNCERTIFIED, "inside", "inside*", "better", "worse", "tied", "unresolved"}
    source = inspect.getsource(stats) + inspect.getsource(tuning)
    assert all(f'"{word}"' in source for word in words)
    glossary = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
    explained = {
        word for row in re.findall(r"^\| ([^|]+) \|", glossary, flags=re.MULTILINE) for word in row.split(", ")
    }
    assert not words - explained


def test_the_map_of_contributing_names_what_is_there():
    """Whoever follows it must not look for a room that was renamed."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\|.*\|$", text, flags=re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`([a-z_/]+(?:/|\.py))`", row)}
    assert len(named) > 20
    folders = ["", *(path.name for path in (ROOT / "lora_bench").iterdir() if path.is_dir())]
    places = [ROOT, *(ROOT / "lora_bench" / folder for folder in folders)]
    assert not [name for name in sorted(named) if not any((place / name).exists() for place in places)]
    rooms = {path.name for path in (ROOT / "lora_bench").iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert all(f"`{room}/`" in text for room in rooms - {"conf", "sweeps", "analysis"})


def test_the_citation_names_the_version_that_is_installed():
    """Two places that are kept in step by hand are not."""
    assert f"\nversion: {lora_bench.__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
