"""Skip what need not be computed: repeated rows that all runs share, tokens that no head reads, slow attention."""


# P runs in the pack, M runs that adapt a matrix, B rows of the batch, N rows x tokens of one run, D width in, O width
# out, R padded rank

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from lora_bench.packing.packed import Stacked

FIRST_TOKEN_FAMILIES = ("bert", "roberta", "xlm-roberta", "camembert", "electra")
LONGEST_EAGER_CPU = 256
"""Tokens up to which eager attention beats the CPU's fused kernel."""


class RepeatAt(nn.Module):
    """A layer at or above the point where the runs diverge: it sees the rows of all runs, in hidden states and mask."""

    def __init__(self, pack: Stacked, layer: nn.Module) -> None:
        super().__init__()
        self._pack = pack
        self.wrapped = layer

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        pack = self._pack
        if hidden_states.shape[0] == pack.rows and pack.n_runs > 1:
            hidden_states = hidden_states.repeat(pack.n_runs, 1, 1)
        mask = None if attention_mask is None else pack.repeat(attention_mask)
        return self.wrapped(hidden_states, mask, *args, **kwargs)


class FirstTokenLayer(nn.Module):
    """The last layer of a BERT-like encoder for its first token: keys and values of all tokens, all else of one.

    Exact, since the classifier reads no other token's output. Output (B, 1, D).
    """

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.wrapped: Any = layer

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        attention = self.wrapped.attention
        core = attention.self
        first = hidden_states[:, :1]

        def heads(x: torch.Tensor) -> torch.Tensor:
            return x.view(*x.shape[:2], -1, core.attention_head_size).transpose(1, 2)

        scores = heads(core.query(first)) @ heads(core.key(hidden_states)).mT * core.scaling
        if attention_mask is not None:
            mask = attention_mask[:, :, :1]
            lowest = torch.finfo(scores.dtype).min
            scores = scores.masked_fill(~mask, lowest) if mask.dtype == torch.bool else scores + mask
        rates = F.dropout(scores.softmax(-1), p=core.dropout.p, training=self.training)
        context = (rates @ heads(core.value(hidden_states))).transpose(1, 2).reshape(first.shape[0], 1, -1)
        return self.wrapped.feed_forward_chunk(attention.output(context, first))


def choose_attention(model: Any, n_tokens: int, *, on_cpu: bool, own_masks: bool) -> None:
    """A fixed rule, never a run-time timing: eager where dropout masks must be ours or rows are short on a CPU, else
    sdpa."""
    if getattr(model, "_supports_sdpa", False):
        # Several families take the eager softmax in fp32, which an fp64 mask overflows.
        is_short = on_cpu and n_tokens <= LONGEST_EAGER_CPU and model.dtype != torch.float64
        model.config._attn_implementation = "eager" if is_short or own_masks else "sdpa"
