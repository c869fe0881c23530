"""The sweeper: what a grid becomes, what is trained, what is skipped, and how a sweep ends."""

import contextlib
import importlib.metadata
import io
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from rich.console import Console

from hydra_plugins.lora_bench.grids import Composer, expand
from lora_bench.config.compose import parse
from lora_bench.config.errors import ConfigError
from lora_bench.config.overrides import quote
from lora_bench.launch.progress import SweepProgress
from lora_bench.paths import resource_root
from lora_bench.reports.tables import settled_overrides
from lora_bench.store import environment as environments
from lora_bench.store.folder import Store
from patience import PATIENCE_SECONDS

SMALL = (
    "model=tiny",
    "tracking=none",
    "task.train_rows=40",
    "task.report_rows=20",
    "train.epochs=1",
    "train.max_length=32",
)


# Grids


def test_an_override_on_the_command_line_replaces_an_axis():
    points = expand({"adapter.targets": "q,v", "seed": "range(2)"}, [{}], ["adapter.targets=qv", "store=x"])
    assert points == [("adapter.targets=qv", "seed=0", "store=x"), ("adapter.targets=qv", "seed=1", "store=x")]


def test_grids_are_united_and_their_common_points_counted_once():
    """Coupled axes: a rank with its own rates."""
    grids = [{"adapter.rank": "1", "train.lr": "1e-3,1e-2"}, {"adapter.rank": "1,8", "train.lr": "1e-3"}]
    points = expand({"seed": "0"}, grids, [])
    assert sorted(points) == [
        ("seed=0", "adapter.rank=1", "train.lr=0.001"),
        ("seed=0", "adapter.rank=1", "train.lr=0.01"),
        ("seed=0", "adapter.rank=8", "train.lr=0.001"),
    ]


def test_values_of_files_may_be_lists_nulls_and_switches():
    points = expand(
        {"seed": [0, 1], "train.dropout": None, "train.compile": False, "adapter.layers": [[0, 1]]}, [{}], []
    )
    assert points[0] == ("seed=0", "train.dropout=null", "train.compile=False", "adapter.layers=[0,1]")
    assert len(points) == 2


@pytest.mark.parametrize(
    ("params", "grids", "arguments", "said"),
    [
        ({}, ["q"], [], r"grids\[0\]: 'q' is no grid"),
        ({"train.lr": "interval(0,1)"}, [{}], [], r"train\.lr: an interval has no list of values"),
        ({}, [{}], ["+sweeps=quick,rank"], r"sweeps: one at a time"),
        ({}, [{}], ["adapter.targets=glob(*)"], r"adapter\.targets: glob\(\*\) is a pattern, .* give them, as a,b"),
        ({"seed": "glob([a*,b*],exclude=c)"}, [{}], [], r"seed: glob\(.*\) is a pattern"),
        ({}, [{"task": "glob(c*)"}], [], r"task: glob\(c\*\) is a pattern"),
    ],
)
def test_a_grid_that_is_none_is_refused(params, grids, arguments, said):
    with pytest.raises(ConfigError, match=said):
        expand(params, grids, arguments)


@pytest.mark.parametrize("text", ["/a b/c#0", "/a,b=c#1", "/it's/x#2", "/a(b)[c]{d}#3", "C:\\x\\#4", "/ends\\'x#5"])
def test_quoted_text_survives_the_override_grammar(text):
    from hydra.core.override_parser.overrides_parser import OverridesParser

    assert OverridesParser.create().parse_override(f"pack={quote(text)}").value() == text


@pytest.mark.parametrize(
    "points",
    [
        [("adapter.targets=q", "seed=0"), ("adapter.targets=kv", "seed=1")],
        [("adapter=head_only", "seed=0"), ("adapter=dora", "seed=1"), ("adapter=lora", "seed=1")],
        [("+sweeps=rank", "task=cola", "adapter.rank=2"), ("+sweeps=rank", "task=rte", "adapter.rank=1")],
        [("train=paper_roberta_base", "task=cola"), ("train=paper_roberta_base", "task=rte", "train.lr=1")],
        [("++train.lr=1e-4", "adapter.layers=[0]"), ("++train.lr=1e-3", "adapter.layers=all")],
        [
            ("model=tiny", f"model.architecture.hidden_size={size}", f"seed={seed}")
            for size in (32, 64)
            for seed in (0, 1)
        ],
    ],
)
def test_composing_once_equals_composing_each_time(points):
    """Groups, values, presets that look values up, and forced values."""
    with initialize_config_dir(str(resource_root() / "conf"), version_base="1.3"):
        hydra = GlobalHydra.instance().hydra
        loader = hydra.config_loader

        def fresh(point):
            from hydra.types import RunMode

            return loader.load_configuration("config", list(point), run_mode=RunMode.RUN)

        composer = Composer(loader, fresh(()))
        for point in points:
            assert composer.parse(point) == parse(fresh(point))


