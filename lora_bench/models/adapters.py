"""Make LoRA adapters with peft, initialise them from named streams, count and save them in PEFT format.

    y = W x + s B A x        A: (rank, d_in)    B: (d_out, rank)    s = alpha / rank, or alpha / sqrt(rank) for rsLoRA

W is frozen; A, B and the head train. B starts at zero, so before the first step the model is the backbone. A starts
Gaussian with variance 1 / (3 d_in), which is the variance of peft's own default and does not depend on the rank, so
ranks and placements start alike. Source: Hu et al. 2021, arXiv:2106.09685, section 4.1; Kalajdzievski 2023,
arXiv:2312.03732 (rsLoRA).
"""

import copy
import functools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file
from torch import nn

from lora_bench.config.schema import AdapterConfig
from lora_bench.models import fused, starts
from lora_bench.models.backbone import Backbone
from lora_bench.models.blueprint import Blueprint
from lora_bench.models.quiet import quiet
from lora_bench.models.roles import Matrix

PACKED_METHODS = ("lora", "lora_plus", "head_only")


@dataclass
class LowRank:
    """One matrix's adapter. A: (rank, d_in), B: (d_out, rank); the update of the weight is scale * B @ A."""

    A: torch.Tensor
    B: torch.Tensor
    scale: float

    def norm(self) -> float:
        """Frobenius norm of the update, without forming it: ||B A||^2 = tr(B^T B A A^T)."""
        A, B = self.A.double(), self.B.double()
        return abs(self.scale) * float(((B.T @ B) * (A @ A.T)).sum().clamp(min=0).sqrt())


@dataclass
class AdapterState:
    """Everything that one run trains: low-rank pairs by module path of the split backbone, head and other tensors by
    parameter path."""

    low_rank: dict[str, LowRank]
    head: dict[str, torch.Tensor]
    extra: dict[str, torch.Tensor] = field(default_factory=dict)  # all else: biases, magnitudes, whole weights

    def tensors(self) -> list[torch.Tensor]:
        pairs = [tensor for pair in self.low_rank.values() for tensor in (pair.A, pair.B)]
        return [*pairs, *self.extra.values(), *self.head.values()]


def scale_of(adapter: AdapterConfig, rank: int) -> float:
    """The factor s in front of B A."""
    if adapter.alpha_policy == "ratio":
        return adapter.alpha
    return adapter.alpha / (math.sqrt(rank) if adapter.alpha_policy == "rslora" else rank)


def lora_config(adapter: AdapterConfig, matrices: Sequence[Matrix], head_modules: Sequence[str]) -> LoraConfig:
    """The stock peft configuration of these matrices at their ranks, by full module paths."""
    ranks = {matrix.module: matrix.rank for matrix in matrices}
    rank = max(set(ranks.values()), key=list(ranks.values()).count)
    alphas = (
        {module: scale_of(adapter, r) * r for module, r in ranks.items()} if adapter.alpha_policy == "ratio" else {}
    )
    common_alpha = alphas.get(next(module for module, r in ranks.items() if r == rank), adapter.alpha)
    return LoraConfig(
        task_type="SEQ_CLS",
        r=rank,
        target_modules=list(ranks),
        rank_pattern={module: r for module, r in ranks.items() if r != rank},
        lora_alpha=common_alpha,  # pyright: ignore[reportArgumentType]    peft scales by fractions too
        alpha_pattern={module: alpha for module, alpha in alphas.items() if ranks[module] != rank},
        lora_dropout=adapter.dropout,
        use_rslora=adapter.alpha_policy == "rslora",
        use_dora=adapter.method == "dora",
        init_lora_weights=adapter.init if adapter.init in ("pissa", "olora") else True,
        modules_to_save=list(head_modules),
    )


def make(
    backbone: Backbone, adapter: AdapterConfig, matrices: Sequence[Matrix], head: Mapping[str, torch.Tensor], seed: int
) -> AdapterState:
    """A run's adapter before its first step: modules, shapes and scales from peft, A from the run's own stream, B zero.

    Args:
        matrices: the adapted matrices with their ranks; none for `head_only`.
        head: the initial head, from `backbone.head_state`.
    """
    dtype = backbone.trained_dtype
    low_rank: dict[str, LowRank] = {}
    if matrices and adapter.method != "head_only":
        config = lora_config(adapter, matrices, backbone.new_modules)
        scales = _peft_scales(backbone.blueprint, json.dumps(config.to_dict(), sort_keys=True, default=_plain))
        for matrix in matrices:
            A = starts.draw_A(
                adapter.init,
                matrix.module,
                (matrix.rank, matrix.d_in),
                seed=seed,
                replicate=adapter.replicate,
                dtype=dtype,
            )
            B = torch.zeros(matrix.d_out, matrix.rank, dtype=dtype)
            low_rank[matrix.module] = LowRank(A, B, scales[matrix.module])
    return AdapterState(low_rank=low_rank, head={name: tensor.clone() for name, tensor in head.items()})


def _modules_of(model: Any) -> Iterable[tuple[str, Any]]:
    return model.get_base_model().named_modules()


