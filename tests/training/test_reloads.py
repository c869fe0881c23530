"""The guard that reads a saved run back, on few rows."""

from __future__ import annotations

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_bench.models import adapters, backbone, seeds
from lora_bench.store.folder import Store
from lora_bench.training import guards, norms, readback
from lora_bench.training.reloaded import Reloader
from lora_bench.training.resolve import resolve
from lora_bench.training.run import run_pack
from tiny import tiny_config


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A finished run in fp32: its backbone, report rows, logits and adapter folder."""
    run = resolve(tiny_config(adapter__targets="qvo", train__lr=3e-2))
    store = Store(tmp_path_factory.mktemp("saved"))
    run_pack([run], store)
    loaded = backbone.load(run.blueprint, precision="fp32", device=torch.device("cpu"))
    logits = store.predictions(run.run_id).query("split == 'report'").filter(like="logit_").to_numpy()
    return loaded, run.tokens()["report"], logits, store.path(run.run_id) / "adapter"


def test_rows_that_are_read_back_show_the_loss_of_any_one_tensor(saved, tmp_path):
    """Few rows must say what all would: each matrix of each layer and the head, lost alone."""
    loaded, tokens, logits, folder = saved
    tensors = load_file(folder / "adapter_model.safetensors")
    lost = [name for name in tensors if "lora_B" in name or "classifier" in name]
    assert len(lost) >= 2 * 3 + 2 and len(tokens) > guards.RELOADED_ROWS["fp32"]
    assert guards.reload_gap(folder, loaded, tokens, logits).logits < 1e-5
    for name in lost:
        spoilt = tmp_path / name
        shutil.copytree(folder, spoilt)
        save_file(tensors | {name: torch.zeros_like(tensors[name])}, spoilt / "adapter_model.safetensors")
        few, all_rows = (_gap(spoilt, loaded, tokens, logits, n_rows) for n_rows in (None, len(tokens)))
        assert few > all_rows / 3 > 0, name


def _gap(*arguments):
    gap = guards.reload_gap(*arguments)
    return 1.0 if gap.labels > 0 else gap.logits


def test_a_saved_run_is_read_back_on_the_rows_of_its_precision(saved, monkeypatch):
    """The cost of the guard is that of its rows; bf16's median needs more of them than exact rows do."""
    loaded, tokens, logits, folder = saved
    read = []
    batch = guards.batch
    monkeypatch.setattr(guards, "batch", lambda split, rows, pad: read.append(len(rows)) or batch(split, rows, pad))
    guards.reload_gap(folder, loaded, tokens, logits)
    assert read == [16]
    guards.reload_gap(folder, loaded, tokens, logits, len(tokens))
    assert read == [16, len(tokens)]


OTHERS = {
    "other values": {},
    "another placement": {"adapter__targets": "ko"},
    "another rank": {"adapter__rank": 3},
    "another scale": {"adapter__alpha": 5.0},
    "ranks by role": {"adapter__rank": None, "adapter__rank_pattern": "q@2+v@4"},
}


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp64"])
@pytest.mark.parametrize("lost", [None, "a matrix"])
def test_runs_that_are_read_back_one_after_another_are_read_as_if_alone(tmp_path, precision, lost):
    """Nothing of a run may stay for the next: it would pass its guard with a neighbour's weights."""
    configs = [tiny_config(train__precision=precision, **other) for other in OTHERS.values()]
    runs = [resolve(config) for config in configs]
    loaded = backbone.load(runs[0].blueprint, precision=precision, device=torch.device("cpu"))
    folders = [_drawn(tmp_path / str(number), loaded, run, number) for number, run in enumerate([runs[0], *runs])]
    if lost:
        path = folders[1] / "adapter_model.safetensors"
        tensors = load_file(path)
        del tensors[next(name for name in tensors if "lora_B" in name)]
        save_file(tensors, path)
    reloader = Reloader(loaded)
    for folder in (*folders, *reversed(folders)):
        alone = adapters.load_stock(folder, loaded).state_dict()
        after_others = reloader.load(folder).state_dict()
        assert alone.keys() == after_others.keys()
        for name, tensor in alone.items():
            assert tensor.dtype == after_others[name].dtype and tensor.equal(after_others[name]), name


def _drawn(folder, loaded, run, seed):
    """A saved run with drawn weights in place of trained ones."""
    torch.manual_seed(seed)
    state = adapters.make(loaded, run.config.adapter, run.matrices, backbone.head_state(loaded, seed), seed)
    for pair in state.low_rank.values():
        pair.B.normal_()
    adapters.save(folder, loaded, run.config.adapter, run.matrices, state)
    return folder


def test_a_pack_makes_one_model_for_the_runs_of_a_placement(tmp_path, monkeypatch):
    """The copies cost more than the rows that are read; runs of every placement still pass through stock peft."""
    made = []
    load_stock = adapters.load_stock
    monkeypatch.setattr(adapters, "load_stock", lambda folder, loaded: made.append(1) or load_stock(folder, loaded))
    placements = [tiny_config(adapter__targets=targets, train__lr=lr) for targets in ("q", "v") for lr in (1e-3, 1e-2)]
    records = run_pack([resolve(config) for config in placements], Store(tmp_path))
    assert [record["status"] for record in records] == ["finished"] * 4
    assert len(made) == 2 and all(record["guards"]["reloads"] for record in records)


METHODS = {
    "an encoder's pack": {"adapter__targets": "qv"},
    "DoRA": {"adapter__method": "dora"},
    "all weights": {"adapter__method": "full"},
    "a head": {"adapter__method": "head_only"},
}


