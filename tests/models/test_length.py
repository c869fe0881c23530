"""The longest input that is let pass, against what the model itself can read."""

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from architectures import ARCHITECTURES, tiny_config
from configs import composed
from lora_bench.config.errors import ConfigError
from lora_bench.models import length
from lora_bench.training.resolve import resolve
from tiny import tiny_config as tiny_config_of_a_run

COMMON = {
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "hidden_size": 16,
    "intermediate_size": 16,
    "vocab_size": 99,
    "max_position_embeddings": 24,
}
GPT2 = {"n_layer": 1, "n_head": 2, "n_embd": 16, "n_positions": 24, "vocab_size": 99}
XLM = {"n_layers": 1, "n_heads": 2, "emb_dim": 16, "n_words": 99, "max_position_embeddings": 24}
FROM_PADDING = (  # a first position behind the padding index
    *("roberta", "xlm-roberta", "camembert", "xlm-roberta-xl", "roberta-prelayernorm", "data2vec-text", "esm", "ibert"),
    *("longformer", "luke", "markuplm"),
)
LEARNED = {  # families whose positions are rows of a table
    **dict.fromkeys(FROM_PADDING, COMMON),
    "luke": {**COMMON, "entity_vocab_size": 9, "entity_emb_size": 16},  # else half a million entities
    **dict.fromkeys(("bert", "megatron-bert", "rembert", "layoutlm", "ernie", "mra", "nystromformer"), COMMON),
    **dict.fromkeys(("mpnet", "electra", "albert", "big_bird", "roformer", "fnet"), COMMON),
    "deberta": COMMON,
    "deberta-v2": COMMON,
    "distilbert": {"n_layers": 1, "n_heads": 2, "dim": 16, "hidden_dim": 16, "vocab_size": 99, **COMMON},
    "opt": {**COMMON, "ffn_dim": 16, "word_embed_proj_dim": 16},
    "biogpt": COMMON,
    "gpt2": GPT2,
    "gpt_bigcode": GPT2,
    "openai-gpt": GPT2,
    "ctrl": {**GPT2, "dff": 16},
    "gpt_neo": {
        "num_layers": 1,
        "num_heads": 2,
        "hidden_size": 16,
        "attention_types": [[["global"], 1]],
        "vocab_size": 99,
        "max_position_embeddings": 24,
    },
    "flaubert": XLM,
    "xlm": XLM,
}
ENDLESS = {  # rotary and relative positions: the configuration's number, if it has one
    **{name: ARCHITECTURES[name] for name in ("llama", "mistral", "qwen2", "qwen3", "gemma", "phi", "phi3")},
    **{name: ARCHITECTURES[name] for name in ("gpt_neox", "gptj", "persimmon", "glm", "mpt", "deberta-v3")},
    "modernbert": ARCHITECTURES["modernbert"],
    "esm_rotary": ("esm", {**COMMON, "position_embedding_type": "rotary"}),
}


def model_of(kind: str, settings: dict, **more):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForSequenceClassification.from_config(tiny_config(kind, settings, **more)).eval()


def reads(model, n_tokens: int) -> bool:
    ids = torch.full((1, n_tokens), 9)
    try:
        with torch.inference_mode():
            return bool(model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.isfinite().all())
    except (IndexError, RuntimeError, ValueError):
        return False


@pytest.mark.parametrize(
    ("kind", "pad_id"),
    [*((kind, 1) for kind in LEARNED), *((kind, pad_id) for kind in FROM_PADDING for pad_id in (0, 5))],
)
def test_the_longest_input_is_the_longest_that_the_model_reads(kind, pad_id):
    """One token more fails in the middle of training; one fewer refuses what would have run."""
    model = model_of(kind, LEARNED[kind], pad_token_id=pad_id)
    longest = length.longest_input(model)
    assert longest == (24 - pad_id - 1 if kind in FROM_PADDING else 22 if kind == "mpnet" else 24)
    assert reads(model, longest)
    assert not reads(model, longest + 1)


@pytest.mark.parametrize("name", ENDLESS)
def test_positions_without_a_table_end_where_the_configuration_says(name):
    model = model_of(*ENDLESS[name])
    assert length.longest_input(model) == (24 if name == "esm_rotary" else 64)
    assert reads(model, length.longest_input(model))


def test_alibi_has_no_end():
    model = model_of(*ARCHITECTURES["bloom"])
    assert length.longest_input(model) is None
    assert reads(model, 200)


@pytest.mark.parametrize("kind", ["data2vec-text", "esm", "ibert", "bert"])
def test_a_length_beyond_is_refused_at_planning_with_the_one_that_works(kind):
    values = {"model_type": kind, **COMMON, "hidden_size": 32, "vocab_size": 300}
    longest = 24 if kind == "bert" else 23  # a random backbone pads with id 0
    with pytest.raises(ConfigError, match=rf"^train\.max_length: {longest + 1} is above {longest}, the most tokens"):
        resolve(tiny_config_of_a_run(model__architecture=values, train__max_length=longest + 1))
    assert resolve(tiny_config_of_a_run(model__architecture=values, train__max_length=longest)).steps


def test_a_length_that_nobody_set_is_called_the_default_and_the_override_that_mends_it_is_named():
    values = {"model_type": "bert", **COMMON, "hidden_size": 32, "vocab_size": 300}
    usual = composed("train=default").train.max_length
    said = rf"^train\.max_length: {usual} \(the default\) is above 24, .* can read; add train\.max_length=24$"
    with pytest.raises(ConfigError, match=said):
        resolve(tiny_config_of_a_run(model__architecture=values, train__max_length=usual))
    with pytest.raises(ConfigError, match=r"max_length: 99 is above 24, .*; add train\.max_length=24$"):
        resolve(tiny_config_of_a_run(model__architecture=values, train__max_length=99))
