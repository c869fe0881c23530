"""A writer that was killed at the last moment, and owners of whom nobody knows whether they live."""

import re
import shutil
import time
from pathlib import Path

import pytest

from lora_bench.launch import files, marks
from lora_bench.store import locks
from lora_bench.store.folder import Store
from lora_bench.store.locks import Lock

SMALL = ("model=tiny", "task.train_rows=40", "task.report_rows=20", "tracking=none")


def unrename(root: Path, run_id: str) -> None:
    """As if its writer had been killed just before the rename."""
    temporary = root / f".tmp-{run_id}-0123456789ab"
    shutil.move(root / run_id, temporary)
    (root / ".claims" / f"{temporary.name}.lock").touch()


@pytest.mark.parametrize("arguments", [(), ("-m", "seed=0,1")], ids=["run", "sweep"])
def test_a_run_that_lacked_only_its_rename_is_kept_and_not_trained_again(command, training, arguments):
    """It was trained a second time, and then said to be trained by another process, with status 1."""
    assert command(*arguments, *SMALL).status == 0
    before, content = list(training.packs), Store("runs").statuses()
    run_id = next(iter(content))
    unrename(Path("runs"), run_id)
    ended = command(*arguments, *SMALL)
    assert ended.status == 0, ended.text
    assert training.packs == before
    assert Store("runs").statuses() == content
    assert "another process" not in ended.text
    assert not list(Path("runs").glob(".tmp-*"))


def test_a_dry_run_leaves_everything_where_it_is(command, training):
    command("-m", *SMALL, "seed=0,1")
    run_id = next(iter(Store("runs").statuses()))
    unrename(Path("runs"), run_id)
    before = sorted(Path("runs").rglob("*"))
    assert command("-m", *SMALL, "seed=0,1", "hydra.sweeper.dry_run=true").status == 0
    assert sorted(Path("runs").rglob("*")) == before


def test_a_run_that_another_process_trains_is_told_with_its_owner(command, training, monkeypatch):
    command(*SMALL)
    (run_id,) = Store("runs").statuses()
    shutil.rmtree(Path("runs") / run_id)
    monkeypatch.setattr("lora_bench.training.run.run_pack", lambda *runs, **options: [])
    with Store("runs").claim(run_id):
        ended = command(*SMALL)
    assert ended.status == 1
    lock = f"runs/.claims/{run_id}.lock"
    assert re.search(rf"{run_id} is being trained by another process: process \d+ on host \S+ \({lock}, ", ended.out)
    assert f"if that process is gone, delete {lock} and run the same command again" in ended.out


def test_a_sweep_does_not_wait_for_ever_for_a_pack_of_a_dead_owner(command, training, monkeypatch):
    """An owner on another host, whose lock the file server still keeps."""
    monkeypatch.setattr(locks, "SILENT_SECONDS", 0.2)
    monkeypatch.setattr("lora_bench.launch.carry_out.POLL_SECONDS", 0.02)
    sweep = ("-m", *SMALL, "seed=0,1", "hydra.sweeper.workers=1")
    command(*sweep)
    for run_id in Store("runs").statuses():
        shutil.rmtree(Path("runs") / run_id)
    (plan,) = Path("runs", files.FOLDER).glob("*.json")
    lock = Lock(files.pack_lock(plan.absolute(), 0))
    assert lock.acquire()
    lock.path.write_text("4711\nnode7\n", encoding="ascii")
    began = time.monotonic()
    ended = command(*sweep)
    lock.release()
    assert time.monotonic() - began < 60
    assert ended.status == 2
    assert "waiting for pack 0, which another process trains: process 4711 on host node7" in ended.out
    assert "pack 0 is held by process 4711 on host node7" in ended.err
    assert "Traceback" not in ended.text


def test_the_claim_of_a_pack_names_its_owner(tmp_path):
    with marks.claim_pack(tmp_path / ".plans" / "x.json", 0) as is_ours:
        assert is_ours
        assert locks.owner_of(files.pack_lock(tmp_path / ".plans" / "x.json", 0)).is_here
