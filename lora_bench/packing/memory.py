"""What a run of a pack keeps in memory from the forward pass to the backward pass, counted and not guessed.

The pack's own code runs on the meta device, where tensors are shapes: autograd says what it would keep. So the count
follows the architecture, the matrices that are adapted, the precision, the attention that is chosen and every shortcut
of a pack, in some ten milliseconds a layer.
"""

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from lora_bench.models import backbone
from lora_bench.models.adapters import AdapterState, LowRank
from lora_bench.models.backbone import Backbone
from lora_bench.models.blueprint import Blueprint
from lora_bench.models.devices import DTYPES
from lora_bench.models.quiet import quiet
from lora_bench.models.roles import Matrix
from lora_bench.packing.pack import Pack

COUNTED_RUNS = 2
GUESS = (25, 6)
"""Values of a layer and token where a model cannot be counted, the most of any family: per width, per head and
token."""

log = logging.getLogger(__name__)


def saved_bytes(
    plan: Blueprint,
    matrices: Sequence[Matrix],
    *,
    precision: str,
    device: torch.device,
    n_rows: int,
    n_tokens: int,
    dropout: float | None,
    adapter_dropout: float = 0.0,
) -> int:
    """Bytes that autograd keeps for one run of a pack, at a batch of `n_rows` rows of `n_tokens` tokens; those of the
    widest family where a model's own code cannot run without data.

    Args:
        matrices: those that the run adapts.
        device: where it would train, which decides on the attention.
        dropout: of the backbone, its own where None.
    """
    outline = backbone.outline(plan, precision=precision, device=device)
    states = [_shapes(outline, matrices)] * COUNTED_RUNS
    try:
        with Pack(outline, states, dropout=dropout, adapter_dropouts=[adapter_dropout] * COUNTED_RUNS) as pack:
            return _saved_by(pack, n_rows, n_tokens) // COUNTED_RUNS
    except Exception as error:  # a model's own code may ask for whatever it likes
        log.debug("%s: its activations cannot be counted without data (%s)", plan.name, error)
    of_model = plan.architecture.get_text_config()
    per_width, per_head = GUESS
    values = per_width * of_model.hidden_size + per_head * getattr(of_model, "num_attention_heads", 12) * n_tokens
    return of_model.num_hidden_layers * values * n_tokens * n_rows * DTYPES[precision].itemsize


def _saved_by(pack: Pack, n_rows: int, n_tokens: int) -> int:
    """Bytes of all runs, each storage once; weights are there without a step."""
    ids = torch.ones(n_rows, n_tokens, dtype=torch.long, device="meta")
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage
        return tensor

    fixed = {tensor.untyped_storage()._cdata for tensor in (*pack.model.parameters(), *pack.model.buffers())}
    with quiet(), pack.train(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), _Padded():
        pack.logits({"input_ids": ids, "attention_mask": ids, "token_type_ids": ids})
    return sum(storage.nbytes() for key, storage in kept.items() if key not in fixed)


class _Padded(TorchFunctionMode):
    """Whether a mask keeps every token cannot be told without data; batches have padding, as a rule."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return False if func is torch.Tensor.__bool__ else func(*args, **(kwargs or {}))


def _shapes(outline: Backbone, matrices: Sequence[Matrix]) -> AdapterState:
    """What a run trains, as shapes."""
    dtype = outline.trained_dtype
    low_rank = {
        matrix.module: LowRank(
            torch.empty(matrix.rank, matrix.d_in, dtype=dtype, device="meta"),
            torch.empty(matrix.d_out, matrix.rank, dtype=dtype, device="meta"),
            1.0,
        )
        for matrix in matrices
    }
    head = {
        f"{name}.{path}": torch.empty(parameter.shape, dtype=dtype, device="meta")
        for name in outline.new_modules
        for path, parameter in outline.model.get_submodule(name).named_parameters()
    }
    return AdapterState(low_rank=low_rank, head=head)
