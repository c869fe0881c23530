"""No network, no shared caches: what the suite needs is in the repository and in the packages that it installs."""

import copy
import gc
import importlib.util
import logging
import os
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from omegaconf import OmegaConf

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Else each of a hundred processes that tests start would compile the package anew, and each worker all tests.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: a worker a core
os.environ.setdefault("LORA_BENCH_CACHE", os.path.join(tempfile.gettempdir(), f"lora_bench-tests-{os.getuid()}"))

# The same examples everywhere, and however slow the machine is; --hypothesis-profile=default draws new ones.
settings.register_profile("lora_bench", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("lora_bench")

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # a busy machine must not make the suite twenty times slower


@pytest.fixture(autouse=True)
def one_core(monkeypatch):
    """Sweeps train in the process of the test, where training can be watched and faked."""
    monkeypatch.setattr("lora_bench.models.machine.cores", lambda: 1)


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    """No test takes the power away: what was written is there for whoever reads it, on the disk or not yet."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.fixture(autouse=True, scope="session")
def values_are_read_once():
    """A command composes three times from the same twenty files of values, and reading YAML is a tenth of its time."""
    known = {}

    def load(file):
        if not hasattr(file, "fileno"):
            return read(file)
        state = os.fstat(file.fileno())
        key = (file.name, state.st_ino, state.st_mtime_ns, state.st_size)
        if key not in known:
            known[key] = read(file)
        return copy.deepcopy(known[key])

    read = OmegaConf.load
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OmegaConf, "load", staticmethod(load))
        yield


EXTRAS = {
    "joblib": "hydra_plugins.hydra_joblib_launcher",
    "slurm": "hydra_plugins.hydra_submitit_launcher",
    "ray": "hydra_plugins.hydra_ray_launcher",
}
SPLITS = ("train", "select", "report")


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """One process where workers cannot be told the folder: under LC_ALL=C a name with an umlaut is no UTF-8 to them."""
    try:
        str(config.rootpath).encode()
    except UnicodeEncodeError:
        return 0
    return None


LONG = (  # files of twenty seconds and more, the longest first
    "tests/test_docs.py",
    "tests/training/test_precision.py",
    "tests/training/test_run.py",
    "tests/packing/test_packing.py",
    "tests/questions/test_analysis.py",
    "tests/launch/test_sweeper.py",
    "tests/launch/test_workers.py",
    "tests/test_nothing_lost.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files begin first, else one worker is left with one of them while the others wait. xdist would begin with
    those of many tests, and end with a file of one test that takes as long as a hundred."""
    places = {name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(item.nodeid.partition("::")[0], len(places)))


def pytest_collection_finish() -> None:
    """Thousands of tests and the modules they import live to the end: let no collection go through them again, nor
    through what is imported later every few thousand objects, which was a twentieth of the suite's time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 50)


@pytest.fixture
def no_collections(monkeypatch):
    """statsmodels asks for a collection of garbage in every correction, each of which goes through all modules that
    were imported since the tests began: half a second."""
    monkeypatch.setattr(gc, "collect", lambda *_: 0)


def pytest_runtest_setup(item: pytest.Item) -> None:
    for mark in item.iter_markers("extra"):
        (name,) = mark.args
        if importlib.util.find_spec(EXTRAS[name]) is None:
            pytest.skip(f"needs the extra {name}")


@dataclass
class Ended:
    """How a command ended."""

    status: int
    out: str
    err: str

    @property
    def text(self) -> str:
        return self.out + self.err


@pytest.fixture
def command(monkeypatch, tmp_path, capsys):
    """Run `lora-bench` in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    log = logging.getLogger("lora_bench")
    state = (log.handlers[:], log.level, log.propagate)

    def run(*arguments: str) -> Ended:
        from lora_bench.__main__ import main

        monkeypatch.setattr(sys, "argv", ["lora-bench", *arguments])
        status = 0
        try:
            main()
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
        printed = capsys.readouterr()
        return Ended(status, printed.out, printed.err)

    yield run
    log.handlers[:], log.level, log.propagate = state


@pytest.fixture
def undrawn(monkeypatch):
    """Figures stay blank. One that cannot be drawn is replaced and fails nothing, so a test of words and tables learns
    nothing from drawing them; tests/reports/test_figures.py draws every one."""
    from lora_bench.reports.figures import compose

    monkeypatch.setattr(compose, "is_blank", lambda: True)


@pytest.fixture
def quick(monkeypatch, undrawn):
    """No figure is drawn or rendered: saving one in three formats takes a second."""
    from lora_bench.reports.figures import style

    monkeypatch.setattr(style, "save", lambda figure, folder, name, **_: folder / name)


@pytest.fixture
def unrendered(monkeypatch, undrawn):
    """No figure is drawn or rendered, except as what the page holds."""
    from lora_bench.reports.figures import style

    def save(figure, folder: Path, name: str, **_) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.svg").write_text("<svg/>", encoding="utf-8")
        return folder / f"{name}.svg"

    monkeypatch.setattr(style, "save", save)


@dataclass
class FakeTraining:
    """Stands in for `run_pack`: writes records at once, and remembers what it was given.

    `fate` decides how a run ends: None to finish, "failed", or an exception to raise.
    """

    packs: list[list[str]] = field(default_factory=list)
    saves_adapters: bool = False
    invocations: list[dict] = field(default_factory=list)

    @staticmethod
    def fate(run):
        return None

    def __call__(self, runs, store, *, tracking, invocation, only=None, on_progress=None, **options):
        from lora_bench.store.environment import environment
        from lora_bench.store.errors import NonFiniteError
        from lora_bench.store.record import Failure, Measured, Outcome, Subject, failed, finished, utc_now

        if not runs:
            return []
        self.packs.append([run.run_id for run in runs])
        self.invocations.append(dict(invocation))
        records = []
        for run in [run for run in runs if only is None or run.run_id in only]:
            fate = self.fate(run)
            if isinstance(fate, BaseException):
                raise fate
            score = 0.5 + 0.01 * run.config.seed + 0.1 * (run.config.adapter.targets == "qv") + run.config.train.lr
            subject = Subject(
                run_id=run.run_id,
                cell_id=run.cell_id,
                config=run.science,
                metrics=run.science["task"]["metrics"],
                manifest=run.manifest,
                environment=environment(device="cpu", threads=1),
                started=utc_now(),
                invocation=invocation,
                data=run.task.facts,
            )
            measured = Measured(
                parameters={"adapter": run.adapter_parameters, "head": 66, "total": 1000},
                cost={"attributed_seconds": 1.0, "pack_seconds": 2.0, "pack_size": len(runs)},
            )
            if fate:
                record = failed(subject, measured, Failure.of(NonFiniteError("the loss is not finite")))
            else:
                scores = {split: dict.fromkeys(run.science["task"]["metrics"], score) for split in SPLITS}
                record = finished(subject, measured, Outcome(scores=scores))
            adapter = (lambda folder: (folder / "adapter").mkdir()) if self.saves_adapters and not fate else None
            store.write(record, adapter=adapter)
            records.append(record)
            if on_progress:
                on_progress({"event": "record", "run_id": run.run_id, "status": record["status"]})
        return records


@pytest.fixture
def unrehearsed(monkeypatch):
    """A plan's time is told without a few of its steps, which take as long as a small sweep."""
    from lora_bench.training import rehearsal

    monkeypatch.setattr(rehearsal, "rehearse", lambda runs, **_: rehearsal.Pace(1e-11, 1e-11))


@pytest.fixture
def uncounted(monkeypatch):
    """Packs are formed without counting what a run of the embedded backbone keeps, placement by placement."""
    from lora_bench.launch import packs
    from lora_bench.packing import memory

    monkeypatch.setattr(packs, "_known_bytes", {})
    monkeypatch.setattr(memory, "saved_bytes", lambda *_, **__: 10_000_000)


@pytest.fixture
def training(monkeypatch, unrehearsed):
    """Training that takes no time, and no rehearsal of it; `training.packs` tells what was trained."""
    fake = FakeTraining()
    monkeypatch.setattr("lora_bench.training.run.run_pack", fake)
    return fake
