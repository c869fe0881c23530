"""The dashboard: what is built says what the mirror logs, what is sent is updated and never doubled."""

import json
import os
import re
import subprocess
import sys
import time

import pytest

from fake_store import fake_record, weight_types_records, write_store
from lora_bench.cli import dashboard as script
from lora_bench.questions import findings
from lora_bench.store.folder import Store
from lora_bench.tracking.live import head_of, summary_of
from lora_bench.tracking.sync import read_offline
from patience import PATIENCE_SECONDS
from records import parts
from wandb_server import KEY, _no_account, _root, finished, read_back, stub_server  # noqa: F401

pytest.importorskip("wandb_workspaces", reason="needs the extra dashboard")


@pytest.fixture(scope="module")
def dashboard():
    return script


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    records = weight_types_records(n_seeds=3, best_rate={"q": 1e-2})
    return write_store(tmp_path_factory.mktemp("dashboard") / "runs", records)


@pytest.fixture(scope="module")
def specs(dashboard, root):
    return dashboard.specs("me", "tests", dashboard.read_facts(root))


def values_of(spec, key: str):
    """Every value under a key, wherever it is in a document."""
    if isinstance(spec, dict):
        for name, value in spec.items():
            if name == key:
                yield value
            yield from values_of(value, key)
    elif isinstance(spec, list):
        for value in spec:
            yield from values_of(value, key)


def panels_of(spec) -> list[tuple[str, dict]]:
    found = []
    for panels in values_of(spec, "panels"):
        found += [(one["viewType"], one["config"]) for one in panels if isinstance(one, dict) and "viewType" in one]
    return found


# What is built


@pytest.mark.parametrize("document", ["workspace", "report"])
def test_every_part_of_the_question_has_its_panel(specs, document):
    panels = {config.get("chartTitle", kind): (kind, config) for kind, config in panels_of(specs[document])}
    kind, bars = next(value for title, value in panels.items() if title.startswith("Score on report by placement"))
    assert (kind, bars["groupBy"], bars["groupAgg"], bars["groupArea"]) == (
        *("Bar Chart", "targets.value", "mean"),
        "samples",
    )
    axes = {
        (config["xAxis"], config["yAxis"]): config["xAxisLogScale"]
        for kind, config in panels.values()
        if kind == "Scatter Plot"
    }
    assert axes == {
        ("config:rank_max.value", "summary:report_score"): True,
        ("config:lr.value", "summary:select_score"): True,
        ("config:adapter_parameters.value", "summary:report_score"): True,
        ("summary:cost/attributed_seconds", "summary:report_score"): True,
    }
    _, parallel = next(value for value in panels.values() if value[0] == "Parallel Coordinates Plot")
    assert [column["accessor"] for column in parallel["columns"]] == [
        *("config:targets.value", "config:rank_max.value", "config:lr.value"),
        *("summary:select_score", "summary:report_score"),
    ]
    lines = [config for kind, config in panels.values() if kind == "Run History Line Plot"]
    assert [config.get("metrics") or config["metricRegex"] for config in lines] == [["train/loss"], "select/.*"]
    assert {config["groupBy"] for config in lines} == {"group"}
    text = json.dumps(specs[document])
    assert "qv is " in text  # the verdict
    assert "config:targets.value" in text and "summary:report_score" in text  # the run table's columns


def test_the_panels_read_nothing_that_the_mirror_does_not_log(specs):
    """A panel over a key that no run has is an empty panel, and nobody would notice."""
    record = finished(1)
    names = ("run_id", "cell_id", "config", "manifest", "parameters", "metrics")
    head = head_of(
        **{name: parts(1)[name] for name in names}, environment={"id": "cpu-a"}, invocation={"sweep": "quick"}
    )
    summary = summary_of(record)
    flat = {key for key, value in summary.items() if not isinstance(value, dict)}
    flat |= {f"cost/{key}" for key in summary["cost"]}
    text = json.dumps(specs)
    used = set(re.findall(r'"(config|summary):([^"]+)"', text))
    assert len(used) > 10
    for section, name in used:
        known = flat if section == "summary" else {f"{key}.value" for key in head["config"]}
        assert name in known, f"{section}:{name}"


