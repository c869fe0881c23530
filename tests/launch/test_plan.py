"""Plans and jobs: packs that are kept, references that are read, and children whose death becomes records."""

import json
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from configs import candidates
from lora_bench.config.errors import ConfigError
from lora_bench.config.schema import TrackingConfig
from lora_bench.launch import child as child_process
from lora_bench.launch import files, jobs, marks, worker
from lora_bench.launch import packs as packs_module
from lora_bench.launch.plan import Candidate, make, save, varied_axes
from lora_bench.launch.plan_file import PlanFile, launch_of, parse_reference, reference
from lora_bench.store.folder import Store
from orders import order_of
from patience import PATIENCE_SECONDS
from tiny import tiny_config


@pytest.fixture
def two_seeds(tmp_path):
    """A plan of four runs, two placements and two seeds, and its store."""
    store = Store(tmp_path / "runs")
    points = [(f"adapter.targets={targets}", f"seed={seed}") for targets in ("q", "v") for seed in (0, 1)]
    return make(candidates(*points, store=store.root), store, sweep="mine", command=["+sweeps=mine"]), store


def packs_in(path):
    return [[entry.run_id for entry in pack] for pack in PlanFile.load(path).packs]


# Forming


def test_a_pack_holds_one_seed_and_every_run_is_in_one_pack(two_seeds):
    plan, _ = two_seeds
    seeds = [{plan.runs[run_id].run.config.seed for run_id in pack} for pack in plan.packs]
    assert seeds == [{0}, {1}]
    assert sorted(run_id for pack in plan.packs for run_id in pack) == sorted(plan.runs)


@pytest.mark.parametrize(("n_runs", "most", "sizes"), [(7, 3, [2, 3, 2]), (4, 4, [4]), (5, 1, [1] * 5), (9, 8, [4, 5])])
def test_a_group_is_cut_into_the_fewest_packs_of_nearly_equal_size(monkeypatch, n_runs, most, sizes):
    class Run:
        def __init__(self, number):
            self.run_id = f"{number:08x}"

    monkeypatch.setattr("lora_bench.training.resolve.pack_key", lambda run: ())
    packs = packs_module.form_packs([Run(number) for number in range(n_runs)], most)
    assert sorted(map(len, packs)) == sorted(sizes)
    assert [one for pack in packs for one in pack] == [f"{number:08x}" for number in range(n_runs)]


def test_a_restart_takes_the_packs_of_the_kept_plan(two_seeds, monkeypatch):
    """Also when the rule that formed them has changed: a half-trained sweep must not be cut anew."""
    plan, store = two_seeds
    save(plan)
    monkeypatch.setattr("lora_bench.launch.plan.form_packs", lambda *a: pytest.fail("packs were formed anew"))
    points = [one.overrides for one in plan.runs.values()]
    again = make(candidates(*points, store=store.root), store, sweep="mine")
    assert (again.path, again.packs) == (plan.path, plan.packs)


def test_packs_are_formed_of_what_is_missing(two_seeds, training):
    """One more rate must not train a whole sweep again; a pack with anything left is trained as it was planned."""
    plan, store = two_seeds
    save(plan)
    first = [plan.runs[run_id].run for run_id in plan.packs[0]]
    training(first, store, tracking=None, invocation={})
    points = [one.overrides for one in plan.runs.values()]
    again = make(candidates(*points, store=store.root), store)
    assert again.packs == plan.packs
    assert again.pending() == plan.packs[1]
    more = [*points, ("adapter.targets=o", "seed=0")]
    larger = make(candidates(*more, store=store.root), store)
    assert [len(pack) for pack in larger.packs] == [2, 1]
    assert not set(larger.packs[0]) & set(plan.packs[0])


def test_two_launches_speak_of_the_same_packs(two_seeds, training):
    """The later one has planned before the earlier one kept its packs, and seen a run finish in between."""
    plan, store = two_seeds
    points = [one.overrides for one in plan.runs.values()]
    done = plan.runs[plan.packs[0][0]].run
    save(plan)
    other = make(candidates(*points, store=store.root), store)
    training([done], store, tracking=None, invocation={})
    plan.path.unlink()
    late = make(candidates(*points, store=store.root), store)
    assert late.packs != plan.packs
    save(other)
    save(late)
    assert late.packs == plan.packs
    assert packs_in(plan.path) == plan.packs


