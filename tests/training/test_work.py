"""How far a pack is: by operations, scoring included, and never past the checking that follows."""

import pytest

from lora_bench.store.folder import Store
from lora_bench.training.resolve import resolve
from lora_bench.training.run import run_pack
from lora_bench.training.work import CHECKING, Work
from tiny import tiny_config


def shares(events):
    return [event["share"] for event in events if event["event"] == "work"]


@pytest.mark.parametrize(("method", "to_scoring"), [("lora", 2), ("head_only", 1), ("bitfit", 2), ("full", 3)])
@pytest.mark.parametrize("n_report", [16, 200])
def test_training_and_scoring_each_move_the_bar_by_their_operations(method, to_scoring, n_report):
    """Few rows of train and many of report: a bar of steps alone stood at its end for minutes."""
    run = resolve(tiny_config(adapter__method=method, task__train_rows=40, task__report_rows=n_report))
    tokens = run.tokens()
    counts = {name: int(split.lengths.sum()) for name, split in tokens.items()}
    events = []
    work = Work(run, tokens, 1, events.append)
    work.has_trained(run.steps)
    training = to_scoring * counts["train"] * run.config.train.epochs
    scored = sum(counts.values())  # fewer than 500 rows of train are scored whole
    assert work.share == pytest.approx((1 - CHECKING) * training / (training + scored), rel=0.15)
    before = work.share
    work.has_scored(counts["report"])
    assert (work.share - before) / (1 - CHECKING - before) == pytest.approx(counts["report"] / scored)
    work.has_scored(scored)  # more than there is
    assert work.share == 1 - CHECKING
    assert shares(events)[0] == before and len(events) == 3


@pytest.mark.parametrize("checkpoint", ["last", "best"])
def test_a_pack_tells_all_of_its_work_before_its_first_record(tmp_path, checkpoint):
    """Step by step and batch by batch, never back, up to the checking of its runs, whatever is scored on the way."""
    run = resolve(tiny_config(train__epochs=3, train__checkpoint=checkpoint))
    events = []
    run_pack([run], Store(tmp_path), on_progress=events.append)
    told = shares(events)
    assert told == sorted(told) and len(told) > run.steps
    assert told[-1] == pytest.approx(1 - CHECKING)
    kinds = [event["event"] for event in events]
    assert "work" not in kinds[kinds.index("record") :]
    after = kinds[len(kinds) - kinds[::-1].index("step") :]
    assert after.count("work") >= 3  # select, report and the rows of train
