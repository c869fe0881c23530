"""The equality contract: packing is only faster. Every result is the one that stock peft and transformers give alone."""

import copy
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import get_peft_model
from torch import nn
from transformers import get_linear_schedule_with_warmup

from lora_bench import adapters, backbone
from lora_bench.adapters import AdapterState
from lora_bench.backbone import Backbone
from lora_bench.config import ModelConfig, RunConfig, parse
from lora_bench.evaluate import predict, to_tensors
from lora_bench.packing import Pack
from lora_bench.targets import Matrix, select_targets
from lora_bench.budget import solve_ranks
from lora_bench.tasks.tokens import Tokens, batch
from lora_bench.train import batches, train_pack

ARCHITECTURES = {
    "bert": dict(model_type="bert", hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, vocab_size=300),
    "roberta": dict(model_type="roberta", hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, vocab_size=300, max_position_embeddings=130),
    "distilbert": dict(model_type="distilbert", dim=32, n_layers=2, n_heads=4, hidden_dim=64, vocab_size=300),
    "deberta-v2": dict(model_type="deberta-v2", hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, vocab_size=300, relative_attention=True, pos_att_type=["p2c", "c2p"], position_buckets=8, max_relative_positions=16, share_att_key=True, norm_rel_ebd="layer_norm", pooler_hidden_size=32),
    "gpt2": dict(model_type="gpt2", n_embd=32, n_layer=2, n_head=4, vocab_size=300, n_positions=128),
    "llama": dict(model_type="llama", hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=64, vocab_size=300),
    "albert": dict(model_type="albert", hidden_size=32, embedding_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, vocab_size=300),
}
MIXTURE = [
    dict(targets="q", rank=8, lr=1e-3, alpha=16),
    dict(targets="qv", rank=4, lr=3e-3, alpha=8, weight_decay=0.1),
    dict(targets="qkvo", rank=2, lr=1e-2, alpha=32),
    dict(targets="up+down", rank=1, lr=2e-3, alpha=16, alpha_policy="rslora"),
    dict(targets="all", rank=3, lr=5e-4, alpha=16, max_grad_norm=0.05),
    dict(targets="vo", rank=20, lr=1e-3, alpha=16, weight_decay=0.01, schedule="constant"),
    dict(method="head_only", targets="q", rank=1, lr=1e-2),
]
STEPS = 20


def tiny(name: str = "bert", precision: str = "fp64") -> Backbone:
    plan = backbone.blueprint(ModelConfig(name=f"tiny-{name}", weights="random", architecture=ARCHITECTURES[name]), 3)
    return backbone.load(plan, precision=precision, device=torch.device("cpu"))


def config(*, seed: int = 0, epochs: float = 20, dropout: float | None = 0.0, **given) -> RunConfig:
    train = {key: given.pop(key) for key in ("lr", "weight_decay", "max_grad_norm", "schedule") if key in given}
    adapter = dict(method="lora", targets="qv", rank=4, alpha=16, alpha_policy="fixed", dropout=0, init="gaussian", layers="all", replicate=0)
    train = dict(lr=1e-3, head_lr=2e-3, epochs=epochs, batch_size=8, grad_accumulation=1, max_length=32, schedule="linear", warmup_ratio=0.1, weight_decay=0, max_grad_norm=1.0, precision="fp64", dropout=dropout, checkpoint="last") | train
    return parse(dict(model=dict(name="tiny", weights="random", architecture=ARCHITECTURES["bert"]), task=dict(name="toy", source="generated"), adapter=adapter | given, train=train, tracking=dict(backend="none"), seed=seed, store="unused"))


def matrices(loaded: Backbone, run: RunConfig) -> list[Matrix]:
    if run.adapter.method == "head_only":
        return []
    selected = select_targets(loaded.blueprint.matrices, run.adapter.targets, run.adapter.layers)
    return solve_ranks(selected, rank=run.adapter.rank)


def make_states(loaded: Backbone, runs: Sequence[RunConfig]) -> list[AdapterState]:
    return [
        adapters.make(loaded, run.adapter, matrices(loaded, run), backbone.head_state(loaded, run.seed), run.seed)
        for run in runs
    ]


@pytest.fixture(scope="module")
def tokens() -> Tokens:
    """Rows of 3 to 20 random tokens, three labels."""
    draw = np.random.default_rng(0)
    lengths = draw.integers(3, 20, size=24)
    ids = draw.integers(5, 260, size=lengths.sum()).astype(np.int32)
    return Tokens(ids, np.concatenate([[0], np.cumsum(lengths)]), np.zeros(len(ids), np.int8), draw.integers(0, 3, size=24))


