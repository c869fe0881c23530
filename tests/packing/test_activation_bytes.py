"""What a pack will keep is counted without data, and equals what a real step keeps."""

import pytest
import torch

from architectures import ARCHITECTURES
from lora_bench.config.schema import ModelConfig
from lora_bench.launch import packs
from lora_bench.models import adapters, backbone, blueprint, machine
from lora_bench.models.budget import solve_ranks
from lora_bench.models.roles import select_targets
from lora_bench.packing import memory
from lora_bench.packing.pack import Pack
from tiny import tiny_config

CPU = torch.device("cpu")
FAMILIES = (  # those whose layers differ in code
    *("bert", "roberta", "electra", "distilbert", "albert", "mpnet", "deberta", "deberta-v3", "modernbert", "gpt2"),
    *("gpt_neo", "gptj", "gpt_neox", "bloom", "falcon_new_decoder", "opt", "mpt", "llama", "qwen3", "gemma", "phi3"),
    *("persimmon", "glm"),
)


def subject(name, targets="qv"):
    model_type, settings = ARCHITECTURES[name]
    architecture = {"model_type": model_type, **settings, "vocab_size": 300, "pad_token_id": 0}
    plan = blueprint.blueprint(ModelConfig(name=name, weights="random", architecture=architecture), 2)
    return plan, solve_ranks(select_targets(plan.matrices, targets, "all"), rank=4)


def kept_by_a_step(plan, matrices, *, precision, dropout, adapter_dropout, n_runs=3, shape=(4, 24)):
    """Bytes of a run that autograd keeps in a step on real tensors."""
    loaded = backbone.load(plan, precision=precision, device=CPU)
    config = tiny_config(adapter__rank=4).adapter
    states = [adapters.make(loaded, config, matrices, backbone.head_state(loaded, 0), 0) for _ in range(n_runs)]
    ids = torch.randint(5, 250, shape)
    mask = torch.ones_like(ids)
    mask[0, -1] = 0
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
        return tensor

    with Pack(loaded, states, dropout=dropout, adapter_dropouts=[adapter_dropout] * n_runs) as pack, pack.train():
        weights = {tensor.untyped_storage()._cdata for tensor in (*pack.model.parameters(), *pack.model.buffers())}
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            pack.logits({"input_ids": ids, "attention_mask": mask, "token_type_ids": 0 * ids})
    return sum(storage.nbytes() for key, storage in kept.items() if key not in weights) // n_runs


@pytest.mark.parametrize("name", FAMILIES)
def test_the_count_is_what_a_step_keeps(name):
    """A rule of 13 widths and 3 values a head and token was a quarter of it here, and three times it there."""
    precision, dropout, targets = (("fp32", 0.0, "qv"), ("bf16", 0.1, "all"))[FAMILIES.index(name) % 2]
    plan, matrices = subject(name, targets)
    known = {"precision": precision, "dropout": dropout, "adapter_dropout": dropout}
    counted = memory.saved_bytes(plan, matrices, device=CPU, n_rows=4, n_tokens=24, **known)
    assert counted == pytest.approx(kept_by_a_step(plan, matrices, **known), rel=0.05)


def test_a_model_that_cannot_run_without_data_counts_as_the_widest(monkeypatch):
    """No plan fails because its memory cannot be foreseen."""
    plan, matrices = subject("bert", "all")
    known = {"precision": "fp32", "device": CPU, "n_rows": 4, "n_tokens": 24, "dropout": 0.1}
    counted = memory.saved_bytes(plan, matrices, **known)
    monkeypatch.setattr(type(plan.skeleton), "forward", lambda self, **inputs: inputs["input_ids"].sum().item())
    assert memory.saved_bytes(plan, matrices, **known) > counted


@pytest.fixture
def run(tmp_path):
    from lora_bench.training.resolve import resolve

    return resolve(tiny_config(store=str(tmp_path)))


@pytest.mark.parametrize("n_workers", [1, 2, 4])
def test_packs_grow_with_the_memory_that_is_free_and_is_shared(run, n_workers, monkeypatch):
    """A fixed budget left packs of two runs on a machine with twenty gigabytes to spare."""
    spare = packs.process_bytes(run)
    of_a_run = packs.activation_bytes(run)
    for size in (1, 5, 11):
        free = n_workers * (spare + (size + 0.5) * of_a_run) / packs.PACK_SHARE
        monkeypatch.setattr(machine, "available_memory", lambda free=free: int(free))
        assert packs.largest_pack([run], n_workers=n_workers) == size
    monkeypatch.setattr(machine, "available_memory", lambda: 0)
    assert packs.largest_pack([run], n_workers=n_workers) == 1
