"""The command of a study: how it ends when it is stopped, or its time is over."""

import pydoc

import pytest

from lora_bench.launch.plan_file import PlanFile, parse_reference
from lora_bench.store.folder import Store

SMALL = (
    *("study=weight_types", "model=tiny", "tracking=none", "task.train_rows=40", "task.report_rows=20"),
    *("train.precision=fp32", "device=cpu", "adapter.targets=q,qv", "study.looks=[4,8]"),
    "hydra.sweeper.workers=2",
)


@pytest.fixture(autouse=True)
def crew(monkeypatch, training):
    """Workers that train at once, in this process."""
    from lora_bench.training.resolve import resolve

    def train(self, references, *, n_workers):
        for path, number in map(parse_reference, references):
            runs = [resolve(entry.checked_config()) for entry in PlanFile.load(path).packs[number]]
            training(runs, Store("runs"), tracking=None, invocation={"overrides": [], "sweep": None})
        return []

    monkeypatch.setattr("lora_bench.launch.jobs.Crew.train", train)


MOMENTS = {
    "in_training": "lora_bench.launch.jobs.Crew.train",
    "before_a_plan": "lora_bench.launch.tell_study.announce",
    "while_following": "lora_bench.verdicts.scheme.follow",
    "while_planning": "lora_bench.launch.plan.make",
}


@pytest.mark.parametrize("moment", MOMENTS.values(), ids=MOMENTS)
def test_a_study_that_is_stopped_says_how_it_goes_on(command, monkeypatch, moment):
    """During training and between two plans: whoever stops it at night pastes that line in the morning."""
    room, _, name = moment.rpartition(".")
    owner = pydoc.locate(room)
    function, calls = getattr(owner, name), []

    def stop_at_the_second(*arguments, **options):
        calls.append(name)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return function(*arguments, **options)

    monkeypatch.setattr(owner, name, stop_at_the_second)
    ended = command(*SMALL)
    assert ended.status == 130, ended.text
    assert "Traceback" not in ended.text
    stopped, again = ended.out.rstrip().splitlines()[-2:]
    assert stopped == "stopped early: Ctrl-C; every finished run is kept. Go on with:"
    assert again.split()[:3] == ["lora-bench", "study=weight_types", "model=tiny"], again
    assert Store("runs").statuses()


def test_a_study_whose_time_is_over_is_no_failure_and_says_what_is_open(command):
    """A night's hours are over in the morning; whoever reads it then must not look for a fault."""
    ended = command(*SMALL, "hours=0.00001")
    assert ended.status == 0, ended.text
    assert "stopped early: the hours that it was given are over; every finished run is kept. Go on with:" in ended.out
    assert "tiny · acceptability: no look yet (search)" in ended.out
