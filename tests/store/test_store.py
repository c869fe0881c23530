"""The store: whole records or none, whatever dies, fills up or is garbled; and an index that is never trusted."""

import errno
import json
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_bench.store import folder
from lora_bench.store import folder as stores
from lora_bench.store.document import RUN_ID, dumps, loads
from lora_bench.store.errors import AlreadyFinished, RecordError, StoreError
from lora_bench.store.folder import Store
from lora_bench.store.frame import COLUMNS
from lora_bench.store.locks import Lock
from lora_bench.store.record import Failure
from lora_bench.store.shelf import Shelf
from patience import PATIENCE_SECONDS
from records import failed_record, finished_record, parts


def finished(number: int = 1, **changed) -> dict:
    return finished_record(number, **changed)


def failed(number: int = 1, **changed) -> dict:
    return failed_record(Failure.of(ValueError("it broke")), number, **changed)


def rewrite(path: Path, content: bytes) -> None:
    """Change a file as another tool would: its size or its time tells."""
    before = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))


def names_in(root: Path) -> set[str]:
    return {path.name for path in root.iterdir()} - {".claims", "index.jsonl"}


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path / "runs")


# Writing and reading


def test_a_run_is_written_whole(store):
    predictions = pd.DataFrame({"split": "report", "idx": [0, 1], "label": [1, 0], "logit_0": np.float32([0.1, 2.0])})
    record = finished()

    def save(folder: Path) -> None:
        (folder / "adapter").mkdir()
        (folder / "adapter" / "adapter_config.json").write_text("{}", encoding="utf-8")

    folder = store.write(record, predictions=predictions, adapter=save)
    assert folder == store.path(record["run_id"])
    assert sorted(path.name for path in folder.iterdir()) == ["adapter", "predictions.parquet", "record.json"]
    assert store.has(record["run_id"])
    stored = store.record(record["run_id"])
    assert list(stored.pop("files")) == ["adapter/adapter_config.json", "predictions.parquet"]
    assert stored == record
    pd.testing.assert_frame_equal(store.predictions(record["run_id"]), predictions)
    assert [held["run_id"] for held in store.records()] == [record["run_id"]]
    assert names_in(store.root) == {record["run_id"]}


@pytest.mark.parametrize("name", ["exp:1", "s3:x", "seed=1"])
def test_a_relative_folder_that_looks_like_an_address_is_read(name, monkeypatch, tmp_path):
    """Arrow wrote there, and read it as the address of a file system: a store that took runs and gave none back."""
    monkeypatch.chdir(tmp_path)
    predictions = pd.DataFrame({"split": "report", "idx": [0], "label": [1], "logit_0": np.float32([0.1])})
    Store(name).write(finished(), predictions=predictions)
    pd.testing.assert_frame_equal(Store(name).predictions(finished()["run_id"]), predictions)


def test_an_absent_store_is_empty_and_stays_absent(store):
    assert not store.has("0" * 16)
    assert store.frame().empty
    assert list(store.frame().columns) == list(COLUMNS)
    assert store.quarantined == []
    assert not store.root.exists()


def test_a_store_on_a_file_is_refused(tmp_path):
    (tmp_path / "runs").write_text("", encoding="utf-8")
    with pytest.raises(StoreError, match="is a file"):
        Store(tmp_path / "runs")


def test_asking_for_a_run_that_is_not_there_says_so(store):
    store.write(finished(1))
    with pytest.raises(StoreError, match=r"no run '0+2'; it holds 1 runs"):
        store.record(f"{2:016x}")
    with pytest.raises(StoreError, match="no run"):
        store.predictions(f"{2:016x}")
    assert store.predictions(f"{1:016x}") is None


@given(st.text(max_size=70))
def test_names_that_could_leave_the_folder_are_refused(name):
    store = Store("never-made")
    if RUN_ID.fullmatch(name):
        return
    for use in (store.path, store.status, store.record, store.predictions):
        with pytest.raises(StoreError, match="is no run id"):
            use(name)


