"""Saved runs through stock peft, one after another.

A copy of the backbone, and adapters placed in it, are most of what reading a run back costs. Runs that differ in the
values of their tensors alone, as those of one placement do, share both: peft then only reads the next file.
"""

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.utils.save_and_load import load_peft_weights, set_peft_model_state_dict
from torch import nn

from lora_bench.models import adapters
from lora_bench.models.backbone import Backbone


class Reloader:
    """Reads saved runs of one backbone; a model that it returns holds until the next is asked for."""

    def __init__(self, backbone: Backbone) -> None:
        self._backbone = backbone
        self._model: nn.Module | None = None
        self._form: Any = None  # of the folder that the model was made from

    def load(self, folder: Path) -> nn.Module:
        """The saved run in stock peft, as `adapters.load_stock` gives it.

        Raises:
            RuntimeError: as `load_stock` does.
        """
        tensors = _tensors(folder, self._backbone.device)
        form = _form(folder, tensors) if tensors is not None else None
        model, self._model = self._model, None  # a read that fails leaves none behind
        if tensors is not None and isinstance(model, PeftModel) and form == self._form:
            set_peft_model_state_dict(model, tensors)
        else:
            model = adapters.load_stock(folder, self._backbone)
        self._model, self._form = model, form
        return model


def _tensors(folder: Path, device: torch.device) -> dict[str, torch.Tensor] | None:
    """Those of an adapter, as peft reads them; None of a run that has no adapter."""
    if not (folder / "adapter_config.json").is_file():
        return None
    return load_peft_weights(str(folder), device=str(device))


def _form(folder: Path, tensors: dict[str, torch.Tensor]) -> Any:
    """All of a saved adapter but its values: where these agree, one file replaces every tensor of the other."""
    config = (folder / "adapter_config.json").read_text(encoding="utf-8")
    return config, {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}
