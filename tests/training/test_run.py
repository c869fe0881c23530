"""One pack through everything: trained, scored, guarded, stored. And everything that must not pass as a result."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from peft import PeftModel
from sklearn.metrics import matthews_corrcoef

from architectures import ARCHITECTURES
from lora_bench.models import adapters, backbone, blueprint, devices
from lora_bench.packing.pack import Pack
from lora_bench.store.folder import Store
from lora_bench.tasks.tokens import tokenise
from lora_bench.training import curves, guards, run
from lora_bench.training.resolve import pack_key, packable, resolve
from lora_bench.training.run import run_pack
from stores import contents
from tiny import tiny_config


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path / "runs")


def test_a_run_ends_in_one_complete_folder(store):
    """Record, predictions and adapter: what every table, figure and reload rests on."""
    one = resolve(tiny_config())
    (record,) = run_pack([one], store)
    stored = store.record(one.run_id)
    assert set(stored.pop("files")) >= {"predictions.parquet", "adapter/adapter_model.safetensors"}
    assert record == stored
    assert record["status"] == "finished" and record["error"] is None
    assert record["parameters"]["adapter"] == 2 * 2 * 4 * 64 and record["parameters"]["head"] == 2 * 32 + 2
    assert [matrix["role"] for matrix in record["manifest"]] == ["q", "v", "q", "v"]
    assert set(record["scores"]) == {"train", "select", "report"}
    assert record["guards"]["start_gap"] == 0 and record["guards"]["frozen_weights_unchanged"] is True
    assert record["history"]["step"] == list(range(1, 9)) and [
        epoch["epoch"] for epoch in record["history"]["epochs"]
    ] == [2]
    assert record["cost"]["pack_size"] == 1 and record["cost"]["peak_bytes"] is None
    folder = store.path(one.run_id)
    assert sorted(path.name for path in folder.iterdir()) == ["adapter", "predictions.parquet", "record.json"]
    targets = json.loads((folder / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))["target_modules"]
    assert targets == sorted(targets) and len(targets) == 4  # peft's own order differs from process to process


def test_a_run_holds_its_rows_and_its_blueprint(monkeypatch):
    """Looked up once, when the run is resolved, and shared: seven runs of one task hold its rows once."""
    one, other = resolve(tiny_config()), resolve(tiny_config(adapter__rank=2))
    for function in ("lora_bench.training.resolve.load_task", "lora_bench.models.blueprint.blueprint"):
        monkeypatch.setattr(function, lambda *_: pytest.fail("looked up again"))
    assert one.task is other.task and one.blueprint is other.blueprint
    assert set(one.tokens()) == set(one.task.splits)


def test_scores_are_those_of_the_stored_predictions(store):
    """The official metric, computed by another library from the file, gives the record's number."""
    one = resolve(tiny_config())
    (record,) = run_pack([one], store)
    table = pd.read_parquet(store.path(one.run_id) / "predictions.parquet")
    assert table["split"].value_counts().to_dict() == {"select": 80, "report": 40}
    for split, rows in table.groupby("split"):
        guesses = rows[["logit_0", "logit_1"]].to_numpy().argmax(1)
        assert record["scores"][split]["matthews"] == pytest.approx(matthews_corrcoef(rows["label"], guesses))


def test_the_same_run_twice_is_the_same_bit_for_bit(tmp_path):
    """Also with dropout, which the tiny backbone has by default."""
    tables = []
    for name in ("first", "second"):
        store = Store(tmp_path / name)
        one = resolve(tiny_config())
        assert run_pack([one], store)[0]["status"] == "finished"
        tables.append(store.predictions(one.run_id))
    pd.testing.assert_frame_equal(*tables, check_exact=True)


def test_packed_and_solo_give_the_same_scores(tmp_path):
    """A run's result does not depend on the pack it rode in."""
    configs = [
        tiny_config(adapter__targets=targets, adapter__rank=rank)
        for targets, rank in (("q", 8), ("qv", 4), ("qkvo", 2))
    ]
    runs = [resolve(config) for config in configs]
    assert len({pack_key(one) for one in runs}) == 1
    together = run_pack(runs, Store(tmp_path / "packed"))
    for one, packed in zip(runs, together, strict=True):
        alone = Store(tmp_path / "solo")
        (record,) = run_pack([one], alone)
        assert record["scores"] == packed["scores"]
        ours, theirs = (Store(tmp_path / name).predictions(one.run_id) for name in ("packed", "solo"))
        np.testing.assert_allclose(ours["logit_0"], theirs["logit_0"], rtol=1e-3, atol=1e-5)


def test_finished_runs_are_left_alone(store):
    one = resolve(tiny_config())
    run_pack([one], store)
    before = (store.path(one.run_id) / "record.json").stat().st_mtime_ns
    assert run_pack([one], store) == []
    assert (store.path(one.run_id) / "record.json").stat().st_mtime_ns == before