def test_the_report_shows_placements_at_their_chosen_rates(specs, dashboard, root):
    """A mean over every rate tried would rank placements by their worst."""
    facts = dashboard.read_facts(root)
    chosen = {cell.get("targets"): cell.get("lr") for cell in facts.chosen}
    assert chosen["q"] == 1e-2
    assert chosen["qv"] == 3e-3
    grids = [json.dumps(one) for one in values_of(specs["report"], "runSets")]
    assert sum("0.01" in grid and "lr" in grid for grid in grids) == 3  # placements, rank, cost
    assert all("jobType" in grid for grid in grids)


def test_text_of_users_is_shown_as_it_stands(dashboard):
    text = dashboard.verdict(dashboard.Facts(["On <script>alert(1)</script> [a](b) *x*"]))
    assert "\\<script\\>" in text
    assert "\\[a\\]" in text
    assert "\\*x\\*" in text


def test_a_dry_run_needs_no_key_and_no_network(dashboard, root, capsys):
    arguments = ["--entity", "me", "--project", "tests", "--store", str(root), "--dry-run"]
    assert dashboard.main(arguments) == 0
    said = capsys.readouterr().out
    assert "workspace 'lora_bench: placements and ranks' in me/tests" in said
    assert "report 'lora_bench: which matrices, at which rank, and how sure' in me/tests" in said
    assert "BarPlot: Score on report by placement" in said
    assert "8 cells at their chosen rates" in said


def test_without_a_store_the_dashboard_says_what_it_lacks(dashboard, tmp_path, capsys):
    arguments = ["--entity", "me", "--project", "tests", "--store", str(tmp_path / "none"), "--dry-run"]
    assert dashboard.main(arguments) == 0
    assert "0 sentences" in capsys.readouterr().out
    assert "No finished sweep yet" in dashboard.verdict(dashboard.read_facts(tmp_path / "none"))


# What is sent


class Views:
    """The saved views of the stub's project."""

    def __init__(self):
        self.held: dict[str, dict] = {}
        self.specs: list[str] = []

    def upsert(self, given: dict) -> dict:
        self.specs.append(json.dumps(given["spec"]))
        known = given.get("id") in self.held
        name = given["id"] if known else f"view{len(self.held)}"
        self.held[name] = {**given, "id": name}
        project = {"id": "cA==", "name": given["projectName"], "entityName": given["entityName"]}
        view = {key: given.get(key) for key in ("type", "name", "displayName", "description", "spec")}
        view |= {"id": name, "project": project, "updatedAt": "2026-01-01T00:00:00Z"}
        return {"upsertView": {"view": view, "inserted": not known}}

    def find(self, given: dict) -> dict:
        nodes = [view for view in self.held.values() if view["type"] == given["type"]]
        edges = [{"node": {key: view[key] for key in ("id", "name", "displayName")}} for view in nodes]
        return {"project": {"allViews": {"edges": edges}}}


TWICE = """
import sys
from analysis import dashboard
for store in sys.argv[1:]:
    assert dashboard.main(["--entity", "me", "--project", "tests", "--store", store]) == 0
    print("----" if store != sys.argv[-1] else "", flush=True)
"""


