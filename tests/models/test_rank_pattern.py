"""Ranks by role and layer: what a pattern may say, what it costs, and which run it is."""

import pytest
import yaml

from lora_bench.config.compose import with_rank_yielding
from lora_bench.config.errors import ConfigError
from lora_bench.config.grammar import parse_rank_pattern
from lora_bench.models.budget import adapter_parameters, solve_ranks
from lora_bench.models.roles import Matrix
from lora_bench.training.resolve import resolve
from tiny import tiny_config

LAYERS = 4
MATRICES = [
    Matrix(role, layer, f"layer.{layer}.{role}", 32, width)
    for layer in range(LAYERS)
    for role, width in (("q", 32), ("k", 32), ("v", 16), ("up", 64), ("down", 64))
]


def ranks(pattern, **given):
    """Rank by (role, layer)."""
    solved = solve_ranks(MATRICES, pattern=parse_rank_pattern(pattern), **given)
    return {(matrix.role, matrix.layer): matrix.rank for matrix in solved}


SPELLINGS = {
    "qk@4+v@8": lambda role, layer: {"q": 4, "k": 4, "v": 8}.get(role, 2),
    "q+v@8": lambda role, layer: 8 if role in "qv" else 2,
    "mlp@3": lambda role, layer: 3 if role in ("up", "down") else 2,
    "all@4+v.first:3@16": lambda role, layer: 16 if role == "v" and layer < 3 else 4,
    "v.first:3@16+all@4": lambda role, layer: 4,
    "q.last:1@0": lambda role, layer: 0 if (role, layer) == ("q", 3) else 2,
    "up.0-1@7+k.2@5": lambda role, layer: {("up", 0): 7, ("up", 1): 7, ("k", 2): 5}.get((role, layer), 2),
    "attention.[0,2-3]@6": lambda role, layer: 6 if role in "qkv" and layer != 1 else 2,
}


@pytest.mark.parametrize("pattern", SPELLINGS)
def test_the_last_rule_that_fits_a_matrix_gives_its_rank(pattern):
    """Ranks written out by hand; all else has the common one."""
    expected = {(matrix.role, matrix.layer): SPELLINGS[pattern](matrix.role, matrix.layer) for matrix in MATRICES}
    assert ranks(pattern, rank=2) == expected


@pytest.mark.parametrize(
    ("text", "mapping"),
    [("q@4+v@8", {"q": 4, "v": 8}), ("all@4+v.0-2@16", {"all": 4, "v.0-2": 16}), ("", {}), ("qv@1", {"qv": 1})],
)
def test_a_mapping_and_a_text_say_the_same(text, mapping):
    assert ranks(text, rank=2) == ranks(mapping, rank=2)


@pytest.mark.parametrize(
    ("pattern", "given", "message"),
    [
        ("q", {"rank": 2}, "no rank for 'q'"),
        ("q@4+v", {"rank": 2}, "no rank for 'v'"),
        ("q@x", {"rank": 2}, "'x' is no rank for 'q'"),
        ("q@-1", {"rank": 2}, "'-1' is no rank"),
        ({"q": True}, {"rank": 2}, "True is no rank"),
        ({"q": 1.5}, {"rank": 2}, "1.5 is no rank"),
        ({"w": 4}, {"rank": 2}, "no role 'w'"),
        ({"q.middle": 4}, {"rank": 2}, "cannot read layers 'middle'"),
        ({"q.": 4}, {"rank": 2}, "cannot read layers ''"),
        ("q.9@4", {"rank": 2}, "no layer 9"),
        ("q.first:9@4", {"rank": 2}, "'first:9' is out of range"),
        ("q.3-1@4", {"rank": 2}, "adapter.rank_pattern: cannot read"),
        ("q@4+q@5", {"rank": 2}, "'q' has two ranks"),
        ("gate@4", {"rank": 2}, "'gate' names no adapted matrix"),
        ("v@17", {"rank": 2}, "17 does not fit 'v'"),
        ("all@0", {"rank": 2}, "rank 0 everywhere"),
        (7, {"rank": 2}, "cannot read 7"),
        ("q@4", {}, "no rank for 'k' in layer 0"),
    ],
)
def test_a_pattern_that_fits_nothing_is_refused_in_one_line(pattern, given, message):
    """A rule without effect would carry a wrong label."""
    with pytest.raises(ConfigError, match=r"^adapter\.rank_pattern: ") as refused:
        ranks(pattern, **given)
    assert message in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("pattern", ["q@2", "v.first:2@16", "mlp@1+q@9", "down@0"])
