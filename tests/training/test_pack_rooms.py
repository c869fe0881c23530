"""How much of the house one has to know to follow a run."""

import sys

from lora_bench.store.folder import Store
from lora_bench.training.resolve import resolve
from lora_bench.training.run import run_pack
from tiny import tiny_config


def test_training_a_resolved_run_enters_six_rooms(tmp_path, monkeypatch):
    """What a run needs of the account and of the configuration's checks is settled when it is resolved."""
    monkeypatch.setenv("LORA_BENCH_CACHE", str(tmp_path / "cache"))  # tokens are made and written
    run = resolve(tiny_config(task__train_rows=36, train__epochs=1))
    rooms = set()

    def note(frame, event, _):
        module = frame.f_globals.get("__name__", "")
        if module == "lora_bench.config.facts":  # a table of fields, which a record's columns follow
            return
        if event == "call" and module.startswith("lora_bench.") and frame.f_code.co_name != "<module>":
            rooms.add(module.split(".")[1])

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        (record,) = run_pack([run], Store(tmp_path / "store"))
    finally:
        sys.setprofile(before)
    assert record["status"] == "finished"
    assert rooms == {"training", "packing", "models", "tasks", "tracking", "store"}