# A sweep, with training that takes no time


def sweep(command, *more):
    return command("+sweeps=quick", *SMALL, "adapter.targets=q,qv", "train.lr=1e-3,1e-2", "seed=0,1", *more)


def test_a_sweep_trains_each_run_once_and_ranks_the_placements(command, training):
    ended = sweep(command)
    assert ended.status == 0, ended.text
    assert sorted(map(len, training.packs)) == [4, 4]
    assert "quick: 4 cells, 2 seeds, 8 runs" in ended.out
    lines = [line.split() for line in ended.out.splitlines() if line.startswith(("q ", "qv "))]
    assert [line[0] for line in lines] == ["qv", "q"]  # the fake scores qv higher
    assert [line[2] for line in lines] == ["0.01", "0.01"]  # and the higher rate, on select
    assert "all 8 runs finished" in ended.out
    assert "weight_types" in ended.out.splitlines()[-1]
    assert training.invocations[0]["sweep"] == "quick"


def test_a_sweep_tells_before_it_trains_how_long_and_how_to_see_it_first(command, training):
    """Whoever types +sweeps=quick has 36 runs, and did not ask for a dry run of them."""
    ended = sweep(command)
    lines = ended.out.splitlines()
    (ahead,) = [number for number, line in enumerate(lines) if "dry_run=true" in line]
    assert re.search(r"^  about .* \(a guess from this CPU's .*\); dry_run=true tells it", lines[ahead])
    assert ahead < next(number for number, line in enumerate(lines) if re.match(r"\d+/8 runs", line))
    assert "dry_run=true" not in sweep(command).out  # nothing is left to train
    asked = sweep(command, "seed=range(4)", "hydra.sweeper.dry_run=true").out
    assert re.search(r"^  memory of a pack of \d+ runs: about .* [MG]B, of which .*B a run$", asked, flags=re.MULTILINE)
    assert "dry_run=true" not in asked


def test_the_same_command_again_does_nothing(command, training):
    sweep(command)
    n_packs = len(training.packs)
    ended = sweep(command)
    assert ended.status == 0
    assert len(training.packs) == n_packs
    assert "8 finished, 0 failed before, 0 runs to train" in ended.out


def test_nothing_is_left_outside_the_store(command, training, tmp_path):
    sweep(command, "store=here")
    assert [path.name for path in tmp_path.iterdir()] == ["here"]


def test_a_larger_sweep_trains_what_is_missing(command, training):
    sweep(command)
    training.packs.clear()
    sweep(command, "seed=range(3)")
    assert sum(map(len, training.packs)) == 4


def test_points_with_the_same_science_are_one_run(command, training):
    ended = command("-m", *SMALL, "adapter.targets=qv,vq,q+v")
    assert "1 cell, 1 seed, 1 run (2 duplicates dropped)" in ended.out
    ended = command("-m", *SMALL, "adapter=head_only", "adapter.targets=q,k,v")
    assert "1 cell, 1 seed, 1 run (2 duplicates dropped)" in ended.out
    assert sum(map(len, training.packs)) == 2


def test_a_dry_run_shows_every_cell_and_leaves_nothing(command, tmp_path, monkeypatch):
    monkeypatch.setattr("lora_bench.training.run.run_pack", lambda *_, **__: pytest.fail("a dry run trains"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))  # where a rehearsal of a few steps would leave its adapter
    ended = sweep(command, "hydra.sweeper.dry_run=true")
    assert ended.status == 0, ended.text
    assert not list(tmp_path.iterdir())
    header = next(line for line in ended.out.splitlines() if line.startswith("cell"))
    for column in ("alpha/rank", "scale of A", "adapter", "to train"):
        assert column in header
    assert len([line for line in ended.out.splitlines() if line.startswith(("q ", "qv "))]) == 4
    assert "8 runs to train in 2 packs" in ended.out
    assert "on one worker; about" in ended.out