def test_a_pack_with_finished_runs_is_trained_whole_and_only_what_is_missing_is_written(tmp_path):
    """A restart must give the bits that no interruption would have given, and they depend on the pack."""
    runs = [resolve(tiny_config(adapter__targets=targets)) for targets in ("q", "qv", "qkvo")]
    whole, part = Store(tmp_path / "whole"), Store(tmp_path / "part")
    run_pack(runs, whole)
    events = []
    (record,) = run_pack(runs, part, only=[runs[1].run_id], on_progress=events.append)
    assert list(part.statuses()) == [record["run_id"]] == [runs[1].run_id]
    assert record["cost"]["pack_size"] == 3
    assert {event["runs"] for event in events if "runs" in event} == {1}
    undisturbed = whole.record(record["run_id"])
    for key in ("scores", "history", "norms", "guards"):
        assert record[key] == undisturbed[key]
    assert contents(part.path(record["run_id"])) == contents(whole.path(record["run_id"]))
    assert run_pack(runs, part, only=[runs[1].run_id]) == []


def test_a_run_may_keep_its_scores_and_not_its_adapter(store):
    """Checked like every other run, whose id it has; its record says what is not there."""
    one = resolve(tiny_config(keep_adapters="none"))
    assert one.run_id == resolve(tiny_config()).run_id
    (record,) = run_pack([one], store)
    assert record["adapter_dropped"]["why"] == "store.keep_adapters=none"
    stored = store.record(one.run_id)
    assert set(stored.pop("files")) == {"predictions.parquet"}
    assert record == stored
    assert record["guards"]["reloads"] is True
    assert sorted(path.name for path in store.path(one.run_id).iterdir()) == ["predictions.parquet", "record.json"]


@pytest.mark.parametrize(
    "adapter",
    [
        {"method": "head_only"},
        {"method": "lora_plus", "b_lr_ratio": 16},
        {"method": "dora"},
        {"init": "pissa"},
        {"init": "olora"},
        {"method": "bitfit"},
        {"method": "full"},
    ],
    ids=lambda adapter: "-".join(map(str, adapter.values())),
)
def test_every_method_goes_through_the_same_loop_and_guards(store, adapter):
    """Baselines that stock peft or plain torch knows reload with stock tools and give their own logits."""
    one = resolve(tiny_config(**{f"adapter__{key}": value for key, value in adapter.items()}))
    (record,) = run_pack([one], store)
    assert record["status"] == "finished", record["error"]
    assert record["guards"]["reload_gap"] < 1e-5
    encoder = (
        2 * (4 * 32 + 64 + 32 + 2 * 32) + 32 + 32
    )  # projections, MLP and norms of two layers, embedding norm, pooler
    expected = {"head_only": 0, "bitfit": encoder, "full": record["parameters"]["backbone"]}.get(
        adapter.get("method", "")
    )
    assert expected is None or record["parameters"]["adapter"] == expected
    files = {path.name for path in (store.path(one.run_id) / "adapter").iterdir()}
    saves_peft = adapter.get("method", "lora") in ("lora", "lora_plus", "dora")
    assert ("adapter_model.safetensors" in files) == saves_peft and ("weights.safetensors" in files) != saves_peft


def test_a_whole_split_through_stock_peft(store):
    """`PeftModel.from_pretrained` on the folder as a user would call it."""
    one = resolve(tiny_config(adapter__targets="all", adapter__rank=2))
    run_pack([one], store)
    loaded = backbone.load(one.blueprint, precision="fp32", device=torch.device("cpu"))
    model = PeftModel.from_pretrained(loaded.untouched(), str(store.path(one.run_id) / "adapter")).eval()
    tokens = tokenise(
        one.task, one.blueprint.tokenizer, max_length=64, tokenizer_fingerprint=one.blueprint.tokenizer_fingerprint
    )
    report = store.predictions(one.run_id).query("split == 'report'")
    with torch.inference_mode():
        for row in range(len(tokens["report"])):
            a, b = tokens["report"].offsets[row : row + 2]
            logits = model(input_ids=torch.from_numpy(tokens["report"].input_ids[a:b].astype(np.int64))[None]).logits[0]
            np.testing.assert_allclose(logits, report.iloc[row][["logit_0", "logit_1"]].to_numpy(float), atol=1e-5)


def test_a_diverged_run_is_failed_and_its_neighbours_are_not(store):
    """A learning rate that overflows is a result about that rate, kept and flagged."""
    calm = resolve(tiny_config())
    wild = resolve(
        tiny_config(
            train__lr=1e6, train__head_lr=1e6, train__max_grad_norm=1e30, adapter__targets="all", train__epochs=2
        )
    )
    records = run_pack([calm, wild], store)
    assert records[0]["status"] == "finished"
    if records[1]["status"] == "failed":
        assert records[1]["error"]["kind"] in ("nonfinite", "guard")
        assert store.status(wild.run_id) == "failed" and not store.has(wild.run_id)


