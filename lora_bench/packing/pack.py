"""Train and evaluate many adapters on one frozen backbone: one base GEMM for all runs, a small batched one for each
adapted matrix.

    y[p] = W x[p] + s_p B_p A_p x[p]        for every run p of the pack

The rows of all runs are stacked along the batch, run after run. W is multiplied once, by all of them; A, B and the
heads are stacks with one slice a run, so runs share no trained weight and the gradient of a sum of losses is each run's
own gradient. Ranks are zero-padded to the largest of their bucket: padded rows of A and columns of B have zero gradient
and stay exactly zero.

Where all runs see the same batch, everything below the lowest adapted layer is computed once (`rows` rows) and
repeated only where the runs diverge; BERT-like encoders, which classify from the first token, compute only that token
in their last layer, and Llama and its kin only the last (packing/decoders.py).
"""


# P runs in the pack, M runs that adapt a matrix, B rows of the batch, N rows x tokens of one run, D width in, O width
# out, R padded rank

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from lora_bench.models.adapters import AdapterState
from lora_bench.models.backbone import Backbone, frozen_parameters, weights_hash
from lora_bench.packing import decoders, positions
from lora_bench.packing.dropout import DropoutMasks
from lora_bench.packing.layers import PackedDense, PackedNorm
from lora_bench.packing.packed import Modes
from lora_bench.packing.product import PackedLinear
from lora_bench.packing.shortcuts import FIRST_TOKEN_FAMILIES, FirstTokenLayer, RepeatAt, choose_attention


