"""Every precision that `train.precision=auto` may resolve to, through everything that a run goes through.

The other tests force fp32 or fp64, where a tensor of the wrong precision goes unnoticed.
"""

import functools
import json
import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from architectures import ARCHITECTURES
from checkpoints import stop_at
from configs import composed, names
from lora_bench.config.compose import parse
from lora_bench.config.schema import RunConfig
from lora_bench.launch.plan import Candidate, make, save
from lora_bench.launch.plan_file import PlanFile
from lora_bench.models import backbone, devices
from lora_bench.packing.solo import START_TOLERANCE
from lora_bench.store.folder import Store
from lora_bench.tasks.glue import TASKS
from lora_bench.tasks.metrics import score
from lora_bench.tasks.tokens import batch
from lora_bench.training import checkpoint as checkpoints
from lora_bench.training import guards
from lora_bench.training.evaluate import to_tensors
from lora_bench.training.resolve import Run, resolve
from lora_bench.training.run import run_pack
from stores import contents
from user_files import user_rows, write, write_glue

PRECISIONS = ("fp32", "bf16")
BACKBONES = {"encoder": "bert", "two_layer_head": "roberta", "decoder": "llama", "fused_decoder": "gpt2"}
METHODS = names("conf/adapter")
COMPARED = ("scores", "history", "norms", "guards", "parameters")
OTHER_BACKBONE = 2e-2
"""Largest gap between a run's logits and its adapter's on a backbone of the other precision, relative to the largest
logit (at least 1): bf16 keeps 8 bits, and a few layers of such roundings stay near one of them (2^-8 is 4e-3)."""


def auto_is(patch: pytest.MonkeyPatch, precision: str) -> None:
    """`auto` resolves to `precision`, whatever this machine is fast at."""
    patch.setattr(devices, "resolve_precision", lambda asked, device: precision if asked == "auto" else asked)


@functools.cache
def shipped(*overrides: str) -> RunConfig:
    """The shipped values on the tiny backbone, with few rows and two short epochs."""
    rows = ("task.train_rows=32", "task.select_rows=8", "task.report_rows=16", "train.batch_size=16", "train.epochs=2")
    return parse(composed("model=tiny", "tracking=none", *rows, *overrides))


def on(config: RunConfig, **model: object) -> RunConfig:
    """The same values on another backbone."""
    return replace(config, model=replace(config.model, **model))


@dataclass(frozen=True)
class Ran:
    """The shipped methods on one backbone in one precision, and the same runs stopped and taken up again."""

    precision: str
    runs: dict[str, Run]
    store: Store
    resumed: Store


# Most tests train in fp32, and test_packing.py every family against stock peft: in fp32 an encoder and a fused decoder
# stand for the rest.
TRAINED = [(p, b) for b in BACKBONES for p in PRECISIONS if p != "fp32" or b in ("encoder", "fused_decoder")]


@pytest.fixture(scope="module", params=TRAINED, ids="-".join)
def ran(request, tmp_path_factory) -> Ran:
    """One plan of all methods; its packs are trained from the plan file, as a job does."""
    precision, name = request.param
    model_type, settings = ARCHITECTURES[BACKBONES[name]]
    settings = settings | {"vocab_size": 300, "bos_token_id": 1, "eos_token_id": 2}
    root = tmp_path_factory.mktemp("precision")
    with pytest.MonkeyPatch.context() as patch:
        auto_is(patch, precision)
        architecture = {"model_type": model_type, **settings}
        candidates = [
            Candidate(
                on(
                    shipped(f"adapter={method}", "train.max_length=32", "train.lr=1e-2"),
                    name=name,
                    architecture=architecture,
                ),
                (f"adapter={method}",),
            )
            for method in METHODS
        ]
        store, resumed = Store(root / "whole"), Store(root / "resumed")
        plan = make(candidates, store)
        save(plan)
        for pack in PlanFile.load(plan.path).packs:
            runs = [resolve(entry.checked_config()) for entry in pack]
            assert [one.run_id for one in runs] == [entry.run_id for entry in pack]
            run_pack(runs, store)
            with patch.context() as always:
                always.setattr(checkpoints, "EVERY_SECONDS", 0.0)
                with pytest.raises(KeyboardInterrupt):
                    run_pack(runs, resumed, on_progress=stop_at(3))
            run_pack(runs, resumed)
    by_method = {one.overrides[0].removeprefix("adapter="): one.run for one in plan.runs.values()}
    return Ran(precision, by_method, store, resumed)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_finishes_in_every_precision(ran, method):
    """From plan to record: trained, scored, guarded and reloaded, with a gap far below what is allowed."""
    one = ran.runs[method]
    record = ran.store.record(one.run_id)
    assert record["status"] == "finished", record["error"]
    assert record["config"]["train"]["precision"] == ran.precision
    assert np.isfinite(record["history"]["loss"]).all()
    held = record["guards"]
    is_exact = method not in ("dora", "pissa", "olora")
    assert held["start_gap"] <= (0 if is_exact else START_TOLERANCE[ran.precision] / 5)
    assert held["reload_gap"] <= guards.RELOAD_TOLERANCE[ran.precision] / 3
    predictions = ran.store.predictions(one.run_id).query("split == 'report'")
    logits = predictions.filter(like="logit_").to_numpy()
    assert record["scores"]["report"] == score(one.task.metrics, predictions["label"].to_numpy(), logits)


