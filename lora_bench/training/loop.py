"""The training loop, over a pack of runs that share their batches. A single run is a pack of one.

The loss is averaged within a run and summed over runs: runs share no trained weight, so each gets its own gradient.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from lora_bench.config.schema import RunConfig
from lora_bench.models import seeds
from lora_bench.models.loss import row_losses
from lora_bench.packing.packed import Packed
from lora_bench.tasks.tokens import Tokens, batch
from lora_bench.training.checkpoint import State
from lora_bench.training.evaluate import to_tensors
from lora_bench.training.optimizer import PackedAdamW, clip_each_run, schedule_factor

POOLED_BATCHES = 32
"""How many batches are sorted by length together: little padding, and still a new mixture each epoch."""


class OnStep(Protocol):
    """Called after every optimizer step. losses, grad_norms, alive: (P,), on the pack's device; factors: the
    schedule's (P,)."""

    def __call__(
        self, step: int, *, losses: torch.Tensor, grad_norms: torch.Tensor, alive: torch.Tensor, factors: torch.Tensor
    ) -> None: ...


def train_pack(
    pack: Packed,
    tokens: Tokens,
    configs: Sequence[RunConfig],
    *,
    total_steps: int,
    on_step: OnStep,
    on_epoch: Callable[[int, int], None],
    on_boundary: Callable[["Position"], None] = lambda position: None,
    start: State | None = None,
) -> torch.Tensor:
    """Train every run of the pack on the same batches. Returns which runs stayed finite: (P,) bool.

    Args:
        tokens: the train split.
        configs: one per run, alike in seed, epochs, batch size and accumulation.
        on_epoch: called with (epoch counted from 1, steps so far) whenever an epoch ends, the last one included.
        on_boundary: called after each step and its `on_step` and `on_epoch`, at a point where training can resume.
        start: what `Position.state` returned; steps before it are not repeated.
    """
    shared, device = configs[0].train, pack.backbone.device
    dtype = pack.backbone.trained_dtype
    optimizer = make_optimizer(pack, configs)
    max_norms = torch.tensor([config.train.max_grad_norm for config in configs], dtype=dtype, device=device)
    factors = _factors(configs, total_steps, dtype, device)
    position = Position(pack, optimizer, torch.ones(pack.n_runs, dtype=torch.bool, device=device))
    if start is not None:
        position.restore(start)
    alive = position.alive

    with pack.train():
        for step, (epoch, is_last, rows) in enumerate(
            batches(tokens.lengths, shared.batch_size, configs[0].seed, total_steps)
        ):
            if step < optimizer.steps:
                continue
            losses = torch.zeros(pack.n_runs, dtype=dtype, device=device)
            for part in np.array_split(rows, shared.grad_accumulation):
                if len(part):
                    losses_P = run_losses(pack, to_tensors(batch(tokens, part, pack.pad_id), device)) * (
                        len(part) / len(rows)
                    )
                    losses_P.sum().backward()
                    losses += losses_P.detach()
            norms = clip_each_run(pack.trained, max_norms)
            alive &= losses.isfinite() & norms.isfinite()
            optimizer.step(factors[step], alive)
            optimizer.zero_grad()
            on_step(step, losses=losses, grad_norms=norms, alive=alive, factors=factors[step])
            if is_last or step + 1 == total_steps:
                on_epoch(epoch + 1, step + 1)
            on_boundary(position)
    return alive


@dataclass(frozen=True)
class Position:
    """The position of a pack's training between two steps."""

    pack: Packed
    optimizer: PackedAdamW
    alive: torch.Tensor

    def state(self) -> State:
        """Everything that the next steps depend on."""
        streams = {f"stream.{name}": state for name, state in self.pack.streams().items()}
        tensors = self.optimizer.tensors() | streams | {"alive": self.alive}
        return State(tensors, {"steps": self.optimizer.steps})

    @torch.no_grad()
    def restore(self, state: State) -> None:
        """Restore what `state` returned."""
        for name, tensor in (self.optimizer.tensors() | {"alive": self.alive}).items():
            tensor.copy_(state.tensors[name])
        streams = {
            name.removeprefix("stream."): stream for name, stream in state.tensors.items() if name.startswith("stream.")
        }
        self.pack.set_streams(streams)
        self.optimizer.steps = state.values["steps"]


def run_losses(pack: Packed, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    """Mean loss of each run over the batch: cross-entropy, or squared error for a single output. (P,)."""
    logits_PBC = pack.logits(tensors)
    losses = row_losses(logits_PBC.flatten(0, 1), tensors["labels"].repeat(pack.n_runs))
    return losses.view(pack.n_runs, -1).mean(1)


def make_optimizer(pack: Packed, configs: Sequence[RunConfig]) -> PackedAdamW:
    """AdamW with the rates of each run: the adapter's, the head's, and B's where LoRA+ raises it."""

    def vector(values: list[float]) -> torch.Tensor:
        return torch.tensor(values, dtype=pack.backbone.trained_dtype, device=pack.backbone.device)

    rates = {
        "A": vector([config.train.lr for config in configs]),
        "B": vector([config.train.lr * config.adapter.b_lr_ratio for config in configs]),
        "head": vector(
            [config.train.lr if config.train.head_lr is None else config.train.head_lr for config in configs]
        ),
    }
    return PackedAdamW(pack.trained, rates, vector([config.train.weight_decay for config in configs]))


def batches(
    lengths: np.ndarray, batch_size: int, seed: int, total_steps: int
) -> Iterator[tuple[int, bool, np.ndarray]]:
    """(epoch, whether it is the epoch's last batch, rows), in the seed's order, rows of similar length together."""
    done, epoch = 0, 0
    while done < total_steps:
        stream = np.random.Generator(np.random.PCG64(seeds.derive("order", seed, epoch)))
        order, pool = stream.permutation(len(lengths)), POOLED_BATCHES * batch_size
        cut: list[np.ndarray] = []
        for start in range(0, len(order), pool):
            rows = order[start : start + pool]
            rows = rows[np.argsort(lengths[rows], kind="stable")]
            cut += [rows[i : i + batch_size] for i in range(0, len(rows), batch_size)]
        for count, index in enumerate(stream.permutation(len(cut))[: total_steps - done], start=1):
            yield epoch, count == len(cut), cut[index]
        done += len(cut)
        epoch += 1


def _factors(configs: Sequence[RunConfig], total_steps: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Schedule factors of every step and run: (steps, P), made once so that no step waits for the host."""
    rows = [
        [
            schedule_factor(
                config.train.schedule,
                step,
                total_steps=total_steps,
                warmup_steps=math.ceil(total_steps * config.train.warmup_ratio),
            )
            for config in configs
        ]
        for step in range(total_steps)
    ]
    return torch.tensor(rows, dtype=dtype, device=device)
