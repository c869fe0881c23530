"""What `.ci/run` proves of README's two lines: that they work as they stand, from nothing."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from patience import PATIENCE_SECONDS

ROOT = Path(__file__).parents[1]
LINES = re.findall(r"^python3 -m venv .*$", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
PROGRAMS = ("lora-bench", "pip", "pyright", "pytest", "python", "ruff")

# Stands in for every program: tells its clone, what lies there beside the repository's files, and what was asked.
# `python3 -m venv .venv` puts it in a fresh environment under every other name.
PROGRAM = f"""#!/bin/sh
"{sys.executable}" -S - "$0" "$@" <<'END'
import os, pathlib, sys
here, program = pathlib.Path(), sys.argv[1]
asked = [os.path.relpath(program) if ".venv" in program else "python3", *sys.argv[2:]]
left = sorted(str(path) for path in here.iterdir() if path.name not in (".ci", ".git", "README.md"))
with open(os.environ["SEEN"], "a") as file:
    print(os.getcwd(), ",".join(left) or "-", *asked, sep="\\t", file=file)
if asked[:3] == ["python3", "-m", "venv"]:
    (here / asked[3] / "bin").mkdir(parents=True)
    for name in {PROGRAMS!r}:
        (here / asked[3] / "bin" / name).symlink_to(os.path.abspath(program))
raise SystemExit(int(os.environ["FAILS"] in " ".join(asked)))
END
"""


def ci(folder: Path, *, fails: str = "nothing does", readme: str | None = None) -> tuple[int, list[tuple], str]:
    """Run `.ci/run` of a repository that holds it and README, with programs that only tell how they are called.

    Returns:
        (exit status, a (clone, what lay there, words) for each program called, what was printed)
    """
    checkout, programs = folder / "checkout", folder / "programs"
    (checkout / ".ci").mkdir(parents=True)
    programs.mkdir()
    (programs / "python3").write_text(PROGRAM, encoding="utf-8")
    (programs / "python3").chmod(0o755)
    script = checkout / ".ci" / "run"
    script.write_text((ROOT / ".ci" / "run").read_text(encoding="utf-8"), encoding="utf-8")
    text = (ROOT / "README.md").read_text(encoding="utf-8") if readme is None else readme
    (checkout / "README.md").write_text(text, encoding="utf-8")
    git = ["git", "-C", str(checkout), "-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "all"]):
        subprocess.run([*git, *words], check=True)
    environment = os.environ | {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", "TMPDIR": str(folder)}
    done = subprocess.run(
        ["bash", str(script)],
        env=environment | {"SEEN": str(folder / "seen"), "FAILS": fails},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        timeout=PATIENCE_SECONDS,
    )
    seen = (folder / "seen").read_text(encoding="utf-8").splitlines() if (folder / "seen").exists() else []
    calls = [(clone, left, words) for clone, left, *words in (line.split("\t") for line in seen)]
    assert {path.name for path in folder.iterdir()} <= {"checkout", "programs", "seen"}, "clones are left behind"
    return done.returncode, calls, done.stdout


def test_ci_runs_readmes_lines_first_each_from_nothing(tmp_path):
    """Whatever CI installed for them would hide what they lack."""
    status, calls, said = ci(tmp_path)
    assert status == 0, said
    clones = list(dict.fromkeys(clone for clone, _, _ in calls))
    assert len(clones) == 3
    for clone, line in zip(clones, LINES, strict=False):
        commands = [shlex.split(command) for command in line.split(" && ")]
        assert [words for place, _, words in calls if place == clone] == commands
    for clone in clones:
        assert next(left for place, left, _ in calls if place == clone) == "-"
    rest = [words for place, _, words in calls if place == clones[2]]
    assert rest[1][-1] == ".[dev,joblib,slurm]"
    assert [words[0] for words in rest[2:]] == [f".venv/bin/{name}" for name in ("ruff", "ruff", "pyright", "pytest")]
    assert len(re.findall(r"^== .*: passed, \d+ s$", said, flags=re.MULTILINE)) == 3


@pytest.mark.parametrize("fails", ["+sweeps=quick", "lora-bench report", "pytest -q", "pyright"])
def test_ci_stops_at_the_first_command_that_fails(tmp_path, fails):
    """As the first line's sweep does when one of its runs failed."""
    status, calls, said = ci(tmp_path, fails=fails)
    assert status == 1
    assert "FAILED with status 1" in said
    assert fails in " ".join(calls[-1][2])


def test_ci_asks_for_both_lines(tmp_path):
    """A README that words them otherwise must not be proved by running nothing."""
    status, calls, said = ci(tmp_path, readme="```bash\nmake test\n```\n")
    assert (status, calls) == (1, [])
    assert "README.md: 0 lines begin with 'python3 -m venv', not two" in said