def test_the_same_command_updates_and_never_doubles(root, tmp_path):
    views = Views()
    node = {"id": "cA==", "name": "tests", "entityName": "me", "createdAt": "2026-01-01T00:00:00Z"}
    node |= {"isBenchmark": False, "user": None}
    page = {"edges": [{"node": node, "cursor": "0"}], "pageInfo": {"endCursor": None, "hasNextPage": False}}
    with stub_server() as server:
        server.answers = {
            "LoraBenchViews": views.find,
            "UpsertView2": views.upsert,
            "upsertView": views.upsert,
            "ProjectInternalId": lambda _: {"project": {"id": "cA==", "internalId": "1"}},
            "GetProjects": lambda _: {"models": page},
        }
        environment = os.environ | {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": KEY, "PYTHONPATH": str(_root())}
        done = subprocess.run(
            [sys.executable, "-c", TWICE, str(tmp_path / "none"), str(root)],
            capture_output=True,
            encoding="utf-8",
            env=environment,
            timeout=PATIENCE_SECONDS,
        )
    assert done.returncode == 0, done.stderr
    assert "No finished sweep yet" in "".join(views.specs[:2])
    before, after = done.stdout.split("----")
    assert before.count("created: ") == 2 and "updated" not in before
    assert after.count("updated: ") == 2 and "created" not in after
    kinds = {view["type"]: view for view in views.held.values()}
    assert set(kinds) == {"project-view", "runs"}
    assert len(views.held) == 2
    for view in views.held.values():
        assert (view["entityName"], view["projectName"]) == ("me", "tests")
        assert "qv is " in view["spec"]
        assert KEY not in json.dumps(view)
    assert kinds["runs"]["displayName"] == "lora_bench: which matrices, at which rank, and how sure"


# The end of a sweep


def test_a_sweeps_end_logs_one_run_with_tables_and_figures(command, training, dashboard):
    arguments = ("model=tiny", "task.train_rows=40", "task.report_rows=20", "train.epochs=1", "tracking.mode=offline")
    ended = command("+sweeps=quick", *arguments, "adapter.targets=q,qv", "train.lr=1e-3,1e-2", "seed=0,1")
    assert ended.status == 0, ended.text
    assert "tracking:" not in ended.err
    store = Store("runs")
    (folder,) = (store.root / ".tracking" / "wandb").glob("offline-run-*-analysis-*")
    deadline = time.monotonic() + PATIENCE_SECONDS  # wandb's service may write the end of a run later
    while "status" not in read_offline(next(folder.glob("*.wandb")))[2] and time.monotonic() < deadline:
        time.sleep(0.1)
    records = read_back(folder)
    (start,) = [one["run"] for one in records if one["type"] == "run"]
    assert (start["job_type"], start["run_group"]) == ("analysis", "analysis")
    assert start["config"]["update"]["sweep"] == "quick"
    logged = {}
    for one in records:
        if one["type"] == "history":
            logged |= one["history"]["item"]
    keys = {key.partition(".")[0] for key in logged}
    facts = dashboard.read_facts(store.root)
    assert facts.figures
    assert {"tables/runs", *(f"figures/{name}" for name in facts.figures)} <= keys
    assert any(key.startswith("tables/weight_types_") for key in keys)
    held = {path.name for path in (folder / "files" / "media").rglob("*") if path.is_file()}
    assert sum(name.endswith(".png") for name in held) >= 3
    (runs,) = [path for path in (folder / "files" / "media").rglob("*.table.json") if path.name.startswith("runs")]
    table = json.loads(runs.read_text(encoding="utf-8"))
    assert len(table["data"]) == 8
    again = command("+sweeps=quick", *arguments, "adapter.targets=q,qv", "train.lr=1e-3,1e-2", "seed=0,1")
    assert again.status == 0
    assert len(list((store.root / ".tracking" / "wandb").glob("offline-run-*-analysis-*"))) == 1


def test_findings_that_fail_cost_the_sweep_nothing(command, training, monkeypatch):
    def break_(*_, **__):
        raise RuntimeError("no figure")

    monkeypatch.setattr(findings, "sections", break_)
    ended = command(
        "-m", "model=tiny", "task.train_rows=40", "task.report_rows=20", "tracking.mode=offline", "seed=0,1"
    )
    assert ended.status == 0, ended.text
    assert "the analysis of this sweep was not logged (RuntimeError: no figure)" in ended.err


def test_each_way_of_training_has_a_chosen_rate_of_its_own(tmp_path):
    """Two settings whose best rates differ: their average would be the best rate of neither."""
    best = {800: 1e-2, 8000: 1e-3}
    records = []
    for rows, rate_of in best.items():
        for rate in (1e-3, 3e-3, 1e-2):
            made = fake_record(lr=rate, select=0.6 if rate == rate_of else 0.5)
            made["config"]["task"] |= {"train_rows": rows, "fingerprint": f"t-{rows}"}
            records.append(made | {"run_id": f"{rows:08d}{round(1e4 * rate):08d}"})
    chosen = findings.chosen_cells(Store(write_store(tmp_path, records)).frame())
    assert {cell["train_rows"]: cell["lr"] for cell in chosen} == best
    assert all(type(value) in (str, float, int) for cell in chosen for value in cell.values())


def test_the_head_alone_has_one_chosen_rate(tmp_path):
    records = [
        fake_record(method="head_only", targets="", head_lr=rate, select=select)
        for rate, select in ((1e-4, 0.4), (1e-3, 0.6), (1e-2, 0.5))
    ]
    (cell,) = findings.chosen_cells(Store(write_store(tmp_path, records)).frame())
    assert (cell["method"], cell["head_lr"]) == ("head_only", 1e-3)


def test_what_is_not_installed_is_told_by_the_line_of_a_clone(monkeypatch, capsys):
    """There is no release from which the name `lora-bench` could be installed."""
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    assert script.main(["--entity", "me", "--project", "tests"]) == 2
    assert "in the clone, pip install -e '.[dashboard]' brings it" in capsys.readouterr().err