def test_one_bad_point_stops_everything_and_all_bad_points_are_told(command, training):
    ended = sweep(command, "adapter.targets=q,w,gate", "train.lr=1e-3,-1")
    assert ended.status == 2
    assert not training.packs
    assert "no role 'w'" in ended.err
    assert "train.lr: -1.0 is too small" in ended.err
    assert "Traceback" not in ended.text


def test_roles_that_the_backbone_lacks_stop_everything(command, training):
    ended = sweep(command, "adapter.targets=q,gate,all", "adapter.rank=2", "adapter.budget=null")
    assert ended.status == 2
    assert not training.packs
    assert "gate" in ended.err
    assert "4 of 12 runs cannot run" in ended.err


def test_a_failed_run_is_told_and_the_others_go_on(command, training):
    training.fate = lambda run: "failed" if run.config.adapter.targets == "q" and run.config.train.lr > 5e-3 else None
    ended = sweep(command)
    assert ended.status == 1
    assert len(Store("runs").statuses()) == 8
    assert "2 runs failed:" in ended.out
    assert "nonfinite: the loss is not finite" in ended.out
    assert ended.out.rstrip().endswith("hydra.sweeper.retry_failed=true")


def test_failed_runs_wait_until_they_are_asked_for(command, training):
    training.fate = lambda run: "failed" if run.config.seed == 1 else None
    sweep(command)
    training.packs.clear()
    training.fate = lambda run: None
    again = sweep(command)
    assert again.status == 1
    assert not training.packs
    retried = sweep(command, "hydra.sweeper.retry_failed=true")
    assert retried.status == 0, retried.text
    assert sum(map(len, training.packs)) == 4
    assert set(Store("runs").statuses().values()) == {"finished"}


def test_fail_fast_stops_behind_the_first_failure(command, training):
    training.fate = lambda run: "failed"
    ended = sweep(command, "hydra.sweeper.fail_fast=true")
    assert ended.status == 1
    assert len(training.packs) == 1
    assert "stopped early: a run failed" in ended.out


def test_an_interrupted_sweep_says_how_to_go_on_and_keeps_its_packs(command, training):
    training.fate = lambda run: KeyboardInterrupt() if run.config.seed == 1 and len(training.packs) > 1 else None
    ended = sweep(command, "hydra.sweeper.pack_size=3")
    assert ended.status == 130
    assert "stopped early: Ctrl-C" in ended.out
    assert "lora-bench +sweeps=quick" in ended.out
    before = list(training.packs)
    training.fate = lambda run: None
    training.packs.clear()
    ended = sweep(command, "hydra.sweeper.pack_size=3")
    assert ended.status == 0
    assert training.packs[0] == before[-1]  # the interrupted pack, as it was
    trained = [run_id for pack in before[:-1] + training.packs for run_id in pack]
    assert len(trained) == len(set(trained)) == 8


def test_what_is_left_of_a_pack_is_trained_in_that_pack(command, training):
    """As after a kill in the middle of a pack's writing."""
    import shutil

    sweep(command)
    before = list(training.packs)
    lost = before[0][1]
    shutil.rmtree(Store("runs").path(lost))
    ended = sweep(command)
    assert ended.status == 0, ended.text
    assert "7 finished, 0 failed before, 1 run to train in 1 pack" in ended.out
    assert "3 runs of the same packs ride along" in ended.out
    assert training.packs == [*before, before[0]]
    assert len(Store("runs").statuses()) == 8


def test_packs_have_at_most_the_size_asked_for_and_one_seed(command, training):
    sweep(command, "hydra.sweeper.pack_size=3")
    assert sorted(map(len, training.packs)) == [2, 2, 2, 2]
    records = Store("runs")
    for pack in training.packs:
        assert len({records.record(run_id)["config"]["seed"] for run_id in pack}) == 1


