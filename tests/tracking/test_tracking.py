"""The mirror: what W&B is given, read back with W&B's own tools, and that losing it never costs a run."""

import json
import logging
import math
import os
import shlex
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager, suppress
from dataclasses import fields
from pathlib import Path

import pandas as pd
import pytest
import wandb

from lora_bench.config.schema import RunConfig
from lora_bench.tracking import artifacts
from lora_bench.tracking import live as trackings
from lora_bench.tracking.live import Silence, WandbTracking, choose_mode, open_tracking
from lora_bench.tracking.offline import kept_offline, sent_mark
from patience import PATIENCE_SECONDS
from records import parts
from wandb_server import (
    KEY,
    _no_account,  # noqa: F401
    _root,
    head,
    read_back,
    settings,
    stub_server,
)


def of_type(records: list[dict], kind: str) -> list[dict]:
    return [record[kind] for record in records if record["type"] == kind]


# What is sent


def test_without_tracking_wandb_is_not_imported():
    code = (
        "import sys; from pathlib import Path; from lora_bench.tracking.live import open_tracking\n"
        "from lora_bench.config.schema import TrackingConfig\n"
        "run = open_tracking(TrackingConfig(backend='none'), directory=Path('nowhere')).start({})\n"
        "run.log({'loss': 1.0}, step=1); run.finish('finished', {})\n"
        "assert 'wandb' not in sys.modules and not Path('nowhere').exists()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"PYTHONPATH": str(_root())})


def test_live_runs_stay_apart_and_end_with_their_own_status(tmp_path, capfd):
    """The failures of peers: jobs that fold into one W&B run, and failed ones that show as finished."""
    tracking = open_tracking(settings(tags=["mine"]), directory=tmp_path / "mirror")
    # The first two are the same run, trained twice.
    runs = [tracking.start(head(number, invocation={"sweep": "quick"})) for number in (1, 1, 2)]
    for step in range(3):
        for place, run in enumerate(runs):
            run.log({"train": {"loss": place + step / 10, "lr": 1e-3, "grad_norm": math.nan}}, step=step)
    runs[0].log({"epoch": 1, "select": {"matthews": 0.5, "accuracy": None}}, step=3)
    runs[1].finish("failed", {"error_kind": "nonfinite"})
    runs[0].finish("finished", {"report": {"matthews": 0.4}, "cost": {"pack_seconds": 2.5}})
    runs[0].finish("failed")
    runs[2].finish("finished")
    tracking.close()

    written = [read_back(folder) for folder in sorted((tmp_path / "mirror" / "wandb").glob("offline-run-*"))]
    written = {records[1]["run"]["run_id"]: records for records in written}
    assert len(written) == 3
    losses = {}
    for run_id, records in written.items():
        rows = [row["item"] for row in of_type(records, "history")]
        assert not any("train/grad_norm" in row for row in rows)
        losses[run_id] = [row["train/loss"] for row in rows if "train/loss" in row]
    assert sorted(losses.values()) == [[0.0, 0.1, 0.2], [1.0, 1.1, 1.2], [2.0, 2.1, 2.2]]
    (one,) = [run_id for run_id, values in losses.items() if values[0] == 0.0]
    (two,) = [run_id for run_id, values in losses.items() if values[0] == 1.0]
    assert {run_id.split("-")[0] for run_id in (one, two)} == {f"{1:016x}"}
    assert of_type(written[one], "exit")[0].get("exit_code", 0) == 0
    assert of_type(written[two], "exit")[0]["exit_code"] == 1

    start = written[one][1]["run"]
    assert start["job_type"] == "train"
    assert start["project"] == "tests"
    assert start["run_group"] == head(1)["group"] == head(2)["group"]
    assert set(start["tags"]) == {"tiny", "cola", "lora", "qv", "r4", "quick", "mine"}
    config = start["config"]["update"]
    assert {"targets": "qv", "rank": 4, "rank_q": 4, "lr": 0.001, "seed": 1, "task": "cola"}.items() <= config.items()
    axes = {
        metric.get("name") or metric["glob_name"]: metric.get("step_metric")
        for metric in of_type(written[one], "metric")
    }
    assert axes == {
        **dict.fromkeys(("step", "epoch")),
        "train/*": "step",
        **dict.fromkeys(("select/*", "report/*", "report_mismatched/*"), "epoch"),
    }
    summary = {}
    for change in of_type(written[one], "summary"):
        summary |= change["update"]
    assert {"status": "finished", "report/matthews": 0.4, "cost/pack_seconds": 2.5}.items() <= summary.items()
    output = capfd.readouterr()
    assert output.out == ""
    assert output.err == ""


def test_the_config_of_a_mirror_can_be_pasted_as_overrides():
    """Who looks at a run on W&B wants it again: its keys are those of the command line, with the record's values."""
    science = parts(1)["config"]
    given = ["adapter.targets=qv", "task.text=a b", f"tracking.entity={KEY}"]
    config = trackings._flat(head(1, invocation={"overrides": given})["config"], ".")
    for part in ("adapter", "train"):
        shown = {name.partition(".")[2]: value for name, value in config.items() if name.startswith(f"{part}.")}
        assert shown == {name: value for name, value in science[part].items() if value is not None}
        assert shown.keys() <= {name.name for name in fields(getattr(RunConfig(), part))}
    assert shlex.split(config["command"])[:3] == ["lora-bench", *given[:2]]
    assert "command" not in head(1)["config"]


def test_files_stay_in_the_given_folder_and_hold_no_secret(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.delenv("WANDB_CACHE_DIR")
    tracking = open_tracking(settings(tags=[f"tag {KEY}"]), directory=tmp_path / "mirror")
    run = tracking.start(head(1) | {"name": f"run {KEY}", "config": {"note": {"deep": f"key {KEY}"}}})
    run.log({"loss": 1.0}, step=0)
    run.finish("failed", {"error_message": f"refused {KEY}"})
    tracking.close()
    os.environ.pop("WANDB_CACHE_DIR", None)
    assert list((tmp_path / "cwd").iterdir()) == []
    files = [path for path in (tmp_path / "mirror").rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in files)
    for path in [*files, *(tmp_path / "home").rglob("*")]:
        assert not path.is_file() or KEY.encode() not in path.read_bytes(), path


def test_names_say_what_the_run_is():
    one = head(1)
    assert one["name"] == "tiny cola qv r4 lr0.001 s1"
    assert one["group"].startswith("tiny cola qv r4 lr0.001 ")
    config = parts()["config"] | {"adapter": {"method": "head_only"}, "train": {"head_lr": 1e-3}}
    floor = head(1, manifest=[], config=config)
    assert floor["name"] == "tiny cola head_only s1"
    assert "rank" not in floor["config"]


# Which mode

UNREACHABLE = "no answer"


@pytest.mark.parametrize(
    ("mode", "variable", "has_key", "problem", "expected"),
    [
        ("auto", None, False, None, "offline"),
        ("auto", None, True, None, "online"),
        ("auto", None, True, UNREACHABLE, "offline"),
        ("auto", "offline", True, None, "offline"),
        ("auto", "dryrun", True, None, "offline"),
        ("auto", "online", True, None, "online"),
        ("auto", "online", False, None, "offline"),
        ("auto", "disabled", True, None, "disabled"),
        ("online", "disabled", True, None, "disabled"),
        ("online", "offline", True, None, "online"),
        ("online", None, True, UNREACHABLE, "offline"),
        ("online", None, False, None, "offline"),
        ("offline", "online", True, None, "offline"),
    ],
)
def test_the_mode_follows_wish_key_and_network(monkeypatch, caplog, mode, variable, has_key, problem, expected):
    """A machine without an account or a network must work without a word of configuration, and say what it did."""
    if variable:
        monkeypatch.setenv("WANDB_MODE", variable)
    monkeypatch.setattr(trackings, "_base_url", lambda: "https://wandb.example")
    monkeypatch.setattr(trackings, "_has_key", lambda url: has_key)
    monkeypatch.setattr(trackings, "_unreachable", lambda url: problem)
    with caplog.at_level(logging.INFO):
        assert choose_mode(settings(mode=mode)) == expected
    is_lesser = expected == "offline" and mode != "offline" and variable not in ("offline", "dryrun")
    assert ("kept offline" in caplog.text) == is_lesser


def test_disabled_wandb_is_silence(monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert isinstance(open_tracking(settings(mode="auto"), directory=tmp_path / "mirror"), Silence)


@pytest.mark.parametrize(
    ("url", "host", "expected"),
    [
        ("https://api.wandb.ai", "api.wandb.ai", True),
        ("https://api.forge.coreweave.com", "api.wandb.ai", True),
        ("https://wandb.mine.example:8080", "wandb.mine.example:8080", True),
        ("https://wandb.mine.example", "api.wandb.ai", False),
        ("https://api.wandb.ai", "github.com", False),
    ],
)
def test_the_key_is_found_where_wandb_login_puts_it(monkeypatch, tmp_path, url, host, expected):
    assert not trackings._has_key(url)
    (tmp_path / "home" / ".netrc").write_text(f"machine {host}\n  login user\n  password {KEY}\n", encoding="utf-8")
    assert trackings._has_key(url) == expected
    (tmp_path / "home" / ".netrc").write_text("garbled {", encoding="utf-8")
    assert not trackings._has_key(url)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    assert trackings._has_key(url)


# Servers that fail


@contextmanager
def hanging_server():
    """Takes connections and never answers, as behind a firewall that drops. Yields its address and who has called."""
    callers: list[socket.socket] = []

    def take(listener):
        with suppress(OSError):
            while True:
                callers.append(listener.accept()[0])

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(50)
        threading.Thread(target=take, args=(listener,), daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", callers
    for caller in callers:
        caller.close()


def test_a_server_that_hangs_costs_the_probe_and_is_asked_once(monkeypatch, tmp_path, caplog):
    assert trackings.PROBE_SECONDS <= 5
    monkeypatch.setattr(trackings, "PROBE_SECONDS", 1.0)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    with hanging_server() as (url, callers):
        monkeypatch.setattr(trackings, "_base_url", lambda: url)
        assert choose_mode(settings(mode="auto")) == "offline"
        assert choose_mode(settings(mode="auto")) == "offline"
        assert len(callers) == 1
    assert f"{url} does not answer" in caplog.text


def test_an_unreachable_server_is_asked_once_by_a_sweep_and_never_by_a_run(monkeypatch, tmp_path):
    """With a real wandb, which would otherwise stall every init for 90 seconds."""
    monkeypatch.setattr(trackings, "PROBE_SECONDS", 1.0)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    with hanging_server() as (url, callers):
        monkeypatch.setattr(trackings, "_base_url", lambda: url)
        monkeypatch.setenv("WANDB_BASE_URL", url)
        tracking = open_tracking(settings(mode="auto"), directory=tmp_path / "mirror")
        for number in range(3):
            tracking.start(head(number)).finish("finished")
        tracking.close()
        assert len(callers) == 1


@pytest.mark.parametrize("path", ["refused", "no name", "error"])
def test_servers_that_do_not_serve_are_unreachable(path):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        if path == "no name":
            url = "http://no-such-host.invalid"
        if path != "error":
            assert trackings._unreachable(url)
            return
    with stub_server(status=503) as server:
        assert trackings._unreachable(server.url) == "status 503"


ONLINE = """
import logging, os, sys
from pathlib import Path
sys.path[:0] = sys.argv[1:3]
logging.basicConfig(level=logging.INFO, format="LOG %(message)s")
from patience import PATIENCE_SECONDS
from lora_bench.tracking import live as trackings
from wandb_server import head, settings
trackings.PROBE_SECONDS = trackings.SETTINGS["init_timeout"] = PATIENCE_SECONDS
trackings.SETTINGS["finish_timeout"] = float(sys.argv[3])
tracking = trackings.open_tracking(settings(mode="auto"), directory=Path("mirror"))
print("MODE", tracking.mode, flush=True)
runs = [tracking.start(head(number)) for number in (1, 2, 3)]
for run in runs:
    run.log({"loss": 0.5, "lr": 0.001}, step=1)
print("STARTED", flush=True)
sys.stdin.readline()
for run, status in zip(runs, ("finished", "failed", "finished")):
    run.finish(status, {"report": {"matthews": 0.4}})
tracking.close()
print("FINISHED", flush=True)
tracking.start(head(4)).finish("finished")
tracking.close()
print("MODE", tracking.mode, flush=True)
"""


def online_process(url: str, *, finish_seconds: float = PATIENCE_SECONDS) -> subprocess.Popen:
    """A process of its own: wandb keeps its server's address for as long as a process lives."""
    command = [sys.executable, "-c", ONLINE, str(Path(__file__).parents[1]), str(_root()), str(finish_seconds)]
    environment = os.environ | {"WANDB_BASE_URL": url, "WANDB_API_KEY": KEY}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, encoding="utf-8", env=environment)


def test_online_runs_reach_the_server_with_their_status(tmp_path):
    with stub_server() as server:
        process = online_process(server.url)
        output, errors = process.communicate("\n", timeout=PATIENCE_SECONDS)
        received = list(server.received)
    assert process.returncode == 0, errors
    assert "LOG" not in errors, errors
    assert output.split()[:2] == ["MODE", "online"]
    upserts = [
        body["variables"] for _, path, body, _ in received if path.endswith("/graphql") and "groupName" in str(body)
    ]
    started = {given["name"]: given for given in upserts if given.get("groupName")}
    assert sorted(given["displayName"] for given in started.values()) == [
        head(number)["name"] for number in (1, 2, 3, 4)
    ]
    ends = {
        path.split("/")[-2]: body["exitcode"]
        for _, path, body, _ in received
        if "file_stream" in path and body.get("complete")
    }
    assert {run_id.split("-")[0]: code for run_id, code in ends.items()} == {
        f"{number:016x}": int(number == 2) for number in (1, 2, 3, 4)
    }
    probe = next(headers for method, _, _, headers in received if method == "GET")
    assert "Authorization" not in probe


def test_a_server_lost_half_way_is_told_once_and_costs_no_run(tmp_path):
    """Three runs end against a dead server; later ones start offline."""
    with stub_server() as server:
        process = online_process(server.url, finish_seconds=2.0)
        assert [process.stdout.readline().split() for _ in range(2)] == [["MODE", "online"], ["STARTED"]]
    output, errors = process.communicate("\n", timeout=PATIENCE_SECONDS)
    assert process.returncode == 0, errors
    assert output.split() == ["FINISHED", "MODE", "offline"]
    assert errors.count("LOG tracking: W&B stopped answering") == 1
    assert KEY not in output + errors
    assert len(list((tmp_path / "cwd" / "mirror" / "wandb").glob("*run-*/*.wandb"))) == 4


# A wandb that fails


class BrokenRun:
    """A wandb run whose every call fails."""

    def __init__(self):
        self.exit_codes = []

    def define_metric(self, *_, **__) -> None:
        pass

    def log(self, values) -> None:
        raise RuntimeError(f"lost {KEY}")

    @property
    def summary(self):
        raise OSError("disk")

    def finish(self, exit_code: int) -> None:
        self.exit_codes.append(exit_code)
        raise RuntimeError("gone")


def test_a_mirror_that_breaks_is_reported_once_and_fails_nothing(monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    broken = BrokenRun()
    monkeypatch.setattr(wandb, "init", lambda **_: broken)
    tracking = open_tracking(settings(), directory=tmp_path / "mirror")
    for _ in range(2):
        run = tracking.start(head(1))
        run.log({"loss": 1.0}, step=0)
        run.log({"loss": 1.0}, step=1)
        run.finish("failed", {"x": 1})
    assert broken.exit_codes == [1, 1]
    assert len(caplog.records) == 1
    assert "the store keeps everything" in caplog.text
    assert KEY not in caplog.text


def test_a_mirror_that_cannot_start_goes_offline_then_silent(monkeypatch, tmp_path, caplog):
    modes = []

    def refuse(**given):
        modes.append(given["mode"])
        raise RuntimeError("no service")

    monkeypatch.setattr(wandb, "init", refuse)
    tracking = WandbTracking(settings(), directory=tmp_path, mode="online")
    for number in range(3):
        run = tracking.start(head(number))
        run.log({"loss": 1.0}, step=0)
        run.finish("finished")
    assert modes == ["online", "offline"]
    assert len(caplog.records) == 2


def test_a_folder_that_cannot_be_made_leaves_the_mirror_out(tmp_path, caplog):
    (tmp_path / "mirror").write_text("a file", encoding="utf-8")
    tracking = open_tracking(settings(), directory=tmp_path / "mirror")
    assert isinstance(tracking, Silence)
    assert "W&B is left out" in caplog.text


# Files of a run


def stored(folder: Path) -> Path:
    """A run's folder as a store has it, of 300 report rows."""
    n = 300
    (folder / "adapter").mkdir(parents=True)
    (folder / "adapter" / "adapter_model.safetensors").write_bytes(b"weights")
    (folder / "record.json").write_text(json.dumps({"task": {"labels": ["no", "yes"]}}), encoding="utf-8")
    frame = pd.DataFrame({"split": "report", "idx": range(n), "label": [1, 0] * (n // 2), "logit_0": 0.0})
    frame.assign(logit_1=1.0).to_parquet(folder / "predictions.parquet")
    return folder


@pytest.mark.parametrize(
    ("asked", "files"),
    [
        ("none", set()),
        ("records", {"record.json"}),
        ("all", {"record.json", "predictions.parquet", "adapter/adapter_model.safetensors"}),
    ],
)
def test_files_of_a_run_are_kept_as_asked_and_texts_are_short(tmp_path, monkeypatch, asked, files):
    """Nobody's texts leave the machine unasked, and a table of whole documents would fill a quota."""
    secret = "hf_" + "A1b2C3d4E5" * 3
    logged, tables = [], []

    class Run:
        def log_artifact(self, artifact):
            logged.append(artifact)

        def log(self, values):
            tables.append(values["predictions"])

    tracking = WandbTracking(settings(artifacts=asked), directory=tmp_path, mode="offline")
    folder = stored(tmp_path / f"{1:016x}")
    report = pd.DataFrame({"idx": range(300), "text_a": [f"{secret} \x1b[2J" + "long " * 200] * 300})
    trackings._WandbRun(Run(), tracking).keep(folder, report)
    assert {name for artifact in logged for name in artifact.manifest.entries} == files
    assert len(tables) == (asked == "all")
    for table in tables:
        assert table.columns == ["idx", "text_a", "label", "predicted", "logit_0", "logit_1"]
        assert len(table.data) == artifacts.MOST_ROWS
        text, label, predicted = table.data[0][1:4]
        assert len(text) <= artifacts.MOST_LETTERS and secret not in text and "\x1b" not in text
        assert (label, predicted) == ("yes", "yes")


def test_a_run_whose_files_cannot_be_kept_ends_as_ever(tmp_path, caplog):
    class Run(BrokenRun):
        def log_artifact(self, artifact):
            raise OSError("the disk is full")

    tracking = WandbTracking(settings(artifacts="all"), directory=tmp_path, mode="offline")
    trackings._WandbRun(Run(), tracking).keep(stored(tmp_path / f"{1:016x}"), None)
    assert "could not keep files" in caplog.text


def test_what_was_stopped_leaves_no_offline_folder_and_the_rest_is_told(tmp_path):
    """`wandb sync` would send a run twice: as far as it came, and as it was trained again."""
    mirror = tmp_path / "a store" / ".tracking"
    tracking = open_tracking(settings(), directory=mirror)
    runs = [tracking.start(head(number)) for number in (1, 2)]
    runs[0].log({"train": {"loss": 0.5}}, step=1)
    runs[0].finish("stopped")
    runs[1].finish("finished")
    tracking.close()
    (left,) = (mirror / "wandb").glob("offline-run-*")
    assert f"{2:016x}" in left.name
    said = str(kept_offline(mirror))
    assert said.startswith("1 run kept offline") and said.endswith(
        f"{shlex.quote(str(mirror / 'wandb'))}/offline-run-*"
    )
    for file in left.glob("*.wandb"):
        sent_mark(file).touch()
    assert kept_offline(mirror) is None


def test_of_runs_that_train_at_once_one_measures_the_machine(tmp_path, monkeypatch):
    """Its load belongs to all of them; measured in each, a pack of fifty would spend it on itself."""
    given = []

    class Run:
        def __init__(self):
            self.dir, self.summary = str(tmp_path / "files"), {}

        def finish(self, **_):
            pass

        def define_metric(self, *_, **__):
            pass

    monkeypatch.setattr(wandb, "init", lambda **options: given.append(options["settings"].x_disable_stats) or Run())
    tracking = WandbTracking(settings(), directory=tmp_path, mode="offline")
    first, second = (tracking.start(head(number)) for number in (1, 2))
    second.finish("finished")
    tracking.start(head(3))
    first.finish("finished")
    tracking.start(head(4))
    assert given == [False, True, True, False]
