"""The documentation is true: its commands work, its keys and defaults are the code's, its links lead somewhere."""

import re
import shlex
import subprocess
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from fake_store import weight_types_records, write_store
from hydra_plugins.lora_bench.sweeper import SweeperConf
from lora_bench.config import RunConfig

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
OWN_KEYS = ("show", "pack")  # of the command, not of a run


def commands() -> list[str]:
    """Every command of a shell block, and every one in backticks, without comments, placeholders and the reader's own
    sweep, which has a test of its own."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        blocks = re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL)
        lines = [line for block in blocks for line in block.splitlines()]
        lines += re.findall(r"`((?:lora-bench|python )[^`]*)`", text)
        found += [line.split("  #")[0].strip() for line in lines if "..." not in line and "+sweeps=halves" not in line]
    return sorted({line for line in found if line and not line.startswith(("pip ", "python3 -m venv"))})


SWEEPS = [line for line in commands() if re.match(r"(RAY_ADDRESS=\w+ )?lora-bench ", line)]
SCRIPTS = [line for line in commands() if line not in SWEEPS]


def test_the_pages_hold_commands():
    assert len(SWEEPS) > 10 and len(SCRIPTS) > 8


@pytest.mark.parametrize("line", SWEEPS)
def test_commands_of_the_documentation_compose(line, command, tmp_path):
    """Planned and not trained, on the embedded backbone and task; where packs train is tests/test_launchers.py's."""
    words = [
        word for word in shlex.split(line) if not word.startswith(("RAY_ADDRESS", "hydra/launcher", "hydra.launcher"))
    ]
    given = words[1:]
    (tmp_path / "runs").mkdir()
    if given == ["--help"]:
        assert command("--help").status == 0
        return
    is_sweep = any(word.startswith("+sweeps=") or word == "-m" for word in given)
    stop = ["hydra.sweeper.dry_run=true"] if is_sweep else []
    if not is_sweep and not any(word.startswith("show=") for word in given):
        stop = ["show=config"]
    embedded = [word for word in given if not word.startswith(("task=", "task.", "model=", "model."))]
    task = [] if "+sweeps=calibration_planted" in given else ["task=acceptability"]  # it is about its own task
    ended = command(*embedded, *task, "model=minilm", "tracking=none", *stop)
    assert ended.status == 0, ended.text


def test_the_sweep_of_the_tutorial_is_planned(command, tmp_path):
    text = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
    (sweep,) = re.findall(r"```yaml\n(.*?)```", text, flags=re.DOTALL)
    (tmp_path / "sweeps").mkdir()
    (tmp_path / "sweeps" / "halves.yaml").write_text(sweep)
    ended = command("+sweeps=halves", "tracking=none", "hydra.sweeper.dry_run=true")
    assert ended.status == 0, ended.text
    assert "6 cells, 8 seeds, 48 runs" in ended.out


@pytest.mark.parametrize("line", SCRIPTS)
def test_scripts_of_the_documentation_know_their_options(line):
    """What takes minutes or an account is asked for its options only."""
    words = shlex.split(line)
    program = ["-m", "lora_bench.mirror"] if words[0] == "lora-bench-sync" else [str(ROOT / words[1])]
    asked = subprocess.run([sys.executable, *program, "--help"], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert asked.returncode == 0, asked.stderr
    for option in (word for word in words if word.startswith("--")):
        assert option in asked.stdout, option


def test_the_scripts_of_the_readme_read_a_store(tmp_path):
    write_store(tmp_path / "runs", weight_types_records(n_seeds=3))
    (line,) = [one for one in SCRIPTS if one.startswith("python analysis/weight_types.py --store runs")]
    words = shlex.split(line)[2:]
    script = str(ROOT / "analysis" / "weight_types.py")
    done = subprocess.run([sys.executable, script, *words], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "report" / "figures").glob("*.png"))


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
