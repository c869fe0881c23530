"""A split backbone computes what the Hub model computes, and its adapters go back onto that model exactly."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from architectures import ARCHITECTURES, backbone, logits, skeleton
from lora_bench.config.errors import ConfigError
from lora_bench.models.families import FAMILIES, Layout
from lora_bench.models.fused import (
    FusedProjection,
    fuse_adapter,
    fuse_magnitudes,
    fuse_state,
    peft_files,
    split_projection,
)
from lora_bench.models.roles import Matrix, roles_of, split_fused

FUSED = [name for name, (kind, _) in ARCHITECTURES.items() if FAMILIES[kind].fused]

Pieces = dict[str, tuple[torch.Tensor, torch.Tensor, float]]


def random_pieces(matrices: list[Matrix], *, ranks: tuple[int, ...] = (2, 3, 1), scales=(2.0, 0.5, -1.5)) -> Pieces:
    """A LoRA per matrix, with ranks and scales that differ from one to the next."""
    generator = torch.Generator().manual_seed(7)
    pieces = {}
    for i, matrix in enumerate(matrices):
        rank = ranks[i % len(ranks)]
        a = torch.randn(rank, matrix.d_in, generator=generator, dtype=torch.float64) / matrix.d_in**0.5
        b = torch.randn(matrix.d_out, rank, generator=generator, dtype=torch.float64) / 4
        pieces[matrix.module] = (a, b, scales[i % len(scales)])
    return pieces


def add_updates(split: nn.Module, pieces: Pieces) -> None:
    """W + scale B A by hand, in the split backbone."""
    with torch.no_grad():
        for path, (a, b, scale) in pieces.items():
            split.get_submodule(path).weight.add_(scale * b @ a)


def stock_peft(name: str, split: nn.Module, pieces: Pieces, folder: Path) -> PeftModel:
    """The untouched Hub model with the exported adapter, loaded from files as any user would."""
    config, tensors = peft_files(split, pieces)
    LoraConfig(**config, inference_mode=True).save_pretrained(folder)
    save_file(tensors, folder / "adapter_model.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # to peft, missing keys or a wrong fan_in_fan_out are no more
        return PeftModel.from_pretrained(backbone(name), folder)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_split_backbone_computes_the_same_function(name):
    untouched, split = backbone(name), backbone(name)
    before = dict(split.named_modules())
    replaced = split_fused(split)
    assert bool(replaced) == (name in FUSED)
    assert (logits(split) - logits(untouched)).abs().max() < 1e-12
    for path, module in split.named_modules():
        if not any(path == r or path.startswith(f"{r}.") for r in replaced):
            assert module is before[path]
    assert not any(parameter.requires_grad for parameter in split.parameters())
    assert split_fused(split) == []


@pytest.mark.parametrize("name", FUSED)
def test_split_weights_go_back_bit_for_bit(name):
    """Rows are moved, never recomputed: methods that are no LoRA store Hub names and shapes."""
    untouched, split = backbone(name), backbone(name)
    split_fused(split)
    back = fuse_state(split, split.state_dict())
    assert back.keys() == untouched.state_dict().keys()
    for key, tensor in untouched.state_dict().items():
        assert torch.equal(back[key], tensor), key


def test_a_part_alone_goes_back_with_its_neighbours():
    """BitFit of q alone still stores a whole fused bias."""
    untouched, split = backbone("gpt_neox"), backbone("gpt_neox")
    split_fused(split)
    path = "gpt_neox.layers.1.attention.query_key_value"
    moved = fuse_state(split, {f"{path}.q.bias": torch.zeros(32, dtype=torch.float64)})
    original = untouched.get_submodule(path).bias.view(4, 3, 8)
    assert list(moved) == [f"{path}.bias"]
    assert torch.equal(moved[f"{path}.bias"].view(4, 3, 8)[:, 1:], original[:, 1:])
    assert not moved[f"{path}.bias"].view(4, 3, 8)[:, 0].any()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_exported_adapter_gives_the_same_logits_in_stock_peft(name, tmp_path):
    """Every role of every layer at once, with ranks and scales that differ within a fused projection."""
    split = backbone(name)
    split_fused(split)
    pieces = random_pieces(roles_of(split))
    loaded = stock_peft(name, split, pieces, tmp_path)
    plain = logits(split)
    add_updates(split, pieces)
    ours = logits(split)
    assert (ours - plain).abs().max() > 1e-2
    assert (logits(loaded) - ours).abs().max() < 1e-10


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_adapting_one_role_moves_only_its_rows(name, tmp_path):
    """The merged weights of the Hub model, against the untouched ones, role by role."""
    split, untouched = backbone(name), backbone(name).state_dict()
    split_fused(split)
    matrices = roles_of(split)
    transposed = {path for path, module in skeleton(name).named_modules() if isinstance(module, Conv1D)}
    for role in dict.fromkeys(matrix.role for matrix in matrices):
        mine = [matrix for matrix in matrices if matrix.role == role]
        merged = stock_peft(name, split, random_pieces(mine), tmp_path).merge_and_unload().state_dict()
        expected = {}  # weight name -> rows that may move
        for matrix in mine:
            projection = split.get_submodule(matrix.fused) if matrix.fused else None
            rows = projection.layout.rows(role) if projection else range(matrix.d_out)
            expected[f"{matrix.fused or matrix.module}.weight"] = set(map(int, rows))
        assert merged.keys() == untouched.keys()
        for key, tensor in merged.items():
            moved = (tensor - untouched[key]).abs()
            if key not in expected:
                assert not moved.any(), key
                continue
            if key.removesuffix(".weight") in transposed:
                moved = moved.T
            assert set(torch.nonzero(moved.amax(dim=1)).flatten().tolist()) == expected[key], key


@pytest.mark.parametrize("name", ["gpt2", "falcon_new_decoder", "phi3", "bert"])
def test_adapters_made_by_peft_on_the_split_backbone_export(name, tmp_path):
    """The way lora_bench itself goes: stock peft on the split backbone, q and v only, with rsLoRA's scale."""
    split = backbone(name)
    split_fused(split)
    targets = [matrix.module for matrix in roles_of(split) if matrix.role in "qv"]
    model = get_peft_model(split, LoraConfig(r=3, lora_alpha=16, use_rslora=True, target_modules=targets))
    pieces = {}
    with torch.no_grad():
        for path in targets:
            layer = model.base_model.model.get_submodule(path)
            layer.lora_B["default"].weight.normal_(generator=torch.Generator().manual_seed(1))
            a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
            pieces[path] = (a.detach().clone(), b.detach().clone(), layer.scaling["default"])
    model.eval()
    loaded = stock_peft(name, model.base_model.model, pieces, tmp_path)
    assert (logits(loaded) - logits(model)).abs().max() < 1e-10


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "phi3", "bert"])
def test_dora_on_a_part_exports_with_magnitudes_for_the_whole(name, tmp_path):
    """DoRA rescales rows, so a fused projection needs a magnitude for the rows that no part adapts, too."""
    split = backbone(name)
    split_fused(split)
    targets = [matrix.module for matrix in roles_of(split) if matrix.role in ("q", "up")]
    model = get_peft_model(split, LoraConfig(r=2, lora_alpha=6, use_dora=True, target_modules=targets))
    base, generator = model.base_model.model, torch.Generator().manual_seed(1)
    pieces, magnitudes = {}, {}
    with torch.no_grad():
        for path in targets:
            layer = base.get_submodule(path)
            layer.lora_B["default"].weight.normal_(generator=generator)
            magnitude = layer.lora_magnitude_vector["default"].weight
            magnitude.mul_(1 + torch.rand(magnitude.shape, generator=generator, dtype=magnitude.dtype))
            a, b = (part["default"].weight.detach().clone() for part in (layer.lora_A, layer.lora_B))
            pieces[path], magnitudes[path] = (a, b, layer.scaling["default"]), magnitude.detach().clone()
    model.eval()
    config, tensors = peft_files(base, pieces)
    for path, magnitude in fuse_magnitudes(base, magnitudes).items():
        tensors[f"base_model.model.{path}.lora_magnitude_vector"] = magnitude
    LoraConfig(**config, use_dora=True, inference_mode=True).save_pretrained(tmp_path)
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    loaded = PeftModel.from_pretrained(backbone(name), tmp_path)
    assert (logits(loaded) - logits(model)).abs().max() < 1e-10