@pytest.mark.parametrize("method", METHODS)
def test_what_is_saved_is_fp32_and_loads_with_stock_tools_in_both_precisions(ran, method):
    """A user has the adapter and a backbone in a precision of their own choice; nothing of ours."""
    one = ran.runs[method]
    folder = ran.store.path(one.run_id) / "adapter"
    (weights,) = folder.glob("*.safetensors")
    assert {tensor.dtype for tensor in load_file(weights).values()} == {torch.float32}
    tokens = one.tokens()["report"]
    ours = ran.store.predictions(one.run_id).query("split == 'report'").filter(like="logit_").to_numpy()
    for precision in PRECISIONS:
        loaded = backbone.load(one.blueprint, precision=precision, device=torch.device("cpu"))
        model = loaded.untouched()
        if (folder / "adapter_config.json").exists():
            model = PeftModel.from_pretrained(model, str(folder)).eval()
        else:
            assert not model.load_state_dict(load_file(weights), strict=False).unexpected_keys
        tensors = to_tensors(batch(tokens, np.arange(len(tokens)), one.blueprint.tokenizer.pad_token_id), loaded.device)
        with torch.inference_mode():
            theirs = model(**{key: value for key, value in tensors.items() if key in loaded.inputs}).logits.float()
        gap = np.abs(theirs.numpy() - ours).max() / max(1.0, np.abs(ours).max())
        tolerance = guards.RELOAD_TOLERANCE[precision] if precision == ran.precision else OTHER_BACKBONE
        assert gap <= tolerance, precision


@pytest.mark.parametrize("method", METHODS)
def test_a_stopped_run_ends_with_the_same_bits_in_every_precision(ran, method):
    """What a checkpoint keeps is all that training depends on, in bf16 as well."""
    run_id = ran.runs[method].run_id
    expected, record = ran.store.record(run_id), ran.resumed.record(run_id)
    assert {key: record[key] for key in COMPARED} == {key: expected[key] for key in COMPARED}
    assert contents(ran.resumed.path(run_id)) == contents(ran.store.path(run_id))


# Shipped defaults


@pytest.fixture(params=PRECISIONS)
def precision(request, monkeypatch) -> str:
    """What `auto` resolves to."""
    auto_is(monkeypatch, request.param)
    return request.param


def assert_trains(config: RunConfig, precision: str, tmp_path: Path) -> dict:
    one = resolve(config)
    (record,) = run_pack([one], Store(tmp_path / "runs"))
    assert record["status"] == "finished", record["error"]
    expected = precision if config.train.precision == "auto" else config.train.precision
    assert record["config"]["train"]["precision"] == expected
    return record


@pytest.mark.parametrize("name", names("conf/task"))
def test_every_shipped_task_trains(name, precision, tmp_path):
    """Embedded, planted, GLUE and own files; pairs of sentences, three labels, and numbers in place of labels."""
    given = [f"task={name}", "train.max_length=32"]
    if name in TASKS:
        given.append(f"task.data_dir={write_glue(tmp_path / name, name, rows=60)}")
    elif name == "files":
        for split in ("train", "report"):
            write(tmp_path / f"{split}.csv", user_rows(["yes", "no"] * 30))
        given += [f"task.data_dir={tmp_path}", "task.train_file=train.csv", "task.report_file=report.csv"]
    record = assert_trains(shipped(*given), precision, tmp_path)
    assert set(record["scores"]["report"]) == set(record["config"]["task"]["metrics"])


