"""The guard that reads a saved run back, on few rows."""

from __future__ import annotations

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_bench.models import backbone
from lora_bench.store.errors import GuardError
from lora_bench.store.folder import Store
from lora_bench.training import guards
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
    assert guards.reload_gap(folder, loaded, tokens, logits) < 1e-5
    for name in lost:
        spoilt = tmp_path / name
        shutil.copytree(folder, spoilt)
        save_file(tensors | {name: torch.zeros_like(tensors[name])}, spoilt / "adapter_model.safetensors")
        few, all_rows = (_gap(spoilt, loaded, tokens, logits, n_rows) for n_rows in (None, len(tokens)))
        assert few > all_rows / 3 > 0, name


def _gap(*arguments):
    try:
        return guards.reload_gap(*arguments)
    except GuardError:  # other labels
        return 1.0


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
