"""The mirror beside the store: what W&B lacks is uploaded from the records alone, and what differs is said."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lora_bench.store.folder import Store
from lora_bench.store.record import Failure
from lora_bench.tracking import sync as mirror
from lora_bench.tracking.live import Silence, open_tracking, summary_of
from lora_bench.tracking.sync import Copy, compare, copies_offline, read_offline
from patience import PATIENCE_SECONDS
from records import failed_record
from wandb_server import KEY, _no_account, _root, finished, read_back, settings, stub_server  # noqa: F401


def failed(number: int) -> dict:
    return failed_record(Failure.of(ValueError("it broke\nbadly")), number)


def copy_of(record: dict, **changed) -> Copy:
    scores = {
        f"{split}/{name}": value for split, values in record["scores"].items() for name, value in (values or {}).items()
    }
    return Copy(**{"where": "w", "run_id": record["run_id"], "status": record["status"], "scores": scores} | changed)


def wait_for_ends(directory: Path, n_runs: int) -> list[Copy]:
    """wandb's service may write the end of a run after it has said that the run is finished."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        copies = copies_offline(directory)
        if sum(copy.status is not None for copy in copies) >= n_runs or time.monotonic() > deadline:
            return copies
        time.sleep(0.1)


# Comparing


def test_a_run_is_mirrored_when_one_copy_says_the_same():
    records = [finished(1), failed(2)]
    killed, other = copy_of(records[0], status=None, scores={}), copy_of(records[0], scores={"report/matthews": 0.1})
    found = compare(records, [killed, other, copy_of(records[0]), copy_of(records[1])])
    assert found.same == [f"{1:016x}", f"{2:016x}"]
    assert (found.missing, found.different, found.foreign) == ([], {}, [])
    assert found.unended == [killed]


def test_what_is_missing_different_or_foreign_is_told_apart():
    records = [finished(1), finished(2), finished(3), failed(4)]
    copies = [
        copy_of(records[1], status=None),  # killed: nothing that a reader may trust
        copy_of(records[2], scores={"report/matthews": 0.41, "report/accuracy": 0.6, "select/matthews": 0.5}),
        copy_of(records[3], status="finished"),
        copy_of(finished(9)),
    ]
    found = compare(records, copies)
    assert found.missing == [f"{1:016x}", f"{2:016x}"]
    assert found.different == {
        f"{3:016x}": [
            "select accuracy is 0.7, but w says None",
            "report matthews is 0.4, but w says 0.41",
        ],
        f"{4:016x}": ["it failed, but w says finished"],
    }
    assert found.foreign == [copies[3]]


# Offline folders


@pytest.fixture
def store(tmp_path) -> Store:
    store = Store(tmp_path / "runs")
    for record in (finished(1), finished(2), failed(3)):
        store.write(record)
    return store


def sync(*arguments, store):
    return mirror.main(["--store", str(store.root), "--project", "tests", *arguments])


def test_offline_folders_are_filled_up_from_the_records(store, tmp_path, capsys):
    """As a sweep leaves them: one run mirrored while it trained, the others lost."""
    tracking = open_tracking(settings(), directory=store.root / ".tracking")
    mirror.upload(store.record(f"{1:016x}"), tracking)
    tracking.close()
    wait_for_ends(store.root / ".tracking", 1)
    assert sync("--offline", "--dry-run", store=store) == 1
    assert f"missing: 2 ({2:016x}, {3:016x})" in capsys.readouterr().out
    assert sync("--offline", store=store) == 0
    assert "written offline: 2" in capsys.readouterr().out
    written = {copy.run_id: copy for copy in wait_for_ends(store.root / ".tracking", 3)}
    assert sync("--offline", "--dry-run", store=store) == 0
    assert "same: 3" in capsys.readouterr().out
    assert written.keys() == store.statuses().keys() and len(written) == 3
    for record in store.records():
        assert written[record["run_id"]].status == record["status"]
        assert mirror.differences(record, written[record["run_id"]]) == []