class Pack(Modes, contextlib.AbstractContextManager):
    """The adapters of `states` on one backbone. Inside the `with` block the backbone's modules are replaced; at its
    end they are restored.

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
        self.last_tokens = torch.empty(0, dtype=torch.long)  # of the batch's rows: (B,)
        self.adapters_on = True
        self._replaced: list[tuple[nn.Module, str, nn.Module]] = []
        self._repeated: tuple[torch.Tensor, torch.Tensor] | None = None
        self._linears = self._stack_low_rank(states)
        self._heads = self._stack_heads(states)
        self.trained = [
            stack for module in (*self._linears.values(), *self._heads.values()) for stack in module.trained()
        ]
        # Generated code is keyed by module identity: compile lazily, inside the block.
        self._compile = compile
        self._forward: Any = None

    def __enter__(self) -> "Pack":
        for path, module in (*self._linears.items(), *self._heads.items()):
            self._replace(path, module)
        self._share_prefix()
        self._keep_to_last_tokens()
        self._keep_positions_apart()
        self.model.eval()  # new modules start in training mode
        computed = self.model.base_model if self._reads_last else self.model
        self._forward = torch.compile(computed, dynamic=True) if self._compile else computed
        return self

    def __exit__(self, *exception: object) -> None:
        while self._replaced:
            parent, name, original = self._replaced.pop()
            setattr(parent, name, original)
        for _, attention in positions.attentions(self.model):
            vars(attention).pop("transpose_for_scores", None)

    def logits(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        self.rows = batch["input_ids"].shape[0]
        self._repeated = None
        choose_attention(
            self.model, batch["input_ids"].shape[1], on_cpu=self.on_cpu, own_masks=self.training and self.masks.active
        )
        inputs = {key: value for key, value in batch.items() if key in self.backbone.inputs}
        if self._reads_last:
            self.last_tokens = decoders.last_tokens(batch["attention_mask"])
        elif not self._shares_batch:
            inputs = {key: value.repeat(self.n_runs, *[1] * (value.dim() - 1)) for key, value in inputs.items()}
        with self.masks if self.training and self.masks.active else contextlib.nullcontext():
            output = self._forward(**inputs, **self._no_cache)
            logits = self.model.score(output.last_hidden_state) if self._reads_last else output.logits
        return logits.view(self.n_runs, self.rows, -1)

    start_tolerance = 0.0
    """B is zero, so before the first step the update is exactly zero."""

    def is_frozen_intact(self) -> bool:
        frozen = frozen_parameters(self.model, self.backbone.new_modules)
        return weights_hash(frozen) == self.backbone.frozen_hash

    @contextlib.contextmanager
    def bare(self) -> Iterator[None]:
        """The backbone without its adapters (the heads stay): what every adapter must equal before its first step."""
        self.adapters_on = False
        try:
            yield
        finally:
            self.adapters_on = True

    def streams(self) -> dict[str, torch.Tensor]:
        streams = {"dropout": self.masks.stream}
        streams |= {
            path: linear.dropout_stream for path, linear in self._linears.items() if linear.dropout_stream is not None
        }
        return {name: stream.get_state() for name, stream in streams.items()}

    def set_streams(self, states: Mapping[str, torch.Tensor]) -> None:
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
        for path, module in self._linears.items():
            for run, state in enumerate(states):
                if path in state.low_rank:
                    module.set_pair(run, state.low_rank[path])
        for module in self._heads.values():
            for stack in module.trained():
                stack.parameter.copy_(torch.stack([state.head[stack.name] for state in states]))

    def repeat(self, x: torch.Tensor) -> torch.Tensor:
        """(B, ...) -> (P * B, ...), unless it holds every run's rows already. The last result is kept, for attention
        masks."""
        if self.n_runs == 1 or x.shape[0] != self.rows:
            return x
        if self._repeated is None or self._repeated[0] is not x:
            self._repeated = (x, x.repeat(self.n_runs, *[1] * (x.dim() - 1)))
        return self._repeated[1]

    @property
    def _shares_batch(self) -> bool:
        return self.backbone.model.config.model_type in FIRST_TOKEN_FAMILIES

    @property
    def _reads_last(self) -> bool:
        """Whether the head is one matrix that reads a row's last token, above layers of a known kind."""
        return self.model.config.model_type in decoders.FAMILIES and set(self._heads) == {"score"}

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
                own = [leaf for leaf, _ in module.named_parameters(recurse=False)]
                if not own:
                    continue
                stacks = {leaf: torch.stack([state.head[f"{path}.{leaf}"] for state in states]) for leaf in own}
                stacks = {leaf: stack.to(module.get_parameter(leaf).device) for leaf, stack in stacks.items()}
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
        lowest = self._lowest_adapted(path, len(layers))
        for index, layer in enumerate(layers):
            if index == lowest:
                self._share_first_inputs(f"{path}.{index}.attention.self", "query", "key", "value")
            wrapped = FirstTokenLayer(layer) if index == len(layers) - 1 else layer
            if index >= lowest:
                wrapped = RepeatAt(self, wrapped)
            if wrapped is not layer:
                self._replace(f"{path}.{index}", wrapped)

    def _keep_to_last_tokens(self) -> None:
        """The same for decoders whose head reads a row's last token."""
        if not self._reads_last:
            return
        path = f"{self.model.base_model_prefix}.layers"
        layers: Any = self.model.get_submodule(path)
        lowest = self._lowest_adapted(path, len(layers))
        for index, layer in enumerate(layers):
            if index == lowest:
                self._share_first_inputs(f"{path}.{index}.self_attn", "q_proj", "k_proj", "v_proj")
            is_last = index == len(layers) - 1
            wrapped = decoders.DecoderLayer(self, layer, repeats=index >= lowest, is_last=is_last)
            self._replace(f"{path}.{index}", wrapped)

    def _lowest_adapted(self, path: str, n_layers: int) -> int:
        """The number of the lowest layer with an adapter; behind the last one where there is none."""
        inside = [linear.removeprefix(f"{path}.") for linear in self._linears if linear.startswith(f"{path}.")]
        return min((int(linear.split(".")[0]) for linear in inside), default=n_layers)

    def _share_first_inputs(self, path: str, *names: str) -> None:
        """Queries, keys and values of the layer where the runs diverge see repeated rows: multiply them once."""
        attention = self.model.get_submodule(path)
        for name in names:
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