@pytest.mark.parametrize("content", ["", "{", '{"format": 99}', '{"format": 1, "packs": [["00000000"]]}', "[]"])
def test_a_damaged_plan_is_made_anew(two_seeds, content):
    plan, store = two_seeds
    plan.path.parent.mkdir(parents=True)
    plan.path.write_text(content, encoding="utf-8")
    points = [one.overrides for one in plan.runs.values()]
    assert make(candidates(*points, store=store.root), store).packs == plan.packs


@pytest.fixture
def plan_of_before(tmp_path):
    """A plan as written when the file was read as a dictionary, in a store."""
    path = tmp_path / "runs" / files.FOLDER / "218a71e5a3c6df6f.json"
    path.parent.mkdir(parents=True)
    path.write_bytes(Path(__file__).with_name("plan_of_format_1.json").read_bytes())
    return path


def test_a_plan_of_before_is_read_and_written_back_byte_for_byte(plan_of_before):
    """A sweep that began under an earlier version goes on under this one, and the other way round."""
    before = plan_of_before.read_bytes()
    file = PlanFile.load(plan_of_before)
    assert [[entry.run_id for entry in pack] for pack in file.packs] == [["34916e9eb6aeeac7"], ["2e16786e399d73a1"]]
    assert [pack[0].checked_config().seed for pack in file.packs] == [0, 1]
    assert (file.invocation, file.threads) == ({"overrides": ["+sweeps=mine"], "sweep": "mine"}, None)
    file.save(plan_of_before)
    assert plan_of_before.read_bytes() == before


def test_packs_of_a_plan_of_before_are_trained_and_failed_by_their_numbers(plan_of_before, monkeypatch):
    """A job knows nothing but the file: what it lacks, a record lacks."""
    child(monkeypatch, "import os; os._exit(7)")
    outcome = jobs.run_isolated(f"{plan_of_before}#1")
    assert (outcome["failed"], outcome["message"]) == (1, None)
    record = Store(files.store_of(plan_of_before)).record("2e16786e399d73a1")
    assert record["config"]["seed"] == 1 and record["error"]["kind"] == "died"
    assert [matrix["layer"] for matrix in record["manifest"]] == [0]


def test_another_pack_size_is_another_plan(two_seeds):
    plan, store = two_seeds
    points = [one.overrides for one in plan.runs.values()]
    assert make(candidates(*points, store=store.root), store, pack_size=1).path != plan.path


def test_a_plan_file_holds_configurations_that_resolve_to_the_same_runs(two_seeds):
    """A job knows nothing but the file."""
    from lora_bench.training.resolve import resolve

    plan, _ = two_seeds
    save(plan)
    assert packs_in(plan.path) == plan.packs
    for run_id, entry in PlanFile.load(plan.path).runs.items():
        assert resolve(entry.checked_config()).run_id == entry.run_id == run_id
    assert not list(plan.path.parent.glob(".*"))


def test_longer_rows_and_larger_batches_make_smaller_packs(two_seeds, monkeypatch):
    plan, _ = two_seeds
    run = next(iter(plan.runs.values())).run
    sizes = []
    for longest in (16, 512, 8192):
        monkeypatch.setattr(packs_module, "lengths", lambda run, longest=longest: packs_module.Lengths(longest, {}, {}))
        sizes.append(packs_module.largest_pack([run]))
    assert sizes[0] == packs_module.LARGEST_PACK["cpu"] >= sizes[1] > sizes[2] >= 1


def test_arms_are_named_by_what_the_sweep_varies(tmp_path):
    store = Store(tmp_path / "runs")
    points = [
        ("adapter=lora", "adapter.targets=vq", "adapter.rank=2", "train.lr=1e-3"),
        ("adapter=lora", "adapter.targets=vq", "adapter.rank=4", "train.lr=1e-2"),
        ("adapter=head_only", "adapter.targets=vq", "adapter.rank=4", "train.lr=1e-2"),
    ]
    plan = make(candidates(*points, store=store.root), store)
    arms = [one.arm for one in plan.runs.values()]
    assert arms == ["vq adapter=lora rank=2", "vq adapter=lora rank=4", "head_only"]


# References


@pytest.mark.parametrize("text", ["", "plan", "#1", "plan#", "plan#x", "plan#-1"])
def test_a_reference_that_is_none_is_refused(text):
    with pytest.raises(ConfigError, match=r"pack: cannot read .*; give PLAN#i"):
        parse_reference(text)