@pytest.mark.parametrize(
    "name", ["../../etc", "..", "/tmp/00000000", "0" * 65, "abc", "0000000A", "00000000/..", "00000000\n"]
)
def test_a_record_with_a_bad_name_is_not_written(store, name):
    with pytest.raises((StoreError, RecordError)):
        store.write(finished() | {"run_id": name})
    with pytest.raises(StoreError), store.claim(name):
        pass


def test_a_failed_record_gives_way_and_a_finished_one_does_not(store):
    store.write(failed())
    assert store.status(f"{1:016x}") == "failed"
    assert not store.has(f"{1:016x}")
    store.write(failed())
    store.write(finished())
    assert store.has(f"{1:016x}")
    before = (store.path(f"{1:016x}") / "record.json").read_bytes()
    for record in (failed(), finished(scores={"report": {"matthews": 0.9}})):
        with pytest.raises(AlreadyFinished, match="is finished already"):
            store.write(record)
    assert (store.path(f"{1:016x}") / "record.json").read_bytes() == before
    assert names_in(store.root) == {f"{1:016x}"}


def test_what_is_no_record_is_not_written(store):
    with pytest.raises(RecordError, match="no 'scores'"):
        store.write({key: value for key, value in finished().items() if key != "scores"})
    assert not store.root.exists()


def test_a_write_that_fails_leaves_nothing(store):
    def save(folder: Path) -> None:
        (folder / "weights.safetensors").write_bytes(b"half")
        raise RuntimeError("no such tensor")

    with pytest.raises(RuntimeError, match="no such tensor"):
        store.write(finished(), adapter=save)
    assert names_in(store.root) == set()
    store.write(finished())


# Adapters that are not kept


def with_adapter(folder: Path) -> None:
    (folder / "adapter").mkdir()
    (folder / "adapter" / "adapter_model.safetensors").write_bytes(b"x" * 1000)


def test_a_dropped_adapter_is_gone_and_its_record_says_so(store):
    store.write(finished(1), adapter=with_adapter)
    store.write(finished(2), adapter=with_adapter)
    assert store.bytes_by_part()["adapter"] == (2, 2000)
    before = store.record(f"{1:016x}")
    assert store.drop_adapter(f"{1:016x}", "store.keep_adapters=best") == 1000
    after = store.record(f"{1:016x}")
    assert after.pop("adapter_dropped")["why"] == "store.keep_adapters=best"
    assert before.pop("files").keys() == {"adapter/adapter_model.safetensors"}
    assert after == before | {"files": {}}
    assert [path.name for path in store.path(f"{1:016x}").iterdir()] == ["record.json"]
    assert store.bytes_by_part()["adapter"] == (1, 1000)
    assert store.drop_adapter(f"{1:016x}", "again") == 0
    assert store.record(f"{1:016x}")["adapter_dropped"]["why"] == "store.keep_adapters=best"
    assert names_in(store.root) == {f"{1:016x}", f"{2:016x}"}
    with pytest.raises(StoreError, match="no run"):
        store.drop_adapter(f"{3:016x}", "none there")


@pytest.mark.parametrize("at", ["os.replace", "shutil.rmtree"])
def test_dropping_an_adapter_may_die_anywhere(store, monkeypatch, at):
    """The record is whole at every moment, and never promises an adapter that is half there."""
    store.write(finished(1), adapter=with_adapter)

    def die(*_, **__):
        raise OSError(errno.EIO, "the disk is gone")

    with monkeypatch.context() as patch:
        patch.setattr(f"lora_bench.store.folder.{at}", die)
        with pytest.raises(StoreError, match="cannot drop the adapter"):
            store.drop_adapter(f"{1:016x}", "store.keep_adapters=none")
    again = Store(store.root)
    record = again.record(f"{1:016x}")
    assert ("adapter_dropped" in record) == (at == "shutil.rmtree")
    assert (again.path(f"{1:016x}") / "adapter" / "adapter_model.safetensors").stat().st_size == 1000
    assert again.drop_adapter(f"{1:016x}", "store.keep_adapters=none") == 1000
    assert "adapter_dropped" in again.record(f"{1:016x}")


# The frame


