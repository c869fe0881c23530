"""Train and evaluate many adapters on one frozen backbone: one base GEMM for all runs, a small batched one for each
adapted matrix.

    y[p] = W x[p] + s_p B_p A_p x[p]        for every run p of the pack

The rows of all runs are stacked along the batch, run after run. W is multiplied once, by all of them; A, B and the
heads are stacks with one slice a run, so runs share no trained weight and the gradient of a sum of losses is each run's
own gradient. Ranks are zero-padded to the largest of their bucket: padded rows of A and columns of B have zero gradient
and stay exactly zero.

Where all runs see the same batch, whatever lies below the lowest adapted layer is computed once (`rows` rows) and
repeated only where the runs part; BERT-like encoders, which classify from the first token, compute only that token in
their last layer.
"""

# P runs in the pack, M runs that adapt a matrix, B rows of the batch, N rows x tokens of one run, D width in, O width
# out, R padded rank

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from lora_bench import positions, seeds
from lora_bench.adapters import AdapterState, LowRank
from lora_bench.backbone import Backbone, frozen_parameters, weights_hash
from lora_bench.dropout import DropoutMasks

RANK_BUCKETS = (16, 64, 256)
FIRST_TOKEN_FAMILIES = ("bert", "roberta", "xlm-roberta", "camembert", "electra")
LONGEST_EAGER_CPU = 256
"""Tokens up to which eager attention beats the CPU's fused kernel."""


@dataclass(frozen=True)
class Trained:
    """Trained tensors. `parameter`: (n, ...), a slice for each of `runs`: (n,); where one run trains it, of any
    shape."""

    name: str
    kind: str  # A | B | head
    parameter: nn.Parameter
    runs: torch.Tensor
    decays: bool  # weight decay spares biases and norms, as the HF Trainer does


