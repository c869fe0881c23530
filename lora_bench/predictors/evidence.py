"""What predictors look at: the untrained backbone under its head, its matrices, and a few batches.

The forward pass is in evaluation mode, without dropout, so that a score depends on the batches alone. Gradients at the
start pass through the head, which says nothing before it is trained: a few steps of the head alone come first.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lora_bench.models.backbone import Backbone, head_state
from lora_bench.models.loss import row_losses
from lora_bench.models.roles import Matrix

Batch = dict[str, torch.Tensor]


@dataclass(frozen=True, eq=False)
class Evidence:
    """A private copy of a backbone, and what is shown to it.

    Attributes:
        model: the split classifier, in evaluation mode; no parameter requires a gradient.
        matrices: those that may be adapted: of every role, in some of the layers or all.
        batches: input_ids, attention_mask, [token_type_ids], each (B, T), and labels (B,).
        inputs: names of the tensors that the model reads.
        seed: of the head and of whatever a predictor draws.
    """

    model: Any
    matrices: tuple[Matrix, ...]
    batches: tuple[Batch, ...]
    inputs: frozenset[str]
    seed: int

    def weight(self, matrix: Matrix) -> nn.Parameter:
        """(d_out, d_in)."""
        return self.model.get_submodule(matrix.module).weight

    def loss(self, batch: Batch) -> torch.Tensor:
        """Mean loss over the batch: cross-entropy, or squared error for a single output."""
        logits = self.model(**{name: batch[name] for name in self.inputs if name in batch}).logits
        return row_losses(logits, batch["labels"]).mean()

    def gradients(self, parameters: Sequence[nn.Parameter]) -> Iterator[tuple[torch.Tensor, ...]]:
        """The gradient of each batch's loss, a tensor for each parameter; what has no part in the loss has zeros."""
        for parameter in parameters:
            parameter.requires_grad_(True)
        try:
            for batch in self.batches:
                parts = torch.autograd.grad(self.loss(batch), parameters, allow_unused=True)
                yield tuple(
                    torch.zeros_like(parameter) if gradient is None else gradient
                    for parameter, gradient in zip(parameters, parts, strict=True)
                )
        finally:
            for parameter in parameters:
                parameter.requires_grad_(False)

    def by_batch(self, score: Callable[[torch.Tensor, torch.Tensor], float]) -> dict[str, float]:
        """Mean over batches of a score of each matrix from its weight and its gradient, by module."""
        weights = [self.weight(matrix) for matrix in self.matrices]
        totals = [0.0] * len(weights)
        for gradients in self.gradients(weights):
            for place, (weight, gradient) in enumerate(zip(weights, gradients, strict=True)):
                totals[place] += score(weight.detach(), gradient)
        return {matrix.module: total / len(self.batches) for matrix, total in zip(self.matrices, totals, strict=True)}

    def layer_inputs(self, see: Callable[[Matrix, torch.Tensor], None]) -> None:
        """Show every matrix's input of each batch, tokens in rows and without padding: (n_tokens, d_in)."""
        mask = torch.empty(0)

        def hook_of(matrix: Matrix) -> Callable[..., None]:
            def hook(_: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
                tokens = given[0].detach().reshape(-1, matrix.d_in)
                see(matrix, tokens[mask] if len(tokens) == len(mask) else tokens)

            return hook

        hooks = [
            self.model.get_submodule(matrix.module).register_forward_pre_hook(hook_of(matrix))
            for matrix in self.matrices
        ]
        try:
            with torch.no_grad():
                for batch in self.batches:
                    mask = batch["attention_mask"].reshape(-1).bool()
                    self.model(**{name: batch[name] for name in self.inputs if name in batch})
        finally:
            for hook in hooks:
                hook.remove()


def gather(
    backbone: Backbone, matrices: Sequence[Matrix], batches: Sequence[Batch], *, seed: int, head_steps: int
) -> Evidence:
    """The evidence of some of a backbone's matrices, its head trained alone for `head_steps` batches (AdamW, rate
    1e-3)."""
    model = copy.deepcopy(backbone.model).eval().requires_grad_(False)
    start = head_state(backbone, seed)
    named = dict(model.named_parameters())
    with torch.no_grad():
        for name, tensor in start.items():
            named[name].copy_(tensor)
    evidence = Evidence(model, tuple(matrices), tuple(batches), backbone.inputs, seed)
    head = [named[name].requires_grad_(True) for name in start]
    optimizer = torch.optim.AdamW(head, lr=1e-3)
    for step in range(head_steps):
        optimizer.zero_grad()
        evidence.loss(batches[step % len(batches)]).backward()
        optimizer.step()
    for parameter in head:
        parameter.requires_grad_(False)
        parameter.grad = None
    return evidence
