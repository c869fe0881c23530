"""What a run costs, told before it and recorded after it."""

from __future__ import annotations

import numpy as np
import pytest

from lora_bench.launch import estimate
from lora_bench.training import run
from lora_bench.training.cost import run_flops
from lora_bench.training.loop import batches
from lora_bench.training.resolve import resolve
from tiny import tiny_config as config


@pytest.mark.parametrize(("layers", "share_above"), [("all", 1.0), ("last:1", 0.5), ([0], 1.0), ([1], 0.5)])
def test_nothing_below_the_lowest_adapted_layer_is_propagated_through(layers, share_above):
    """Of a backbone of two layers, whatever the highest adapted one is."""
    one = resolve(config(adapter__layers=layers))
    linear = sum(each.weight.numel() for each in one.blueprint.skeleton.modules() if type(each).__name__ == "Linear")
    adapter = 6 * sum(matrix.rank * (matrix.d_in + matrix.d_out) for matrix in one.matrices)
    assert run_flops(one.blueprint, one.config, one.matrices, 10) == 10 * (
        2 * linear + 2 * share_above * linear + adapter
    )


@pytest.mark.parametrize(("method", "times"), [("full", 6), ("bitfit", 4), ("head_only", 2)])
def test_a_plan_expects_the_operations_that_records_will_hold(method, times):
    """Full fine-tuning has half as many again as LoRA, which a plan told in LoRA's numbers until it was begun."""
    one = resolve(config(adapter__method=method, train__epochs=3))
    linear = sum(each.weight.numel() for each in one.blueprint.skeleton.modules() if type(each).__name__ == "Linear")
    lengths = {split: int(tokens.lengths.sum()) for split, tokens in one.tokens().items()}
    splits = one.task.splits
    sample = round(lengths["train"] * min(len(splits["select"]), len(splits["train"])) / len(splits["train"]))
    scored = lengths["select"] + lengths["report"] + sample  # a short training scores select once, at its end
    assert estimate._operations([one]) == ([linear * times * 3 * lengths["train"]], [linear * 2 * scored])


def test_tokens_are_those_of_the_rows_that_were_trained_on():
    one = resolve(config(task__train_rows=50, train__batch_size=32, train__epochs=3))
    lengths = np.arange(1, 51)
    assert one.steps == 6  # the second batch of an epoch has 18 rows
    assert run._tokens_trained(one, lengths) == 3 * lengths.sum()
    seen = np.concatenate([rows for _, _, rows in batches(lengths, 32, one.config.seed, one.steps)])
    assert np.bincount(seen).tolist() == [3] * 50


def test_the_disk_that_a_run_takes_counts_what_its_method_saves():
    sizes = {
        method: estimate._bytes(resolve(config(adapter__method=method, adapter__targets="qv")))
        for method in ("lora", "head_only", "bitfit", "full")
    }
    assert sizes["head_only"] < sizes["lora"] < sizes["full"]
    weights = list(resolve(config()).blueprint.skeleton.parameters())
    dropped = estimate._bytes(resolve(config(adapter__method="full", keep_adapters="none")))
    assert sizes["full"] - dropped == 4 * sum(each.numel() for each in weights)
    assert estimate._bytes(resolve(config(keep_adapters="none"))) < sizes["head_only"]