def test_methods_that_change_the_weights_ride_alone(command, training):
    command("-m", *SMALL, "adapter=lora,pissa,full", "seed=0", "train.lr=1e-3,1e-2")
    assert sorted(map(len, training.packs)) == [1, 1, 1, 1, 2]


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("hydra.sweeper.pack_size=0", "hydra.sweeper.pack_size: no 0"),
        ("hydra.sweeper.pack_size=many", "hydra.sweeper.pack_size: no 'many'"),
        ("hydra.sweeper.dry_run=3", "hydra.sweeper.dry_run: 3 is no switch"),
        ("hydra.sweeper.dryrun=true", "hydra.sweeper.dryrun: no such key; keys are params, grids, study, pack_size"),
        ("store=a,b", "store: 2 folders in one sweep"),
        ("show=targets", "show: 'targets' is about one run"),
    ],
)
def test_the_sweepers_own_options_are_checked(command, training, option, said):
    ended = sweep(command, option)
    assert ended.status == 2
    assert said in ended.err
    assert not training.packs


# Which adapters are kept


def adapters_of(records: Store) -> dict[str, bool]:
    return {run_id: (records.path(run_id) / "adapter").is_dir() for run_id in records.statuses()}


@pytest.mark.parametrize(("keep", "rates"), [("all", {1e-3, 1e-2}), ("best", {1e-2}), ("none", set())])
def test_only_the_adapters_asked_for_are_kept(command, training, keep, rates):
    """With `best`, those at the rate that select chose; the fake's score rises with the rate."""
    training.saves_adapters = True
    ended = sweep(command, f"store.keep_adapters={keep}")
    assert ended.status == 0, ended.text
    records = Store("runs")
    for run_id, is_kept in adapters_of(records).items():
        record = records.record(run_id)
        assert is_kept == (record["config"]["train"]["lr"] in rates)
        assert ("adapter_dropped" in record) != is_kept
    n_packs = len(training.packs)
    again = sweep(command, "store.keep_adapters=all")
    assert again.status == 0
    assert len(training.packs) == n_packs  # the same runs: what is kept is no part of their identity


def test_keeping_the_best_adapters_of_nothing_is_no_error(command, training, monkeypatch):
    """Another sweep with other packs may hold every run, so that none has a record yet."""
    monkeypatch.setattr("lora_bench.training.run.run_pack", lambda *_, **__: [])
    ended = sweep(command, "store.keep_adapters=best")
    assert ended.status == 1
    assert "0 of 8 runs finished, 8 missing" in ended.out


def test_switches_of_the_command_are_no_overrides_of_the_next_stage():
    given = ["-m", "task=cola", "--config-dir=mine", "hydra/launcher=workers", "+sweeps=x", "seed=0"]
    assert settled_overrides(given) == ["task=cola", "--config-dir=mine"]


def test_a_bad_choice_of_adapters_is_refused_by_the_name_that_was_given(command, training):
    ended = sweep(command, "store.keep_adapters=some")
    assert ended.status == 2
    assert "store.keep_adapters: " in ended.err
    assert not training.packs


# Named sweeps


def test_a_sweep_of_the_current_folder_is_found_and_wins(command, training, tmp_path):
    (tmp_path / "sweeps").mkdir()
    text = (resource_root() / "sweeps" / "quick.yaml").read_text(encoding="utf-8")
    (tmp_path / "sweeps" / "mine.yaml").write_text(text.replace("range(4)", "range(1)"), encoding="utf-8")
    (tmp_path / "sweeps" / "rank.yaml").write_text(text.replace("range(4)", "range(1)"), encoding="utf-8")
    for name in ("mine", "rank"):
        ended = command(f"+sweeps={name}", *SMALL, "hydra.sweeper.dry_run=true")
        assert f"{name}: 9 cells, 1 seed, 9 runs" in ended.out


@pytest.mark.parametrize("switch", [[], ["-m"]])
def test_an_unknown_sweep_is_an_error_and_never_a_single_run(command, training, switch):
    ended = command(*switch, "+sweeps=qick", *SMALL)
    assert ended.status == 2
    assert "sweeps: no 'qick'" in ended.err
    assert "did you mean 'quick'" in ended.err
    assert not training.packs


@pytest.mark.parametrize(
    ("name", "n_cells", "n_runs"), [("quick", 9, 36), ("weight_types", 35, 280), ("rank", 75, 375)]
)
def test_shipped_sweeps_have_the_size_that_they_state(command, training, name, n_cells, n_runs):
    extra = ["model=tiny", "model.architecture.hidden_size=64", "tracking=none", "task.train_rows=40"]
    ended = command(f"+sweeps={name}", *extra, "hydra.sweeper.dry_run=true")
    assert f"{n_cells} cells" in ended.out, ended.text
    assert f"{n_runs} runs to train" in ended.out
    assert f"= {n_runs} runs" in (resource_root() / "sweeps" / f"{name}.yaml").read_text(encoding="utf-8")


