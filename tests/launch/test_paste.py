"""Lines to paste into a shell mean what they say, whatever the names in them hold."""

import json
import os
import shlex
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from analysis import archive, next_stage
from fake_store import fake_record, write_store
from lora_bench.config.overrides import override
from lora_bench.launch import tell
from lora_bench.questions import learning_rate
from lora_bench.reports import explicit
from lora_bench.store import open_store
from lora_bench.verdicts import arms, settings
from lora_bench.wording import command_line

NAMES = [
    *("$(touch PWNED)", "`touch PWNED`", "a b", "it's", 'say "so"', "a;touch PWNED", "a&b|c>d", "-rf", "--store", "~"),
    *("~root/x", "line\nbreak", "tab\there", "back\\slash", "ends\\", "${HOME}", "$HOME", "*", "a,b", "a=b", "[x]"),
    *("{x: 1}", "#no", "!x", "über", "名前", "\u202eevil", "\x1b[31mred", "\x9b31m", "null", "1e3", "007", "%s", "'"),
]
STAND_IN = """
lora-bench() { printf '%s\\0' lora-bench "$@"; }
python() { printf '%s\\0' python "$@"; }
wandb() { printf '%s\\0' wandb "$@"; }
"""


def pasted(line: str, folder) -> list[str]:
    """The words that a command gets when the line is pasted into a shell there."""
    shell = ["bash", "--norc", "-c", f"{STAND_IN}\n{line}"]
    done = subprocess.run(shell, cwd=folder, capture_output=True, check=True, timeout=30)
    assert not (folder / "PWNED").exists()
    return [os.fsdecode(word) for word in done.stdout.split(b"\0")[:-1]]


def value_of(word: str):
    """What Hydra reads from an override, and OmegaConf from that."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from omegaconf import OmegaConf

    return OmegaConf.create({"value": OverridesParser.create().parse_override(word).value()}).value


def test_every_word_is_read_back_by_the_shell(tmp_path):
    """All in one line, since a shell starts slowly; a file name need be no UTF-8."""
    words = ["lora-bench", *NAMES, "", os.fsdecode(b"\xff\x01"), *map(chr, range(1, 256))]
    line = command_line(words)
    assert pasted(line, tmp_path) == words
    assert line.isprintable()


def test_a_terminal_that_knows_ascii_alone_gets_a_line_that_means_the_same(tmp_path, monkeypatch):
    """Spelled as `\\xfc` between plain quotes, the name would be another one."""
    monkeypatch.setattr("sys.stdout", SimpleNamespace(encoding="ascii"))
    line = command_line(["lora-bench", *NAMES])
    monkeypatch.undo()
    assert line.isascii()
    assert pasted(line, tmp_path) == ["lora-bench", *NAMES]


@pytest.mark.parametrize("name", [*NAMES, "a\\${b}", "\\\\${b}\\", "\\'", "True", "-1", "./x", "../x", "/x/y.z"])
def test_every_override_is_read_back_by_hydra_and_omegaconf(name):
    assert value_of(override("store", name)) == name


# Every place that prints such a line


def settle_line(root, **options):
    (setting,) = settings.settings(settings.prepare(open_store(root).frame()))
    named = arms.name_arms(setting.runs)
    return learning_rate.paste_line(named, named["arm"].iloc[0], [1e-2], root, pinned={}, **options)


@pytest.mark.parametrize("name", NAMES)
def test_the_line_that_settles_a_rate_keeps_every_name_of_the_record_and_of_the_store(tmp_path, name, monkeypatch):
    """Records may come from anywhere: an archive's sweep `$(...)` must not run where its report is read."""
    monkeypatch.chdir(tmp_path)
    given = ["task=cola", override("task.data_dir", name), "adapter.rank=4"]
    root = tmp_path / f"x{name.replace('/', ':')}"
    write_store(root, [fake_record(lr=1e-3, invocation={"overrides": given, "sweep": name})])
    words = pasted(settle_line(root), tmp_path)  # the sweep has no file, so its settings are spelled out
    assert words[1:4] == ["-m", *given[:2]]
    assert value_of(words[-1]) == str(root)
    monkeypatch.setattr(explicit, "has_file", lambda sweep: True)
    words = pasted(settle_line(root), tmp_path)
    assert words[2:4] == given[:2]
    assert value_of(words[1].removeprefix("+")) == name
    assert value_of(words[-1]) == str(root)


