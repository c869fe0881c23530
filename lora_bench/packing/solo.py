"""Methods that cannot share a frozen backbone: DoRA, PiSSA and OLoRA (stock peft), BitFit and full fine-tuning.

A solo pack holds one run on a private copy of the backbone and is a `packed.Packed`, so the loop, the evaluation and
the guards are the same. Where peft has a method, it is used as it is.
"""

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence
from types import MethodType
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from torch import nn

from lora_bench.config.schema import AdapterConfig
from lora_bench.models import adapters, starts
from lora_bench.models.adapters import AdapterState, LowRank
from lora_bench.models.backbone import Backbone, weights_hash
from lora_bench.models.quiet import quiet
from lora_bench.models.roles import Matrix
from lora_bench.packing.dropout import DropoutMasks
from lora_bench.packing.packed import Modes, Trained
from lora_bench.packing.shortcuts import choose_attention

START_TOLERANCE = {"fp64": 1e-9, "fp32": 1e-4, "bf16": 5e-2}
"""Largest gap between a method's first outputs and the backbone's, relative to the largest logit (at least 1): PiSSA
and OLoRA subtract their factors from the weight, and DoRA divides by a norm, which rounds."""


class SoloPack(Modes, contextlib.AbstractContextManager):
    """One run on a private copy of the backbone.

    Args:
        head: initial head, as `backbone.head_state` gives it.
        dropout: the backbone's own dropout where None, or one value for all of its sites.
    """

    n_runs = 1

    def __init__(
        self,
        backbone: Backbone,
        adapter: AdapterConfig,
        matrices: Sequence[Matrix],
        head: dict[str, torch.Tensor],
        *,
        dropout: float | None = None,
        seed: int = 0,
    ) -> None:
        self.backbone, self.adapter, self.matrices, self._start_head = backbone, adapter, list(matrices), head
        self.rows = 0
        self._has_peft = bool(matrices)
        # Weights that train need a float32 copy; autocast then computes in bf16.
        self._autocast = not self._has_peft and backbone.precision == "bf16"
        whole = self._untrained()
        self.model: Any = self._with_peft(whole, seed) if self._has_peft else self._thawed(whole)
        self.trained = list(self._list_trained())
        self.masks = DropoutMasks(self, dropout, seed)
        trained = {id(weight.parameter) for weight in self.trained}
        self._frozen = [(name, p) for name, p in self.model.named_parameters() if id(p) not in trained]
        self._frozen_hash = weights_hash(self._frozen)
        self._start = self._low_rank()
        self._bare: nn.Module | None = None

    def __exit__(self, *exception: object) -> None:
        return None

    @property
    def start_tolerance(self) -> float:
        return 0.0 if self.adapter.method in ("full", "bitfit") else START_TOLERANCE[self.backbone.precision]

    def logits(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        model = self.model if self._bare is None else self._bare
        self.rows = batch["input_ids"].shape[0]
        plain = model.get_base_model() if isinstance(model, PeftModel) else model
        choose_attention(
            plain, batch["input_ids"].shape[1], on_cpu=self.on_cpu, own_masks=self.training and self.masks.active
        )
        inputs = {key: value for key, value in batch.items() if key in self.backbone.inputs}
        with (
            self.masks if self.training and self.masks.active else contextlib.nullcontext(),
            torch.autocast(self.backbone.device.type, torch.bfloat16, enabled=self._autocast),
        ):
            return model(**inputs).logits[None]

    @contextlib.contextmanager
    def bare(self) -> Iterator[None]:
        """Compute with the untouched backbone under the same initial head."""
        self._bare = self._untrained()
        try:
            yield
        finally:
            self._bare = None

    def is_frozen_intact(self) -> bool:
        """Whether everything that does not train still has the bytes that it had after initialisation."""
        return weights_hash(self._frozen) == self._frozen_hash

    def streams(self) -> dict[str, torch.Tensor]:
        return {"dropout": self.masks.stream.get_state()}

    def set_streams(self, states: Mapping[str, torch.Tensor]) -> None:
        self.masks.stream.set_state(states["dropout"])

    def state(self, run: int) -> AdapterState:
        """The run's change of the untouched backbone (copies).

        PiSSA and OLoRA start from factors of the weight, so their change is the difference of two low-rank products: a
        pair of twice the rank. BitFit, full fine-tuning and DoRA's magnitudes are `extra` tensors by parameter path.
        """
        head = {weight.name: weight.parameter.detach().clone() for weight in self.trained if weight.kind == "head"}
        pairs = self._low_rank()
        if self.adapter.init in ("pissa", "olora"):
            start = self._start
            pairs = {
                path: LowRank(
                    torch.cat([pair.A, start[path].A]), torch.cat([pair.B, -start[path].B], dim=1), pair.scale
                )
                for path, pair in pairs.items()
            }
        low_rank_ids = {
            id(p) for weight in self.trained if weight.name.endswith((".A", ".B")) for p in [weight.parameter]
        }
        extra = {
            weight.name: weight.parameter.detach().clone()
            for weight in self.trained
            if weight.kind != "head" and id(weight.parameter) not in low_rank_ids
        }
        return AdapterState(pairs, head, extra)

    @torch.no_grad()
    def set_states(self, states: Sequence[AdapterState]) -> None:
        state = states[0]
        for weight in self.trained:
            if weight.kind == "head":
                weight.parameter.copy_(state.head[weight.name])
            elif weight.name in state.extra:
                weight.parameter.copy_(state.extra[weight.name])
            else:
                path, letter = weight.name.rsplit(".", 1)
                rank = weight.parameter.shape[0] if letter == "A" else weight.parameter.shape[1]
                pair = state.low_rank[path]
                weight.parameter.copy_(pair.A[:rank] if letter == "A" else pair.B[:, :rank])

    def _untrained(self) -> nn.Module:
        """A copy of the backbone as this run computes with it, under the initial head."""
        model = copy.deepcopy(self.backbone.model)
        if self._autocast:
            model.float()
        for name, tensor in self._start_head.items():
            module_path, _, leaf = name.rpartition(".")
            module = model.get_submodule(module_path)
            setattr(module, leaf, nn.Parameter(tensor.to(self.backbone.device, copy=True)))
            module.forward = MethodType(_in_own_precision, module)
        return model

    def _with_peft(self, model: Any, seed: int) -> nn.Module:
        config = adapters.lora_config(self.adapter, self.matrices, self.backbone.new_modules)
        with quiet():
            wrapped = get_peft_model(model, config, autocast_adapter_dtype=self.backbone.precision != "fp64")
        if self.adapter.init in starts.DRAWN:
            start = adapters.make(self.backbone, self.adapter, self.matrices, {}, seed).low_rank
            for path, layer in self._lora_layers(wrapped):
                layer.lora_A["default"].weight.data.copy_(start[path].A)
        return wrapped

    def _thawed(self, model: nn.Module) -> nn.Module:
        heads = tuple(f"{name}." for name in self.backbone.new_modules)
        for name, parameter in model.named_parameters():
            is_bias = name.endswith("bias")
            parameter.requires_grad_(name.startswith(heads) or self.adapter.method == "full" or is_bias)
        return model

    def _list_trained(self) -> Iterator[Trained]:
        prefix = "base_model.model." if self._has_peft else ""
        heads = tuple(f"{name}." for name in self.backbone.new_modules)
        only = torch.zeros(1, dtype=torch.long, device=self.backbone.device)
        for full_name, parameter in self.model.named_parameters():
            if not parameter.requires_grad:
                continue
            name = full_name.removeprefix(prefix).replace(".modules_to_save.default", "")
            kind = "head" if name.startswith(heads) else "B" if ".lora_B." in name else "A"
            name = name.replace(".lora_A.default.weight", ".A").replace(".lora_B.default.weight", ".B")
            yield Trained(name, kind, parameter, only, decays=parameter.dim() > 1)

    def _low_rank(self) -> dict[str, LowRank]:
        if not self._has_peft:
            return {}
        return {
            path: LowRank(
                layer.lora_A["default"].weight.detach().clone(),
                layer.lora_B["default"].weight.detach().clone(),
                float(layer.scaling["default"]),
            )
            for path, layer in self._lora_layers(self.model)
        }

    @staticmethod
    def _lora_layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
        layers: Any = model.named_modules()
        for path, layer in layers:
            if hasattr(layer, "lora_A") and "default" in layer.lora_A:
                yield path.removeprefix("base_model.model."), layer


def _in_own_precision(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """A head's layer as a pack computes it (`layers.PackedDense`): in its weights' precision, not in its input's."""
    with torch.autocast(x.device.type, enabled=False):
        return type(module).forward(module, x.to(module.get_parameter("weight").dtype))