def test_a_launch_waits_for_a_pack_of_another_and_trains_what_that_one_leaves(command, training, monkeypatch):
    """The other process dies with the pack in its hands: its lock goes, and so must its runs not be lost."""
    import threading

    from lora_bench.launch import marks
    from lora_bench.launch.plan import Plan

    held = threading.Event()
    release = threading.Event()

    def hold(path):
        with marks.claim_pack(path, 0):
            held.set()
            release.wait(PATIENCE_SECONDS)

    def save(plan: Plan):
        if not held.is_set():
            plan.path.parent.mkdir(parents=True, exist_ok=True)
            threading.Thread(target=hold, args=(plan.path,)).start()
            held.wait(PATIENCE_SECONDS)

    monkeypatch.setattr("lora_bench.launch.carry_out.save", save)
    monkeypatch.setattr("lora_bench.launch.carry_out.POLL_SECONDS", 0.05)
    training.fate = lambda run: release.set() if len(training.packs) else None
    ended = sweep(command)
    assert ended.status == 0, ended.text
    assert len(Store("runs").statuses()) == 8
    assert [len(pack) for pack in training.packs] == [4, 4]


ELSEWHERE = "  8 finished runs of this backbone and task, of another environment, will not be compared with new ones: "


@pytest.fixture
def ran_elsewhere(command, training, monkeypatch):
    """The store of a sweep that another environment ran; gives the function that tells the one of this process."""
    monkeypatch.setenv("OMP_NUM_THREADS", str(torch.get_num_threads()))
    here = environments.environment
    monkeypatch.setattr("lora_bench.training.run.environment", here)  # what this process is stays true
    old = {"id": "0123456789ab", "transformers": "5.0.0", "threads": 77}
    monkeypatch.setattr(environments, "environment", lambda **given: here(**given) | old)
    assert sweep(command).status == 0
    monkeypatch.setattr(environments, "environment", here)
    return here


def test_runs_of_another_environment_are_told_before_others_train_beside_them(command, ran_elsewhere):
    """A study that goes on after an upgrade, or with other threads, has contrasts that no script would join."""
    ended = sweep(command, "seed=range(3)", "hydra.sweeper.dry_run=true")
    (line,) = [line for line in ended.out.splitlines() if line.startswith(ELSEWHERE)]
    version = importlib.metadata.version("transformers")
    threads = f"threads 77 (here {torch.get_num_threads()})"
    assert line == ELSEWHERE + f"{threads}, transformers 5.0.0 (here {version})"
    ended = sweep(command, "seed=range(3)")
    titles = [line.rpartition(" · ")[2] for line in ended.out.splitlines() if line.startswith("tiny · ")]
    assert set(titles) == {"environment 0123456789ab", f"environment {ran_elsewhere(device='cpu', threads=1)['id']}"}
    assert len(titles) == 2
    # Another task's runs are another matter, and so is a sweep that is done.
    assert "another environment" not in sweep(command, "task=sentiment", "hydra.sweeper.dry_run=true").out
    assert "another environment" not in sweep(command, "hydra.sweeper.dry_run=true").out


@pytest.mark.extra("joblib")
def test_threads_of_a_launchers_workers_are_their_own(command, ran_elsewhere):
    """This process's number of threads says nothing about them."""
    ended = sweep(command, "seed=range(3)", "hydra.sweeper.dry_run=true", "hydra/launcher=joblib")
    version = importlib.metadata.version("transformers")
    assert ELSEWHERE + f"transformers 5.0.0 (here {version})" in ended.out.splitlines()


@pytest.fixture
def launch_with(monkeypatch):
    """Give the sweeper a launcher; after Hydra's scan for plugins, which loads the module anew."""

    def patch(launch):
        Plugins.instance()
        from hydra_plugins.lora_bench.launching import Launching

        monkeypatch.setattr(Launching, "_launcher", lambda self, plan, records, crew: launch)

    return patch