class Pack(contextlib.AbstractContextManager):
    """The adapters of `states` on one backbone. Inside the `with` block the backbone's modules are replaced, afterwards
    restored.

    Args:
        states: one per run; module paths of the split backbone.
        adapter_dropouts: per run, on the adapter's input only.
        dropout: the backbone's own dropout where None, or one value for all of its sites.
        seed: of the dropout masks, shared by all runs.
    """

    def __init__(
        self,
        backbone: Backbone,
        states: Sequence[AdapterState],
        *,
        adapter_dropouts: Sequence[float] | None = None,
        dropout: float | None = None,
        seed: int = 0,
        compile: bool = False,
    ) -> None:
        self.backbone, self.model, self.n_runs = backbone, backbone.model, len(states)
        self.adapter_dropouts = list(adapter_dropouts or [0.0] * len(states))
        self.masks = DropoutMasks(self, dropout, seed)
        self.rows = 0
        self.adapters_on = True
        self.training = False
        self._replaced: list[tuple[nn.Module, str, nn.Module]] = []
        self._repeated: tuple[torch.Tensor, torch.Tensor] | None = None
        self._linears = self._stack_low_rank(states)
        self._heads = self._stack_heads(states)
        self.trained = [
            each for module in (*self._linears.values(), *self._heads.values()) for each in module.trained()
        ]
        # Generated code is keyed by module identity: compile lazily, inside the block.
        self._compile = compile
        self._forward: Any = None

    def __enter__(self) -> "Pack":
        for path, module in (*self._linears.items(), *self._heads.items()):
            self._replace(path, module)
        self._share_prefix()
        self._keep_positions_apart()
        self.model.eval()  # new modules start in training mode
        self._forward = torch.compile(self.model, dynamic=True) if self._compile else self.model
        return self

    def __exit__(self, *exception: object) -> None:
        while self._replaced:
            parent, name, original = self._replaced.pop()
            setattr(parent, name, original)
        for _, attention in positions.attentions(self.model):
            vars(attention).pop("transpose_for_scores", None)

    def logits(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Logits (P, B, n_labels) of one batch that all runs share: input_ids, attention_mask, [token_type_ids], each
        (B, T)."""
        self.rows = batch["input_ids"].shape[0]
        self._repeated = None
        choose_attention(self.model, batch["input_ids"].shape[1], own_masks=self.training and self.masks.active)
        inputs = {key: value for key, value in batch.items() if key in self.backbone.inputs}
        if not self._shares_batch:
            inputs = {key: value.repeat(self.n_runs, *[1] * (value.dim() - 1)) for key, value in inputs.items()}
        with self.masks if self.training and self.masks.active else contextlib.nullcontext():
            logits = self._forward(**inputs, **self._no_cache).logits
        return logits.view(self.n_runs, self.rows, -1)

    @contextlib.contextmanager
    def train(self) -> Iterator[None]:
        """Dropout on, where there is any."""
        self.training = True
        self.model.train(self.masks.active)
        try:
            yield
        finally:
            self.training = False
            self.model.eval()

    start_tolerance = 0.0
    """B is zero, so before the first step the update is exactly zero."""

    def is_frozen_intact(self) -> bool:
        """Whether the backbone still has the bytes that it was loaded with. To be asked outside the `with` block."""
        frozen = frozen_parameters(self.model, self.backbone.new_modules)
        return weights_hash(frozen) == self.backbone.frozen_hash

    @contextlib.contextmanager
    def evaluate(self) -> Iterator[None]:
        """Dropout off and no gradients, also in the middle of training."""
        was_training, self.training = self.training, False
        self.model.eval()
        try:
            with torch.inference_mode():
                yield
        finally:
            self.training = was_training
            self.model.train(was_training and self.masks.active)

    @contextlib.contextmanager
    def bare(self) -> Iterator[None]:
        """The backbone without its adapters (the heads stay): what every adapter must equal before its first step."""
        self.adapters_on = False
        try:
            yield
        finally:
            self.adapters_on = True

    def streams(self) -> dict[str, torch.Tensor]:
        """Where the generators stand that training draws from."""
        streams = {"dropout": self.masks.stream}
        streams |= {
            path: each.dropout_stream for path, each in self._linears.items() if each.dropout_stream is not None
        }
        return {name: stream.get_state() for name, stream in streams.items()}

    def set_streams(self, states: Mapping[str, torch.Tensor]) -> None:
        """Put back what `streams` gave."""
        for name, state in states.items():
            if name == "dropout":
                self.masks.stream.set_state(state)
            else:
                stream = torch.Generator(device=self.backbone.device)
                stream.set_state(state)
                self._linears[name].dropout_stream = stream

    def state(self, run: int) -> AdapterState:
        """The trained tensors of one run, cut back to its true ranks (copies)."""
        low_rank = {path: pair for path, module in self._linears.items() if (pair := module.pair(run)) is not None}
        head = {name: tensor for path, module in self._heads.items() for name, tensor in module.tensors(path, run)}
        return AdapterState(low_rank, head)

    @torch.no_grad()
    def set_states(self, states: Sequence[AdapterState]) -> None:
        """Put back tensors that `state` gave, one per run."""
        for path, module in self._linears.items():
            for run, state in enumerate(states):
                if path in state.low_rank:
                    module.set_pair(run, state.low_rank[path])
        for module in self._heads.values():
            for each in module.trained():
                each.parameter.copy_(torch.stack([state.head[each.name] for state in states]))

    def repeat(self, x: torch.Tensor) -> torch.Tensor:
        """(B, ...) -> (P * B, ...), unless it holds every run's rows already. The last result is kept, for attention
        masks."""
        if self.n_runs == 1 or x.shape[0] != self.rows:
            return x
        if self._repeated is None or self._repeated[0] is not x:
            self._repeated = (x, x.repeat(self.n_runs, *[1] * (x.dim() - 1)))
        return self._repeated[1]

    @property
    def pad_id(self) -> int:
        return self.backbone.blueprint.tokenizer.pad_token_id

    @property
    def _shares_batch(self) -> bool:
        return self.backbone.model.config.model_type in FIRST_TOKEN_FAMILIES

    @property
    def _no_cache(self) -> dict[str, bool]:
        return {"use_cache": False} if getattr(self.model.config, "use_cache", False) and not self._shares_batch else {}

    def _stack_low_rank(self, states: Sequence[AdapterState]) -> dict[str, "PackedLinear"]:
        paths = dict.fromkeys(path for state in states for path in state.low_rank)
        linears = {}
        for path in paths:
            pairs = {run: state.low_rank[path] for run, state in enumerate(states) if path in state.low_rank}
            linears[path] = PackedLinear(self, path, self.model.get_submodule(path), pairs)
        return linears

    def _stack_heads(self, states: Sequence[AdapterState]) -> dict[str, "PackedDense | PackedNorm"]:
        heads: dict[str, PackedDense | PackedNorm] = {}
        for name in self.backbone.new_modules:
            for path, module in self.model.get_submodule(name).named_modules(prefix=name):
                own = [each for each, _ in module.named_parameters(recurse=False)]
                if not own:
                    continue
                stacks = {each: torch.stack([state.head[f"{path}.{each}"] for state in states]) for each in own}
                stacks = {each: stack.to(self.backbone.device) for each, stack in stacks.items()}
                if isinstance(module, nn.Linear):
                    heads[path] = PackedDense(self, path, stacks)
                elif isinstance(module, nn.LayerNorm):
                    heads[path] = PackedNorm(self, path, stacks, module.eps)
                else:
                    raise TypeError(f"{path}: a head of type {type(module).__name__} cannot be packed")
        return heads

    def _share_prefix(self) -> None:
        """Feed the batch once and repeat it at the lowest adapted layer; compute only the first token in the last
        layer."""
        if not self._shares_batch:
            return
        path = f"{self.model.base_model_prefix}.encoder.layer"
        layers: Any = self.model.get_submodule(path)
        adapted = [
            int(each.removeprefix(f"{path}.").split(".")[0]) for each in self._linears if each.startswith(f"{path}.")
        ]
        lowest = min(adapted, default=len(layers))
        for index, layer in enumerate(layers):
            if index == lowest:
                self._share_first_inputs(f"{path}.{index}.attention.self", layer.attention.self)
            wrapped = FirstTokenLayer(layer) if index == len(layers) - 1 else layer
            if index >= lowest:
                wrapped = RepeatAt(self, wrapped)
            if wrapped is not layer:
                self._replace(f"{path}.{index}", wrapped)

    def _share_first_inputs(self, path: str, attention: nn.Module) -> None:
        """Queries, keys and values of the layer where the runs part see repeated rows: multiply them once."""
        for name in ("query", "key", "value"):
            if not isinstance(getattr(attention, name), PackedLinear):
                self._replace(f"{path}.{name}", PackedLinear(self, f"{path}.{name}", getattr(attention, name), {}))
            getattr(attention, name).sees_repeats = True

    def _keep_positions_apart(self) -> None:
        if self.model.config.model_type in positions.FAMILIES:
            for path, attention in list(positions.attentions(self.model)):
                attention.transpose_for_scores = positions.split_by_run(attention, self.n_runs)
                self._replace(f"{path}.pos_dropout", positions.PositionDropout(self.masks, attention.pos_dropout.p))

    def _replace(self, path: str, module: nn.Module) -> None:
        parent_path, _, name = path.rpartition(".")
        parent = self.model.get_submodule(parent_path)
        self._replaced.append((parent, name, parent.get_submodule(name)))
        setattr(parent, name, module)


class PackedLinear(nn.Module):
    """A frozen Linear with the low-rank updates of the runs that adapt it. Input (P * B, ..., D), output (P * B, ...,
    O)."""

    def __init__(self, pack: Pack, path: str, base: Any, pairs: dict[int, LowRank]) -> None:
        super().__init__()
        self.weight, self.bias = base.weight, base.bias
        self.sees_repeats = False
        self._pack = [pack]  # in a list, so that the pack is no submodule and no reference cycle of modules
        self._path = path
        self.groups: Any = nn.ModuleList(
            RankGroup({run: pairs[run] for run in runs}, self.weight.device) for runs in _bucketed(pairs)
        )
        self.dropout_stream: torch.Generator | None = None

    def trained(self) -> Iterator[Trained]:
        for group in self.groups:
            yield Trained(self._path, "A", group.A, group.runs, decays=True)
            yield Trained(self._path, "B", group.B, group.runs, decays=True)

    def pair(self, run: int) -> LowRank | None:
        return next((found for group in self.groups if (found := group.pair(run)) is not None), None)

    def set_pair(self, run: int, pair: LowRank) -> None:
        for group in self.groups:
            if run in group.run_list:
                m, rank = group.run_list.index(run), pair.A.shape[0]
                group.A[m, :rank], group.B[m, :, :rank] = pair.A, pair.B

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pack = self._pack[0]
        groups = list(self.groups) if pack.adapters_on else []
        has_no_batch = x.shape[0] == 1 and pack.n_runs * pack.rows > 1
        if pack.training and any(pack.adapter_dropouts[run] for group in groups for run in group.run_list):
            y = self._with_dropout(x.expand(pack.n_runs, *x.shape[1:]) if has_no_batch else x, groups)
        else:
            y = self._without_dropout(x, groups, has_no_batch=has_no_batch)
        if has_no_batch:
            positions.mark_per_run(y)
        return y

    def _without_dropout(self, x: torch.Tensor, groups: Sequence[Any], *, has_no_batch: bool) -> torch.Tensor:
        pack = self._pack[0]
        is_shared = self.sees_repeats or has_no_batch
        shape = (pack.n_runs if has_no_batch else x.shape[0], *x.shape[1:-1], self.weight.shape[0])
        if self.sees_repeats:
            x = x[: pack.rows]
        x_PND = x.reshape(1 if is_shared else pack.n_runs, -1, x.shape[-1])
        tensors = [
            each for group in groups for each in (group.A.to(x.dtype), group.B.to(x.dtype), group.scale.to(x.dtype))
        ]
        segments = [group.segments for group in groups]
        y: Any = _PackedLinear.apply(x_PND, self.weight, self.bias, pack.n_runs, segments, *tensors)
        return y.view(shape)

    def _with_dropout(self, x: torch.Tensor, groups: Sequence[Any]) -> torch.Tensor:
        """One uniform draw a site and step, shared by all runs; a run keeps what lies above its own rate."""
        pack = self._pack[0]
        if self.dropout_stream is None:
            self.dropout_stream = seeds.generator("adapter dropout", pack.masks.seed, self._path, device=x.device)
        x_PND = x.reshape(pack.n_runs, -1, x.shape[-1])
        drawn_ND = torch.rand(x_PND.shape[1:], generator=self.dropout_stream, device=x.device)
        y_PNO = F.linear(x_PND, self.weight, self.bias)
        for group in groups:
            p_M = torch.tensor([pack.adapter_dropouts[run] for run in group.run_list], device=x.device)
            keep_MND = (drawn_ND >= p_M[:, None, None]) / (1 - p_M[:, None, None])
            h_MNR = torch.bmm(x_PND[group.runs] * keep_MND.to(x.dtype), group.A.to(x.dtype).mT) * group.scale.to(
                x.dtype
            )
            y_PNO = y_PNO.index_add(0, group.runs, torch.bmm(h_MNR, group.B.to(x.dtype).mT))
        return y_PNO.view(*x.shape[:-1], -1)


class RankGroup(nn.Module):
    """The runs of one rank bucket at one matrix. A: (M, R, D), B: (M, O, R), scale: (M, 1, 1), runs: (M,)."""

    def __init__(self, pairs: dict[int, LowRank], device: torch.device) -> None:
        super().__init__()
        self.run_list = list(pairs)
        self.ranks = [pair.A.shape[0] for pair in pairs.values()]
        widest = max(self.ranks)
        self.A = nn.Parameter(
            torch.stack([F.pad(p.A, (0, 0, 0, widest - p.A.shape[0])) for p in pairs.values()]).to(device)
        )
        self.B = nn.Parameter(torch.stack([F.pad(p.B, (0, widest - p.B.shape[1])) for p in pairs.values()]).to(device))
        scales = torch.tensor([pair.scale for pair in pairs.values()], dtype=self.A.dtype, device=device)
        self.register_buffer("scale", scales[:, None, None], persistent=False)
        self.register_buffer("runs", torch.tensor(self.run_list, device=device), persistent=False)
        self.segments = _segments(self.run_list)

    def pair(self, run: int) -> LowRank | None:
        if run not in self.run_list:
            return None
        m = self.run_list.index(run)
        rank = self.ranks[m]
        return LowRank(
            self.A[m, :rank].detach().clone(),
            self.B[m, :, :rank].detach().clone(),
            float(self.get_buffer("scale")[m]),
        )


class PackedDense(nn.Module):
    """A head's Linear, one for each run, in the head's own precision. weight: (P, O, D), bias: (P, O) or none."""

    def __init__(self, pack: Pack, path: str, stacks: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self._pack, self._path = [pack], path
        self.stack_weight = nn.Parameter(stacks["weight"])
        self.stack_bias = nn.Parameter(stacks["bias"]) if "bias" in stacks else None

    @property
    def weight(self) -> torch.Tensor:
        """Some models look at a head's dtype through its weight."""
        return self.stack_weight

    def trained(self) -> Iterator[Trained]:
        return _head_trained(self._path, self._pack[0].n_runs, weight=self.stack_weight, bias=self.stack_bias)

    def tensors(self, path: str, run: int) -> Iterator[tuple[str, torch.Tensor]]:
        return _head_tensors(path, run, weight=self.stack_weight, bias=self.stack_bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pack = self._pack[0]
        x = pack.repeat(x).to(self.stack_weight.dtype)
        x_PND = x.reshape(pack.n_runs, -1, x.shape[-1])
        if self.stack_bias is None:
            y_PNO = torch.bmm(x_PND, self.stack_weight.mT)
        else:
            y_PNO = torch.baddbmm(self.stack_bias[:, None], x_PND, self.stack_weight.mT)
        return y_PNO.view(*x.shape[:-1], -1)


class PackedNorm(nn.Module):
    """A head's LayerNorm, one for each run. weight and bias: (P, D)."""

    def __init__(self, pack: Pack, path: str, stacks: dict[str, torch.Tensor], eps: float) -> None:
        super().__init__()
        self._pack, self._path, self.eps = [pack], path, eps
        self.stack_weight = nn.Parameter(stacks["weight"])
        self.stack_bias = nn.Parameter(stacks["bias"]) if "bias" in stacks else None

    def trained(self) -> Iterator[Trained]:
        return _head_trained(self._path, self._pack[0].n_runs, weight=self.stack_weight, bias=self.stack_bias)

    def tensors(self, path: str, run: int) -> Iterator[tuple[str, torch.Tensor]]:
        return _head_tensors(path, run, weight=self.stack_weight, bias=self.stack_bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pack = self._pack[0]
        x = pack.repeat(x).to(self.stack_weight.dtype)
        y_PND = (
            F.layer_norm(x, x.shape[-1:], eps=self.eps).reshape(pack.n_runs, -1, x.shape[-1])
            * self.stack_weight[:, None]
        )
        return (y_PND if self.stack_bias is None else y_PND + self.stack_bias[:, None]).view(x.shape)


class RepeatAt(nn.Module):
    """A layer at or above the point where the runs part: sees the rows of all runs, hidden states and mask alike."""

    def __init__(self, pack: Pack, layer: nn.Module) -> None:
        super().__init__()
        self._pack = [pack]
        self.wrapped = layer

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        pack = self._pack[0]
        if hidden_states.shape[0] == pack.rows and pack.n_runs > 1:
            hidden_states = hidden_states.repeat(pack.n_runs, 1, 1)
        mask = None if attention_mask is None else pack.repeat(attention_mask)
        return self.wrapped(hidden_states, mask, *args, **kwargs)


class FirstTokenLayer(nn.Module):
    """The last layer of a BERT-like encoder for its first token alone: keys and values of all tokens, the rest of one.

    Exact: what the classifier reads of the other tokens' outputs is nothing. Output (B, 1, D).
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


class _PackedLinear(torch.autograd.Function):
    """y = W x + b, then y[p] += s_p B_p A_p x[p] in place, without copying the rows of any run.

    x: (P, N, D), or (1, N, D) where all runs see the same rows; tensors: A (M, R, D), B (M, O, R), scale (M, 1, 1) a
    group. Output (P * N, O).
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        n_runs: int,
        segments: Any,
        *tensors: torch.Tensor,
    ) -> torch.Tensor:
        flat = F.linear(x.view(-1, x.shape[-1]), weight, bias)
        is_shared = x.shape[0] != n_runs
        if is_shared:
            flat = flat.repeat(n_runs, 1)
        y = flat.view(n_runs, x.shape[1], -1)
        hidden = []
        for group, (A, B, scale) in zip(segments, _triples(tensors), strict=True):
            h = x.new_empty(A.shape[0], x.shape[1], A.shape[1])
            if is_shared:
                torch.matmul(x, A.mT, out=h)
            for run, m, count in group:
                if not is_shared:
                    torch.bmm(x[run : run + count], A[m : m + count].mT, out=h[m : m + count])
                h[m : m + count].mul_(scale[m : m + count])
                y[run : run + count].baddbmm_(h[m : m + count], B[m : m + count].mT)
            hidden.append(h)
        ctx.save_for_backward(x, weight, *tensors, *hidden)
        ctx.segments, ctx.is_shared, ctx.n_groups, ctx.n_runs = segments, is_shared, len(hidden), n_runs
        return flat  # no view, so that models may change it in place

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple:
        gy = gradients[0].contiguous().view(ctx.n_runs, -1, gradients[0].shape[-1])
        x, weight, *rest = ctx.saved_tensors
        tensors, hidden = rest[: 3 * ctx.n_groups], rest[3 * ctx.n_groups :]
        gx = None
        if ctx.needs_input_grad[0]:
            gx = (gy.sum(0, keepdim=True) if ctx.is_shared else gy) @ weight
        result: list[torch.Tensor | None] = []
        for group, (A, B, scale), h in zip(ctx.segments, _triples(tensors), hidden, strict=True):
            gA, gB = torch.empty_like(A), torch.empty_like(B)
            for run, m, count in group:
                gy_run, part = gy[run : run + count], slice(m, m + count)
                torch.bmm(gy_run.mT, h[part], out=gB[part])
                gh = torch.bmm(gy_run, B[part]).mul_(scale[part])
                x_run = x.expand(count, -1, -1) if ctx.is_shared else x[run : run + count]
                torch.bmm(gh.mT, x_run, out=gA[part])
                if gx is not None:
                    if ctx.is_shared:
                        gx += torch.bmm(gh, A[part]).sum(0, keepdim=True)
                    else:
                        gx[run : run + count].baddbmm_(gh, A[part])
            result += [gA, gB, None]
        return (gx, None, None, None, None, *result)


def choose_attention(model: Any, n_tokens: int, *, own_masks: bool) -> None:
    """A fixed rule, never a run-time timing: eager where dropout masks must be ours or rows are short on a CPU, else
    sdpa."""
    if getattr(model, "_supports_sdpa", False):
        # Several families take the eager softmax in fp32, which an fp64 mask overflows.
        is_short = model.device.type == "cpu" and n_tokens <= LONGEST_EAGER_CPU and model.dtype != torch.float64
        model.config._attn_implementation = "eager" if is_short or own_masks else "sdpa"


def _triples(tensors: Sequence[torch.Tensor]) -> list[tuple[torch.Tensor, ...]]:
    return [tuple(tensors[i : i + 3]) for i in range(0, len(tensors), 3)]


def _bucketed(pairs: dict[int, LowRank]) -> list[list[int]]:
    """Runs by rank bucket, so that a rank of 1 is not padded to 256."""
    limits = (*RANK_BUCKETS, float("inf"))
    buckets = [
        [run for run, pair in pairs.items() if low < pair.A.shape[0] <= high]
        for low, high in zip((0, *limits), limits, strict=False)
    ]
    return [runs for runs in buckets if runs]


def _segments(runs: Sequence[int]) -> list[tuple[int, int, int]]:
    """Stretches of neighbouring runs as (first run, its slice in the stack, length): views of the activations, no
    copies."""
    found: list[tuple[int, int, int]] = []
    for m, run in enumerate(runs):
        if found and found[-1][0] + found[-1][2] == run:
            found[-1] = (*found[-1][:2], found[-1][2] + 1)
        else:
            found.append((run, m, 1))
    return found


def _head_trained(path: str, n_runs: int, **stacks: nn.Parameter | None) -> Iterator[Trained]:
    for name, stack in stacks.items():
        if stack is not None:
            yield Trained(
                f"{path}.{name}", "head", stack, torch.arange(n_runs, device=stack.device), decays=stack.dim() > 2
            )


def _head_tensors(path: str, run: int, **stacks: nn.Parameter | None) -> Iterator[tuple[str, torch.Tensor]]:
    for name, stack in stacks.items():
        if stack is not None:
            yield f"{path}.{name}", stack[run].detach().clone()
