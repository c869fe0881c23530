"""The command line, as a user meets it."""

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from lora_bench import __version__
from lora_bench.config import compose
from lora_bench.config.schema import AdapterConfig, TrainConfig
from lora_bench.store.folder import Store
from patience import PATIENCE_SECONDS

ROOT = Path(__file__).parents[1]
SMALL = ("model=tiny", "tracking=none", "task.train_rows=40", "task.report_rows=20", "train.epochs=1")


def run_command(*arguments, cwd, **environment):
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        encoding="utf-8",
        timeout=PATIENCE_SECONDS,
    )


# Help


def test_help_loads_nothing_heavy(tmp_path):
    """It takes under a tenth of a second; what would make it slow is named here."""
    code = "import sys; sys.argv = ['lora-bench', '--help']; from lora_bench.__main__ import main; main(); "
    code += (
        "print('heavy:', [name for name in ('torch', 'hydra', 'omegaconf', 'pandas', 'wandb') if name in sys.modules])"
    )
    ended = run_command("-c", code, cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert "heavy: []" in ended.stdout, ended.stderr


def test_help_names_every_shipped_choice(command):
    said = command("--help").out
    for folder in ("conf/model", "conf/task", "conf/adapter", "conf/train", "conf/tracking", "sweeps"):
        for path in (ROOT / folder).glob("*.yaml"):
            assert path.stem in said
    assert max(map(len, said.splitlines())) <= 100
    assert command("help").out == command().out == said


@pytest.mark.parametrize("width", [80, 100])
def test_help_fits_its_terminal_and_begins_with_what_a_user_would_run(tmp_path, monkeypatch, width):
    """Words broken at the edge are hard to read, and sweeps that try the instrument are nobody's first."""
    from lora_bench.__main__ import help_text

    (tmp_path / "sweeps").mkdir()
    (tmp_path / "sweeps" / "my_own.yaml").touch()
    monkeypatch.chdir(tmp_path)
    said = help_text(width)
    assert max(map(len, said.splitlines())) <= width
    names = said.partition("\nsweeps ")[2]
    places = [names.index(name) for name in ("my_own", "budget", "calibration_aa")]
    assert places == sorted(places)


@pytest.mark.parametrize(
    "named", ["sweep=mine", "+sweep=mine", "sweeps=mine", "+sweeps=sweeps/mine", "sweeps=./sweeps/mine.yaml"]
)
def test_a_sweep_may_be_named_in_any_spelling(named):
    from lora_bench.config.arguments import spelled_out

    assert spelled_out([named])[0].removesuffix(".yaml") == "+sweeps=mine"


def test_help_names_every_option_that_a_run_has():
    from lora_bench.__main__ import help_text

    said = help_text()
    for section in (AdapterConfig, TrainConfig):
        for name in section.__dataclass_fields__:
            if name not in ("method", "b_lr_ratio"):
                assert re.search(rf"\b{name}\b", said), name


def test_the_version_is_the_packages(command):
    assert command("--version").out.strip() == f"lora-bench {__version__}"


# Errors


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["adapter.rnak=4"], "adapter.rnak: no such key; keys of adapter are"),
        (["modle=tiny"], "modle: no such key; keys are model"),
        (["lr=1e-3"], "lr: no such key; did you mean train.lr?"),
        (["rank=4"], "rank: no such key; did you mean adapter.rank?"),
        (["model=tiny", "hydra.sweeper.dry_run=true"], "hydra.sweeper.dry_run: it plans a sweep"),
        (["show=store", "store=nowhere"], "store: no folder 'nowhere'"),
        (["model=tinny"], "model: no 'tinny'; choices are bert_base"),
        (["task=colla"], "(did you mean 'cola'?)"),
        (["sweeps=qick"], "sweeps: no 'qick'; choices are"),
        (["+sweep=qick"], "(did you mean 'quick'?)"),
        (["seeds=0,1"], "seeds: no such key; it is seed; several are a sweep"),
        (["seed=range(3)"], "seed: 'range(3)' is several values; add -m"),
        (["seed=0,1"], "seed: '0,1' is several values; add -m to sweep over them\n"),
        (["--lr=3"], "--lr: no such switch; it is a key, given as train.lr=VALUE"),
        (["--store", "runs"], "--store: no such switch; it is a key, given as store=VALUE"),
        (["--frobnicate"], "--frobnicate: no such switch; switches are --help"),
        (["train", "task=cola"], "no command 'train'; a run needs none: lora-bench task=cola"),
        (["model=bert-base-uncased"], "any other, on the Hub or a folder, is model.name=bert-base-uncased"),
        (["train.lr=fast"], "train.lr: Value 'fast'"),
        (["adapter.targets=q,v"], "add -m to sweep over them, or qv is both at once"),
        (["adapter.rank=["], "adapter.rank=[: cannot be read as key=value"),
        (["show=everything"], "show: no 'everything'; choices are targets, store, config"),
        (["pack=plan"], "pack: cannot read 'plan'; give PLAN#i"),
        (["hydra.swoop=1"], "hydra.swoop: Hydra has no such key"),
        (["model=tiny", "adapter.targets=gate"], "adapter.targets:"),
        (["model=tiny", "train.max_length=4096"], "train.max_length: 4096"),
        (["store=taken"], "store: taken is a file"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_an_error_is_one_line_with_status_2(command, training, tmp_path, arguments, said):
    (tmp_path / "taken").write_text("", encoding="utf-8")
    ended = command(*arguments)
    assert ended.status == 2
    assert said in ended.err
    assert ended.err.startswith("lora-bench: ")
    assert len(ended.err.splitlines()) == 1
    assert not training.packs


def test_the_traceback_is_there_when_asked_for(command, monkeypatch):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    ended = command("train.lr=-1")
    assert ended.status == 2
    assert "Traceback" in ended.err
    assert ended.err.splitlines()[-1].startswith("lora-bench: train.lr: -1.0 is too small")


# One run


def test_one_run_prints_its_scores_and_where_its_record_is(command, training, tmp_path):
    ended = command(*SMALL)
    assert ended.status == 0, ended.text
    (run_id,) = Store("runs").statuses()
    assert re.search(r"report +matthews −?\d+\.\d\n", ended.out)
    assert f"runs/{run_id}/record.json" in ended.out
    assert training.invocations == [{"overrides": list(SMALL)}]
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_a_run_that_the_store_holds_is_not_trained_again(command, training):
    command(*SMALL)
    ended = command(*SMALL)
    assert ended.status == 0
    assert "is in the store already" in ended.out
    assert "report" in ended.out
    assert len(training.packs) == 1


def test_a_failed_run_says_so_with_status_1(command, training):
    training.fate = lambda run: "failed"
    ended = command(*SMALL)
    assert ended.status == 1
    assert "failed: nonfinite: the loss is not finite" in ended.out


def test_an_interrupted_run_ends_with_status_130(command, training):
    training.fate = lambda run: KeyboardInterrupt()
    ended = command(*SMALL)
    assert ended.status == 130
    assert "stopped" in ended.err


@pytest.mark.slow
def test_a_real_run_ends_in_a_record(command):
    ended = command(*SMALL)
    assert ended.status == 0, ended.text
    (record,) = Store("runs").records()
    assert record["status"] == "finished"
    assert record["invocation"]["overrides"] == list(SMALL)


# What can be shown


def test_targets_are_shown_by_role_with_what_they_cost(command):
    ended = command("show=targets", "model=tiny", "adapter.targets=qv", "adapter.rank=4")
    rows = {line.split()[0]: line.split() for line in ended.out.splitlines()[2:]}
    assert list(rows) == ["q", "k", "v", "o", "up", "down"]
    assert rows["q"][1:6] == ["0-1", "32", "x", "32", "128"]  # two layers, 32 + 32 parameters each per rank
    assert rows["q"][6] == "4"
    assert rows["k"][6] == "-"
    assert "1,024 adapter parameters" in ended.out  # q and v, two layers, rank 4
    ended = command("show=targets", "model=tiny", "adapter.targets=qv", "adapter.rank=4", "adapter.layers=last:1")
    assert next(line.split() for line in ended.out.splitlines() if line.startswith("q "))[6] == "0,4"


@pytest.mark.parametrize("task", [("task=cola", "task.data_dir=gone"), ("task=planted",)])
def test_targets_are_shown_before_there_are_rows(command, task):
    """Who asks what roles an own backbone has would otherwise have to bring the data first."""
    ended = command("show=targets", "model=tiny", *task, "adapter.targets=qv", "adapter.rank=4")
    assert ended.status == 0 and "1,024 adapter parameters" in ended.out, ended.text


def test_the_store_is_shown_in_figures(command, training):
    training.fate = lambda run: "failed" if run.config.seed == 1 else None
    command("-m", *SMALL, "seed=0,1,2")
    command("+sweeps=quick", *SMALL, "adapter.targets=q", "train.lr=1e-3", "seed=0")
    (Store("runs").path("0" * 16)).mkdir()
    (Store("runs").path("0" * 16) / "record.json").write_text("{", encoding="utf-8")
    (Path("runs") / "quarantine" / "00000001-1").mkdir(parents=True)
    ended = command("show=store")
    assert "runs: 4 runs, 3 finished, 1 failed" in ended.out
    lines = [line.split() for line in ended.out.splitlines()]
    assert ["quick", "acceptability", "tiny", "lora", "1", "1", "1", "0", "1", "s"] in lines
    assert ["-", "acceptability", "tiny", "lora", "1", "3", "2", "1", "3", "s"] in lines
    assert "failed: nonfinite: the loss is not finite (1 run, the first: " in ended.out
    assert re.search(r"not counted: runs/0{16}: not JSON", ended.out)
    assert "set aside: runs/quarantine/00000001-1: no reason was kept" in ended.out
    assert re.search(r"\d+ kB: records \d+ kB$", ended.out, re.MULTILINE)
    assert "3 finished runs without an adapter" in ended.out


def test_the_configuration_is_shown_as_it_is_read(command):
    from omegaconf import OmegaConf

    shown = OmegaConf.create(command("show=config", "model=tiny", "adapter.rank=3").out)
    assert shown.adapter.rank == 3
    assert compose.to_dict(compose.parse(shown)) == OmegaConf.to_container(shown)


def test_a_folder_that_is_called_like_a_key_hides_it_not(command):
    """`store=store` must work the second time, too: Hydra takes the folders that it searches for groups."""
    for name in ("store", "task", "seed", "device"):
        Path(name).mkdir()
    Path("task/cola.yaml").write_text("name: another", encoding="utf-8")
    ended = command("show=config", "model=tiny", "task=cola", "store=store", "seed=3", "device=cpu")
    assert ended.status == 0, ended.text
    assert "\nstore: store\n" in ended.out
    assert "name: cola" in ended.out


# The package


@pytest.mark.slow
def test_a_wheel_works_from_any_folder(tmp_path):
    """conf/, sweeps/, analysis/ and the plugins travel with it, and nothing of the checkout is needed."""
    built = run_command(
        "-m", "build", "--wheel", "--no-isolation", "-o", str(tmp_path / "dist"), str(ROOT), cwd=tmp_path
    )
    assert built.returncode == 0, built.stderr
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    held = zipfile.ZipFile(wheel).namelist()
    assert "hydra_plugins/__init__.py" not in held  # a namespace that other plugins share
    for name in ("conf/config.yaml", "conf/model/tiny.yaml", "sweeps/quick.yaml", "cli/report.py"):
        assert f"lora_bench/{name}" in held
    assert any(name.startswith("lora_bench/analysis/") for name in held)
    assert not any(name.startswith(("tests/", "conf/", "sweeps/")) for name in held)
    site, folder = tmp_path / "site", tmp_path / "elsewhere"
    folder.mkdir()
    # A bare unpacking is what `pip install --no-deps --target` does with a wheel, without asking an index.
    zipfile.ZipFile(wheel).extractall(site)
    arguments = ["-m", "lora_bench", "+sweeps=quick", *SMALL[:2], "hydra.sweeper.dry_run=true", "store=kept"]
    ended = run_command(*arguments, cwd=folder, PYTHONPATH=str(site))
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "36 runs to train" in ended.stdout
    told = run_command("-m", "lora_bench", "help", "report", cwd=folder, PYTHONPATH=str(site))
    assert "usage: lora-bench report" in told.stdout, told.stderr
    where = run_command("-c", "import lora_bench; print(lora_bench.__file__)", cwd=folder, PYTHONPATH=str(site))
    assert str(site) in where.stdout
    assert not list(folder.iterdir())


@pytest.mark.parametrize(
    "arguments",
    [
        [str(ROOT / "analysis" / "pareto.py"), "--store", str(ROOT / "results" / "study"), "--out", "report"],
        ["-c", r"import sys, lora_bench.__main__ as it; sys.argv[1:] = ['-h']; it.HELP = '\xb1'; it.main()"],
    ],
    ids=["script", "command"],
)
def test_a_terminal_that_knows_ascii_alone_gets_escapes(tmp_path, arguments):
    """A table must not end at its first ± where a cluster runs jobs under LC_ALL=C."""
    ascii_alone = {"PYTHONUTF8": "0", "LC_ALL": "C", "PYTHONIOENCODING": "ascii"}
    ended = run_command(*arguments, cwd=tmp_path, PYTHONPATH=str(ROOT), **ascii_alone)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.isascii()
    assert re.search(r"\\xb1|\\u2212", ended.stdout)
