"""Llama and its kin in a pack: what their layers repeat, and the tokens that no head reads, are not computed.

    norm(x) = w x / sqrt(mean(x^2) + eps)        rotary(x) = (x1 c - x2 s, x2 c + x1 s)        swiglu = silu(gate) up

Each is one autograd function of few passes over the activations, where the models' own code takes a pass for every
sign in the formula. The queries of one key head are multiplied with it together, so that keys and values are not
repeated, and the mask is that of the batch, added to every run's rows. The last layer is computed for the last token
alone: its keys and values are of all tokens, all else is of one. Exact up to the order of rounding.

Where dropout draws, the models' own code runs, so that the draws of earlier versions stay.
"""

# P runs in the pack, B rows of the batch, N rows of what is computed (B, or P * B), T tokens, Q tokens that ask (T, or
# the last), H heads, K key heads, G query heads of each, D width, E width of a head

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from lora_bench.packing.packed import Stacked

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")


class DecoderLayer(nn.Module):
    """One layer. From the lowest adapted layer on (`repeats`) it sees the rows of all runs; as the last, the output is
    of the rows' last tokens: (N, 1, D)."""

    def __init__(self, pack: Stacked, layer: nn.Module, *, repeats: bool, is_last: bool) -> None:
        super().__init__()
        self._pack, self._repeats, self._is_last = pack, repeats, is_last
        self.wrapped: Any = layer

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_embeddings: Any = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        pack, x = self._pack, hidden_states
        if self._repeats and x.shape[0] == pack.rows and pack.n_runs > 1:
            x = x.repeat(pack.n_runs, 1, 1)
        if self._is_plain(x):
            mask = attention_mask
            if mask is not None and x.shape[0] != mask.shape[0]:
                mask = pack.repeat(mask)
            y = self.wrapped(x, attention_mask=mask, position_embeddings=position_embeddings, **kwargs)
            return _of_last(y, pack.last_tokens)[:, None] if self._is_last else y
        layer = self.wrapped
        residual = _of_last(x, pack.last_tokens)[:, None] if self._is_last else x
        y = residual + self._attend(_norm(layer.input_layernorm, x), attention_mask, position_embeddings)
        return y + self._mlp(_norm(layer.post_attention_layernorm, y))

    def _is_plain(self, x: torch.Tensor) -> bool:
        """Whether the model's own code computes the layer: where dropout draws; and before the last layer with the
        attention that `choose_attention` takes for long rows and fp64."""
        pack = self._pack
        if pack.training and (pack.masks.active or any(pack.adapter_dropouts)):
            return True
        return not self._is_last and self.wrapped.self_attn.config._attn_implementation != "eager"

    def _attend(self, x: torch.Tensor, mask: torch.Tensor | None, position_embeddings: Any) -> torch.Tensor:
        core, last = self.wrapped.self_attn, self._pack.last_tokens
        asking = _of_last(x, last)[:, None] if self._is_last else x
        q, k, v = (
            projection(y).unflatten(-1, (-1, core.head_dim))
            for projection, y in ((core.q_proj, asking), (core.k_proj, x), (core.v_proj, x))
        )
        if hasattr(core, "q_norm"):
            q, k = _norm(core.q_norm, q), _norm(core.k_norm, k)
        cos, sin = (table[0, :, : core.head_dim // 2] for table in position_embeddings)  # its halves are alike
        k = _Rotary.apply(k, cos[:, None], sin[:, None])
        if self._is_last:
            places = last.repeat(len(x) // len(last))
            cos, sin = cos[places, None], sin[places, None]  # (N, 1, E / 2)
            mask = None if mask is None else _of_last(mask.transpose(1, 2), last)[:, :, None]
        q = _Rotary.apply(q, cos[:, None] * core.scaling, sin[:, None] * core.scaling)
        y = _grouped_attention(q, k, v, mask)
        return core.o_proj(y)

    def _mlp(self, x: torch.Tensor) -> torch.Tensor:
        mlp = self.wrapped.mlp
        if mlp.config.hidden_act != "silu":
            return mlp(x)
        return mlp.down_proj(_SiluTimes.apply(mlp.gate_proj(x), mlp.up_proj(x)))


def last_tokens(attention_mask: torch.Tensor) -> torch.Tensor:
    """The place of the last token of every row that the mask keeps: (B,)."""
    return (torch.arange(attention_mask.shape[1], device=attention_mask.device) * attention_mask).argmax(1)


def _of_last(x: torch.Tensor, last_B: torch.Tensor) -> torch.Tensor:
    """(N, T, ...) -> (N, ...) at each row's last token; N is B, or B for each of several runs."""
    return x[torch.arange(len(x), device=x.device), last_B.repeat(len(x) // len(last_B))]


def _grouped_attention(q: Any, k: Any, v: Any, mask: torch.Tensor | None) -> torch.Tensor:
    """Attention of scaled queries (N, Q, H, E) over k and v (N, T, K, E); mask (B, 1, Q, T), added or bool. (N, Q,
    H E)."""
    (n, n_asking, n_heads, width), (_, n_tokens, n_keys, _) = q.shape, k.shape
    q_NKGQE = q.view(n, n_asking, n_keys, -1, width).permute(0, 2, 3, 1, 4)
    scores = q_NKGQE.reshape(n, n_keys, -1, width) @ k.permute(0, 2, 3, 1)
    if mask is not None:
        scores = scores.view(-1, len(mask), n_heads, n_asking, n_tokens)
        scores = scores.masked_fill(~mask, torch.finfo(q.dtype).min) if mask.dtype == torch.bool else scores + mask
    precise = torch.float64 if q.dtype == torch.float64 else torch.float32
    rates = scores.softmax(-1, dtype=precise).to(q.dtype).view(n, n_keys, -1, n_tokens)
    y = (rates @ v.transpose(1, 2)).view(n, n_keys, -1, n_asking, width)
    return y.permute(0, 3, 1, 2, 4).reshape(n, n_asking, n_heads * width)


def _norm(norm: Any, x: torch.Tensor) -> torch.Tensor:
    """The layer's norm; the models compute it in fp32 whatever the precision, so fp64 is left to them."""
    return norm(x) if x.dtype == torch.float64 else _RMSNorm.apply(x, norm.weight, norm.variance_epsilon)


class _RMSNorm(torch.autograd.Function):
    """x / rms(x), in fp32 and then in the precision of x, times a frozen weight. x: (..., D)."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        wide = x.float()
        rate = torch.linalg.vecdot(wide, wide).div_(x.shape[-1]).add_(eps).rsqrt_().unsqueeze(-1)
        normed = (wide * rate).to(x.dtype)
        ctx.save_for_backward(normed, rate, weight)
        return normed * weight

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple:
        normed, rate, weight = ctx.saved_tensors
        scaled, wide = (gradients[0] * weight).float(), normed.float()
        along = torch.linalg.vecdot(scaled, wide).div_(wide.shape[-1]).unsqueeze(-1)
        return scaled.addcmul_(wide, along, value=-1).mul_(rate).to(normed.dtype), None, None


class _Rotary(torch.autograd.Function):
    """Turn each pair (x1, x2) of the halves of a head by its angle. x: (..., H, E); cos, sin: (..., 1, E / 2)."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(cos, sin)
        return _turned(x, cos, sin, -1)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple:
        cos, sin = ctx.saved_tensors
        return _turned(gradients[0], cos, sin, 1), None, None


def _turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, sign: int) -> torch.Tensor:
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    (x1, x2), (y1, y2) = x.chunk(2, -1), y.chunk(2, -1)
    torch.mul(x1, cos, out=y1).addcmul_(x2, sin, value=sign)
    torch.mul(x2, cos, out=y2).addcmul_(x1, sin, value=-sign)
    return y


class _SiluTimes(torch.autograd.Function):
    """silu(gate) up, which keeps gate and up alone."""

    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple:
        (gate, up), gy = ctx.saved_tensors, gradients[0]
        return torch.ops.aten.silu_backward(gy * up, gate), F.silu(gate).mul_(gy)
