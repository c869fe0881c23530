"""The longest input that a model can read, asked of its own modules.

    learned positions:  rows of the table - first row that a token can have
    all others:         what the configuration says, if anything

The first row is 0, or the table's `offset` (OPT, BioGPT), or one after the padding index where positions are counted
from it: those tables have a padding index of their own (RoBERTa and its kin, ESM, MPNet, Longformer). Rotary and
relative positions have no table and no limit; the configuration's number is the length that the weights were trained
for.
"""

from collections.abc import Iterator
from typing import Any

from torch import nn

TABLES = ("position_embeddings", "positions_embed", "embed_positions", "wpe")
"""Names that modules give to tables of learned positions."""
LENGTHS = ("max_position_embeddings", "max_seq_len")
"""Names that configurations give to the longest input."""


def longest_input(model: nn.Module) -> int | None:
    """The largest number of tokens in a row that a model can read, or None without a limit; needs no weights."""
    config: Any = model.config
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    limits = [value for name in LENGTHS if isinstance(value := getattr(config, name, None), int) and value > 0]
    limits += [table.weight.shape[0] - _first_row(table) for table in _tables(model)]
    return min(limits, default=None)


def counts_from_padding(model: nn.Module) -> bool:
    """Whether a token's position depends on the padding index, which is then part of the model."""
    return any(getattr(table, "padding_idx", None) is not None for table in _tables(model))


def _tables(model: nn.Module) -> Iterator[Any]:
    for path, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if path.rpartition(".")[2] in TABLES and getattr(weight, "ndim", 0) == 2:
            yield module


def _first_row(table: Any) -> int:
    if (padding := getattr(table, "padding_idx", None)) is not None:
        return padding + 1
    return getattr(table, "offset", 0)
