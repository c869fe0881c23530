"""Placements compared at one budget must cost the same, as nearly as whole ranks allow."""

from __future__ import annotations

import functools
from fractions import Fraction
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForSequenceClassification

from lora_bench.config.errors import ConfigError
from lora_bench.models.budget import adapter_parameters, budget_gap, budget_parameters, solve_ranks
from lora_bench.models.roles import Matrix, manifest_table, roles_of, select_targets

SHAPES = {
    "roberta_base": ("roberta", {}),
    "bert_base": ("bert", {}),
    "minilm": ("bert", {"hidden_size": 384, "num_hidden_layers": 6, "intermediate_size": 1536}),
    "gpt2": ("gpt2", {}),
    "qwen3_0_6b": (
        "qwen3",
        {
            "hidden_size": 1024,
            "num_hidden_layers": 28,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "intermediate_size": 3072,
        },
    ),
    "llama3_8b": (
        "llama",
        {"num_key_value_heads": 8, "intermediate_size": 14336},
    ),
}
PLACEMENTS = ["q", "k", "v", "o", "qk", "qv", "qkvo"]


@functools.cache
def matrices_of(shape: str) -> tuple[Matrix, ...]:
    model_type, kwargs = SHAPES[shape]
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(AutoConfig.for_model(model_type, **kwargs))
    return tuple(roles_of(model))


def solve(shape: str, targets: str, budget: str | int, layers: str = "all") -> tuple[list[Matrix], int]:
    everything = matrices_of(shape)
    selected = select_targets(everything, targets, layers)
    wanted = budget_parameters(budget, selected, all_matrices=everything)
    return solve_ranks(selected, budget=budget, all_matrices=everything), wanted


@pytest.mark.parametrize(("targets", "rank"), [("q", 16), ("qv", 8), ("qkvo", 4), ("k", 16), ("vo", 8)])
def test_roberta_base_meets_its_budget_exactly(targets, rank):
    """The three placements of the issue: 12 layers x rank x (768 + 768) x roles = 294,912."""
    for budget in ("q@16", "qv@8", "qkvo@4", "attention@4", 294912, "294912"):
        solved, wanted = solve("roberta_base", targets, budget)
        assert wanted == adapter_parameters(solved) == 294_912
        assert {matrix.rank for matrix in solved} == {rank}