def test_the_frame_has_the_columns_that_tables_read(store):
    store.write(finished(1))
    store.write(failed(2))
    frame = store.frame().set_index("run_id")
    one, two = frame.loc[f"{1:016x}"], frame.loc[f"{2:016x}"]
    assert (one.model, one.task, one.targets, one["rank"], one.ranks, one.metric) == (
        "tiny",
        "cola",
        "qv",
        4,
        "4",
        "matthews",
    )
    assert (one.select, one.report, one.report_accuracy, one.adapter_parameters, one.environment) == (
        0.5,
        0.4,
        0.6,
        128,
        "cpu-a",
    )
    assert (two.status, two.error_kind, two.error_message) == ("failed", "exception", "it broke")
    assert pd.isna(two.report)
    assert pd.isna(one.error_kind)
    assert pd.isna(one.train)
    assert frame.dtypes["seed"] == frame.dtypes["rank"] == "int64"
    assert frame.dtypes["report"] == "float64"


@pytest.mark.parametrize(
    ("manifest_ranks", "expected"),
    [
        ({"q": [4], "v": [4]}, (4, 4, 4, "4")),
        ({"q": [2, 2], "up": [1, 3]}, (None, 1, 3, "q:2 up:1-3")),
        ({}, (None, None, None, None)),
    ],
    ids=["equal", "mixed", "head_only"],
)
def test_ranks_are_one_number_only_when_they_agree(store, manifest_ranks, expected):
    matrix = {"layer": 0, "module": "m", "d_in": 4, "d_out": 4}
    manifest = [{**matrix, "role": role, "rank": rank} for role, ranks in manifest_ranks.items() for rank in ranks]
    config = parts()["config"] | {"adapter": {"method": "lora", "rank": {}, "layers": [0, 2]}}
    store.write(finished(1, manifest=manifest, config=config))
    row = store.frame().iloc[0]
    got = tuple(None if pd.isna(row[name]) else row[name] for name in ("rank", "rank_min", "rank_max", "ranks"))
    assert got == expected
    assert row.layers == "0,2"


def test_the_frame_of_a_known_store_opens_no_record(store, monkeypatch):
    """At 20,000 runs, a start that opens every record takes minutes."""
    for number in range(20):
        store.write(finished(number))
    before = store.frame()
    monkeypatch.setattr(Shelf, "load", lambda *_: pytest.fail("a record was opened"))
    again = Store(store.root)
    pd.testing.assert_frame_equal(again.frame(), before)
    assert len(before) == 20 and all(again.has(run_id) for run_id in before.run_id)
    assert set(again.statuses().values()) == {"finished"}


def test_the_index_is_rebuilt_when_it_is_missing(store):
    for number in range(5):
        store.write(finished(number))
    before = store.frame()
    (store.root / "index.jsonl").unlink()
    pd.testing.assert_frame_equal(Store(store.root).frame(), before)
    assert len((store.root / "index.jsonl").read_bytes().split()) > 0


@pytest.fixture(scope="module")
def small_store(tmp_path_factory):
    """A store of four runs, its index and its frame."""
    root = tmp_path_factory.mktemp("small") / "runs"
    for number in range(4):
        Store(root).write(finished(number))
    return root, (root / "index.jsonl").read_bytes(), Store(root).frame()