def test_magnitudes_of_a_bf16_backbone_are_no_bf16_norms():
    """Stock peft divides by the norm in fp32: a rounded one would rescale rows that no adapter touches."""
    split = backbone("gpt2").bfloat16()
    split_fused(split)
    path = "transformer.h.0.attn.c_attn"
    fused = fuse_magnitudes(split, {f"{path}.q": torch.ones(32)})[path]
    assert torch.equal(fused[:32], torch.ones(32))
    assert torch.equal(fused[32:64], split.get_submodule(f"{path}.k").weight.float().norm(dim=1))


def test_fused_export_stacks_parts_in_the_fused_order():
    """Against the closed form, for one projection: rank adds up, rows interleave, absent parts stay zero."""
    split = skeleton("gpt_neox")
    split_fused(split)
    path = "gpt_neox.layers.0.attention.query_key_value"
    q = (torch.randn(2, 32), torch.randn(32, 2), 2.0)
    v = (torch.randn(1, 32), torch.randn(32, 1), 0.5)
    fused = fuse_adapter(split, {f"{path}.v": v, f"{path}.q": q})
    assert list(fused) == [path]
    a, b, scale = fused[path]
    assert a.shape == (3, 32)
    assert b.shape == (96, 3)
    assert scale == 2.0
    update = (scale * b @ a).view(4, 3, 8, 32)
    torch.testing.assert_close(update[:, 0].reshape(32, 32), 2.0 * q[1] @ q[0])
    assert not update[:, 1].any()
    torch.testing.assert_close(update[:, 2].reshape(32, 32), 0.5 * v[1] @ v[0])


