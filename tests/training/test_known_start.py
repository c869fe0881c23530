"""Runs that start from the head of a fine-tuned checkpoint."""

import pytest
from transformers import AutoModelForSequenceClassification

from lora_bench.store.folder import Store
from lora_bench.training import guards
from lora_bench.training.resolve import resolve
from lora_bench.training.run import run_pack
from model_folders import fine_tuned
from tiny import tiny_config

METHODS = ("lora", "lora_plus", "dora", "full", "bitfit", "head_only")


def configured(folder, method: str = "lora", **more):
    model = {"name": str(folder), "weights": "pretrained"}
    targets = {} if method in ("lora", "lora_plus", "dora") else {"adapter__targets": "", "adapter__rank": None}
    ratio = {"adapter__b_lr_ratio": 4.0} if method == "lora_plus" else {}
    return tiny_config(
        model=model, adapter__method=method, train__epochs=1, train__max_length=32, **targets, **ratio, **more
    )


@pytest.mark.parametrize(
    ("name", "method"),
    [
        *(("distilbert", method) for method in METHODS),
        ("roberta", "lora"),
        ("deberta-v2", "dora"),
        ("modernbert", "lora"),
    ],
)
def test_every_method_runs_from_a_checkpoint_that_has_a_head(name, method, tmp_path):
    """Trained, saved and reloaded whole: stock peft wraps whatever ends in classifier, asked or not."""
    folder = fine_tuned(tmp_path / "model", name)
    (record,) = run_pack([resolve(configured(folder, method))], Store(tmp_path / "runs"))
    assert record["status"] == "finished", record["error"]
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    base = {id(parameter) for parameter in model.base_model.parameters()}
    head = sum(parameter.numel() for parameter in model.parameters() if id(parameter) not in base)
    assert record["parameters"]["head"] == head


def test_a_run_asks_whether_its_head_is_a_fresh_models_head(tmp_path, monkeypatch):
    """The guard stands before the first step of every method."""
    loaded = []
    monkeypatch.setattr(guards, "require_known_start", loaded.append)
    run = resolve(tiny_config(train__epochs=1))
    run_pack([run], Store(tmp_path / "runs"))
    assert [bundle.blueprint for bundle in loaded] == [run.blueprint]
