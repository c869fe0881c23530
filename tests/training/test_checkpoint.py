"""Long packs go on where they were: the same bits as without the interruption, and no file that outlives its use."""

import logging

import pytest

from checkpoints import stop_at
from lora_bench.store.folder import Store
from lora_bench.training import checkpoint as checkpoints
from lora_bench.training.checkpoint import FOLDER, Checkpoint, State
from lora_bench.training.resolve import resolve
from lora_bench.training.run import run_pack
from stores import contents
from tiny import tiny_config

COMPARED = ("scores", "history", "norms", "guards", "parameters")


@pytest.fixture
def always(monkeypatch):
    """A checkpoint behind every step."""
    monkeypatch.setattr(checkpoints, "EVERY_SECONDS", 0.0)


def held(store: Store) -> list[str]:
    folder = store.root / FOLDER
    return [path.name for path in folder.iterdir()] if folder.is_dir() else []


@pytest.mark.parametrize(
    "changed",
    [
        {"adapter__dropout": 0.1},
        {"train__checkpoint": "best", "train__epochs": 3},
        {"adapter__method": "head_only"},
        {"adapter__method": "dora", "train__checkpoint": "best"},
        {"adapter__init": "pissa"},
        {"adapter__method": "full"},
    ],
    ids=lambda changed: " ".join(map(str, changed.values())),
)
def test_a_pack_that_is_stopped_goes_on_and_ends_with_the_same_bits(tmp_path, always, caplog, changed):
    """Weights, moments, dropout streams and the curves: what one step too many or too few would move."""
    configs = [tiny_config(**changed)]
    if not changed.keys() & {"adapter__init", "adapter__method"}:
        configs.append(tiny_config(**changed, adapter__targets="qkvo", adapter__rank=2, train__lr=3e-3))
    runs = [resolve(config) for config in configs]
    undisturbed, stopped = Store(tmp_path / "undisturbed"), Store(tmp_path / "stopped")
    run_pack(runs, undisturbed)
    with caplog.at_level(logging.INFO):
        for step in (3, 6):  # in both epochs: four steps each
            with pytest.raises(KeyboardInterrupt):
                run_pack(runs, stopped, on_progress=stop_at(step))
            assert len(held(stopped)) == 1
        records = run_pack(runs, stopped)
    assert "goes on at step 2 of" in caplog.text
    assert "goes on at step 5 of" in caplog.text
    assert [record["status"] for record in records] == ["finished"] * len(runs)
    for record in records:
        expected = undisturbed.record(record["run_id"])
        assert {key: record[key] for key in COMPARED} == {key: expected[key] for key in COMPARED}
        assert contents(stopped.path(record["run_id"])) == contents(undisturbed.path(record["run_id"]))
    assert held(stopped) == []


def test_short_packs_leave_no_checkpoint(tmp_path):
    store = Store(tmp_path / "runs")
    with pytest.raises(KeyboardInterrupt):
        run_pack([resolve(tiny_config())], store, on_progress=stop_at(6))
    assert held(store) == []


@pytest.mark.parametrize("damage", [lambda content: content[:100], lambda content: b"", lambda content: b"x" * 5000])
def test_a_damaged_checkpoint_is_left_out(tmp_path, always, caplog, damage):
    store = Store(tmp_path / "runs")
    one = resolve(tiny_config())
    with pytest.raises(KeyboardInterrupt):
        run_pack([one], store, on_progress=stop_at(5))
    (path,) = (store.root / FOLDER).iterdir()
    path.write_bytes(damage(path.read_bytes()))
    (record,) = run_pack([one], store)
    assert record["status"] == "finished"
    assert record["history"]["step"] == list(range(1, 9))
    assert "cannot be read" in caplog.text
    assert held(store) == []


def test_a_pack_is_taken_up_by_itself_alone(tmp_path):
    """On another machine, or in another pack, the same weights would lead elsewhere."""
    mine = Checkpoint(tmp_path, ["0" * 16, "1" * 16], "cpu-a")
    mine.save(State({}, {"steps": 3}))
    assert Checkpoint(tmp_path, ["0" * 16, "1" * 16], "cpu-a").load().values == {"steps": 3}
    for run_ids, environment in (
        (["1" * 16, "0" * 16], "cpu-a"),
        (["0" * 16], "cpu-a"),
        (mine and ["0" * 16, "1" * 16], "b"),
    ):
        assert Checkpoint(tmp_path, run_ids, environment).load() is None


def test_a_disk_that_refuses_costs_the_checkpoint_and_nothing_else(tmp_path, always, caplog):
    store = Store(tmp_path / "runs")
    store.root.mkdir()
    (store.root / FOLDER).write_text("in the way", encoding="utf-8")
    (record,) = run_pack([resolve(tiny_config())], store)
    assert record["status"] == "finished"
    assert caplog.text.count("cannot be written") == 1


def test_a_pack_that_fails_leaves_no_checkpoint(tmp_path, always, monkeypatch):
    """Else trying it again would begin behind the cause."""
    store = Store(tmp_path / "runs")

    def fail(*_, **__):
        raise RuntimeError("no prediction")

    monkeypatch.setattr("lora_bench.training.run.predict", fail)
    (record,) = run_pack([resolve(tiny_config())], store)
    assert record["status"] == "failed"
    assert held(store) == []


def test_what_finished_packs_have_left_is_cleared_by_the_next_and_the_rest_is_told(tmp_path, caplog):
    """A kill between the records and the removal left a file of the backbone's size for good."""
    run = resolve(tiny_config(task__train_rows=40))
    store = Store(tmp_path)
    run_pack([run], store)
    left = {"done": [run.run_id], "open": [run.run_id, "0" * 16]}
    paths = {}
    for name, run_ids in left.items():
        (one := Checkpoint(store.root, run_ids, name)).save(State())
        paths[name] = one.path
    foreign = store.root / FOLDER / "mine.safetensors"
    foreign.write_bytes(b"mine")
    with caplog.at_level(logging.INFO):
        run_pack([resolve(tiny_config(task__train_rows=40, seed=1))], store)
    assert sorted(held(store)) == sorted([paths["open"].name, foreign.name])
    assert f"{paths['done']} is removed: its 1 runs are finished" in caplog.text
    assert "1 in" in caplog.text