def test_equal_scales_leave_b_untouched():
    """Then the export moves numbers and computes none, in any precision."""
    split = skeleton("gpt2")
    split_fused(split)
    path = "transformer.h.0.attn.c_attn"
    q, k = ((torch.randn(2, 32).bfloat16(), torch.randn(32, 2).bfloat16(), 1 / 3) for _ in range(2))
    a, b, scale = fuse_adapter(split, {f"{path}.q": q, f"{path}.k": k})[path]
    assert scale == 1 / 3
    assert torch.equal(a, torch.cat([q[0], k[0]]))
    assert torch.equal(b[:32, :2], q[1])
    assert torch.equal(b[32:64, 2:], k[1])


@pytest.mark.parametrize(
    "layout",
    [
        Layout((("q", 4), ("k", 4), ("v", 4))),
        Layout((("q", 4), ("k", 4), ("v", 4)), groups=3),
        Layout((("q", 8), ("k", 2), ("v", 2)), groups=2),
        Layout((("gate", 5), ("up", 5))),
    ],
    ids=["blocks", "per_head", "grouped", "gate_up"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
def test_any_layout_dtype_and_bias_survives(layout, dtype, bias):
    torch.manual_seed(0)
    linear = nn.Linear(6, layout.d_out, bias=bias, dtype=dtype)
    linear.bias is not None and linear.bias.requires_grad_(False)
    split = split_projection("a", linear, layout)
    x = torch.randn(2, 5, 6, dtype=dtype, requires_grad=True)
    tolerance = {torch.float32: 1e-6, torch.float64: 1e-14, torch.bfloat16: 2e-2}[dtype]
    torch.testing.assert_close(split(x), linear(x), rtol=tolerance, atol=tolerance)
    (ours,) = torch.autograd.grad(split(x).square().sum(), x)
    (theirs,) = torch.autograd.grad(linear(x).square().sum(), x)
    torch.testing.assert_close(ours, theirs, rtol=10 * tolerance, atol=10 * tolerance)
    for role in layout.roles:
        part = split.get_submodule(role)
        assert type(part) is nn.Linear
        assert part.weight.dtype == dtype
        assert part.weight.requires_grad
        assert (part.bias is not None) == bias
        assert part.bias is None or not part.bias.requires_grad
    assert sorted(row for role in layout.roles for row in layout.rows(role)) == list(range(layout.d_out))


@pytest.mark.parametrize("name", FUSED)
def test_skeletons_split_without_memory(name):
    model = skeleton(name)
    assert split_fused(model)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert any(isinstance(module, FusedProjection) for module in model.modules())


class Packed(nn.Linear):
    """As a 4-bit layer: the weight is a flat tensor of bytes."""

    def __init__(self, d_in: int, d_out: int):
        super().__init__(d_in, d_out)
        self.weight = nn.Parameter(torch.zeros(d_in * d_out // 2, 1, dtype=torch.uint8), requires_grad=False)


class QuantLinear(nn.Module):
    """As GPTQ and AWQ layers: no `weight` at all."""

    def __init__(self, d_in: int, d_out: int):
        super().__init__()
        self.in_features, self.out_features = d_in, d_out
        self.qweight = nn.Parameter(torch.zeros(d_in // 8, d_out, dtype=torch.int32), requires_grad=False)


class Sharded(torch.Tensor):
    """As a DTensor: a tensor that holds only some of its rows."""


def sharded(d_in: int, d_out: int) -> nn.Linear:
    linear = nn.Linear(d_in, d_out)
    linear.weight = nn.Parameter(torch.zeros(d_out, d_in).as_subclass(Sharded), requires_grad=False)
    return linear


@pytest.mark.parametrize("kind", [Packed, QuantLinear, sharded])
def test_weights_that_cannot_be_split_are_refused(kind):
    model = backbone("phi3")
    model.model.layers[0].self_attn.qkv_proj = kind(32, 64)
    with pytest.raises(ConfigError, match=r"layers\.0\.self_attn\.qkv_proj .* quantised or sharded.*load the backbone"):
        split_fused(model)


def test_a_fused_weight_of_an_unknown_layout_is_refused():
    model = backbone("bloom")
    model.transformer.h[0].self_attention.query_key_value = nn.Linear(32, 64)
    with pytest.raises(ConfigError, match="has 64 output rows where bloom should have 96"):
        roles_of(model)