def train(loaded: Backbone, runs: Sequence[RunConfig], tokens: Tokens, *, steps: int = STEPS) -> tuple[list[AdapterState], torch.Tensor, np.ndarray, torch.Tensor]:
    """Our own pack: final states, losses (steps, P), logits (P, n, labels), which stayed finite."""
    losses: list[torch.Tensor] = []
    with Pack(
        loaded,
        make_states(loaded, runs),
        adapter_dropouts=[run.adapter.dropout for run in runs],
        dropout=runs[0].train.dropout,
        seed=runs[0].seed,
    ) as pack:
        def keep(step: int, **values: torch.Tensor) -> None:
            losses.append(values["losses"].clone())

        alive = train_pack(pack, tokens, runs, total_steps=steps, on_step=keep, on_epoch=lambda epoch, step: None)
        return [pack.state(index) for index in range(len(runs))], torch.stack(losses), predict(pack, tokens), alive


def train_stock(loaded: Backbone, run: RunConfig, tokens: Tokens, *, steps: int = STEPS) -> tuple[AdapterState, torch.Tensor, np.ndarray]:
    """The same run with unmodified peft, transformers and torch.optim, on the same batches."""
    start = make_states(loaded, [run])[0]
    model: nn.Module = loaded.untouched()
    dtype = next(iter(start.head.values())).dtype
    if start.low_rank:
        stock = adapters.lora_config(loaded.blueprint, run.adapter, matrices(loaded, run), loaded.new_modules)
        model = get_peft_model(model, stock, autocast_adapter_dtype=False)
        named = dict(model.named_parameters())
        for path, pair in start.low_rank.items():
            named[f"base_model.model.{path}.lora_A.default.weight"].data.copy_(pair.A)
            named[f"base_model.model.{path}.lora_B.default.weight"].data.copy_(pair.B)
    named = dict(model.named_parameters())
    head = {}
    for path, tensor in start.head.items():
        name = _stock_name(path, loaded) if start.low_rank else path
        named[name].data.copy_(tensor)
        named[name].requires_grad_(True)
        head[name] = path
    groups = []
    for name, parameter in named.items():
        if parameter.requires_grad:
            lr = run.train.head_lr if name in head else run.train.lr
            groups.append(dict(params=[parameter], lr=lr, weight_decay=run.train.weight_decay if parameter.dim() > 1 else 0.0))
    optimizer = torch.optim.AdamW(groups, foreach=False)
    warmup = int(np.ceil(steps * run.train.warmup_ratio))
    if run.train.schedule == "constant":
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, step / max(1, warmup)))
    else:
        schedule = get_linear_schedule_with_warmup(optimizer, warmup, steps)
    model.eval()
    losses = []
    for _, _, rows in batches(tokens.lengths, run.train.batch_size, run.seed, steps):
        tensors = to_tensors(batch(tokens, rows, 0), loaded.device)
        inputs = {key: value for key, value in tensors.items() if key in loaded.inputs}
        loss = nn.functional.cross_entropy(model(**inputs).logits.to(dtype), tensors["labels"].long())
        loss.backward()
        nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], run.train.max_grad_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    with torch.inference_mode():
        everything = to_tensors(batch(tokens, np.arange(len(tokens)), 0), loaded.device)
        logits = model(**{key: value for key, value in everything.items() if key in loaded.inputs}).logits.numpy()
    final = adapters.lift(model) if start.low_rank else AdapterState({}, {path: dict(model.named_parameters())[name].detach() for name, path in head.items()})
    return final, torch.stack(losses), logits


def _stock_name(path: str, loaded: Backbone) -> str:
    module = next(each for each in loaded.new_modules if path.startswith(f"{each}."))
    return f"base_model.model.{module}.modules_to_save.default.{path.removeprefix(module + '.')}"


def assert_same_state(ours: AdapterState, theirs: AdapterState, *, rtol: float, atol: float) -> None:
    assert ours.low_rank.keys() == theirs.low_rank.keys() and ours.head.keys() == theirs.head.keys()
    for path, pair in theirs.low_rank.items():
        torch.testing.assert_close(ours.low_rank[path].A, pair.A, rtol=rtol, atol=atol)
        torch.testing.assert_close(ours.low_rank[path].B, pair.B, rtol=rtol, atol=atol)
        assert ours.low_rank[path].scale == pytest.approx(pair.scale)
    for name, tensor in theirs.head.items():
        torch.testing.assert_close(ours.head[name], tensor, rtol=rtol, atol=atol)


def test_packed_training_equals_stock_peft(tokens):
    """fp64, mixed targets, ranks, alphas, rates, decays and clipping: parameters and losses to 1e-9."""
    loaded = tiny()
    runs = [config(**each) for each in MIXTURE]
    states, losses, logits, _ = train(loaded, runs, tokens)
    for index, run in enumerate(runs):
        theirs, their_losses, their_logits = train_stock(loaded, run, tokens)
        assert_same_state(states[index], theirs, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(losses[:, index], their_losses, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(logits[index], their_logits, rtol=1e-9, atol=1e-11)
