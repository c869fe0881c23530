"""What a decoder's head reads: the last token of a row that is no padding, as the attention mask has it.

transformers' heads look for it by its id, the rightmost one that is not `pad_token_id`. A row that itself ends in that
id, where the end of a text serves as padding too, would be read a token early. So the head is shown ids of which the
last real token alone is no padding; the layers below it see the row as it is.
"""

import inspect
from typing import Any

import torch
from torch import nn

_REAL = -1
"""An id that no pad token has."""


def is_looked_for(model: nn.Module) -> bool:
    """Whether a model's head looks for the last token of a row by the pad token's id."""
    return "pad_token_id" in inspect.unwrap(type(model).forward).__code__.co_names


def read_by_mask(model: Any) -> None:
    """Let a head that looks for the last token find the one that the attention mask keeps last.

    Other models stay as they are, and so does a call without a mask. Copies of the model and peft models around it read
    the same. Ids and mask, each (B, T), are given to the model by name.
    """
    base = model.base_model
    if base is not model and is_looked_for(model):
        rows = _Rows()
        model.register_forward_pre_hook(rows.hide, with_kwargs=True)
        base.register_forward_pre_hook(rows.show, with_kwargs=True)


class _Rows:
    """The ids of the batch that is being read, between the head's eyes and the layers'."""

    def __init__(self) -> None:
        self.input_ids: torch.Tensor | None = None

    def hide(self, model: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        ids, mask = kwargs.get("input_ids"), kwargs.get("attention_mask")
        if ids is None or mask is None:
            return args, kwargs
        self.input_ids = ids
        places = torch.arange(ids.shape[1], device=ids.device)
        last_B = (places * mask).argmax(1)
        padding = torch.full_like(ids, model.config.get_text_config().pad_token_id)
        return args, kwargs | {"input_ids": padding.masked_fill(places == last_B[:, None], _REAL)}

    def show(self, base: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        ids, self.input_ids = self.input_ids, None
        if ids is None:  # nothing was hidden
            return args, kwargs
        return ((ids, *args[1:]), kwargs) if args else (args, kwargs | {"input_ids": ids})