@pytest.mark.parametrize("shape", ["roberta_base", "bert_base", "minilm", "gpt2"])
@pytest.mark.parametrize("targets", PLACEMENTS)
def test_the_seven_placements_cost_the_same(shape, targets):
    """Table 5's design; with square attention matrices every placement divides q@8."""
    solved, wanted = solve(shape, targets, "q@8")
    assert adapter_parameters(solved) == wanted
    assert {matrix.rank for matrix in solved} == {8 // len(targets)}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("targets", [*PLACEMENTS, "attention", "mlp", "all"])
@pytest.mark.parametrize("budget", ["q@64", "qkvo@8", "qv@33"])
def test_budgets_come_within_one_percent(shape, targets, budget):
    solved, wanted = solve(shape, targets, budget)
    gap = budget_gap(solved, wanted)
    assert abs(gap) <= 0.01
    assert gap == pytest.approx(float(Fraction(adapter_parameters(solved), wanted) - 1), abs=1e-12)
    ranks = {matrix.rank for matrix in solved}
    assert max(ranks) - min(ranks) <= 1


def test_a_small_mlp_budget_is_met_as_nearly_as_whole_ranks_allow():
    """MiniLM's MLP costs 1,920 a rank and matrix, so 36,864 is 19.2 of them: no ranks come nearer than 1.04 %."""
    solved, wanted = solve("minilm", "mlp", "q@8")
    assert wanted == 36_864
    assert adapter_parameters(solved) == 19 * 1_920
    by_layer = [sum(m.rank for m in solved if m.layer == layer) for layer in range(6)]
    by_role = [sum(m.rank for m in solved if m.role == role) for role in ("up", "down")]
    assert max(by_layer) - min(by_layer) <= 1
    assert max(by_role) - min(by_role) <= 1


@given(
    n_layers=st.integers(1, 9),
    widths=st.lists(st.sampled_from([16, 24, 32, 48, 96]), min_size=1, max_size=4),
    share=st.floats(0, 1),
)
@settings(max_examples=60)
def test_no_ranks_one_apart_come_nearer(n_layers, widths, share):
    """Against every way to give one more: with equal costs per role, the counts per role are all that matter."""
    roles = ["q", "k", "v", "o"][: len(widths)]
    matrices = [
        Matrix(role, layer, f"layer.{layer}.{role}", 32, width)
        for layer in range(n_layers)
        for role, width in zip(roles, widths, strict=True)
    ]
    one = sum(m.parameters_per_rank for m in matrices)
    full = sum(m.parameters_per_rank * min(m.d_in, m.d_out) for m in matrices)
    wanted = round(one + share * (full - one))
    solved = solve_ranks(matrices, budget=wanted)
    assert [(m.role, m.layer) for m in solved] == [(m.role, m.layer) for m in matrices]
    assert all(1 <= m.rank <= min(m.d_in, m.d_out) for m in solved)
    assert solved == solve_ranks(matrices, budget=wanted)
    for role in roles:
        ranks = [m.rank for m in solved if m.role == role]
        assert max(ranks) - min(ranks) <= 1
    below = [m.rank for m in solved if m.rank < min(m.d_in, m.d_out)]
    if not below:
        return
    low = min(below)
    base = sum(min(low, m.d_in, m.d_out) * m.parameters_per_rank for m in matrices)
    reachable = {base}
    for m in matrices:
        if min(m.d_in, m.d_out) > low:
            reachable |= {total + m.parameters_per_rank for total in reachable}
    nearest = min(abs(total - wanted) for total in reachable)
    assert abs(adapter_parameters(solved) - wanted) <= nearest


def test_extra_ranks_spread_over_depth_and_roles():
    """Half the matrices get one more: neither one role nor one end of the backbone may get them all."""
    everything = select_targets(matrices_of("bert_base"), "qkvo")
    one = sum(m.parameters_per_rank for m in everything)
    solved = solve_ranks(everything, budget=one * 3 // 2)
    assert adapter_parameters(solved) == one * 3 // 2
    assert [sum(m.rank for m in solved if m.role == role) for role in "qkvo"] == [18] * 4
    assert [sum(m.rank for m in solved if m.layer == layer) for layer in range(12)] == [6] * 12
    for role in "qkvo":
        ranks = [m.rank for m in solved if m.role == role]
        assert all(a != b for a, b in pairwise(ranks))


def test_among_equal_totals_the_extra_ranks_go_to_every_role():
    """256 more parameters are four of q, two of v, or two of q and one of v: the last leaves no role out."""
    matrices = [
        Matrix(role, layer, f"{layer}.{role}", 32, width)
        for layer in range(4)
        for role, width in (("q", 32), ("v", 96))
    ]
    solved = solve_ranks(matrices, budget=4 * (64 + 128) + 256)
    assert [sum(m.rank for m in solved if m.role == role) for role in "qv"] == [4 + 2, 4 + 1]


def test_budgets_follow_the_chosen_layers():
    """`q@16` is priced on the layers that the adapter changes, so depth sweeps compare like with like."""
    solved, wanted = solve("roberta_base", "qv", "q@16", "first:4")
    assert wanted == 294_912 // 3
    assert {m.rank for m in solved} == {8}


def test_grouped_queries_get_the_rank_that_their_size_affords():
    solved, wanted = solve("qwen3_0_6b", "k", "q@8")
    assert wanted == 28 * 8 * (1024 + 2048) == adapter_parameters(solved)
    assert {m.rank for m in solved} == {12}


def test_ranks_stop_at_full_rank_and_the_rest_goes_elsewhere():
    matrices = [Matrix("q", 0, "a", 32, 32), Matrix("v", 0, "b", 32, 2)]
    solved = solve_ranks(matrices, budget=10 * 64 + 2 * 34)
    assert [m.rank for m in solved] == [10, 2]


@pytest.mark.parametrize("rank", [1, 8, 384])
def test_a_rank_is_that_rank_everywhere(rank):
    selected = select_targets(matrices_of("minilm"), "all")
    assert {m.rank for m in solve_ranks(selected, rank=rank)} == {rank}


@pytest.mark.parametrize(
    ("targets", "choice", "message"),
    [
        ("q", {"rank": 769}, r"adapter\.rank: 769 does not fit 'q'.*ranks are 1 to 768"),
        ("q", {"rank": 0}, r"adapter\.rank: 0 does not fit"),
        ("q", {"budget": 1}, r"adapter\.budget: 1 is below rank 1 everywhere, which costs 18,432"),
        ("all", {"budget": "q@8"}, r"'q@8' \(147,456 parameters\) is below rank 1 everywhere, which costs 165,888"),
        ("q", {"budget": "all@700"}, r"above full rank everywhere, which costs 14,155,776"),
        ("q", {"budget": "gate@8"}, r"adapter\.budget: cannot price 'gate@8'.*no 'gate' matrix"),
        ("q", {"budget": "w@8"}, r"'w'"),
        ("q", {"budget": "q@0"}, r"adapter\.budget"),
        ("q", {"budget": "q@769"}, r"adapter\.budget: cannot price 'q@769'.*does not fit"),
        ("q", {"budget": -5}, r"adapter\.budget"),
        ("q", {"budget": "many"}, r"adapter\.budget"),
        ("q", {}, r"adapter\.rank: give either"),
        ("q", {"rank": 2, "budget": 100_000}, r"adapter\.rank: give either"),
    ],
)
def test_impossible_ranks_and_budgets_are_refused(targets, choice, message):
    everything = matrices_of("bert_base")
    with pytest.raises(ConfigError, match=message):
        solve_ranks(select_targets(everything, targets), all_matrices=everything, **choice)


def test_a_solved_table_shows_ranks_and_their_cost():
    solved, _ = solve("minilm", "mlp", "q@8")
    table = manifest_table(solved)
    assert [(row["role"], row["rank"]) for row in table] == [("up", "1,2"), ("down", "1,2")]
    assert sum(row["parameters"] for row in table) == adapter_parameters(solved)