def save(
    folder: Path, backbone: Backbone, adapter: AdapterConfig, matrices: Sequence[Matrix], state: AdapterState
) -> None:
    """Write what a run trained so that stock tools load it on the untouched backbone.

    Low-rank runs become a PEFT checkpoint for `PeftModel.from_pretrained`: fused projections in their fused form, PiSSA
    and OLoRA as the LoRA of twice the rank that equals their change. Other runs save `weights.safetensors`: parameter
    path -> tensor.
    """
    folder.mkdir(parents=True, exist_ok=True)
    head = {name: tensor.detach().cpu().contiguous() for name, tensor in state.head.items()}
    if not state.low_rank:
        changed = {name: tensor.detach().cpu() for name, tensor in state.extra.items()}
        save_file(head | _contiguous(fused.fuse_state(backbone.model, changed)), folder / "weights.safetensors")
        _follow_umask(folder)
        return
    tensors = {f"base_model.model.{name}": tensor for name, tensor in head.items()}
    pieces = {
        module: (pair.A.detach().cpu(), pair.B.detach().cpu(), pair.scale) for module, pair in state.low_rank.items()
    }
    if backbone.is_split or adapter.init not in starts.DRAWN:
        keywords, low_rank = fused.peft_files(backbone.model, pieces)
        config = LoraConfig(
            task_type="SEQ_CLS",
            lora_dropout=adapter.dropout,
            use_dora=adapter.method == "dora",
            modules_to_save=list(backbone.new_modules),
            **keywords,
        )
        tensors |= low_rank
        magnitudes = fused.fuse_magnitudes(backbone.model, _magnitudes(state))
    else:
        config = lora_config(adapter, matrices, backbone.new_modules)
        for module, (A, B, _) in pieces.items():
            tensors[f"base_model.model.{module}.lora_A.weight"] = A
            tensors[f"base_model.model.{module}.lora_B.weight"] = B
        magnitudes = _magnitudes(state)
    tensors |= {f"base_model.model.{module}.lora_magnitude_vector": tensor for module, tensor in magnitudes.items()}
    config.inference_mode = True
    config.base_model_name_or_path, config.revision = backbone.blueprint.name, backbone.blueprint.config.revision
    config.save_pretrained(str(folder))
    _sort_targets(folder / "adapter_config.json")
    save_file(_contiguous(tensors), folder / "adapter_model.safetensors")
    _follow_umask(folder)


def _follow_umask(folder: Path) -> None:
    """Set the mode that the account's umask asks for: safetensors lets the owner alone read its files."""
    fresh = folder / "mode"
    fresh.touch()
    mode = fresh.stat().st_mode & 0o777
    fresh.unlink()
    for path in folder.iterdir():
        path.chmod(mode)


def _sort_targets(path: Path) -> None:
    """Sort the targets, so that equal adapters have equal files: peft keeps a set, whose order varies by process."""
    document = json.loads(path.read_text(encoding="utf-8"))
    if isinstance(document["target_modules"], list):
        document["target_modules"].sort()
    path.write_text(json.dumps(document, indent=2, sort_keys=True), encoding="utf-8")


def load_stock(folder: Path, backbone: Backbone) -> nn.Module:
    """The saved run through stock peft on a private, untouched copy of the backbone, in eval mode.

    Raises:
        RuntimeError: when `weights.safetensors` names parameters that the backbone lacks.
    """
    model = backbone.untouched()
    weights = folder / "weights.safetensors"
    if weights.is_file():
        from safetensors.torch import load_file

        tensors = load_file(weights)
        unknown = set(tensors) - {name for name, _ in model.named_parameters()}
        if unknown:
            raise RuntimeError(
                f"weights.safetensors holds {sorted(unknown)[0]!r}, which {backbone.blueprint.name} lacks"
            )
        model.load_state_dict(tensors, strict=False)
        return model.eval()
    with quiet():
        return PeftModel.from_pretrained(model, str(folder), autocast_adapter_dtype=backbone.precision != "fp64").eval()


@functools.lru_cache(maxsize=256)
def _peft_scales(plan: Blueprint, config_json: str) -> dict[str, float]:
    """Module path -> scale, read off a real peft model over the weightless skeleton."""
    config = LoraConfig(**json.loads(config_json))
    with quiet():
        model = get_peft_model(copy.deepcopy(plan.skeleton), config, low_cpu_mem_usage=True)
    scales = {
        path: float(module.scaling["default"])
        for path, module in _modules_of(model)
        if hasattr(module, "lora_A") and "default" in module.lora_A
    }
    keys = {
        key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        for key in get_peft_model_state_dict(model)
        if ".lora_A." in key
    }
    assert keys == set(scales), "peft stores its tensors under other names than expected"
    return scales


def _contiguous(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def _magnitudes(state: AdapterState) -> dict[str, torch.Tensor]:
    """DoRA's magnitudes by module path."""
    suffix = ".lora_magnitude_vector.default.weight"
    return {name.removesuffix(suffix): tensor.detach().cpu() for name, tensor in state.extra.items()}


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, set) else getattr(value, "value", str(value))
