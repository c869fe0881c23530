"""Folders that are broken, and files that are not what their names say: refused in one line, before anything trains."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from lora_bench.config.errors import ConfigError
from lora_bench.models import headers
from model_folders import INDEX, WEIGHTS, configure, planned, saved

POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 1\n"


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """One folder with a single file and one with the same weights in shards."""
    single = saved(tmp_path_factory.mktemp("single"))
    shards = saved(tmp_path_factory.mktemp("shards"), shards="40KB")
    assert (shards / INDEX).is_file() and not (shards / WEIGHTS).exists()
    return {"single": single, "shards": shards}


def refused(folder) -> str:
    with pytest.raises(ConfigError) as error:
        planned(folder)
    message = str(error.value)
    assert "\n" not in message and message.startswith("model.name: ")
    return message


def a_file(folder):
    return next(iter(sorted(folder.glob("*.safetensors"))))


def write_header(path, change) -> None:
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    text = json.dumps(change(header)).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


def with_first(**values):
    def change(header):
        name = next(name for name in header if name != "__metadata__")
        return header | {name: header[name] | values}

    return change


BROKEN = {
    "pointer": (lambda path: path.write_text(POINTER), "git lfs pull"),
    "empty": (lambda path: path.write_bytes(b""), "is empty, cut"),
    "seven_bytes": (lambda path: path.write_bytes(bytes(7)), "is empty, cut"),
    "no_header": (lambda path: path.write_bytes(bytes(64)), "no readable safetensors header"),
    "page": (lambda path: path.write_text("<!DOCTYPE html><html>Not found</html>"), "is empty, cut"),
    "header_beyond": (lambda path: path.write_bytes((1 << 40).to_bytes(8, "little") + bytes(99)), "is empty, cut"),
    "cut_header": (lambda path: path.write_bytes(path.read_bytes()[:100]), "is empty, cut"),
    "cut_data": (lambda path: path.write_bytes(path.read_bytes()[:-4]), "is cut or damaged"),
    "more_data": (lambda path: path.write_bytes(path.read_bytes() + bytes(8)), "is cut or damaged"),
    "no_tensor": (lambda path: save_file({}, path), "holds no tensor"),
    "list": (lambda path: write_header(path, lambda header: [header]), "no readable safetensors header"),
    "no_offsets": (lambda path: write_header(path, with_first(data_offsets=None)), "no readable safetensors header"),
    "backwards": (lambda path: write_header(path, with_first(data_offsets=[9, 0])), "no readable safetensors header"),
    "negative": (lambda path: write_header(path, with_first(shape=[-1, 4])), "no readable safetensors header"),
    "too_small": (lambda path: write_header(path, with_first(shape=[1])), "no readable safetensors header"),
    "pickle": (lambda path: torch.save({"a": torch.zeros(3)}, path), "is empty, cut|no readable"),
}


@pytest.mark.parametrize("form", ["single", "shards"])
@pytest.mark.parametrize(("spoil", "says"), BROKEN.values(), ids=BROKEN)
def test_a_broken_file_is_refused_by_name(form, spoil, says, originals, tmp_path):
    """It fails otherwise in the library that reads it, once for every run of a sweep."""
    folder = shutil.copytree(originals[form], tmp_path / form)
    path = a_file(folder)
    spoil(path)
    with pytest.raises(ConfigError, match=says) as error:
        headers.stored(folder)
    assert path.name in str(error.value) and str(error.value) == refused(folder)


def remap(folder, change) -> None:
    path = folder / INDEX
    document = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(document | {"weight_map": change(document["weight_map"])}), encoding="utf-8")


def first_to(file):
    return lambda names: names | {min(names): file(names[min(names)]) if callable(file) else file}


def twice(folder) -> None:
    one, other = sorted(folder.glob("*.safetensors"))[:2]
    save_file(load_file(one) | load_file(other), other)


def outside(folder) -> None:
    shutil.move(a_file(folder), folder.parent)
    remap(folder, first_to("../{}".format))


INDICES = {
    "no_json": (lambda folder: (folder / INDEX).write_text("{"), "cannot read"),
    "pointer": (lambda folder: (folder / INDEX).write_text(POINTER), "git lfs pull"),
    "binary": (lambda folder: (folder / INDEX).write_bytes(b"\xff\xfe\x00"), "cannot read"),
    "list": (lambda folder: (folder / INDEX).write_text("[]"), "names no file"),
    "no_map": (lambda folder: (folder / INDEX).write_text("{}"), "names no file"),
    "empty_map": (lambda folder: remap(folder, lambda names: {}), "names no file"),
    "missing_shard": (lambda folder: a_file(folder).unlink(), "no file .*which the index names"),
    "not_in_its_shard": (
        lambda folder: remap(folder, lambda names: names | {"x.weight": min(names.values())}),
        "lacks it",
    ),
    "in_another_shard": (
        lambda folder: remap(folder, lambda names: names | {min(names): max(names.values())}),
        "which lacks it",
    ),
    "in_two_shards": (twice, "is in .* and in "),
    "outside": (outside, "outside its folder"),
    "absolute": (lambda folder: remap(folder, first_to(lambda file: str(folder / file))), "outside its folder"),
    "drive": (lambda folder: remap(folder, first_to("C:\\model.safetensors")), "outside its folder"),
    "pickle": (lambda folder: remap(folder, first_to("pytorch_model.bin")), "only safetensors"),
    "number": (lambda folder: remap(folder, first_to(7)), "only safetensors"),
}


@pytest.mark.parametrize(("spoil", "says"), INDICES.values(), ids=INDICES)
def test_an_index_that_lies_is_refused(spoil, says, originals, tmp_path):
    """What it names is loaded and hashed: nothing else, nothing outside the folder, and never nothing at all."""
    folder = shutil.copytree(originals["shards"], tmp_path / "model")
    spoil(folder)
    with pytest.raises(ConfigError, match=says):
        headers.stored(folder)
    refused(folder)


@pytest.mark.parametrize("form", ["single", "shards"])
def test_headers_say_what_safetensors_reads(form, originals):
    """Names, shapes and types against the library that reads the tensors."""
    seen = {}
    for path in headers.weight_files(originals[form]):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                part = file.get_slice(name)
                seen[name] = headers.Stored(tuple(part.get_shape()), part.get_dtype(), path)
    assert headers.stored(originals[form]) == seen
    assert set(seen) == set(AutoModel.from_pretrained(originals[form]).state_dict())


def test_weights_in_pickles_alone_are_refused_with_the_way_to_convert_them(originals, tmp_path):
    """A pickle runs whatever it holds."""
    folder = shutil.copytree(originals["single"], tmp_path / "model")
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")
    assert "convert them once" in refused(folder)


CONFIGS = {
    "text_for_a_share": {"hidden_dropout_prob": "0.1"},
    "text_for_a_size": {"hidden_size": "32"},
    "text_for_a_count": {"num_hidden_layers": "2"},
    "text_for_a_small_number": {"layer_norm_eps": "1e-12"},
    "null": {"hidden_size": None},
    "truth_for_a_size": {"vocab_size": True},
    "fraction": {"max_position_embeddings": 63.5},
    "negative": {"hidden_size": -32},
    "no_layers": {"num_hidden_layers": 0},
    "no_heads": {"num_attention_heads": 0},
    "negative_heads": {"num_attention_heads": -4},
    "heads_do_not_divide": {"num_attention_heads": 5},
    "unknown_activation": {"hidden_act": "nothing"},
    "labels_in_a_list": {"id2label": ["no", "yes"]},
    "no_kind": {"model_type": ...},
    "unknown_kind": {"model_type": "nothing"},
    "number_for_a_kind": {"model_type": 5},
    "images": {"model_type": "vit"},
    "two_towers": {"model_type": "clip"},
    "encoder_decoder": {"model_type": "bart"},
    "t5": {"model_type": "t5"},
}


@pytest.mark.parametrize("values", CONFIGS.values(), ids=CONFIGS)
def test_a_config_that_describes_no_backbone_is_refused(values, originals, tmp_path):
    """Whatever transformers raises on it, a user gets one line, before anything trains."""
    folder = shutil.copytree(originals["single"], tmp_path / "model")
    configure(folder, **values)
    refused(folder)
