"""What a GGUF file of a Llama-type model amounts to in transformers: its config.json, the names of its tensors, the
order of their rows, and how its tokenizer splits a text.

A key, a tensor or a way to split that is not known here is refused. A scaled rotary embedding or an expert that was
silently left out would still train, as another model.
Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; gguf/tensor_mapping.py of the package gguf.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lora_bench.config.errors import ConfigError
from lora_bench.models.gguf_header import Header

CLASSES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
"""Architectures that are read, and their class in transformers."""
EXACT = ("F32", "F16", "BF16", "F64")
"""Types that hold numbers, not blocks of them."""

_WHOLE = {
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "max_position_embeddings": "context_length",
}
_READ = {
    *_WHOLE.values(),
    *("attention.head_count_kv", "attention.key_length", "attention.value_length", "vocab_size"),
    *("attention.layer_norm_rms_epsilon", "rope.dimension_count", "rope.freq_base"),
}
_WITHOUT_EFFECT = {
    "expert_count": 0,
    "expert_used_count": 0,
    "rope.scaling.type": "none",
    "rope.scaling.factor": 1,
    "rope.scaling.attn_factor": 1,
    "rope.scale_linear": 1,
}
"""Keys at the value that changes nothing."""
_OF_SCALING = ("type", "factor", "original_context_length", "finetuned", "yarn_log_multiplier")
"""Keys of `rope.scaling` that say how positions are scaled: none of them does anything where nothing is scaled."""
_OUTSIDE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_IN_LAYER = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    **{f"attn_{role}": f"self_attn.{role}_proj" for role in "qkv"},
    "attn_output": "self_attn.o_proj",
    **{f"ffn_{role}": f"mlp.{role}_proj" for role in ("up", "gate", "down")},
    **{f"attn_{role}_norm": f"self_attn.{role}_norm" for role in "qk"},
}
_WORKS = "give the folder that it was made from, model.name=FOLDER"


def config_of(header: Header, path: Path) -> dict[str, Any]:
    """The values of config.json.

    Raises:
        ConfigError: for another architecture, a part of a file, a value that is missing or has no place in it.
    """
    kind = header.text("general.architecture")
    if kind not in CLASSES:
        raise _refusal(path, f"is of the architecture {kind!r}; {', '.join(CLASSES)} are read")
    if header.values.get("split.count", 1) not in (0, 1):
        raise _refusal(path, "is one of several parts; join them with `llama-gguf-split --merge` and give the whole")
    own = {key.removeprefix(f"{kind}."): value for key, value in header.values.items() if key.startswith(f"{kind}.")}
    for key, value in own.items():
        if key not in _READ and not _changes_nothing(own, key):
            raise _refusal(path, f"says {kind}.{key}={value!r}, which is not read; {_WORKS}")
    values: dict[str, Any] = {name: _whole(own, key, kind, path) for name, key in _WHOLE.items()}
    heads = values["num_attention_heads"]
    head = _whole({"attention.key_length": values["hidden_size"] // heads} | own, "attention.key_length", kind, path)
    for key in ("attention.value_length", "rope.dimension_count"):
        if own.get(key, head) != head:
            raise _refusal(path, f"says {kind}.{key}={own[key]}, with heads of {head}; {_WORKS}")
    key_heads = _whole({"attention.head_count_kv": heads} | own, "attention.head_count_kv", kind, path)
    config = {
        "architectures": [CLASSES[kind]],
        "model_type": kind,
        **values,
        "num_key_value_heads": key_heads,
        "head_dim": head,
        "hidden_act": "silu",
        "rms_norm_eps": _number(own, "attention.layer_norm_rms_epsilon", kind, path),
        "rope_theta": _number({"rope.freq_base": 10_000.0} | own, "rope.freq_base", kind, path),
        "tie_word_embeddings": "output.weight" not in header.tensors,
        "vocab_size": _rows(header, "token_embd.weight", path),
        "dtype": "float32",
        **{f"{role}_token_id": header.values.get(f"tokenizer.ggml.{key}_token_id") for role, key in _SPECIAL.items()},
    }
    if kind == "llama":
        config |= {"attention_bias": "blk.0.attn_q.bias" in header.tensors}
        config |= {"mlp_bias": "blk.0.ffn_up.bias" in header.tensors}
    return config


_SPECIAL = {"bos": "bos", "eos": "eos", "pad": "padding"}


def names_of(header: Header, path: Path) -> dict[str, str]:
    """The name in transformers of every tensor.

    Raises:
        ConfigError: when one has no place in the model.
    """
    names = {}
    for name in header.tensors:
        inside = re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", name)
        stem, _, end = name.rpartition(".")
        if inside and inside[2] in _IN_LAYER:
            names[name] = f"model.layers.{int(inside[1])}.{_IN_LAYER[inside[2]]}.{inside[3]}"
        elif stem in _OUTSIDE and end == "weight":
            names[name] = f"{_OUTSIDE[stem]}.weight"
        else:
            raise _refusal(path, f"holds the tensor {name!r}, for which a Llama-type model has no place; {_WORKS}")
    return names


def ordered(name: str, values: np.ndarray, config: Mapping[str, Any], path: Path) -> np.ndarray:
    """A tensor with its rows as transformers orders them: in each head, the rows 0, 2, 4 ... and then 1, 3, 5 ...

    Raises:
        ConfigError: when the rows are not those of the heads.
    """
    role = re.fullmatch(r"blk\.\d+\.attn_([qk])\.(?:weight|bias)", name)
    if config["model_type"] != "llama" or role is None:
        return values
    heads = config["num_attention_heads" if role[1] == "q" else "num_key_value_heads"]
    if values.shape[0] != heads * config["head_dim"]:
        raise _refusal(path, f"has {values.shape[0]} rows in {name!r}, not {heads} heads of {config['head_dim']}")
    rows = np.arange(values.shape[0]).reshape(heads, -1, 2).swapaxes(1, 2).reshape(-1)
    return values[rows]


def require_tokenizer(header: Header, path: Path) -> None:
    """Refuse a file without a vocabulary, and one of SentencePiece whose texts get no blank in front: transformers puts
    one there all the same, and the first word is then another token. Other vocabularies never get one.

    Raises:
        ConfigError: naming the key that is missing, or not read.
    """
    for key in ("tokenizer.ggml.model", "tokenizer.ggml.tokens"):
        if not header.values.get(key):
            raise _refusal(path, f"holds no tokenizer ({key}); {_WORKS}")
    key = "tokenizer.ggml.add_space_prefix"
    if header.text("tokenizer.ggml.model") == "llama" and header.values.get(key, True) is not True:
        raise _refusal(path, f"says {key}={header.values[key]!r}, which is not read; {_WORKS}")


def split_as_said(tokenizer: Any, header: Header, path: Path) -> None:
    """Split a text as the file says, before its bytes are merged; transformers knows most ways by name, and takes
    GPT-2's for any that it does not.

    Raises:
        ConfigError: when the way is unknown.
    """
    from tokenizers import pre_tokenizers

    said = header.text("tokenizer.ggml.pre")
    if header.text("tokenizer.ggml.model") != "gpt2" or said == "gpt-2":
        return
    if said == "smollm":  # every digit by itself, then GPT-2's
        digits = pre_tokenizers.Digits(individual_digits=True)
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [digits, pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    elif "Split(" not in str(tokenizer.backend_tokenizer.pre_tokenizer):
        raise _refusal(path, f"splits texts as {said!r} does, which the installed transformers does not know; {_WORKS}")


def _changes_nothing(own: Mapping[str, Any], key: str) -> bool:
    """Whether the model is the same without this key."""
    kind, factor = own.get("rope.scaling.type", "none"), own.get("rope.scaling.factor")
    is_scaled = kind != "none" and not (kind in ("linear", "yarn") and factor == 1)
    if key.startswith("rope.scaling.") and key.removeprefix("rope.scaling.") in _OF_SCALING and not is_scaled:
        # Without a type, llama.cpp scales by the factor.
        return "rope.scaling.type" in own or factor in (None, 1)
    return key in _WITHOUT_EFFECT and own[key] == _WITHOUT_EFFECT[key]


def _whole(own: Mapping[str, Any], key: str, kind: str, path: Path) -> int:
    value = own.get(key)
    if type(value) is not int or value < 1:
        raise _refusal(path, f"says {kind}.{key}={value!r}, where a whole number above 0 belongs; {_WORKS}")
    return value


def _number(own: Mapping[str, Any], key: str, kind: str, path: Path) -> float:
    """A number as short as its 4 bytes allow: 1e-05, not 9.999999747378752e-06."""
    value = own.get(key)
    if not isinstance(value, float) or not np.isfinite(value) or value <= 0:
        raise _refusal(path, f"says {kind}.{key}={value!r}, where a number above 0 belongs; {_WORKS}")
    return float(str(np.float32(value)))


def _rows(header: Header, name: str, path: Path) -> int:
    if name not in header.tensors or len(header.tensors[name].shape) != 2:
        raise _refusal(path, f"has no matrix {name!r}; {_WORKS}")
    return header.tensors[name].shape[0]


def _refusal(path: Path, reason: str) -> ConfigError:
    return ConfigError(f"model.gguf: {str(path)!r} {reason}")
