"""Where each known architecture keeps its matrices: the table that infer.py reads.

A family maps paths inside one layer to roles. Where one weight holds several matrices, a Layout says which of its
output rows belong to which:

    fused output = for each of `groups` groups: that group's rows of the 1st part, then of the 2nd, then of the 3rd

One group is a plain concatenation (GPT-2, Phi-3, MPT); one group per head interleaves them (GPT-NeoX, BLOOM); one
group per key head, with several query heads in it, is Falcon's grouped attention.

Source: the modelling files of transformers 5, one per family.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Layout:
    """The output rows of a fused projection, by role."""

    parts: tuple[tuple[str, int], ...]  # (role, rows of it in one group), in the fused order
    groups: int = 1

    @property
    def roles(self) -> tuple[str, ...]:
        return tuple(role for role, _ in self.parts)

    @property
    def d_out(self) -> int:
        return self.groups * sum(rows for _, rows in self.parts)

    def size(self, role: str) -> int:
        """How many rows `role` has in all groups together."""
        return self.groups * dict(self.parts)[role]

    def rows(self, role: str) -> np.ndarray:
        """Indices of the fused output's rows that hold `role`, in the order of the role's own rows."""
        start = 0
        for name, rows in self.parts:
            if name == role:
                every = np.arange(self.d_out).reshape(self.groups, -1)
                return every[:, start : start + rows].reshape(-1)
            start += rows
        raise KeyError(role)


@dataclass(frozen=True)
class Family:
    """Paths inside one layer, by role, and how the fused ones among them are laid out."""

    roles: Mapping[str, str]
    fused: Mapping[str, Callable[[Any], Layout]] = field(default_factory=dict)  # path in a layer -> layout by config


def _head_size(config: Any) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _one_block(config: Any) -> Layout:
    """All of q, then all of k, then all of v."""
    rows = config.num_attention_heads * _head_size(config)
    return Layout((("q", rows), ("k", rows), ("v", rows)))


def _grouped_block(config: Any) -> Layout:
    """One block as above, with fewer heads in k and v than in q."""
    head = _head_size(config)
    key_rows = config.num_key_value_heads * head
    return Layout((("q", config.num_attention_heads * head), ("k", key_rows), ("v", key_rows)))


def _per_head(config: Any) -> Layout:
    """Head by head: q, k and v of the first head, then of the second."""
    head = _head_size(config)
    return Layout((("q", head), ("k", head), ("v", head)), groups=config.num_attention_heads)


def _falcon(config: Any) -> Layout:
    head = _head_size(config)
    if config.new_decoder_architecture:
        queries = config.num_attention_heads // config.num_kv_heads
        return Layout((("q", queries * head), ("k", head), ("v", head)), groups=config.num_kv_heads)
    if config.multi_query:
        return Layout((("q", config.num_attention_heads * head), ("k", head), ("v", head)))
    return _per_head(config)


def _gpt_bigcode(config: Any) -> Layout:
    if not config.multi_query:
        return _per_head(config)
    head = _head_size(config)
    return Layout((("q", config.num_attention_heads * head), ("k", head), ("v", head)))


def _gate_and_up(config: Any) -> Layout:
    """The first half goes through the activation, which is what makes it the gate."""
    return Layout((("gate", config.intermediate_size), ("up", config.intermediate_size)))


def _separate(attention: str, names: str, **mlp: str) -> Family:
    """A layer for each role: q, k, v and o by their `names` in the attention module, then those of the MLP."""
    roles = {role: f"{attention}.{name}" for role, name in zip("qkvo", names.split(), strict=True)}
    return Family(roles | mlp)


_BERT = _separate(
    "attention", "self.query self.key self.value output.dense", up="intermediate.dense", down="output.dense"
)
_LLAMA = _separate(
    "self_attn", "q_proj k_proj v_proj o_proj", up="mlp.up_proj", gate="mlp.gate_proj", down="mlp.down_proj"
)
_BLOOM = Family(
    {"o": "self_attention.dense", "up": "mlp.dense_h_to_4h", "down": "mlp.dense_4h_to_h"},
    fused={"self_attention.query_key_value": _per_head},
)

FAMILIES: dict[str, Family] = {
    **dict.fromkeys(
        ("bert", "roberta", "xlm-roberta", "camembert", "electra", "ernie", "megatron-bert", "data2vec-text"), _BERT
    ),
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "smollm3", "olmo2", "granite"), _LLAMA),
    "distilbert": _separate("attention", "q_lin k_lin v_lin out_lin", up="ffn.lin1", down="ffn.lin2"),
    "deberta": Family(
        {"o": "attention.output.dense", "up": "intermediate.dense", "down": "output.dense"},
        fused={"attention.self.in_proj": _per_head},
    ),
    "deberta-v2": _separate(
        "attention",
        "self.query_proj self.key_proj self.value_proj output.dense",
        up="intermediate.dense",
        down="output.dense",
    ),
    "albert": _separate("attention", "query key value dense", up="ffn", down="ffn_output"),
    "mpnet": _separate("attention.attn", "q k v o", up="intermediate.dense", down="output.dense"),
    "modernbert": Family(
        {"o": "attn.Wo", "down": "mlp.Wo"},
        fused={"attn.Wqkv": _one_block, "mlp.Wi": _gate_and_up},
    ),
    "gpt2": Family(
        {"o": "attn.c_proj", "up": "mlp.c_fc", "down": "mlp.c_proj"},
        fused={"attn.c_attn": _one_block},
    ),
    "gpt_bigcode": Family(
        {"o": "attn.c_proj", "up": "mlp.c_fc", "down": "mlp.c_proj"},
        fused={"attn.c_attn": _gpt_bigcode},
    ),
    "gpt_neo": _separate("attn.attention", "q_proj k_proj v_proj out_proj", up="mlp.c_fc", down="mlp.c_proj"),
    "gptj": _separate("attn", "q_proj k_proj v_proj out_proj", up="mlp.fc_in", down="mlp.fc_out"),
    "gpt_neox": Family(
        {"o": "attention.dense", "up": "mlp.dense_h_to_4h", "down": "mlp.dense_4h_to_h"},
        fused={"attention.query_key_value": _per_head},
    ),
    "bloom": _BLOOM,
    "falcon": Family(_BLOOM.roles, fused={"self_attention.query_key_value": _falcon}),
    "opt": _separate("self_attn", "q_proj k_proj v_proj out_proj", up="fc1", down="fc2"),
    "mpt": Family(
        {"o": "attn.out_proj", "up": "ffn.up_proj", "down": "ffn.down_proj"},
        fused={"attn.Wqkv": _one_block},
    ),
    "phi": _separate("self_attn", "q_proj k_proj v_proj dense", up="mlp.fc1", down="mlp.fc2"),
    "phi3": Family(
        {"o": "self_attn.o_proj", "down": "mlp.down_proj"},
        fused={"self_attn.qkv_proj": _grouped_block, "mlp.gate_up_proj": _gate_and_up},
    ),
    "persimmon": Family(
        {"o": "self_attn.dense", "up": "mlp.dense_h_to_4h", "down": "mlp.dense_4h_to_h"},
        fused={"self_attn.query_key_value": _per_head},
    ),
    "glm": Family(
        {role: path for role, path in _LLAMA.roles.items() if role not in ("up", "gate")},
        fused={"mlp.gate_up_proj": _gate_and_up},
    ),
}