@pytest.mark.parametrize(
    ("key", "mode", "said"),
    [("", "", "no W&B key was found; `wandb login` once"), (KEY, "", "does not answer"), ("", "online", "no W&B key")],
)
def test_where_wandb_cannot_be_asked_sync_fails_and_says_why(store, monkeypatch, capsys, key, mode, said):
    """Else a script takes a comparison with some folders for one with W&B, and its runs for sent."""
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    for name, value in (("WANDB_API_KEY", key), ("WANDB_MODE", mode)):
        if value:
            monkeypatch.setenv(name, value)
    assert sync(store=store) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("lora-bench sync: ") and said in line and "--offline" in line
    assert not copies_offline(store.root / ".tracking")


@pytest.mark.parametrize("mode", ["offline", "dryrun"])
def test_who_asks_for_offline_needs_no_key(store, monkeypatch, mode):
    monkeypatch.setenv("WANDB_MODE", mode)
    assert sync("--dry-run", store=store) == 1


def test_where_wandb_is_left_out_nothing_counts_as_written(store, monkeypatch, capsys):
    monkeypatch.setattr(mirror, "open_tracking", lambda *_, **__: Silence())
    assert sync("--offline", store=store) == 1
    assert "written offline: 0\n" in capsys.readouterr().out
    assert sync("--offline", "--dry-run", store=store) == 1


def test_an_upload_has_the_curves_of_the_record_in_order(store, tmp_path):
    tracking = open_tracking(settings(), directory=tmp_path / "mirror")
    mirror.upload(store.record(f"{1:016x}"), tracking)
    tracking.close()
    wait_for_ends(tmp_path / "mirror", 1)
    (folder,) = (tmp_path / "mirror" / "wandb").glob("offline-run-*")
    rows = [one["history"]["item"] for one in read_back(folder) if one["type"] == "history"]
    rows = [{key: value for key, value in row.items() if not key.startswith("_")} for row in rows]
    assert rows == [
        {"step": 2, "train/loss": 0.7, "train/lr": 1e-3, "train/grad_norm": 1.0},
        {"step": 3, "epoch": 1, "select/matthews": 0.2},
        {"step": 4, "train/loss": 0.6, "train/lr": 1e-3, "train/grad_norm": 0.9},
        {"step": 6, "train/loss": 0.5, "train/lr": 0.0, "train/grad_norm": 0.8},
        {"step": 6, "epoch": 2, "select/matthews": 0.4},
    ]


def test_our_reader_of_offline_files_agrees_with_wandbs_own(store, tmp_path):
    """Also for a run that spans several blocks of the file, and never for more than was written."""
    record = store.record(f"{1:016x}")
    long = {"step": list(range(1, 3001)), **{name: [0.5] * 3000 for name in ("loss", "lr", "grad_norm")}}
    record["history"] = {**long, "epochs": []}
    tracking = open_tracking(settings(), directory=tmp_path / "mirror")
    mirror.upload(record, tracking)
    tracking.close()
    wait_for_ends(tmp_path / "mirror", 1)
    (path,) = (tmp_path / "mirror" / "wandb").glob("offline-run-*/*.wandb")
    assert path.stat().st_size > 3 * mirror.BLOCK
    theirs, config, summary = read_back(path.parent), {}, {}
    for one in theirs:
        config |= one["run"]["config"]["update"] if one["type"] == "run" else {}
        summary |= one["summary"]["update"] if one["type"] == "summary" else {}
    name, ours, our_summary = read_offline(path)
    assert name == next(one["run"]["run_id"] for one in theirs if one["type"] == "run")
    assert {key: ours[key] for key in config if key != "_wandb"} == {k: v for k, v in config.items() if k != "_wandb"}
    assert our_summary == summary
    content = path.read_bytes()
    path.write_bytes(content[:200] + bytes(reversed(content[200:1200])) + content[1200:])
    assert [copy.status for copy in copies_offline(tmp_path / "mirror")] == [None]
    for cut in (0, 3, 7, 100, mirror.BLOCK + 5, len(content) - 1):
        path.write_bytes(content[:cut])
        copies = copies_offline(tmp_path / "mirror")
        assert [copy.run_id for copy in copies] == [f"{1:016x}"]
        assert cut > mirror.BLOCK or copies[0].status is None