@pytest.mark.parametrize(
    "leave",
    ["model.trust_remote_code=true", "++model.trust_remote_code=True", "+model={name: x, trust_remote_code: true}"],
)
def test_leave_to_run_a_repositorys_code_is_in_no_line(tmp_path, leave):
    """Who pastes a line has not read the record."""
    write_store(tmp_path, [fake_record(lr=1e-3, invocation={"overrides": ["task=cola", leave], "sweep": None})])
    line = settle_line(tmp_path)
    assert "trust_remote_code" not in line
    assert "task=cola" in line


@pytest.mark.parametrize("name", NAMES)
def test_the_line_that_shows_a_sweep_finds_its_store(tmp_path, monkeypatch, name):
    """Also where its name is like an option or a home folder, which quotes do not hide from the command."""
    monkeypatch.chdir(tmp_path)
    store = SimpleNamespace(root=tmp_path / name)
    words = pasted(tell.analysis_command(SimpleNamespace(runs={}, axes=()), store), tmp_path)
    given = words[-1].removeprefix("store=")
    assert not given.startswith(("-", "~"))
    assert (tmp_path / given) == store.root


@pytest.mark.parametrize("fate", ["missing", "failed", "finished"])
def test_what_a_sweep_says_last_can_be_pasted(command, training, tmp_path, fate):
    training.fate = lambda run: {"missing": KeyboardInterrupt(), "failed": "failed", "finished": None}[fate]
    name = "it's $(touch PWNED), a b=1\n"
    given = ["-m", "model=tiny", "task.train_rows=40", "tracking=none", "seed=0,1", override("store", name)]
    ended = command(*given)
    last = ended.out.splitlines()[-1]
    assert last.startswith("  ")
    words = pasted(last, tmp_path)
    if fate == "finished":
        assert words[-1] == f"store={name}"
    else:
        again = ["hydra.sweeper.retry_failed=true"] if fate == "failed" else []
        assert words == ["lora-bench", *given, *again]


@pytest.mark.parametrize("name", ["$(touch PWNED)", "a b", "it's", "line\nbreak", "a,b=c"])
def test_a_next_stage_and_an_archive_say_how_they_were_made(tmp_path, monkeypatch, capsys, name):
    """The stage's command stands in a comment of a YAML file, which a line break would end."""
    monkeypatch.chdir(tmp_path)
    started = {"overrides": ["task=cola", override("task.data_dir", name)], "sweep": "pair"}
    records = [fake_record(targets="q", rank=8, lr=rate, invocation=started) for rate in (1e-3, 1e-2)]
    write_store(tmp_path / f"store {name}", records)
    (tmp_path / "pair.yaml").write_text(
        "hydra: {sweeper: {params: {adapter.targets: q, train.lr: '1e-3,1e-2'}}}\n", encoding="utf-8"
    )
    argv = ["--store", f"store {name}", "--sweep", "pair.yaml", "--out", f"{name}.yaml"]
    assert next_stage.main(argv) == 0
    words = pasted(capsys.readouterr().out.splitlines()[-1], tmp_path)
    assert value_of(words[1].removeprefix("+")) == name
    assert words[2:-1] == started["overrides"]
    assert value_of(words[-1]) == f"store {name}"
    comment = next(
        line for line in (tmp_path / f"{name}.yaml").read_text("utf-8").splitlines() if "Written by: " in line
    )
    assert pasted(comment.partition("Written by: ")[2], tmp_path) == ["lora-bench", "next_stage", *argv]
    assert archive.main(["--store", f"store {name}", "--out", "kept"]) == 0
    made = json.loads((tmp_path / "kept" / "manifest.json").read_text("utf-8"))["command"]
    assert pasted(made, tmp_path) == ["lora-bench", "archive", "--store", f"store {name}", "--out", "kept"]


def test_no_line_is_joined_by_another_function():
    """One function knows how a shell reads words."""
    root = Path(__file__).parents[2]
    sources = [path for folder in ("lora_bench", "analysis", "hydra_plugins") for path in (root / folder).rglob("*.py")]
    joining = {path.name for path in sources if "shlex" in path.read_text(encoding="utf-8")}
    assert joining == {"wording.py"}
    assert shlex.split(command_line(["a b", "c"])) == ["a b", "c"]