def test_a_reference_may_hold_the_mark_in_its_path():
    assert parse_reference("/a#b/c.json#12") == (Path("/a#b/c.json"), 12)
    assert launch_of("/a#b@c/c.json#12") is None


def test_a_reference_of_a_launch_is_that_of_its_pack():
    text = reference(Path("/a#1@b/c\n.json"), 12, "00ff")
    assert parse_reference(text) == (Path("/a#1@b/c\n.json"), 12)
    assert launch_of(text) == "00ff"


def test_a_job_never_raises():
    """An exception that leaves a job ends the whole sweep on joblib, submitit and Ray."""
    for text in ("nonsense", "/nowhere/plan.json#0"):
        outcome = jobs.run_isolated(text)
        assert outcome["message"]
        assert outcome["finished"] == 0


# Children


def child(monkeypatch, code):
    """Replace the process that a job starts by a piece of Python."""
    monkeypatch.setattr(worker, "child_command", lambda answers: [sys.executable, "-c", code])


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import os; os.kill(os.getpid(), 9)", "was killed by SIGKILL, perhaps for want of memory"),
        (
            "import os, sys; print('last words', flush=True); os._exit(7)",
            "ended with status 7; it said last:\nlast words",
        ),
        ("raise ValueError('no such thing')", "ValueError: no such thing"),
    ],
    ids=["sigkill", "hard_exit", "exception"],
)
def test_the_death_of_a_child_becomes_failed_records_of_its_pack(two_seeds, monkeypatch, code, said):
    plan, store = two_seeds
    save(plan)
    child(monkeypatch, code)
    outcome = jobs.run_isolated(f"{plan.path}#0")
    counts = {"finished": 0, "failed": 2, "missing": 0}
    assert outcome | {"pack": ""} == {"pack": "", **counts, "message": None, "is_held": False}
    for run_id in plan.packs[0]:
        record = store.record(run_id)
        assert record["error"]["kind"] == "died"
        assert said in record["error"]["message"]
        assert record["config"] == plan.runs[run_id].run.science
    assert all(store.status(run_id) is None for run_id in plan.packs[1])


@pytest.mark.parametrize(
    "code", ["import sys; sys.exit(130)", "import os; os.kill(os.getpid(), 15)", "import sys; sys.exit(74)"]
)
def test_a_child_that_was_asked_to_stop_or_lost_its_store_leaves_its_runs_missing(two_seeds, monkeypatch, code):
    """An interruption is no failure: the same command must train these runs."""
    plan, store = two_seeds
    save(plan)
    child(monkeypatch, code)
    assert jobs.run_isolated(f"{plan.path}#0")["missing"] == 2
    assert not store.statuses()


def test_a_job_says_why_the_store_could_not_take_its_runs(two_seeds, monkeypatch):
    plan, _ = two_seeds
    save(plan)
    child(monkeypatch, "import sys; print('other words'); print('store: cannot write'); sys.exit(74)")
    outcome = jobs.run_isolated(f"{plan.path}#0")
    assert (outcome["missing"], outcome["message"]) == (2, "store: cannot write")


def test_a_dead_childs_finished_runs_stay_finished(two_seeds, monkeypatch, training):
    plan, store = two_seeds
    save(plan)
    done, lost = plan.packs[0]
    started = threading.Event()
    child(monkeypatch, f"import time; time.sleep({PATIENCE_SECONDS})")

    def finish_one_then_kill():
        started.wait(PATIENCE_SECONDS)
        training([plan.runs[done].run], store, tracking=None, invocation={})
        process.send_signal(signal.SIGSEGV)

    popen = worker.subprocess.Popen

    def remember(*arguments, **options):
        nonlocal process
        process = popen(*arguments, **options)
        started.set()
        return process

    process = None
    monkeypatch.setattr(worker.subprocess, "Popen", remember)
    killer = threading.Thread(target=finish_one_then_kill)
    killer.start()
    jobs.run_isolated(f"{plan.path}#0")
    killer.join()
    assert (store.status(done), store.status(lost)) == ("finished", "failed")


def test_jobs_behind_a_stop_do_nothing(two_seeds, monkeypatch):
    """Of the launch that was stopped: Ctrl-C in one terminal ended the same sweep in another."""
    plan, _ = two_seeds
    save(plan)
    files.stop_file(plan.path, plan.launch).touch()
    child(monkeypatch, "raise SystemExit('started')")
    outcome = jobs.run_isolated(reference(plan.path, 1, plan.launch))
    assert (outcome["missing"], outcome["message"]) == (2, "the sweep was stopped")
    for other in (reference(plan.path, 1, "0" * 12), f"{plan.path}#1"):
        outcome = jobs.run_isolated(other)
        assert outcome["failed"] == 2
        assert outcome["message"] is None


