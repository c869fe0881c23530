"""How much of the house a configuration walks through before it is a run."""

import sys
from pathlib import Path
from types import CodeType

import lora_bench
from lora_bench.cli import runs
from lora_bench.training.resolve import resolve

HOUSE = Path(lora_bench.__file__).parent


def test_a_configuration_becomes_a_run_in_at_most_ten_rooms(command, training, monkeypatch):
    """Whoever follows one command through the code must be able to keep in mind where it goes."""
    seen: set[CodeType] = set()

    def look(frame, event, argument):
        seen.add(frame.f_code)
        if event == "return" and frame.f_code is resolve.__code__:
            sys.setprofile(None)

    run = runs.run

    def run_watched(composed):
        former = sys.getprofile()
        sys.setprofile(look)
        try:
            return run(composed)
        finally:
            sys.setprofile(former)

    monkeypatch.setattr(runs, "run", run_watched)
    ended = command("model=tiny", "tracking=none", "task=sentiment", "task.train_rows=40", "train.precision=fp32")
    assert ended.status == 0, ended.text
    files = {Path(code.co_filename) for code in seen if code.co_name != "<module>"}
    rooms = {file.relative_to(HOUSE).parts[0].removesuffix(".py") for file in files if file.is_relative_to(HOUSE)}
    assert {"cli", "config", "training"} <= rooms
    assert len(rooms) <= 10, sorted(rooms)