ROUGH = {"bf16": "fp32", "fp32": "fp64"}


@pytest.mark.parametrize("rough", ROUGH)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("is_spoilt", [False, True], ids=["kept", "spoilt"])
def test_what_rounding_leaves_open_is_asked_more_exactly(method, is_spoilt, rough, tmp_path, monkeypatch):
    """A steep model of many layers moves by more than a spoilt adapter does elsewhere, from rounding alone; it failed
    although what was saved was right, and a study could not go on without it."""
    monkeypatch.setitem(guards.RELOAD_TOLERANCE, rough, -1.0)
    if is_spoilt:
        monkeypatch.setattr(adapters, "save", _halved(adapters.save))
    (record,) = run_pack([resolve(tiny_config(train__precision=rough, **METHODS[method]))], Store(tmp_path))
    if is_spoilt:
        assert record["error"]["kind"] == "guard" and "reload" in record["error"]["message"]
        return
    held = record["guards"]
    assert record["status"] == "finished" and held["reloads"]
    assert held[f"reload_gap_{ROUGH[rough]}"] < 1e-5
    assert held[f"rounding_of_{rough}"] <= 3 * held[f"rounding_of_{rough}_in_peft"]


@pytest.mark.parametrize("share", [0.2, 0.8], ids=["some rows", "most rows"])
def test_predictions_far_from_what_was_saved_are_not_rounding(share, saved, tmp_path, monkeypatch):
    """What was saved is right, and the predictions that the run is scored by are not: of most rows, which the median
    shows, or of some, whose labels do."""
    _, tokens, _, folder = saved
    run = resolve(tiny_config(adapter__targets="qvo", train__lr=3e-2, train__precision="bf16"))
    loaded = backbone.load(run.blueprint, precision="bf16", device=torch.device("cpu"))
    state = _state(loaded, run, folder)
    logits = readback._predicted(loaded, run, state, tokens)
    moved = logits.copy()
    moved[: int(share * len(moved))] = moved[: int(share * len(moved)), ::-1]
    reader = Reloader(loaded)
    monkeypatch.setitem(guards.RELOAD_TOLERANCE, "bf16", 1e-12)
    kept, lost = (
        readback.read_back(run, state, folder, loaded=loaded, tokens=tokens, logits=shown, reloader=reader)
        for shown in (logits, moved)
    )
    assert kept["reloads"] and not lost["reloads"]
    assert kept["reload_gap_fp32"] == lost["reload_gap_fp32"] < 1e-5


def _state(loaded, run, folder):
    """What a saved run holds, as a pack takes it."""
    tensors = load_file(folder / "adapter_model.safetensors")
    state = adapters.make(loaded, run.config.adapter, run.matrices, backbone.head_state(loaded, 0), 0)
    for module, pair in state.low_rank.items():
        for name in ("A", "B"):
            (key,) = (key for key in tensors if f"{module}.lora_{name}." in key)
            getattr(pair, name).copy_(tensors[key])
    for name, tensor in state.head.items():
        (key,) = (key for key in tensors if key.endswith(name))
        tensor.copy_(tensors[key])
    return state


def _halved(save):
    """A function that saves a run and halves its head."""

    def spoil(folder, *arguments):
        save(folder, *arguments)
        (path,) = folder.glob("*.safetensors")
        tensors = load_file(path)
        heads = {name: tensor / 2 for name, tensor in tensors.items() if "classifier" in name}
        assert heads
        save_file(tensors | heads, path, metadata={"format": "pt"})

    return spoil


def test_a_gap_that_fails_a_run_is_told(tmp_path, monkeypatch):
    """Whether it was rounding or another adapter shows in the number alone."""
    for precision in ("fp32", "fp64"):
        monkeypatch.setitem(guards.RELOAD_TOLERANCE, precision, -1.0)
    (record,) = run_pack([resolve(tiny_config(train__precision="fp32"))], Store(tmp_path))
    assert "reloads (False)" in record["error"]["message"] and "reload_gap " in record["error"]["message"]


def test_norms_of_frozen_weights_are_taken_once(tmp_path, monkeypatch):
    """They depend on no run: of a pack's norms they are most of the work."""
    drawn = []
    generator = seeds.generator
    monkeypatch.setattr(
        norms.seeds, "generator", lambda *names, **rest: drawn.append(names) or generator(*names, **rest)
    )
    runs = [resolve(tiny_config(adapter__targets="qv", train__lr=lr, seed=77)) for lr in (1e-3, 3e-3, 1e-2)]
    records = run_pack(runs, Store(tmp_path))
    subspaces = [names for names in drawn if names[0] == "random subspace"]
    assert len(subspaces) == len(set(subspaces)) <= len(runs[0].matrices)
    for record in records:
        for row in record["norms"]:
            assert {name: row[name] for name in ("weight", "weight_in_weight", "weight_in_random")} == _of_weight(
                runs[0], row
            )


def _of_weight(run, row):
    loaded = backbone.load(run.blueprint, precision=run.precision, device=torch.device("cpu"))
    weight = loaded.model.get_submodule(row["module"]).weight.detach().double()
    stream = seeds.generator("random subspace", row["module"], row["rank"])
    drawn = [torch.randn(width, row["rank"], generator=stream, dtype=torch.float64) for width in weight.shape]
    left, right = (torch.linalg.qr(directions)[0] for directions in drawn)
    largest = torch.linalg.svdvals(weight.float()).double()[: row["rank"]]
    random = float((left.T @ weight @ right).norm())
    return {"weight": float(weight.norm()), "weight_in_weight": float(largest.norm()), "weight_in_random": random}
