"""The names of a head's outputs, beside its saved weights, so that a published adapter can be read."""

import copy
import json
from collections.abc import Sequence
from pathlib import Path

from lora_bench.models.blueprint import Blueprint


def write(folder: Path, plan: Blueprint, label_names: Sequence[str]) -> None:
    """Write `id2label` and `label2id` of a run's outputs into the configuration beside the weights that it trained.

    In a PEFT adapter they are in adapter_config.json under `auto_mapping`, its one field for what peft has no name for.
    Beside weights.safetensors they are in a config.json of transformers; beside an adapter, that file would make stock
    tools look for the weights of a whole model.

    Args:
        folder: as `adapters.save` wrote it.
        label_names: by output; empty for regression, whose one output has no name.
    """
    names = {str(output): name for output, name in enumerate(label_names)}
    outputs = {name: output for output, name in enumerate(label_names)}
    path = folder / "adapter_config.json"
    if path.is_file():
        if not names:
            return
        document = json.loads(path.read_text(encoding="utf-8"))
        document["auto_mapping"] = {"id2label": names, "label2id": outputs}
        path.write_text(json.dumps(document, indent=2, sort_keys=True), encoding="utf-8")
        return
    architecture = copy.deepcopy(plan.architecture)
    architecture.name_or_path = plan.name
    if names:
        architecture.id2label, architecture.label2id = dict(enumerate(label_names)), outputs
    architecture.save_pretrained(folder)