def test_runs_that_a_sweep_with_other_packs_is_training_are_told(command, training, monkeypatch):
    sweep(command, "store=other")
    held = sorted(Store("other").statuses())[:3]
    # As where every run is claimed.
    monkeypatch.setattr("lora_bench.training.run.run_pack", lambda *runs, **options: [])
    with contextlib.ExitStack() as claims:
        for run_id in held:
            claims.enter_context(Store("runs").claim(run_id))
        ended = sweep(command)
    assert ended.status == 1
    assert "another process trains 3 of the 8 missing runs" in ended.out
    assert "another process" not in sweep(command).out


def test_packs_of_a_launcher_tell_how_far_they_are(command, training, monkeypatch, launch_with):
    """By their marks; the runs of a pack end together, so that records alone would say nothing until then."""
    from lora_bench.launch import marks
    from lora_bench.launch.plan_file import parse_reference

    seen = []

    def launch(references):
        for reference in references:
            path, number = parse_reference(reference)
            tell = marks.progress_teller(path, number)
            path.with_suffix("").mkdir(parents=True, exist_ok=True)
            assert marks.share_done(path, number) is None
            tell({"event": "work", "share": 0.75, "runs": 4})
            tell({"event": "work", "share": 0.76, "runs": 4})  # too soon to be told
            assert marks.share_done(path, number) == 0.75
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not seen and time.monotonic() < deadline:
            time.sleep(0.01)
        return []

    def update(self, *, done, failed, inside=0.0):
        if inside:
            seen.append((done, inside))

    monkeypatch.setattr("lora_bench.launch.carry_out.POLL_SECONDS", 0.02)
    monkeypatch.setattr("lora_bench.launch.progress.SweepProgress.update", update)
    launch_with(launch)
    sweep(command)
    assert seen[0] == (0, pytest.approx(0.75 * 8))


def test_a_log_gets_lines_at_growing_intervals_with_the_time_left(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("lora_bench.launch.progress.time.monotonic", lambda: clock[0])
    out = Console(file=io.StringIO(), width=140)
    with SweepProgress(20, console=out) as progress:
        for second in range(3 * 3600):
            clock[0] = float(second)
            progress.update(done=0, failed=0, inside=20 * second / (3 * 3600))
        progress.update(done=20, failed=1)
    lines = out.file.getvalue().splitlines()
    assert lines[0] == "0/20 runs  15 s passed"  # by then it is mostly the starting of workers
    first = next(line for line in lines if "left" in line)
    assert first == "0/20 runs  1 % done  2 min 00 s passed  about 2 h 58 min left"
    assert lines[-1] == "20/20 runs  1 failed  2 h 59 min passed"
    assert 20 + 60 < len(lines) < 120


# Real processes


def start(*arguments, cwd):
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "lora_bench", *arguments],
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


LONG = (
    "+sweeps=quick",
    *SMALL[:2],
    "task.train_rows=300",
    "task.report_rows=20",
    "train.epochs=8",
    "adapter.targets=q,v",
)


def test_a_pack_that_loses_its_worker_by_itself_is_at_fault(command, training, monkeypatch, launch_with):
    """Three packs were under way when the pool broke: each gets a launch of its own, and one breaks it again."""
    from lora_bench.launch import files, marks
    from lora_bench.launch.plan_file import PlanFile, parse_reference
    from lora_bench.training.resolve import resolve

    launches = []

    def launch(references):
        numbers = [parse_reference(one)[1] for one in references]
        launches.append(numbers)
        path = parse_reference(references[0])[0]
        broken = {0, 1, 2} & set(numbers) if len(numbers) > 1 else {1} & set(numbers)
        for number in broken:
            with marks.claim_pack(path, number):
                files.mark_file(path, number).touch()
        if broken:
            raise RuntimeError("the pool is broken")
        plan = PlanFile.load(path)
        for number in numbers:
            runs = [resolve(entry.checked_config()) for entry in plan.packs[number]]
            training(runs, Store(files.store_of(path)), tracking=None, invocation={})
        return []

    launch_with(launch)
    ended = sweep(command, "hydra.sweeper.pack_size=1")
    assert launches == [[*range(8)], [0], [1], [2], [3, 4, 5, 6, 7]]
    assert ended.status == 1
    failed = [record for record in Store("runs").records() if record["status"] == "failed"]
    assert len(Store("runs").statuses()) == 8
    assert len(failed) == 1
    assert failed[0]["error"]["kind"] == "died"
    assert "the pool is broken" in failed[0]["error"]["message"]