@pytest.mark.parametrize("name", names("conf/train"))
def test_every_shipped_training_preset_trains(name, precision, tmp_path):
    """The adapter that a preset of a paper sets goes with it."""
    folder = write_glue(tmp_path / "cola", "cola", rows=60)
    longest = shipped().model.architecture | {"max_position_embeddings": 512}
    given = ("task=cola", f"task.data_dir={folder}", f"train={name}")
    assert_trains(on(shipped(*given), architecture=longest), precision, tmp_path)


@pytest.mark.parametrize("name", names("conf/model"))
def test_a_shipped_model_sets_nothing_but_the_backbone(name):
    """So what the tiny backbone trains with is what every shipped one trains with."""
    other, tiny = (dict(composed(f"model={one}", "tracking=none")) for one in (name, "tiny"))
    assert (other.pop("model") == tiny.pop("model")) == (name == "tiny")
    assert other == tiny


def test_the_default_backbone_trains_in_the_default_way(precision, tmp_path):
    """`lora-bench` and nothing else, but for the number of rows and the mirror."""
    rows = ("task.train_rows=8", "task.select_rows=8", "task.report_rows=8", "train.epochs=3")
    assert_trains(parse(composed("tracking=none", *rows)), precision, tmp_path)


@pytest.mark.parametrize("name", names("conf/tracking"))
def test_every_shipped_tracking_takes_what_a_run_tells(name, precision, command, monkeypatch, tmp_path):
    """Through the command line, without a key and a network."""
    for variable in [each for each in os.environ if each.startswith("WANDB_")]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
    rows = ("task.train_rows=32", "task.select_rows=8", "task.report_rows=16", "train.epochs=2", "train.max_length=32")
    ended = command("model=tiny", f"tracking={name}", *rows)
    assert ended.status == 0, ended.text
    (record,) = (json.loads(path.read_text()) for path in tmp_path.glob("runs/**/record.json"))
    assert record["status"] == "finished"
    assert record["config"]["train"]["precision"] == precision
    assert (tmp_path / "runs" / ".tracking").exists() == (name == "wandb")


# What the reload guard lets pass in bf16


@pytest.fixture(scope="module")
def reloadable(tmp_path_factory):
    """A finished run in bf16: its backbone, report rows, logits and saved adapter."""
    one = resolve(shipped("train.precision=bf16", "train.max_length=32", "train.lr=1e-2"))
    store = Store(tmp_path_factory.mktemp("reloadable"))
    run_pack([one], store)
    loaded = backbone.load(one.blueprint, precision="bf16", device=torch.device("cpu"))
    logits = store.predictions(one.run_id).query("split == 'report'").filter(like="logit_").to_numpy()
    return loaded, one.tokens()["report"], logits, store.path(one.run_id) / "adapter"


def test_a_row_that_rounding_moved_fails_no_run_in_bf16(reloadable):
    """A trained model is steep between its classes: one row in a hundred moves by several tolerances."""
    loaded, tokens, logits, folder = reloadable
    moved = logits.copy()
    moved[3] += 5 * guards.RELOAD_TOLERANCE["bf16"]
    assert guards.reload_gap(folder, loaded, tokens, moved).logits < guards.RELOAD_TOLERANCE["bf16"] / 3
    exact = backbone.load(loaded.blueprint, precision="fp32", device=loaded.device)
    assert guards.reload_gap(folder, exact, tokens, moved).logits > guards.RELOAD_TOLERANCE["fp32"]


def test_another_adapter_fails_its_run_in_bf16_too(reloadable, tmp_path):
    """The median row tells it from rounding; so do labels, where most rows agree."""
    loaded, tokens, logits, folder = reloadable
    shutil.copytree(folder, tmp_path / "spoilt")
    tensors = load_file(folder / "adapter_model.safetensors")
    spoilt = {name: tensor + 0.05 if name.endswith("classifier.bias") else tensor for name, tensor in tensors.items()}
    save_file(spoilt, tmp_path / "spoilt" / "adapter_model.safetensors")
    assert guards.reload_gap(tmp_path / "spoilt", loaded, tokens, logits).logits > guards.RELOAD_TOLERANCE["bf16"]
    other = logits.copy()
    other[: len(other) // 4] = np.where(logits.argmax(1)[0] == 0, [0.0, 1.0], [1.0, 0.0])
    assert guards.reload_gap(folder, loaded, tokens, other).labels > guards.RELOAD_OTHER_LABELS["bf16"]
