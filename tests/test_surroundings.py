"""Accounts without a home, `~` in front of a path, and locales that cannot spell one: decided before training."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from configs import composed
from lora_bench import paths
from lora_bench.config.compose import parse
from lora_bench.config.errors import ConfigError
from lora_bench.config.identity import display_name, run_id
from lora_bench.config.schema import KEYS
from lora_bench.reports import script
from lora_bench.store import secrets
from lora_bench.training.resolve import resolve
from tiny import tiny_config

ROOT = Path(__file__).parents[1]
SMALL = ("model=tiny", "task=acceptability", "task.train_rows=40", "task.report_rows=20", "train.epochs=1")
NO_HOME = """
import os, pwd
for name in ("HOME", "USER", "LOGNAME", "LNAME", "USERNAME"):
    os.environ.pop(name, None)
def nobody(uid): raise KeyError(uid)
pwd.getpwuid = nobody
"""
UNEXPANDED = "cannot expand '~/x', since this account has no home folder; give the whole path"


@pytest.fixture
def no_home(monkeypatch, tmp_path):
    """An account as a container's: no HOME, no entry in the password file, no cache named."""

    def nobody(uid):
        raise KeyError(uid)

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv(paths.CACHE, raising=False)
    monkeypatch.setattr("pwd.getpwuid", nobody)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for name in paths.HOMES:
        monkeypatch.setenv(name, "own")


# The home


def test_without_a_home_caches_go_to_a_temporary_folder_of_the_account(no_home, tmp_path):
    assert paths.home() is None
    assert paths.cache_folder() == tmp_path / f"lora_bench-{os.getuid()}"
    assert paths.cache_folder().stat().st_mode & 0o077 == 0


def test_a_temporary_cache_that_others_can_write_is_not_read(no_home, tmp_path):
    """Its name can be foreseen, and tokens from a stranger would be trained on."""
    folder = tmp_path / f"lora_bench-{os.getuid()}"
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(paths.PathError, match=r"LORA_BENCH_CACHE: .* others can write"):
        paths.cache_folder()
    folder.rmdir()
    folder.symlink_to(tmp_path)
    with pytest.raises(paths.PathError, match="LORA_BENCH_CACHE"):
        paths.cache_folder()


