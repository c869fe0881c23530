"""What a plan says of files that no run loads."""

import json

from rich.console import Console

from lora_bench.launch import tell
from lora_bench.launch.plan import Plan, Planned
from lora_bench.store.folder import Store
from lora_bench.training.resolve import resolve
from model_folders import saved
from tiny import tiny_config


def test_a_plan_tells_once_that_an_adapter_beside_the_weights_is_left_out(tmp_path):
    """Whoever forgot to merge it would take the runs of the base model for those of the adapted one."""
    folder = saved(tmp_path / "model")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}), encoding="utf-8")
    model = {"name": str(folder), "weights": "pretrained"}
    runs = [resolve(tiny_config(model=model, train__max_length=32, seed=seed)) for seed in (0, 1)]
    planned = {run.run_id: Planned(run, (), "qv") for run in runs}
    plan = Plan(tmp_path, None, [], planned, [list(planned)], dict.fromkeys(planned, "finished"))
    out = Console(record=True, width=400)
    tell.describe(plan, Store(tmp_path / "runs"), out, every_cell=False)
    assert out.export_text().count("adapter_config.json") == 1
