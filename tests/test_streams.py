"""Where messages go: full disks, readers that have gone, and names that would steer a terminal."""

import errno
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from configs import candidates
from lora_bench import wording
from lora_bench.launch import child, jobs, marks, worker
from lora_bench.launch.files import environment_file, log_file, mark_file
from lora_bench.launch.plan import make, save
from lora_bench.store.folder import Store
from orders import order_of
from patience import PATIENCE_SECONDS
from tiny import tiny_config

ROOT = Path(__file__).parents[1]
SMALL = ("model=tiny", "tracking=none", "task.train_rows=40", "task.report_rows=20", "train.epochs=1")
PRINTING = """
import sys
from lora_bench import wording
wording.spell_out()
console = wording.console(least_width=100)
for number in range(300):
    print("x" * 1000)
    console.print("x" * 1000)
    print(number, file=sys.stderr)
open("reached", "w").close()
"""


@pytest.mark.parametrize("reader", ["full_disk", "gone", "closed"])
def test_output_that_nobody_can_take_ends_nothing(tmp_path, reader):
    """`| head -2`, a full disk below a log, `>&-`: the program goes on, and ends as it would have."""
    code = [sys.executable, "-c", PRINTING]
    shell = {
        "full_disk": '"$@" >/dev/full 2>/dev/full',
        "gone": '"$@" 2>&1 | head -2 >/dev/null; exit ${PIPESTATUS[0]}',
        "closed": '"$@" <&- >&- 2>&-',
    }
    line = ["bash", "-c", shell[reader], "bash", *code]
    ended = subprocess.run(line, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, timeout=PATIENCE_SECONDS)
    assert ended.returncode == 0
    assert (tmp_path / "reached").read_bytes() == b""


class Broken(io.RawIOBase):
    """A terminal or file that takes some bytes, then none."""

    def __init__(self, number: int, room: int):
        self.number, self.room = number, room

    def writable(self):
        return True

    def write(self, data):
        self.room -= len(data)
        if self.room < 0:
            raise OSError(self.number, os.strerror(self.number))
        return len(data)


@pytest.mark.parametrize("room", [0, 100])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EPIPE, errno.EIO, errno.EDQUOT])
def test_a_sweep_whose_output_breaks_keeps_and_finishes_all_its_runs(command, training, monkeypatch, number, room):
    """Two of two runs were marked as failed, and left alone by every restart."""
    for name in ("stdout", "stderr"):
        raw = io.BufferedWriter(Broken(number, room), buffer_size=1)
        monkeypatch.setattr(sys, name, io.TextIOWrapper(raw, encoding="utf-8", write_through=True))
    assert command("-m", *SMALL, "seed=0,1").status == 0
    assert set(Store("runs").statuses().values()) == {"finished"}


def test_a_listener_that_cannot_write_costs_its_pack_nothing(tmp_path):
    from lora_bench.training.resolve import resolve
    from lora_bench.training.run import run_pack

    def listen(event):
        raise OSError(errno.ENOSPC, "No space left on device")

    run = resolve(tiny_config(train__epochs=1, task__train_rows=32))
    (record,) = run_pack([run], Store(tmp_path), on_progress=listen)
    assert record["status"] == "finished"


@pytest.fixture
def pack(tmp_path):
    store = Store(tmp_path / "runs")
    plan = make(candidates(("seed=0",), store=store.root), store)
    save(plan)
    return plan, store


def test_a_pack_whose_log_cannot_be_opened_is_trained_without_one(pack, monkeypatch):
    plan, _ = pack
    log_file(plan.path, 0).mkdir(parents=True)
    code = "import os, sys; sys.stdin.readline(); print('x' * 10_000); print(0, file=os.fdopen(int(sys.argv[1]), 'w'))"
    monkeypatch.setattr(worker, "child_command", lambda answers: [sys.executable, "-c", code, str(answers)])
    outcome = jobs.run_isolated(f"{plan.path}#0")
    assert outcome["failed"] == 0
    assert outcome["message"] is None


@pytest.mark.parametrize("file", [environment_file, mark_file])
def test_notes_beside_a_plan_that_cannot_be_written_fail_no_run(pack, training, file):
    plan, store = pack
    file(plan.path, 0).mkdir(parents=True)
    with marks.under_way(plan.path, 0):
        marks.progress_teller(plan.path, 0)({"event": "work", "share": 0.5, "runs": 1})
        assert child.train(order_of(plan, 0), own_process=True) == 0
    assert set(store.statuses().values()) == {"finished"}


# Names that would steer a terminal

STEERING = {
    "colour": "\x1b[31mred", "title": "\x1b]0;owned\x07", "c1": "\x9b31m", "bell": "\x07", "backspace": "ab\x08\x08",
    "return": "all\rgone", "override": "\u202egnp", "isolate": "\u2066x\u2069", "mark": "\u200f", "delete": "\x7f",
    "separator": "a\u2028b", "form_feed": "a\x0cb", "null": "a\0b", "byte": "\udcff", "tag": "\U000e0041",
}  # fmt: skip


@pytest.mark.parametrize("name", STEERING.values(), ids=STEERING)
def test_no_name_steers_the_terminal(capsys, name):
    """Records, data files and model folders come from anywhere; a title, a colour or a turned word is a lie."""
    from rich.table import Table

    from lora_bench.cli.runs import tell
    from lora_bench.config.errors import ConfigError

    console = wording.console(least_width=100)
    table = Table(title=name)
    table.add_column(name)
    table.add_row(name)
    console.print(table)
    console.print(f"x{name}y", style="bold")
    console.rule(name)
    print(f"x{name}y")
    tell(ConfigError(f"model.name: no x{name}y"))
    shown = capsys.readouterr()
    assert not wording._UNSEEN.search(shown.out + shown.err)
    spelled = name.encode("unicode_escape").decode()
    assert f"x{spelled}y" in shown.out
    assert f"x{spelled}y" in shown.err


def test_honest_text_is_left_alone():
    text = "±0.3 − Δ · ‖W‖ 名前 über é\tx\n می\u200cخواهم 👩\u200d🔬"
    assert wording.visible(text) == text


def test_colours_of_our_own_and_bars_of_libraries_still_reach_a_terminal(capsys, monkeypatch):
    """What is spelled out is what names hold, not what rich and tqdm say themselves."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    console = wording.console(least_width=100)
    console.print("x", style="bold")
    for part in ("\r 50%|###   |", "\n", "\x1b[A", "\r      \r"):
        sys.stdout.write(part)
    assert capsys.readouterr().out.endswith("\x1b[1mx\x1b[0m\n\r 50%|###   |\n\x1b[A\r      \r")


# Scripts


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "analysis").glob("*.py")))
def test_every_script_can_say_everything_to_a_terminal_that_knows_ascii_alone(monkeypatch, name):
    """Under LC_ALL=C a ± ended them; from its first word on, a script's streams are those of the command."""
    script = getattr(__import__(f"analysis.{name}"), name)
    for stream in ("stdout", "stderr"):
        monkeypatch.setattr(sys, stream, io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True))
    with pytest.raises(SystemExit) as ended:
        script.main(["--help"])
    assert ended.value.code == 0
    for stream in (sys.stdout, sys.stderr):
        stream.write("± 名前 \x1b[31m")
        assert stream.buffer.getvalue().endswith(rb"\xb1 \u540d\u524d \x1b[31m")
