"""W&B without W&B: a server that answers as it does, and runs that are read back."""

import json
import os
import re
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from lora_bench.config.schema import TrackingConfig
from lora_bench.tracking import live as trackings
from lora_bench.tracking.live import head_of
from patience import PATIENCE_SECONDS
from records import finished_record, parts

KEY = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def _no_account(monkeypatch, tmp_path):
    """Tests see no key, no settings and no network of the machine they run on."""
    for name in [name for name in os.environ if name.startswith("WANDB_") and name != "WANDB_SERVICE"]:
        monkeypatch.delenv(name)
    (tmp_path / "home").mkdir()
    (tmp_path / "cwd").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "home" / ".netrc"))
    # Restored afterwards, because open_tracking sets it.
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path / "cwd")
    trackings._unreachable.cache_clear()


def head(number: int = 1, **changed) -> dict:
    run = parts(number)
    names = ("run_id", "cell_id", "config", "manifest", "parameters", "metrics", "environment")
    return head_of(**{name: run[name] for name in names} | changed)


def settings(**changed) -> TrackingConfig:
    return TrackingConfig(**{"backend": "wandb", "project": "tests", "mode": "offline"} | changed)


def read_back(folder: Path) -> list[dict]:
    """The records of an offline run, through `wandb leet inspect`."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(folder)]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=True, timeout=PATIENCE_SECONDS)
    return [json.loads(line) for line in done.stdout.splitlines()]


def _root() -> Path:
    return Path(trackings.__file__).parents[2]


class StubHandler(BaseHTTPRequestHandler):
    """As much of W&B's server as a run needs."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_) -> None:
        pass

    def answer(self, body: object = None) -> None:
        content = json.dumps(body or {}).encode()
        self.send_response(self.server.status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def do_GET(self) -> None:
        self.server.received.append(("GET", self.path, {}, dict(self.headers)))
        self.answer()

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.answer()

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        try:
            body = json.loads(content)
        except ValueError:  # wandb's own telemetry is no JSON
            return self.answer()
        self.server.received.append(("POST", self.path, body, dict(self.headers)))
        if not self.path.endswith("/graphql"):
            return self.answer({"exitcode": None, "limits": {}})
        operation = re.search(r"(?:query|mutation)\s+(\w+)", body["query"])
        given = body.get("variables") or {}
        if operation and operation[1] in self.server.answers:
            return self.answer({"data": self.server.answers[operation[1]](given)})
        if re.search(r"\bviewer\b", body["query"]):
            viewer = {"id": "dQ==", "entity": "me", "username": "me", "name": "me", "email": "", "teams": {"edges": []}}
            return self.answer({"data": {"viewer": viewer}})
        if operation and operation[1] == "UpsertBucket":
            project = {"id": "cA==", "name": "tests", "entity": {"id": "ZQ==", "name": "me"}}
            bucket = {"id": "aQ==", "name": given.get("name"), "displayName": given.get("displayName"), "config": "{}"}
            bucket |= {"historyLineCount": 0, "project": project}
            return self.answer({"data": {"upsertBucket": {"bucket": bucket, "inserted": True}}})
        if operation and operation[1] == "CreateRunFiles":
            files = [{"name": name, "uploadUrl": f"{self.server.url}/files/{name}"} for name in given["files"]]
            return self.answer({"data": {"createRunFiles": {"runID": "aQ==", "uploadHeaders": [], "files": files}}})
        return self.answer({"data": {}})


@contextmanager
def stub_server(status: int = 200):
    server = ThreadingHTTPServer(("127.0.0.1", 0), StubHandler)
    server.status, server.received = status, []
    server.answers = {}  # further operations, by name: what is made of their variables
    server.url = f"http://127.0.0.1:{server.server_port}"
    server.handle_error = lambda *_: None
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


HISTORY = {
    "step": [2, 4, 6],
    "loss": [0.7, 0.6, 0.5],
    "lr": [1e-3, 1e-3, 0.0],
    "grad_norm": [1.0, 0.9, 0.8],
    "epochs": [{"epoch": n, "step": 3 * n, "select": {"matthews": 0.2 * n, "accuracy": None}} for n in (1, 2)],
}


def finished(number: int) -> dict:
    return finished_record(number, history=HISTORY, invocation={"sweep": "quick"})
