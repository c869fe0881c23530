"""Tiny random backbones, one per architecture that the roles are tested on."""

from __future__ import annotations

import functools

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification

_HEADS = {"num_hidden_layers": 3, "num_attention_heads": 4, "hidden_size": 32, "intermediate_size": 48}
_COMMON = {**_HEADS, "vocab_size": 99, "max_position_embeddings": 64}
_GROUPED = {**_COMMON, "num_key_value_heads": 2}
_GPT2 = {"n_layer": 3, "n_head": 4, "n_embd": 32, "n_positions": 64, "vocab_size": 99}
_FALCON = {"num_hidden_layers": 3, "num_attention_heads": 4, "hidden_size": 32, "vocab_size": 99}

# test name -> (model_type, configuration)
ARCHITECTURES: dict[str, tuple[str, dict]] = {
    "bert": ("bert", _COMMON),
    "roberta": ("roberta", _COMMON),
    "xlm-roberta": ("xlm-roberta", _COMMON),
    "camembert": ("camembert", _COMMON),
    "electra": ("electra", {**_COMMON, "embedding_size": 16}),
    "distilbert": (
        "distilbert",
        {"n_layers": 3, "n_heads": 4, "dim": 32, "hidden_dim": 48, "vocab_size": 99, "max_position_embeddings": 64},
    ),
    "albert": ("albert", {**_COMMON, "embedding_size": 16}),
    "albert_two_groups": ("albert", {**_COMMON, "embedding_size": 16, "num_hidden_groups": 3, "inner_group_num": 2}),
    "mpnet": ("mpnet", _COMMON),
    "deberta": ("deberta", {**_COMMON, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]}),
    "deberta-v2": ("deberta-v2", {**_COMMON, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]}),
    "deberta-v3": (
        "deberta-v2",
        {
            **_COMMON,
            "relative_attention": True,
            "pos_att_type": ["p2c", "c2p"],
            "share_att_key": True,
            "position_buckets": 8,
            "norm_rel_ebd": "layer_norm",
            "position_biased_input": False,
            "type_vocab_size": 0,
        },
    ),
    "modernbert": ("modernbert", {**_COMMON, "local_attention": 8}),
    "gpt2": ("gpt2", _GPT2),
    "gpt_bigcode": ("gpt_bigcode", _GPT2),
    "gpt_bigcode_multi_head": ("gpt_bigcode", {**_GPT2, "multi_query": False}),
    "gpt_neo": (
        "gpt_neo",
        {
            "num_layers": 2,
            "num_heads": 4,
            "hidden_size": 32,
            "attention_types": [[["global", "local"], 1]],
            "vocab_size": 99,
            "max_position_embeddings": 64,
            "window_size": 8,
        },
    ),
    "gptj": ("gptj", {**_GPT2, "rotary_dim": 4}),
    "gpt_neox": ("gpt_neox", _COMMON),
    "bloom": ("bloom", {"n_layer": 3, "n_head": 4, "hidden_size": 32, "vocab_size": 99}),
    "falcon_new_decoder": ("falcon", {**_FALCON, "new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon_multi_query": ("falcon", {**_FALCON, "new_decoder_architecture": False, "multi_query": True}),
    "falcon_multi_head": (
        "falcon",
        {**_FALCON, "new_decoder_architecture": False, "multi_query": False, "alibi": True, "bias": True},
    ),
    "opt": ("opt", {**_COMMON, "ffn_dim": 48, "word_embed_proj_dim": 32}),
    "opt_projected": ("opt", {**_COMMON, "ffn_dim": 48, "word_embed_proj_dim": 16, "do_layer_norm_before": False}),
    "mpt": ("mpt", {"n_layers": 3, "n_heads": 4, "d_model": 32, "vocab_size": 99, "max_seq_len": 64}),
    "llama": ("llama", _GROUPED),
    "mistral": ("mistral", _GROUPED),
    "qwen2": ("qwen2", _GROUPED),
    "qwen3": ("qwen3", {**_GROUPED, "head_dim": 16}),
    "gemma": ("gemma", {**_GROUPED, "head_dim": 16}),
    "phi": ("phi", _COMMON),
    "phi3": ("phi3", _GROUPED),
    "persimmon": ("persimmon", _COMMON),
    "glm": ("glm", {**_GROUPED, "head_dim": 8}),
}


def tiny_config(model_type: str, settings: dict, **more: object):
    """No dropout, eager attention, pad token 0."""
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "num_labels": 3}
    return AutoConfig.for_model(model_type, **{**ids, **settings, **more}, attn_implementation="eager")


def skeleton(name: str) -> nn.Module:
    """A fresh backbone on the meta device."""
    with torch.device("meta"):
        return AutoModelForSequenceClassification.from_config(tiny_config(*ARCHITECTURES[name]))


@functools.cache
def _weights(name: str) -> dict[str, torch.Tensor]:
    return backbone_from(*ARCHITECTURES[name]).state_dict()


def backbone_from(model_type: str, settings: dict) -> nn.Module:
    """A seeded fp64 backbone in eval mode; every weight is random, biases and norms too."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_config(tiny_config(model_type, settings)).double().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.requires_grad_(False)


def backbone(name: str) -> nn.Module:
    """A backbone of its own for each caller, with the same weights each time."""
    model = AutoModelForSequenceClassification.from_config(tiny_config(*ARCHITECTURES[name])).double().eval()
    model.load_state_dict(_weights(name))
    return model.requires_grad_(False)


def logits(model: nn.Module) -> torch.Tensor:
    """Logits of three padded rows."""
    ids = torch.randint(3, 99, (3, 11), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 7:] = 0
    ids = ids * mask
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=mask).logits