@pytest.mark.parametrize("budget", [12_000, "qkv@8"])
def test_what_a_pattern_leaves_of_a_budget_goes_to_the_others(pattern, budget):
    """The total stays within half a rank of the largest matrix, and matrices without a rule differ by one at most."""
    solved = solve_ranks(MATRICES, pattern=parse_rank_pattern(pattern), budget=budget)
    wanted = 12_000 if isinstance(budget, int) else 8 * LAYERS * (64 + 64 + 48)
    assert abs(adapter_parameters(solved) - wanted) <= 48
    low, high = ranks(pattern, rank=3), ranks(pattern, rank=4)  # where they differ, no rule fits
    free = [m.rank for m in solved if low[m.role, m.layer] != high[m.role, m.layer] and m.rank < min(m.d_in, m.d_out)]
    assert max(free) - min(free) <= 1


@pytest.mark.parametrize(
    ("pattern", "message"),
    [("all@2", "gives every matrix its rank"), ("mlp@32", "less 24,576 of adapter.rank_pattern")],
)
def test_a_budget_that_a_pattern_uses_up_is_refused(pattern, message):
    with pytest.raises(ConfigError, match="adapter.budget: .*" + message):
        ranks(pattern, budget=20_000)


SAME = [  # two spellings of one adapter on the tiny backbone, which has two layers
    ("adapter.targets=qv adapter.rank=4", "adapter.targets=qkv adapter.rank=4 adapter.rank_pattern=k@0"),
    ("adapter.targets=qv adapter.rank=4", "adapter.targets=vq adapter.rank=9 adapter.rank_pattern=qv@4"),
    ("adapter.layers=last:1 adapter.rank=4", "adapter.rank=4 adapter.rank_pattern=all.0@0"),
    ("adapter.layers=[1] adapter.rank=4", "adapter.rank=4 adapter.rank_pattern=qv.[0]@0"),
    ("adapter.rank_pattern=q@2+v.1@3", 'adapter.rank_pattern={"v.last:1":3,"q":2}'),
    ("adapter.budget=qv@4 adapter.rank=null", "adapter.budget=qv@4 adapter.rank=null adapter.rank_pattern=q@4"),
]


def run_of(overrides):
    given = (override.split("=", 1) for override in with_rank_yielding(overrides.split()))
    return resolve(tiny_config(**{key.replace(".", "__"): yaml.safe_load(value) for key, value in given}))


@pytest.mark.parametrize(("plain", "patterned"), SAME)
def test_one_adapter_has_one_id_however_its_ranks_are_spelled(plain, patterned):
    """The id is of matrices and ranks: a record answers every spelling of its run."""
    assert run_of(plain).run_id == run_of(patterned).run_id


def test_every_other_map_of_ranks_is_another_run():
    """A map that shared an id with another would take its record."""
    patterns = ["q@4", "q@5", "q.0@4", "q.1@4", "v@4", "v.0@0", "q.0@0", "q.0@0+v.1@0"]
    runs = [run_of(f"adapter.rank=9 adapter.rank_pattern={pattern}") for pattern in patterns]
    assert len({run.run_id for run in [*runs, run_of("adapter.rank=9")]}) == 1 + len(patterns)


def test_a_published_adapter_is_the_run_that_its_words_are_here(tmp_path):
    """peft's configuration and ours meet in one id; targets and rank beside it are refused, those of a preset yield."""
    (tmp_path / "adapter_config.json").write_text(
        '{"r": 4, "target_modules": ["query", "value"], "rank_pattern": {"layer.0.attention.self.value": 16}}'
    )
    like = f"adapter.like={tmp_path}"
    assert run_of(like).run_id == run_of("adapter.rank=4 adapter.rank_pattern=v.0@16").run_id
    for beside in ("adapter.targets=q", "adapter.rank=3", "adapter.budget=q@8", "adapter.layers=last:1"):
        with pytest.raises(ConfigError, match=f"{beside.partition('=')[0]}: .* beside adapter.like"):
            run_of(f"{like} {beside}")


@pytest.mark.parametrize("layers", ["[0]", "[1,0]", "last:1"])
def test_layers_by_list_are_those_layers(layers):
    """A list, in any order, and the word for it."""
    adapted = {matrix.layer for matrix in run_of(f"adapter.layers={layers}").matrices}
    assert adapted == {"[0]": {0}, "[1,0]": {0, 1}, "last:1": {1}}[layers]
