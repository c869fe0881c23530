"""Weights that a Python package carries."""

import hashlib
import sys

import pytest

from lora_bench.config.errors import ConfigError
from lora_bench.config.schema import ModelConfig
from lora_bench.models import files

_HEADER = b'{"weight":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
WEIGHTS = len(_HEADER).to_bytes(8, "little") + _HEADER + bytes(4)
"""A safetensors file of one number."""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An installed package whose code tells that it ran, with a folder that a model could be."""
    folder = tmp_path / "carried_weights"
    (folder / "model").mkdir(parents=True)
    (folder / "__init__.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n", encoding="utf-8")
    (folder / "model" / "config.json").write_text('{"model_type": "bert"}', encoding="utf-8")
    (folder / "model" / "model.safetensors").write_bytes(WEIGHTS)
    monkeypatch.syspath_prepend(str(tmp_path))
    return folder


def test_a_package_is_read_and_its_code_never_runs(package, tmp_path):
    """A configuration is data: somebody else's sweep must not choose what is imported."""
    packaged = {"name": "a/b", "package": package.name, "sha256": hashlib.sha256(WEIGHTS).hexdigest()}
    assert files.find(ModelConfig(name="a/b", weights="pretrained", packaged=packaged)) == package / "model"
    assert not (tmp_path / "ran").exists() and package.name not in sys.modules


@pytest.mark.parametrize("name", ["__main__", "no_such_package", "lora_bench"])
def test_a_name_that_carries_no_weights_falls_back_to_the_hub(name, monkeypatch):
    """`__main__` has no spec to look at, and is no package."""
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: (_ for _ in ()).throw(OSError("offline")))
    packaged = {"name": "c/d", "package": name, "sha256": "0" * 64}
    with pytest.raises(ConfigError, match=f"cannot get 'c/d' from the Hub .* or install the package {name}"):
        files.find(ModelConfig(name="c/d", weights="pretrained", packaged=packaged))
