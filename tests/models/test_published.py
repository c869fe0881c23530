"""A published adapter's configuration becomes a placement here, of the matrices that peft's own matching finds."""

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model

from architectures import skeleton
from lora_bench.config.errors import ConfigError
from lora_bench.models.published import published_matrices
from lora_bench.models.roles import roles_of, split_fused

WORDS = {  # what a file may say -> on which architecture
    "suffixes": ("llama", {"r": 4, "target_modules": ["q_proj", "v_proj"]}),
    "an expression": ("bert", {"r": 2, "target_modules": r".*layer\.\d+\.attention\.self\.(query|value)"}),
    "paths": ("distilbert", {"r": 3, "target_modules": ["distilbert.transformer.layer.1.ffn.lin1", "q_lin"]}),
    "layers": ("qwen3", {"r": 4, "target_modules": ["o_proj"], "layers_to_transform": [0, 2]}),
    "a layer": (
        "opt",
        {"r": 4, "target_modules": ["fc1", "fc2"], "layers_to_transform": 1, "layers_pattern": "layers"},
    ),
    "exclusions": ("mistral", {"r": 4, "target_modules": ["q_proj", "k_proj"], "exclude_modules": r".*\.0\..*"}),
    "ranks": (
        "roberta",
        {"r": 8, "target_modules": ["query", "key"], "rank_pattern": {r"layer\.1\.attention.*query": 3}},
    ),
    "all": ("phi", {"r": 2, "target_modules": ["q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2"]}),
}


def placed(words, tmp_path, name):
    (tmp_path / "adapter_config.json").write_text(json.dumps(words))
    split = skeleton(name)
    split_fused(split)
    return published_matrices(str(tmp_path), split, roles_of(split))


@pytest.mark.parametrize("kind", WORDS)
def test_a_published_adapter_lies_where_peft_puts_it(kind, tmp_path):
    """Every way of its file to name modules, layers and ranks: the cell is that adapter, or it is refused."""
    name, words = WORDS[kind]
    with torch.device("meta"):
        model = get_peft_model(skeleton(name), LoraConfig(**words))
    expected = {
        path.removeprefix("base_model.model."): module.r["default"]
        for path, module in model.named_modules()
        if hasattr(module, "lora_A")
    }
    assert {matrix.module: matrix.rank for matrix in placed(words, tmp_path, name)} == expected


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"r": 4, "target_modules": ["dense"]}, "adapts 'bert.pooler.dense', which has no role"),
        ({"r": 4, "target_modules": ["query", "word_embeddings"]}, "adapts 'bert.embeddings.word_embeddings', which"),
        ({"r": 4, "target_modules": ["query", "v_proj"]}, "adapts 'v_proj', which this backbone lacks"),
        ({"r": 4, "target_modules": ["lm_head"]}, r"adapts \['lm_head'\], none of which"),
        ({"r": 0, "target_modules": ["query"]}, "has rank 0; ranks are whole"),
        ({"r": 33, "target_modules": ["query"]}, "has rank 33 where it cannot be"),
        ({"r": "4", "target_modules": ["query"]}, "adapter.like: "),
        ({"r": 4, "target_modules": "query("}, "adapter.like: "),
        ({"r": 4, "target_modules": ["query"], "layers_pattern": "(", "layers_to_transform": [0]}, "peft can read"),
        ({"r": 4}, "names no target_modules"),
        ([], "names no target_modules"),
        ({"peft_type": "IA3", "target_modules": ["key"]}, "is of peft's IA3"),
        ({"r": 4, "target_modules": ["query"], "rank_pattern": {"query": [1]}}, "adapter.like: "),
    ],
    ids=lambda value: None if isinstance(value, str) else str(value)[:40],
)
def test_an_adapter_that_cannot_be_had_is_refused_in_one_line(words, message, tmp_path):
    """What it adapts beyond the roles, or what this backbone lacks, would be left out in silence: another cell."""
    with pytest.raises(ConfigError, match=message) as refused:
        placed(words, tmp_path, "bert")
    assert str(refused.value).startswith("adapter.like: ") and "\n" not in str(refused.value)


def test_what_only_language_models_have_is_no_part_of_the_placement(tmp_path):
    """Most published adapters are of language models; their head is not the classifier's."""
    words = {"r": 4, "target_modules": ["q_proj", "lm_head"]}
    assert {matrix.role for matrix in placed(words, tmp_path, "llama")} == {"q"}


@pytest.mark.parametrize("text", ["", "{", "\x00\x01", '{"target_modules": NaN'])
def test_a_file_that_is_no_json_is_refused(text, tmp_path):
    (tmp_path / "adapter_config.json").write_text(text)
    with pytest.raises(ConfigError, match=r"^adapter\.like: cannot read"):
        published_matrices(str(tmp_path), skeleton("bert"), [])
