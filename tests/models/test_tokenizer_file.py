"""A tokenizer.json is read as it is, or refused: what transformers makes of it may be another tokenizer."""

import json

import pytest
from tokenizers import Tokenizer

from lora_bench.config.errors import ConfigError
from model_folders import planned, saved

CONFIG = "tokenizer_config.json"


@pytest.mark.parametrize(
    ("name", "lost"),
    [
        *((name, "file") for name in ("bert", "electra", "distilbert", "roberta", "mpnet", "gpt_neox")),
        *((name, "class") for name in ("bert", "electra", "mpnet", "gpt_neox")),
    ],
)
def test_a_file_that_the_models_own_class_reads_in_another_way_is_refused(name, lost, tmp_path):
    """Every id has an embedding, so a run on other words, or with special tokens nobody trained, looks sound."""
    folder = saved(tmp_path, name)
    if lost == "file":
        (folder / CONFIG).unlink()
    else:
        values = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        values.pop("tokenizer_class")
        (folder / CONFIG).write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"^model\.name: no usable tokenizer .*tokenizer\.json.*'tokenizer_class'"):
        planned(folder)


@pytest.mark.parametrize("name", ["roberta", "mpnet"])
def test_a_class_that_puts_tokens_of_its_own_around_texts_is_refused(name, tmp_path):
    """What the class adds to the vocabulary has an id that the model has never seen."""
    folder = saved(tmp_path, name)
    (folder / CONFIG).write_text('{"tokenizer_class": "RobertaTokenizer"}', encoding="utf-8")
    with pytest.raises(ConfigError, match=r"RobertaTokenizer puts '<s>' into texts, which tokenizer\.json does not"):
        planned(folder)


@pytest.mark.parametrize("values", [{"model_max_length": [9]}, {"model_max_length": {"a": 1}}], ids=str)
def test_a_tokenizer_that_cannot_read_a_text_is_refused(values, tmp_path):
    """It can be loaded, and would fail on the first row."""
    folder = saved(tmp_path)
    document = json.loads((folder / CONFIG).read_text(encoding="utf-8")) | values
    (folder / CONFIG).write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"^model\.name: no usable tokenizer .*cannot read a text"):
        planned(folder)


@pytest.mark.parametrize("name", ["deberta", "llama", "modernbert", "bloom"])
def test_a_file_that_is_read_as_it_is_needs_no_class(name, tmp_path):
    """Older models have no tokenizer_class, and are read rightly all the same."""
    folder = saved(tmp_path, name)
    (folder / CONFIG).write_text('{"pad_token": "[PAD]"}', encoding="utf-8")
    text = "Ünïcödé, 'quoted' and 12 numbers"
    tokenizer = planned(folder).tokenizer
    assert tokenizer(text)["input_ids"] == Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text).ids


@pytest.mark.parametrize("key", ["version", "added_tokens", "normalizer", "pre_tokenizer", "post_processor", "decoder"])
def test_a_file_that_its_own_library_cannot_read_is_refused(key, tmp_path):
    """transformers passes over some faults of it; what it makes then is a tokenizer of its own invention."""
    folder = saved(tmp_path)
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | {key: {"a": 1}}), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"^model\.name: no usable tokenizer for .*; (get the file|save the model's)"):
        planned(folder)