def test_a_loss_that_is_not_finite_fails_its_run_alone(store, monkeypatch):
    calm, sick = resolve(tiny_config()), resolve(tiny_config(adapter__targets="q"))
    make = adapters.make

    def poisoned(loaded, adapter, matrices, head, seed):
        state = make(loaded, adapter, matrices, head, seed)
        if adapter.targets == "q":
            state.head = {name: torch.full_like(tensor, float("nan")) for name, tensor in state.head.items()}
        return state

    monkeypatch.setattr(adapters, "make", poisoned)
    monkeypatch.setattr(guards, "require_unchanged_start", lambda *_: 0.0)
    records = run_pack([calm, sick], store)
    assert [record["status"] for record in records] == ["finished", "failed"]
    assert records[1]["error"]["kind"] == "nonfinite" and "step 0" in records[1]["error"]["message"]


def test_guards_refuse_what_is_no_result(store, monkeypatch):
    """An update that is not zero at the start, a backbone that moved, an adapter that reloads to something else."""
    one = resolve(tiny_config())
    make = adapters.make

    def moved(*arguments):
        state = make(*arguments)
        next(iter(state.low_rank.values())).B.add_(1.0)
        return state

    with monkeypatch.context() as patch:
        patch.setattr(adapters, "make", moved)
        (record,) = run_pack([one], store)
        assert record["error"]["kind"] == "guard" and "before the first step" in record["error"]["message"]

    with monkeypatch.context() as patch:
        patch.setattr(Pack, "is_frozen_intact", lambda self: False)
        (record,) = run_pack([one], store)
        assert record["error"]["kind"] == "guard" and "frozen_weights_unchanged" in record["error"]["message"]

    save = adapters.save

    def spoilt(folder, loaded, adapter, matrices, state):
        state = adapters.AdapterState(
            {path: adapters.LowRank(pair.A * 30, pair.B * 30, pair.scale) for path, pair in state.low_rank.items()},
            state.head,
        )
        save(folder, loaded, adapter, matrices, state)

    with monkeypatch.context() as patch:
        patch.setattr(adapters, "save", spoilt)
        (record,) = run_pack([one], store)
        assert record["error"]["kind"] == "guard"

    with monkeypatch.context() as patch:
        patch.setattr(run, "train_pack", lambda *_, on_epoch, **__: on_epoch(1, one.steps))
        patch.setattr(curves.Listener, "finite_steps", lambda self: [one.steps])
        (record,) = run_pack([one], store)
        assert "head_moved" in record["error"]["message"] and "update_moved" in record["error"]["message"]

    (record,) = run_pack([one], store)
    assert record["status"] == "finished", "a failed record is replaced when the run is tried again"


def test_out_of_memory_halves_the_pack(store, monkeypatch, caplog):
    """Down to single runs, and it says so."""
    runs = [resolve(tiny_config(adapter__targets=targets)) for targets in ("q", "k", "v")]
    train = run.train_pack

    def hungry(pack, *arguments, **options):
        if pack.n_runs > 1:
            raise RuntimeError(
                "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory"
            )
        return train(pack, *arguments, **options)

    monkeypatch.setattr(run, "train_pack", hungry)
    events = []
    records = run_pack(runs, store, on_progress=events.append)
    assert [record["status"] for record in records] == ["finished"] * 3
    assert [event["runs"] for event in events if event["event"] == "split"] == [3, 2]
    assert "out of memory" in caplog.text


def test_a_hub_that_is_lost_half_way_fails_what_it_meets_and_nothing_else(store, monkeypatch):
    """Weights are loaded pack by pack; the runs that met the gap are failed, and can be tried again."""
    first, second = (resolve(tiny_config(seed=seed)) for seed in (0, 1))
    run_pack([first], store)

    def unreachable(*_, **__):
        raise OSError("We couldn't connect to 'https://huggingface.co' to load the files")

    with monkeypatch.context() as patch:
        patch.setattr(backbone, "load", unreachable)
        (record,) = run_pack([second], store)
    assert (record["status"], record["error"]["kind"]) == ("failed", "exception")
    assert "couldn't connect" in record["error"]["message"]
    assert store.has(first.run_id)
    assert run_pack([second], store)[0]["status"] == "finished"


def test_out_of_memory_is_left_to_a_caller_who_has_other_processes(store, monkeypatch):
    """On a CPU a process keeps what it took, and the halves would have less room than the pack."""

    def train_pack(*_, **__):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(run, "train_pack", train_pack)
    with pytest.raises(MemoryError, match="can't allocate memory"):
        run_pack([resolve(tiny_config(train__lr=lr)) for lr in (1e-3, 2e-3)], store, halves_on_cpu=False)
    assert not store.statuses()