# The server


def listing(records: list[dict]):
    """W&B's answer to a listing: these runs, as the stub's project holds them."""

    def answer(given: dict) -> dict:
        assert json.loads(given["filters"]) == {"jobType": "train"}
        edges = []
        for place, record in enumerate(records):
            flat = {"status": record["status"]}
            for split, values in record["scores"].items():
                flat |= {f"scores/{split}/{name}": value for name, value in (values or {}).items()}
            node = {
                "projectId": "1",
                "id": f"id{place}",
                "name": f"{record['run_id']}-{place:06x}",
                "displayName": "a run",
                "state": "finished",
                "tags": [],
                "config": json.dumps({"run_id": {"value": record["run_id"]}}),
                "summaryMetrics": json.dumps(flat),
                "systemMetrics": "{}",
                "user": {"name": "me", "username": "me"},
            }
            edges.append({"node": node, "cursor": str(place)})
        page = {"endCursor": None, "hasNextPage": False}
        project = {"internalId": "1", "runCount": len(edges), "readOnly": False}
        return {"project": {**project, "runs": {"edges": edges, "pageInfo": page}}}

    return answer


def sync_process(url: str, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "lora_bench.tracking.sync", "--project", "tests", *arguments]
    environment = os.environ | {"WANDB_BASE_URL": url, "WANDB_API_KEY": KEY, "PYTHONPATH": str(_root())}
    return subprocess.run(command, capture_output=True, encoding="utf-8", env=environment, timeout=PATIENCE_SECONDS)


def test_what_the_server_lacks_is_uploaded_and_what_differs_is_said(store, tmp_path):
    wrong = finished(2)
    wrong["scores"]["report"]["matthews"] = 0.3
    tracking = open_tracking(settings(), directory=store.root / ".tracking")
    mirror.upload(store.record(f"{3:016x}"), tracking)  # kept offline while it trained
    tracking.close()
    with stub_server() as server:
        server.answers = {"Runs": listing([finished(1), wrong])}
        checked = sync_process(server.url, "--store", str(store.root), "--dry-run")
        sent_by_dry_run = [body for _, path, body, _ in server.received if "file_stream" in path]
        done = sync_process(server.url, "--store", str(store.root))
        received = list(server.received)
    assert checked.returncode == 1, checked.stderr
    assert not sent_by_dry_run
    assert done.returncode == 1, done.stderr
    assert "me/tests: 2 copies" in done.stdout
    assert "same: 1" in done.stdout
    assert f"missing: 1 ({3:016x})" in done.stdout
    assert f"{2:016x}: report matthews is 0.4, but me/tests/{2:016x}-000001 says 0.3" in done.stdout
    assert "uploaded 1 of 1" in done.stdout
    assert KEY not in done.stdout + done.stderr

    streams = [(path, body) for _, path, body, _ in received if "file_stream" in path]
    assert {path.split("/")[-2].split("-")[0] for path, _ in streams} == {f"{3:016x}"}
    assert [body["exitcode"] for _, body in streams if body.get("complete")] == [1]
    # The offline folder of the run is not to be sent a second time.
    assert "1 offline folders are marked as sent" in done.stdout
    assert len(list((store.root / ".tracking").glob("wandb/offline-run-*/*.wandb.synced"))) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"home", "cwd", "runs"}
    assert not list((tmp_path / "cwd").iterdir())


def test_an_upload_carries_the_same_summary_as_the_live_mirror():
    record = failed(2)
    assert summary_of(record)["error_kind"] == "exception"
    assert summary_of(record)["error_message"] == "it broke"
    summary = summary_of(finished(1))
    assert (summary["report_score"], summary["select_score"]) == (0.4, 0.5)
    assert "error_kind" not in summary


def test_without_a_store_nothing_is_asked(tmp_path, capsys):
    assert sync(store=Store(tmp_path / "nowhere")) == 2
    assert "store: no folder" in capsys.readouterr().err
    assert not Path("nowhere").exists()