@pytest.mark.parametrize("failed_before", [False, True])
@pytest.mark.parametrize("gets_on", [True, False])
def test_packs_behind_a_lost_worker_are_launched_again_while_that_helps(
    command, training, monkeypatch, gets_on, failed_before, launch_with
):
    """joblib and Ray drop every pack behind a lost worker; a machine that loses them all must not be tried for ever."""
    from lora_bench.launch import files
    from lora_bench.launch.plan_file import PlanFile, parse_reference
    from lora_bench.training.resolve import resolve

    launches = []

    def launch(references):
        launches.append(len(references))
        for place, reference in enumerate(references):
            if (len(launches) == 1 and place == 1) or (len(launches) == 2 and not gets_on):
                raise RuntimeError("a worker was lost")
            path, number = parse_reference(reference)
            plan = PlanFile.load(path)
            runs = [resolve(entry.checked_config()) for entry in plan.packs[number]]
            training(runs, Store(files.store_of(path)), tracking=None, invocation={})
        return []

    more = []
    if failed_before:
        training.fate = lambda run: "failed"
        assert sweep(command).status == 1
        training.fate, more = lambda run: None, ["hydra.sweeper.retry_failed=true"]
    launch_with(launch)
    ended = sweep(command, "hydra.sweeper.pack_size=1", *more)
    assert launches == [8, 7]
    assert "a worker was lost); launching the 7 packs that are left" in ended.err
    assert ended.status == (0 if gets_on else 1), ended.text
    assert ("stopped early: the launcher gave up (RuntimeError: a worker was lost)" in ended.out) != gets_on
    assert list(Store("runs").statuses().values()).count("finished") == (8 if gets_on else 1)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl_c", "sigterm"])
def test_a_signal_keeps_what_is_finished_and_the_same_command_ends_the_sweep(tmp_path, number):
    first = start(*LONG, cwd=tmp_path)
    store = Store(tmp_path / "runs")
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not store.statuses() and time.monotonic() < deadline and first.poll() is None:
        time.sleep(0.2)
    first.send_signal(number)
    said, _ = first.communicate(timeout=PATIENCE_SECONDS)
    assert first.returncode == 130, said
    assert "Go on with:" in said
    kept = {run_id: (store.path(run_id) / "record.json").read_bytes() for run_id in store.statuses()}
    assert kept
    second = start(*LONG, cwd=tmp_path)
    said, _ = second.communicate(timeout=PATIENCE_SECONDS)
    assert second.returncode == 0, said
    assert len(Store(tmp_path / "runs").statuses()) == 18
    for run_id, content in kept.items():
        assert (store.path(run_id) / "record.json").read_bytes() == content


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        pytest.param(
            ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"], marks=pytest.mark.extra("joblib"), id="joblib"
        ),
        pytest.param(
            ["hydra/launcher=submitit_local", "hydra.launcher.timeout_min=60"],
            marks=pytest.mark.extra("slurm"),
            id="submitit_local",
        ),
        pytest.param(
            ["hydra/launcher=ray", "+hydra.launcher.ray.init.num_cpus=2"], marks=pytest.mark.extra("ray"), id="ray"
        ),
    ],
)
def test_process_launchers_give_the_records_of_the_basic_one(tmp_path, options):
    arguments = ("+sweeps=quick", *SMALL, "adapter.targets=q,v", "train.lr=1e-3,1e-2", "seed=0,1")
    for store, more in (("here", []), ("there", options)):
        process = start(*arguments, f"store={store}", *more, cwd=tmp_path)
        said, _ = process.communicate(timeout=PATIENCE_SECONDS)
        assert process.returncode == 0, said
    here, there = Store(tmp_path / "here"), Store(tmp_path / "there")
    assert here.statuses() == there.statuses()
    for run_id in here.statuses():
        assert here.record(run_id)["scores"] == there.record(run_id)["scores"]
    assert {path.name for path in tmp_path.iterdir()} == {"here", "there"}


def test_a_dry_run_names_the_smallest_difference_even_where_the_sign_flip_test_is_blind(command, training):
    ended = command("-m", *SMALL, "adapter.targets=q,k,v,qv", "seed=range(4)", "hydra.sweeper.dry_run=true")
    assert ended.status == 0, ended.text
    assert re.search(r"80 % power, 3 contrasts: [\d.]+ to [\d.]+ points", ended.out)
    assert "4 seeds, 3 contrasts: the sign-flip test" in ended.out