@settings(max_examples=60)
@given(data=st.data())
def test_a_garbled_index_changes_no_number(small_store, data):
    """The index is a shortcut: the records decide."""
    root, pristine, expected = small_store
    content = bytearray(pristine)
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (root / "index.jsonl").write_bytes(content[: data.draw(st.integers(len(content) // 2, len(content)))])
    pd.testing.assert_frame_equal(Store(root).frame(), expected)


def test_changes_made_by_others_are_seen(store):
    """A second process writes, replaces and removes runs while this one holds its index in memory."""
    other = Store(store.root)
    store.write(failed(1))
    store.write(finished(2))
    assert dict(other.statuses()) == {f"{1:016x}": "failed", f"{2:016x}": "finished"}
    store.write(finished(1))
    store.write(finished(3))
    assert other.has(f"{1:016x}")
    assert other.has(f"{3:016x}")
    (store.path(f"{2:016x}") / "record.json").unlink()
    (store.path(f"{2:016x}")).rmdir()
    assert not other.has(f"{2:016x}")
    assert list(other.frame().run_id) == [f"{1:016x}", f"{3:016x}"]


def test_an_index_of_mostly_stale_lines_is_rewritten(store):
    store.write(finished(1))
    line = (store.root / "index.jsonl").read_bytes()
    (store.root / "index.jsonl").write_bytes(line * 1200)
    before = store.frame()
    pd.testing.assert_frame_equal(Store(store.root).frame(), before)
    assert (store.root / "index.jsonl").stat().st_size < 10 * len(line)


# Damage

DAMAGE = {
    "truncated": (lambda content: content[: len(content) // 2], "does not match its checksum"),
    "empty": (lambda content: b"", "empty"),
    "zeros": (lambda content: bytes(len(content)), "not JSON"),
    "changed digit": (
        lambda content: content.replace(b'"matthews": 0.4', b'"matthews": 0.9'),
        "does not match its checksum",
    ),
    "another run's": (lambda content: dumps(finished(9)), "it is the record of run"),
    "parts that do not fit": (
        lambda content: json.dumps(loads(content) | {"scores": {"report": [1]}}).encode(),
        "its parts do not fit",
    ),
    "words for numbers": (
        lambda content: json.dumps(loads(content) | {"cost": {"tokens": "many"}}).encode(),
        "tokens is no number",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("reader", ["frame", "records", "status", "record"])
def test_damaged_records_are_not_counted_and_set_aside_by_the_next_write(store, caplog, damage, reader):
    """Never counted, moved by no reader and never deleted: the reason is told, and the run can be trained again."""
    change, reason = DAMAGE[damage]
    store.write(finished(1))
    store.write(finished(2))
    path = store.path(f"{1:016x}") / "record.json"
    rewrite(path, damaged := change(path.read_bytes()))
    with caplog.at_level(logging.WARNING):
        if reader == "frame":
            assert list(store.frame().run_id) == [f"{2:016x}"]
        elif reader == "records":
            assert [record["run_id"] for record in store.records()] == [f"{2:016x}"]
        elif reader == "status":
            assert store.status(f"{1:016x}") is None
        else:
            with pytest.raises(StoreError, match="no run"):
                store.record(f"{1:016x}")
    assert f"run {1:016x} is not counted" in caplog.text
    assert reason in caplog.text
    assert list(store.unreadable) == [f"{1:016x}"]
    assert reason in store.unreadable[f"{1:016x}"]
    assert (store.quarantined, path.read_bytes()) == ([], damaged)
    store.write(finished(1))
    (folder,) = store.quarantined
    assert folder.name == f"{1:016x}-1"
    assert (folder / "record.json").read_bytes() == damaged
    assert reason in (folder / "WHY.txt").read_text(encoding="utf-8")
    assert store.has(f"{1:016x}")
    assert len(store.frame()) == 2


@pytest.mark.parametrize("reader", ["frame", "write"])
def test_a_folder_without_a_record_is_set_aside_by_a_write(store, reader):
    store.write(finished(1))
    store.path(f"{2:016x}").mkdir()
    (store.path(f"{2:016x}") / "predictions.parquet").write_bytes(b"half")
    if reader == "write":
        store.write(finished(2))
    assert len(store.frame()) == (2 if reader == "write" else 1)
    assert [folder.name for folder in store.quarantined] == ([f"{2:016x}-1"] if reader == "write" else [])


def test_the_same_run_can_be_damaged_twice(store):
    for _ in range(2):
        store.write(finished(1))
        rewrite(store.path(f"{1:016x}") / "record.json", b"{")
        assert not store.has(f"{1:016x}")
    store.write(finished(1))
    assert [folder.name for folder in store.quarantined] == [f"{1:016x}-1", f"{1:016x}-2"]


def test_a_record_of_a_newer_version_stops_the_reader_and_stays(store):
    store.write(finished(1))
    path = store.path(f"{1:016x}") / "record.json"
    rewrite(path, dumps(finished(1) | {"format": 2}))
    with pytest.raises(StoreError, match="newer lora_bench"):
        store.frame()
    assert path.exists()
    assert store.quarantined == []


def test_other_folders_in_the_store_are_left_alone(store):
    store.write(finished(1))
    (store.root / "report").mkdir()
    (store.root / "notes.txt").write_text("mine", encoding="utf-8")
    assert len(Store(store.root).frame()) == 1
    assert names_in(store.root) == {f"{1:016x}", "report", "notes.txt"}


# Disks


@pytest.mark.parametrize(
    ("code", "remedy"),
    [(errno.ENOSPC, "free some space"), (errno.EDQUOT, "free some space"), (errno.EROFS, "store=FOLDER")],
    ids=["full", "quota", "read_only"],
)
@pytest.mark.parametrize("at", ["to_disk", "rename"])
def test_a_disk_that_refuses_is_explained_and_leaves_nothing(store, monkeypatch, code, remedy, at):
    store.write(finished(1))

    def refuse(*_):
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(stores, at, refuse)
        with pytest.raises(StoreError, match=rf"cannot write run 0+2 in .*{os.strerror(code)}.*{remedy}"):
            store.write(finished(2))
    assert names_in(store.root) == {f"{1:016x}"}
    store.write(finished(2))


def test_a_full_disk_under_safetensors_is_explained_too(store):
    """It raises an exception of its own that is no OSError."""

    def save(folder: Path) -> None:
        raise RuntimeError("I/O error: No space left on device (os error 28)")

    with pytest.raises(StoreError, match="free some space"):
        store.write(finished(), adapter=save)


def test_a_size_limit_of_the_system_is_explained(store):
    """The real thing: the kernel cuts the write off, as a quota does."""
    code = (
        "import resource, signal, sys; sys.path[:0] = sys.argv[2:]\n"
        "from lora_bench.store.folder import Store; from lora_bench.store.errors import StoreError\n"
        "from test_store import finished\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))\n"
        "try: Store(sys.argv[1]).write(finished(1))\n"
        "except StoreError as error: print(error)\n"
    )
    here = Path(__file__).parent
    command = [sys.executable, "-c", code, str(store.root), str(here), *map(str, here.parents[:2])]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=True)
    assert "File too large" in done.stdout
    assert "free some space" in done.stdout
    assert names_in(store.root) == set()


def test_a_store_that_cannot_be_written_can_be_read(store, monkeypatch, caplog):
    """Analysis of a shared, read-only results folder."""
    store.write(finished(1))
    store.write(finished(2))
    rewrite(store.path(f"{2:016x}") / "record.json", b"{")
    (store.root / "index.jsonl").unlink()
    refused = OSError(errno.EROFS, os.strerror(errno.EROFS))

    def refuse(*_, **__):
        raise refused

    monkeypatch.setattr(Lock, "acquire", refuse)
    monkeypatch.setattr(stores.os, "rename", refuse)
    monkeypatch.setattr(Path, "mkdir", refuse)
    assert list(Store(store.root).frame().run_id) == [f"{1:016x}"]
    assert "is not counted" in caplog.text
    with pytest.raises(StoreError, match=r"Read-only file system.*store=FOLDER"), store.claim(f"{1:016x}"):
        pass


# Processes


def _hold(root: Path, run_id: str, ready, seconds: float) -> None:
    with Store(root).claim(run_id) as is_held:
        ready.put(is_held)
        time.sleep(seconds)


def test_a_claim_is_exclusive_and_free_again_when_its_owner_is_killed(store):
    """Two launches of one sweep must not train the same run, and a dead launch must not block it for ever."""
    context = multiprocessing.get_context("spawn")
    ready = context.Queue()
    owner = context.Process(target=_hold, args=(store.root, f"{1:016x}", ready, PATIENCE_SECONDS))
    owner.start()
    assert ready.get(timeout=PATIENCE_SECONDS)
    with store.claim(f"{1:016x}") as is_held:
        assert not is_held
    with store.claim(f"{2:016x}") as is_held:
        assert is_held
    os.kill(owner.pid, signal.SIGKILL)
    owner.join()
    with store.claim(f"{1:016x}") as is_held, store.claim(f"{1:016x}") as is_held_again:
        assert is_held
        assert not is_held_again
    with store.claim(f"{1:016x}") as is_held:
        assert is_held


N_RUNS = 24


def _work(root: Path, worker: int, trained) -> None:
    """What a worker of a sweep does: claim a run that is missing, train it, write it."""
    store = Store(root)
    for number in np.random.default_rng(worker).permutation(N_RUNS):
        run_id = f"{number:016x}"
        with store.claim(run_id) as is_held:
            if is_held and not store.has(run_id):
                store.write(failed(int(number), data={"worker": worker}))
                store.write(finished(int(number), data={"worker": worker}))
                trained.put(int(number))


def test_eight_writers_share_a_store(store):
    """Each run is trained once, no record is lost or torn, and the index agrees with the records."""
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    trained = context.Queue()
    workers = [context.Process(target=_work, args=(store.root, worker, trained)) for worker in range(8)]
    for worker in workers:
        worker.start()
    while any(worker.is_alive() for worker in workers):
        store.frame()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 8
    assert sorted(trained.get(timeout=PATIENCE_SECONDS) for _ in range(N_RUNS)) == list(range(N_RUNS))
    assert trained.empty()
    frame = Store(store.root).frame()
    assert list(frame.status) == ["finished"] * N_RUNS
    (store.root / "index.jsonl").unlink()
    pd.testing.assert_frame_equal(Store(store.root).frame(), frame)
    assert store.quarantined == []
    assert names_in(store.root) == {f"{number:016x}" for number in range(N_RUNS)}


def _race(root: Path, worker: int, won, start) -> None:
    store = Store(root)
    start.wait()
    for number in range(10):
        try:
            store.write(finished(number, data={"worker": worker}))
            won.put((number, worker))
        except AlreadyFinished:
            pass


def test_without_claims_the_first_writer_wins_and_the_record_is_its(store):
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    won, start = context.Queue(), context.Event()
    workers = [context.Process(target=_race, args=(store.root, worker, won, start)) for worker in range(8)]
    for worker in workers:
        worker.start()
    start.set()
    winners = dict(won.get(timeout=PATIENCE_SECONDS) for _ in range(10))
    for worker in workers:
        worker.join()
    assert won.empty()
    assert {number: store.record(f"{number:016x}")["data"]["worker"] for number in range(10)} == winners


def _die_while_writing(root: Path, at: str) -> None:
    """Write runs 1 (new) and 2 (in place of a failed one), and be killed at a given moment."""

    def die(*_) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    store = Store(root)
    if at == "adapter":
        store.write(finished(1), adapter=die)
    elif at == "rename":
        folder.rename = die
        store.write(finished(1))
    elif at == "replace":
        rename, calls = folder.rename, []

        def second(*places) -> bool:
            calls.append(places)
            return rename(*places) if len(calls) == 1 else bool(die())

        folder.rename = second
        store.write(finished(2))


@pytest.mark.parametrize(
    ("at", "expected"),
    [
        ("adapter", {2: "failed", 3: "finished"}),
        ("rename", {1: "finished", 2: "failed", 3: "finished"}),
        ("replace", {2: "finished", 3: "finished"}),
    ],
)
def test_a_writer_that_is_killed_loses_only_what_was_not_complete(store, at, expected):
    """What lacked only its rename is kept; the rest is swept away; a live writer's folder is never touched."""
    store.write(failed(2))
    worker = multiprocessing.get_context("spawn").Process(target=_die_while_writing, args=(store.root, at))
    worker.start()
    worker.join()
    assert worker.exitcode == -signal.SIGKILL
    assert any(name.startswith(".tmp-") for name in names_in(store.root))
    assert len(Store(store.root).frame()) == (0 if at == "replace" else 1)

    def look(folder: Path) -> None:
        Store(store.root).write(finished(3))
        assert folder.exists()

    Store(store.root).write(finished(4), adapter=look)
    statuses = Store(store.root).statuses()
    assert statuses == {f"{number:016x}": status for number, status in {**expected, 4: "finished"}.items()}
    assert names_in(store.root) == set(statuses)
