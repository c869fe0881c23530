"""The interfaces of a pack: to the training loop, to its own modules, and to the optimizer."""


# P runs in the pack, M runs that adapt a matrix, B rows of the batch, N rows x tokens of one run, D width in, O width
# out, R padded rank

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from lora_bench.models.adapters import AdapterState
from lora_bench.models.backbone import Backbone
from lora_bench.packing.dropout import DropoutMasks


@dataclass(frozen=True)
class Trained:
    """Trained tensors. `parameter`: (n, ...), a slice for each of `runs`: (n,); of any shape where one run alone
    trains it."""

    name: str
    kind: str  # A | B | head
    parameter: nn.Parameter
    runs: torch.Tensor
    decays: bool  # weight decay spares biases and norms, as the HF Trainer does


class Packed(Protocol):
    """A pack as the loop, the evaluation and the guards see it: the runs of a `Pack`, or the one run of a `SoloPack`.

    It works inside its `with` block, where modules of the backbone may be replaced.
    """

    backbone: Backbone
    n_runs: int
    trained: list[Trained]

    def __enter__(self) -> Any: ...

    def __exit__(self, *exception: Any) -> None: ...

    @property
    def pad_id(self) -> int: ...

    @property
    def start_tolerance(self) -> float:
        """How far the outputs before the first step may lie from the bare backbone's, relative to the largest."""
        ...

    def logits(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Logits (P, B, n_labels) of one batch that all runs share: input_ids, attention_mask, [token_type_ids], each
        (B, T)."""
        ...

    def train(self) -> contextlib.AbstractContextManager[None]:
        """Switch to training: dropout is on, where there is any."""
        ...

    def evaluate(self) -> contextlib.AbstractContextManager[None]:
        """Evaluate: dropout off and no gradients, also in the middle of training."""
        ...

    def bare(self) -> contextlib.AbstractContextManager[None]:
        """The backbone under the runs' heads, without what they add to it."""
        ...

    def state(self, run: int) -> AdapterState:
        """The tensors that one run has trained (copies)."""
        ...

    def set_states(self, states: Sequence[AdapterState]) -> None:
        """Restore what `state` returned, one state per run."""
        ...

    def streams(self) -> dict[str, torch.Tensor]:
        """The states of the generators that training draws from."""
        ...

    def set_streams(self, states: Mapping[str, torch.Tensor]) -> None:
        """Restore what `streams` returned."""
        ...

    def is_frozen_intact(self) -> bool:
        """Whether everything that does not train still has the bytes that it started with. Ask outside the `with`
        block."""
        ...


class Modes:
    """Switches the model of a pack between training and evaluation."""

    backbone: Backbone
    model: Any
    masks: DropoutMasks
    training: bool = False

    @property
    def pad_id(self) -> int:
        return self.backbone.blueprint.tokenizer.pad_token_id

    @property
    def on_cpu(self) -> bool:
        return self.backbone.device.type == "cpu"

    @contextlib.contextmanager
    def train(self) -> Iterator[None]:
        self.training = True
        self.model.train(self.masks.active)
        try:
            yield
        finally:
            self.training = False
            self.model.eval()

    @contextlib.contextmanager
    def evaluate(self) -> Iterator[None]:
        was_training, self.training = self.training, False
        self.model.eval()
        try:
            with torch.inference_mode():
                yield
        finally:
            self.training = was_training
            self.model.train(was_training and self.masks.active)


class Stacked(Protocol):
    """A pack as its own modules see it."""

    n_runs: int
    rows: int
    last_tokens: torch.Tensor
    training: bool
    adapters_on: bool
    adapter_dropouts: list[float]
    masks: DropoutMasks

    def repeat(self, x: torch.Tensor) -> torch.Tensor:
        """Repeat, once for each run, what all runs share."""
        ...