def test_libraries_get_a_place_of_their_own_only_without_a_home(no_home, monkeypatch, tmp_path):
    monkeypatch.delenv("HF_HOME")
    paths.settle_caches()
    assert os.environ["HF_HOME"] == str(tmp_path / f"lora_bench-{os.getuid()}" / "huggingface")
    assert os.environ["WANDB_CONFIG_DIR"] == "own"
    monkeypatch.delenv("HF_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    paths.settle_caches()
    assert "HF_HOME" not in os.environ


def test_records_are_scrubbed_without_a_home(no_home, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert secrets.scrub(f"{tmp_path}/x and /elsewhere/x") == "x and /elsewhere/x"


def test_a_run_trains_without_a_home(tmp_path):
    """A cluster's node need not know its user; this died after training, and libraries made a folder called `~`."""
    site, folder = tmp_path / "site", tmp_path / "work"
    site.mkdir()
    folder.mkdir()
    (site / "sitecustomize.py").write_text(NO_HOME)
    environment = {name: value for name, value in os.environ.items() if name not in (paths.CACHE, "XDG_CACHE_HOME")}
    ended = subprocess.run(
        [sys.executable, "-m", "lora_bench", *SMALL, "train.precision=fp32", "tracking.mode=offline"],
        cwd=folder,
        env=environment | {"PYTHONPATH": f"{site}{os.pathsep}{ROOT}", "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ended.returncode == 0, ended.stderr
    assert "tracking:" not in ended.stderr
    assert list((folder / "runs").glob("*/record.json"))
    assert list((folder / "runs" / ".tracking").glob("wandb/offline-run-*"))
    assert [path.name for path in folder.iterdir()] == ["runs"]
    assert list((tmp_path / f"lora_bench-{os.getuid()}" / "tokens").iterdir())


# ~


def test_every_path_of_a_run_is_expanded_once_and_no_id_moves(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    given = {"store": "~/s", "task__data_dir": "~/d", "task__train_file": "~/t.csv", "model__name": "~/m"}
    made = tiny_config(**given)
    assert (made.store, made.task.data_dir) == (f"{tmp_path}/s", f"{tmp_path}/d")
    assert (made.task.train_file, made.model.name) == (f"{tmp_path}/t.csv", f"{tmp_path}/m")
    assert display_name(made.model.name) == display_name("~/m")
    science = resolve(made).science
    assert run_id(science) == resolve(tiny_config(model__name="m")).run_id


@pytest.mark.parametrize("key", [key.path for key in KEYS if key.fact.path])
def test_a_home_that_is_not_there_is_refused_by_its_key(no_home, key):
    with pytest.raises(ConfigError) as refused:
        tiny_config(**{key.replace(".", "__"): "~/x"})
    assert str(refused.value) == f"{key}: {UNEXPANDED}"


def test_a_home_of_nobody_is_refused_by_name():
    with pytest.raises(ConfigError, match="store: cannot expand '~no-such-account/x', since there is no account"):
        tiny_config(store="~no-such-account/x")


def sweep_file(folder: Path, store: str) -> None:
    (folder / "sweeps").mkdir()
    (folder / "sweeps" / "own.yaml").write_text(
        f"# @package _global_\nstore: {store}\nhydra:\n  mode: MULTIRUN\n  sweeper:\n    params:\n      seed: 0,1\n",
        encoding="utf-8",
    )


def test_a_sweep_file_may_keep_its_store_in_the_home(command, training, monkeypatch, tmp_path):
    """It trained, could not write, and left a folder called `~`."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    sweep_file(tmp_path, "~/x")
    ended = command("+sweeps=own", *SMALL, "tracking=none")
    assert ended.status == 0, ended.err
    assert len(list((tmp_path / "home" / "x").glob("*/record.json"))) == 2
    assert not (tmp_path / "~").exists()


def test_without_a_home_such_a_sweep_trains_nothing(command, training, no_home, tmp_path):
    sweep_file(tmp_path, "~/x")
    ended = command("+sweeps=own", *SMALL, "tracking=none")
    assert (ended.status, training.packs) == (2, [])
    assert f"store: {UNEXPANDED}" in ended.err
    assert not (tmp_path / "~").exists()


def test_a_cache_that_cannot_be_expanded_is_refused_at_once(command, no_home, monkeypatch):
    monkeypatch.setenv(paths.CACHE, "~/x")
    ended = command(*SMALL, "tracking=none")
    assert (ended.status, ended.err) == (2, f"lora-bench: LORA_BENCH_CACHE: {UNEXPANDED}\n")


def test_scripts_expand_what_a_shell_leaves(monkeypatch, tmp_path, capsys):
    """A shell leaves the `~` of `--store=~/x` as it is."""
    monkeypatch.setenv("HOME", str(tmp_path))
    parser = script.parser("Ranks.", "rank")
    options = parser.parse_args(["--store=~/x", "--out=~/y"])
    assert (options.store, options.out) == (tmp_path / "x", tmp_path / "y")
    with pytest.raises(SystemExit):
        parser.parse_args(["--store=~no-such-account/x"])
    assert "argument --store: cannot expand '~no-such-account/x'" in capsys.readouterr().err


# Locales


@pytest.mark.parametrize(("in_folder", "store"), [("plain", "läden"), ("läden", "runs")], ids=["store", "folder"])
def test_a_folder_that_the_locale_cannot_spell_is_refused_before_training(tmp_path, in_folder, store):
    """Arrow spells it otherwise than Python does: the predictions of a trained pack could not be written."""
    folder = tmp_path / in_folder
    folder.mkdir()
    sweep_file(folder, store)
    ended = subprocess.run(
        [sys.executable, "-m", "lora_bench", "+sweeps=own", *SMALL, "tracking=none"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ended.returncode == 2
    assert "cannot be spelled in this locale's ascii; set PYTHONUTF8=1, or LC_ALL=C.UTF-8" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert [path.name for path in folder.iterdir()] == ["sweeps"]


def test_a_character_that_standard_output_lacks_ends_no_sweep(monkeypatch):
    """Its table has a middle dot, and is printed when all has been trained."""
    from lora_bench.wording import spell_out

    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    spell_out()
    print("tiny · cola", flush=True)
    assert written.getvalue() == b"tiny \\xb7 cola\n"


# What is no path of this machine


@pytest.mark.parametrize("text", ["s3://bucket/x", "gs://bucket/x", "https://host/x", "file:///tmp/x", "hdfs://x"])
def test_an_address_is_refused_and_makes_no_folder(command, training, tmp_path, text):
    """It made a folder `s3:` in the current one, and the runs were where nobody looked for them."""
    ended = command(f"store={text}", *SMALL, "tracking=none")
    assert (ended.status, training.packs, [*tmp_path.iterdir()]) == (2, [], [])
    assert ended.err.startswith(f"lora-bench: store: '{text}' is an address; give the path of a folder")


@pytest.mark.parametrize(("text", "name"), [("$HOME/x", "HOME"), ("/data/${TEAM}", "TEAM"), ("runs-$USER", "USER")])
def test_a_variable_that_no_shell_replaced_is_refused(monkeypatch, tmp_path, text, name):
    """In quotes, or in a file of values; the folder was called `$HOME`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(name, "mine")
    with pytest.raises(paths.PathError, match=rf"names the variable .*{name}.*; write its value, or \$\{{oc\.env:"):
        paths.expanded(text)
    assert parse(composed(*SMALL, f"store='${{oc.env:{name}}}/x'")).store == "mine/x"


def test_a_folder_that_is_called_so_is_used(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "$HOME").mkdir()
    for text in ("$HOME", "cost in $", "a$1", "exp:1", "pkg://package/file.gguf"):
        assert paths.expanded(text) == text