def test_a_pack_that_another_process_trains_is_left_to_it(two_seeds, monkeypatch):
    """Two launches of one sweep share its packs out; a pack that both took parts of would be another pack."""
    plan, store = two_seeds
    save(plan)
    child(monkeypatch, "raise SystemExit('started')")
    with marks.claim_pack(plan.path, 0) as is_ours:
        assert is_ours
        outcome = jobs.run_isolated(f"{plan.path}#0")
    assert (outcome["missing"], outcome["message"]) == (2, "another process trains this pack")
    assert outcome["is_held"]
    assert not store.statuses()


def test_a_server_that_one_job_has_waited_for_is_not_asked_by_the_next(two_seeds, monkeypatch):
    """Each job is a process of its own, and would otherwise wait its five seconds too."""
    plan, store = two_seeds
    save(plan)
    asked = []
    monkeypatch.setattr("lora_bench.tracking.live._has_key", lambda url: True)
    monkeypatch.setattr("lora_bench.tracking.live._base_url", lambda: "http://wandb.example")
    monkeypatch.setattr("lora_bench.tracking.live._unreachable", lambda url: asked.append(url) or "no answer")
    for _ in range(2):
        tracking = child_process.open_mirror(TrackingConfig(backend="wandb", mode="auto"), plan.path, store)
        assert tracking.mode == "offline"
    assert len(asked) == 1


def test_failed_runs_are_tried_again_only_when_the_plan_says_so(two_seeds, monkeypatch):
    plan, store = two_seeds
    save(plan)
    child(monkeypatch, "import os; os._exit(3)")
    jobs.run_isolated(f"{plan.path}#0")
    first = {run_id: store.record(run_id)["finished"] for run_id in plan.packs[0]}
    time.sleep(0.01)
    jobs.run_isolated(f"{plan.path}#0")
    assert {run_id: store.record(run_id)["finished"] for run_id in plan.packs[0]} == first
    plan.retry = dict.fromkeys(plan.packs[0][:1])
    save(plan)
    jobs.run_isolated(f"{plan.path}#0")
    changed = [run_id for run_id in plan.packs[0] if store.record(run_id)["finished"] != first[run_id]]
    assert changed == plan.packs[0][:1]


def test_a_child_that_finds_other_data_says_so(two_seeds, monkeypatch):
    """A worker whose files differ must not train runs under the planner's names."""
    plan, store = two_seeds
    save(plan)
    document = json.loads(plan.path.read_text(encoding="utf-8"))
    for entry in document["runs"].values():
        entry["config"]["task"]["train_rows"] = 39
    plan.path.write_text(json.dumps(document), encoding="utf-8")
    assert child_process.train(order_of(plan, 0), own_process=False) == 0
    assert {store.record(run_id)["error"]["type"] for run_id in plan.packs[0]} == {"RuntimeError"}
    assert "differ from the planner's" in store.record(plan.packs[0][0])["error"]["message"]


@pytest.mark.slow
def test_a_real_child_trains_its_pack(two_seeds):
    plan, store = two_seeds
    save(plan)
    outcome = jobs.run_isolated(f"{plan.path}#1")
    assert outcome["finished"] == 2, plan.path.with_suffix("").joinpath("pack-1.log").read_text(encoding="utf-8")
    assert store.record(plan.packs[1][0])["cost"]["peak_bytes"]


@pytest.mark.parametrize(
    ("spelled", "varies"),
    [
        (("1e-3", "0.001"), False),
        (("1e-3", "1.0e-3", ".001"), False),
        (("8", "8.0"), False),
        (("'8'", "8"), False),
        (("8", "16"), True),
        (("1e-3", "1e-2"), True),
        (("nan", "nan"), False),
        (("qv", "q"), True),
    ],
)
def test_a_value_is_the_same_however_it_is_spelled(spelled, varies):
    """Else cells of one setting get two names, and a study one more axis."""
    candidates = [Candidate(tiny_config(), (f"adapter.alpha={value}",)) for value in spelled]
    assert (varied_axes(candidates) == ("adapter.alpha",)) == varies
