"""A line that continues a sweep trains the cells that the sweep has."""

import pytest

from fake_store import fake_record, write_store
from lora_bench.config.grammar import parse_rank_pattern
from lora_bench.reports.started import Started
from lora_bench.store import open_store
from lora_bench.verdicts import settings

MAPS = {
    "a role in one layer": {("q", 0): 4, ("q", 1): 4, ("v", 1): 4},
    "uneven": {("q", 0): 2, ("q", 1): 7, ("v", 0): 3, ("v", 1): 3},
}


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("typed", ["adapter.rank_pattern=q@1,q@2", "adapter.like=/gone", "+sweeps=rank_maps"])
def test_a_map_of_ranks_is_continued_as_that_map(tmp_path, name, typed):
    """The words that started it may name several maps, or a file that is gone, and leave out what they rest on."""
    record, ranks = fake_record(targets="qv"), MAPS[name]
    matrix = record["manifest"][0]
    record["manifest"] = [
        {**matrix, "role": role, "layer": layer, "module": f"{layer}.{role}", "rank": rank}
        for (role, layer), rank in ranks.items()
    ]
    record["config"]["adapter"]["rank"] = {f"{layer}.{role}": rank for (role, layer), rank in ranks.items()}
    record["invocation"] = {"overrides": ["model=minilm", "adapter.rank=3", typed], "sweep": None}
    write_store(tmp_path / "runs", [record])
    run = settings.prepare(open_store(tmp_path / "runs").frame()).iloc[0]
    started = Started.of(run, tmp_path / "runs", pinned={})
    assert not [word for word in started.command if "like" in word or "rank_pattern" in word]
    said = {}
    for rule in parse_rank_pattern(started.placement["adapter.rank_pattern"].strip("'")):
        layers = [0, 1] if rule.layers == "all" else [int(layer) for layer in rule.layers]
        said |= {(role, layer): rule.rank for role in rule.roles for layer in layers}
    assert {place: rank for place, rank in said.items() if rank} == ranks
    assert set(said) == {(role, layer) for role in "qv" for layer in (0, 1)}
    assert started.placement["adapter.budget"] == "null"
