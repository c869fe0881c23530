"""Ranks by role and layer train, in a pack, as stock peft trains its own rank pattern."""

import json

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from architectures import ARCHITECTURES, skeleton
from lora_bench.config.grammar import parse_rank_pattern
from lora_bench.models import adapters, backbone, blueprint
from lora_bench.models.budget import solve_ranks
from lora_bench.models.published import published_matrices
from lora_bench.models.roles import roles_of, select_targets, split_fused
from lora_bench.packing.pack import Pack
from tiny import tiny_config

CASES = {  # architecture -> targets and pattern here, and the same in peft's own words
    "bert": (
        ("qv+up", "v.0@16+up.1-2@2+q.last:1@0"),
        {
            "target_modules": r".*(layer\.[01]\.attention\.self\.query|self\.value|intermediate\.dense)",
            "rank_pattern": {"layer.0.attention.self.value": 16, r"layer\.[12]\.intermediate\.dense": 2},
        },
    ),
    "llama": (
        ("qv+gate", {"mlp": 3, "v.first:2": 8}),
        {
            "target_modules": ["q_proj", "v_proj", "gate_proj"],
            "rank_pattern": {"gate_proj": 3, r"layers\.[01]\.self_attn\.v_proj": 8},
        },
    ),
}
BATCH = {
    "input_ids": torch.randint(3, 99, (6, 9), generator=torch.Generator().manual_seed(1)),
    "attention_mask": torch.ones(6, 9, dtype=torch.long),
}
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])


def tiny(name):
    model_type, settings = ARCHITECTURES[name]
    architecture = {"model_type": model_type, **settings, "vocab_size": 300}
    config = tiny_config(model__architecture=architecture, model__name=f"tiny-{name}").model
    return backbone.load(blueprint.blueprint(config, 3), precision="fp64", device=torch.device("cpu"))


def with_small_B(state):
    """B is zero at the start, and with it the gradient of A: begin a little later."""
    stream = torch.Generator().manual_seed(3)
    for pair in state.low_rank.values():
        pair.B.copy_(0.1 * torch.randn(pair.B.shape, generator=stream, dtype=pair.B.dtype))
    return state


def trained_in_a_pack(loaded, states, steps=3):
    """Final logits of each run, and its state, after a few steps of plain gradient descent."""
    with Pack(loaded, states, dropout=0.0) as pack:
        for _ in range(steps):
            with pack.train():
                losses = [torch.nn.functional.cross_entropy(logits, LABELS) for logits in pack.logits(dict(BATCH))]
                grads = torch.autograd.grad(torch.stack(losses).sum(), [weight.parameter for weight in pack.trained])
            with torch.no_grad():
                for weight, grad in zip(pack.trained, grads, strict=True):
                    weight.parameter.sub_(0.5 * grad)
        with pack.evaluate():
            return pack.logits(dict(BATCH)), [pack.state(run) for run in range(len(states))]


@pytest.mark.parametrize("name", CASES)
def test_a_rank_pattern_trains_as_in_stock_peft(name, tmp_path):
    """In double precision, beside a run of one rank: ranks, scales and updates are those of peft's own pattern; and the
    saved adapter gives the same logits there."""
    (targets, pattern), theirs = CASES[name]
    loaded = tiny(name)
    selected = select_targets(loaded.blueprint.matrices, targets)
    ours = [m for m in solve_ranks(selected, rank=4, pattern=parse_rank_pattern(pattern)) if m.rank]
    adapter = tiny_config(adapter__targets=targets, adapter__alpha=8).adapter
    head = backbone.head_state(loaded, 0)
    runs = [ours, solve_ranks(selected, rank=4)]
    states = [with_small_B(adapters.make(loaded, adapter, matrices, head, seed)) for seed, matrices in enumerate(runs)]

    stock = get_peft_model(
        loaded.untouched().eval(),
        LoraConfig(r=4, lora_alpha=8, task_type="SEQ_CLS", modules_to_save=list(loaded.new_modules), **theirs),
        autocast_adapter_dtype=False,
    )
    parameters = dict(stock.named_parameters())
    placed = {path.removesuffix(".lora_A.default.weight") for path in parameters if ".lora_A." in path}
    assert placed == {f"base_model.model.{matrix.module}" for matrix in ours}
    with torch.no_grad():
        for matrix in ours:
            pair = states[0].low_rank[matrix.module]
            parameters[f"base_model.model.{matrix.module}.lora_A.default.weight"].copy_(pair.A)
            parameters[f"base_model.model.{matrix.module}.lora_B.default.weight"].copy_(pair.B)
        for path, tensor in head.items():
            module = next(module for module in loaded.new_modules if path.startswith(f"{module}."))
            saved = path.replace(module, f"{module}.modules_to_save.default", 1)
            parameters[f"base_model.model.{saved}"].copy_(tensor)
    weights = [parameter for parameter in parameters.values() if parameter.requires_grad]
    for _ in range(3):
        loss = torch.nn.functional.cross_entropy(stock(**BATCH).logits, LABELS)
        grads = torch.autograd.grad(loss, weights)
        with torch.no_grad():
            for weight, grad in zip(weights, grads, strict=True):
                weight -= 0.5 * grad
    expected = stock(**BATCH).logits.detach()
    logits, finals = trained_in_a_pack(loaded, states)
    torch.testing.assert_close(logits[0], expected, rtol=1e-9, atol=1e-10)

    adapters.save(tmp_path, loaded, adapter, ours, finals[0])
    again = PeftModel.from_pretrained(loaded.untouched(), str(tmp_path), autocast_adapter_dtype=False).eval()
    torch.testing.assert_close(again(**BATCH).logits.detach(), expected, rtol=1e-9, atol=1e-10)
    assert published_matrices(str(tmp_path), loaded.blueprint.skeleton, loaded.blueprint.matrices) == ours


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "phi3"])
def test_a_fused_projection_keeps_the_parameters_that_it_had(name, tmp_path):
    """peft gives q, k and v of such a projection one A; here each has its own, at what that pair costs."""
    fused = {"gpt2": "c_attn", "gpt_neox": "query_key_value", "phi3": "qkv_proj"}[name]
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 9, "target_modules": [fused]}))
    split = skeleton(name)
    split_fused(split)
    ours = published_matrices(str(tmp_path / "adapter_config.json"), split, roles_of(split))
    with torch.device("meta"):
        model = get_peft_model(skeleton(name), LoraConfig(r=9, target_modules=[fused], fan_in_fan_out=name == "gpt2"))
    theirs = sum(parameter.numel() for path, parameter in model.named_parameters() if ".lora_" in path)
    assert {matrix.role for matrix in ours} == {"q", "k", "v"}
    assert sum(m.rank * (m.d_in + m.d_out) for m in ours) == pytest.approx(theirs, rel=0.02)
    assert np.ptp([matrix.rank for matrix in ours]) <= 1
