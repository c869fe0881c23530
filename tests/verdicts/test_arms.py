"""Arms: a placement and a rank, that no code reads back out of a name."""

from __future__ import annotations

import random

import pandas as pd
import pytest

from fake_store import fake_record, frame_of
from lora_bench.verdicts.arms import Arm, arms_of, estimate, name_arms


@pytest.mark.parametrize(
    ("arm", "name"),
    [
        (Arm("qv", 4), "qv r=4"),
        (Arm("qkvo+up", (2, 3)), "qkvo+up r=2-3"),
        (Arm("qv"), "qv"),
        (Arm("full"), "full"),
        (Arm("head_only"), "head_only"),
    ],
)
def test_an_arm_is_named_by_its_placement_and_its_rank_where_that_is_known(arm, name):
    """The one spelling that tables, notes and the command line share."""
    assert str(arm) == name


def test_arms_stand_as_in_the_papers_table_by_rank_and_methods_last():
    """A rank of 16 after one of 4, which names as text would turn round."""
    ordered = [
        *(Arm("q", 8), Arm("k", 8), Arm("qk", 4), Arm("qv", 4), Arm("qv", (2, 16)), Arm("qv", 16), Arm("qkvo", 2)),
        *(Arm("gate", 1), Arm("up+down", 1), Arm("bitfit"), Arm("full"), Arm("head_only")),
    ]
    shuffled = random.Random(0).sample(ordered, len(ordered))
    assert sorted(shuffled) == ordered


def test_runs_have_the_rank_of_their_matrices():
    """Of one number, of several by matrix, and of none: a method without a placement, a run that failed early."""
    uneven = fake_record(targets="qv", seed=1)
    uneven["manifest"] = [{**uneven["manifest"][0], "rank": 2}, {**uneven["manifest"][1], "rank": 3}]
    early = fake_record(targets="qv", seed=2, error="exception")
    early["manifest"], early["config"]["adapter"]["rank"] = [], None
    records = [fake_record(targets="q", rank=8), uneven, early, fake_record(method="full", targets="")]
    runs = frame_of(records)
    expected = [Arm("q", 8), Arm("qv", (2, 3)), Arm("qv"), Arm("full")]
    assert sorted(arms_of(runs)) == sorted(expected)
    assert list(name_arms(runs)["arm"]) == [str(arm) for arm in sorted(expected)]


def test_a_name_may_say_anything_and_the_rank_is_still_told():
    """What an arm is called is up to the question: placements go without ranks, replicates with a letter."""
    runs = frame_of([fake_record(targets="qv", rank=4, seed=seed) for seed in range(3)]).assign(arm="a r=99 A")
    estimates = estimate(runs, pd.Series({"a r=99 A": 1e-3}))
    assert estimates.loc["a r=99 A", "arm"] == Arm("qv", 4)
    assert estimates.loc["a r=99 A", "ranks"] == "4"


@pytest.mark.parametrize("other", [{"q": 3, "v": 2}, {"q": 3, "k": 2}], ids=["same_roles", "another_role"])
def test_maps_of_one_span_are_arms_of_their_own(other):
    """Both read as `r=2-3`: one name for two placements would average their scores."""
    records = []
    for seed in range(2):
        for ranks in ({"q": 2, "v": 3}, other):
            record = fake_record(targets="".join(ranks), seed=seed)
            record["manifest"] = [
                {**record["manifest"][0], "role": role, "module": role, "rank": rank} for role, rank in ranks.items()
            ]
            record["config"]["adapter"]["rank"] = ranks
            record["run_id"] = record["cell_id"] = f"{record['run_id'][:12]}{'-'.join(ranks)}{list(ranks.values())}"
            records.append(record)
    named = name_arms(frame_of(records))
    assert named.groupby("arm")["seed"].nunique().tolist() == [2, 2]
    assert all(" map " in arm for arm in named["arm"]) == (set(other) == {"q", "v"})


def test_a_rank_in_some_matrices_of_a_role_is_not_that_rank_everywhere():
    """`qv r=4` is q and v in every layer; with v in the first alone it is another placement."""
    whole, part = fake_record(targets="qv", rank=4), fake_record(targets="qv", rank=4, seed=1)
    part["config"]["adapter"]["rank"] = {"q.0": 4, "q.1": 4, "v.0": 4}
    assert name_arms(frame_of([whole, part]))["arm"].nunique() == 2