def test_out_of_memory_of_a_single_run_is_its_failure(store, monkeypatch):
    def hungry(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")

    monkeypatch.setattr(run, "train_pack", hungry)
    (record,) = run_pack([resolve(tiny_config())], store)
    assert record["status"] == "failed" and record["error"]["kind"] == "out_of_memory"


def test_ctrl_c_keeps_nothing_half_written(store, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "train_pack", interrupted)
    one = resolve(tiny_config())
    with pytest.raises(KeyboardInterrupt):
        run_pack([one], store)
    assert store.status(one.run_id) is None and store.frame().empty
    with store.claim(one.run_id) as is_held:
        assert is_held


def test_the_best_checkpoint_is_chosen_on_select(store, monkeypatch):
    """`checkpoint=best` keeps the epoch with the best select score, and that state is what is scored and saved."""
    one = resolve(tiny_config(train__checkpoint="best", train__epochs=3))
    fake = iter([0.1, 0.9, 0.2])
    states = []
    keep = Pack.set_states
    monkeypatch.setattr(curves, "score", lambda *_: {"matthews": next(fake)})  # at the ends of the three epochs
    monkeypatch.setattr(Pack, "set_states", lambda self, given: (states.append(given), keep(self, given))[1])
    kept = []
    state = Pack.state
    monkeypatch.setattr(Pack, "state", lambda self, index: (kept.append(found := state(self, index)), found)[1])
    (record,) = run_pack([one], store)
    assert record["status"] == "finished"
    (chosen,) = states[0]
    assert chosen is kept[1], "the state of epoch 2"
    final = kept[-1]
    assert chosen.head and all(torch.equal(final.head[name], chosen.head[name]) for name in chosen.head)


def test_what_cannot_be_packed_says_so():
    assert packable(resolve(tiny_config())) and packable(resolve(tiny_config(adapter__method="head_only")))
    for adapter in ({"adapter__method": "dora"}, {"adapter__init": "pissa"}, {"adapter__method": "full"}):
        one = resolve(tiny_config(**adapter))
        assert not packable(one) and pack_key(one) != pack_key(resolve(tiny_config()))


def test_identity_is_canonical():
    """Spelling, paths, tracking, packs and earlier work do not name a run; what changes its result does."""
    base = resolve(tiny_config())
    blueprint.byte_tokenizer()("cut", truncation=True, max_length=5, padding="max_length")
    assert resolve(tiny_config(adapter__targets="vq")).run_id == base.run_id
    assert resolve(tiny_config(adapter__rank=None, adapter__budget="qv@4")).run_id == base.run_id
    assert resolve(tiny_config(adapter__rank=None, adapter__budget=1024)).run_id == base.run_id
    assert resolve(tiny_config(store="elsewhere", model__name="my/tiny")).run_id == base.run_id
    assert resolve(tiny_config(adapter__layers=[0, 1])).run_id == base.run_id
    assert resolve(tiny_config(seed=1)).run_id != base.run_id
    assert resolve(tiny_config(seed=1)).cell_id == base.cell_id
    assert resolve(tiny_config(task__train_rows=63)).run_id != base.run_id
    floor = [
        resolve(tiny_config(adapter__method="head_only", adapter__targets=t, train__lr=lr))
        for t, lr in (("q", 1e-3), ("v", 1e-2))
    ]
    assert floor[0].run_id == floor[1].run_id


@pytest.mark.parametrize("name", ["gpt2", "phi3", "modernbert", "falcon_new_decoder"])
@pytest.mark.parametrize(
    "adapter", [{}, {"method": "dora"}, {"init": "pissa"}, {"method": "bitfit"}, {"method": "full"}], ids=str
)
def test_fused_backbones_save_what_stock_tools_reload(store, name, adapter):
    """Q of a fused projection alone, by every method: exported whole, it gives the same logits on the Hub's own
    layout."""
    model_type, values = ARCHITECTURES[name]
    architecture = {"model_type": model_type, **values, "vocab_size": 300}
    given = {f"adapter__{key}": value for key, value in adapter.items()}
    given |= dict(task__train_rows=32, task__report_rows=16, train__epochs=1)
    one = resolve(tiny_config(model__architecture=architecture, adapter__targets="q", adapter__rank=2, **given))
    (record,) = run_pack([one], store)
    assert record["status"] == "finished", record["error"]["traceback"]
    assert record["guards"]["reload_gap"] < 1e-4


def test_a_device_that_is_out_of_order_is_named_and_raises_nothing(monkeypatch):
    def broken(device):
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(devices, "resolve_device", broken)
    assert run.environment_here("cuda")["device"] == "cuda"
