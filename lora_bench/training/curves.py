"""The curves of a run while it trains: loss, rate and norm at some steps, and what is passed to listeners."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from lora_bench.models import adapters
from lora_bench.models.adapters import AdapterState
from lora_bench.packing.packed import Packed
from lora_bench.tasks.metrics import score
from lora_bench.tasks.rows import Task
from lora_bench.tasks.tokens import Tokens
from lora_bench.tracking.live import CURVES, TrackedRun
from lora_bench.training.checkpoint import State
from lora_bench.training.evaluate import predict
from lora_bench.training.resolve import Run
from lora_bench.training.scored import scored_epochs
from lora_bench.training.work import Notify, Work

CURVE_POINTS = 400


@dataclass
class RunProgress:
    """One run of a pack: its mirror, and its curves and scores so far."""

    run: Run
    tracked: TrackedRun
    is_wanted: bool
    curve: dict[str, list[float]] = field(default_factory=lambda: {"step": [], "loss": [], "lr": [], "grad_norm": []})
    epochs: list[dict[str, Any]] = field(default_factory=list)
    best_score: float = float("-inf")
    best_state: AdapterState | None = None


class Listener:
    """Keeps the curves of a pack's runs, thinned to some hundred points, and passes them on."""

    def __init__(
        self,
        pack: Packed,
        attempts: list[RunProgress],
        task: Task,
        select: Tokens,
        *,
        work: Work,
        notify: Notify,
    ) -> None:
        self.pack, self.attempts, self.task, self.select = pack, attempts, task, select
        self.work, self.notify = work, notify
        self.n_steps = attempts[0].run.steps
        self.n_wanted = sum(attempt.is_wanted for attempt in attempts)
        self.stride = max(1, self.n_steps // CURVE_POINTS)
        self.last_select = np.empty(0)  # logits at the end of the last epoch, which need no second pass
        first = attempts[0].run
        self.scored = scored_epochs(first.config.train, n_train=first.n_train, n_select=len(select))
        self._losses: list[torch.Tensor] = []
        self._finite_steps = torch.zeros(pack.n_runs, dtype=torch.long, device=pack.backbone.device)

    def on_step(
        self, step: int, *, losses: torch.Tensor, grad_norms: torch.Tensor, alive: torch.Tensor, factors: torch.Tensor
    ) -> None:
        self._losses.append(losses)
        self._finite_steps += alive
        if (step + 1) % self.stride and step + 1 < self.n_steps:
            return
        points = torch.stack([torch.stack(self._losses).mean(0), grad_norms, factors]).tolist()
        self._losses.clear()
        for index, attempt in enumerate(self.attempts):
            train = attempt.run.config.train
            peak = (
                train.head_lr
                if attempt.run.config.adapter.method == "head_only" and train.head_lr is not None
                else train.lr
            )
            values = {"loss": points[0][index], "lr": points[2][index] * peak, "grad_norm": points[1][index]}
            attempt.curve["step"].append(step + 1)
            for name, value in values.items():
                attempt.curve[name].append(value)
            attempt.tracked.log({"train": values}, step + 1)
        loss = sum(points[0]) / len(points[0])
        self.work.has_trained(step + 1)
        self.notify({"event": "step", "step": step + 1, "steps": self.n_steps, "runs": self.n_wanted, "loss": loss})

    def on_epoch(self, epoch: int, step: int) -> None:
        if epoch in self.scored or step == self.n_steps:
            self._score_select(epoch, step)
        self.notify({"event": "epoch", "epoch": epoch, "runs": self.n_wanted})

    def _score_select(self, epoch: int, step: int) -> None:
        logits = self.last_select = predict(self.pack, self.select, has_scored=self.work.has_scored)
        for index, attempt in enumerate(self.attempts):
            if not np.isfinite(logits[index]).all():
                continue
            scores = score(self.task.metrics, self.select.labels, logits[index])
            attempt.epochs.append({"epoch": epoch, "step": step, "select": scores})
            attempt.tracked.log({"epoch": epoch, "select": scores}, step)
            primary = scores[self.task.metrics[0]]
            if attempt.run.config.train.checkpoint == "best" and primary is not None and primary > attempt.best_score:
                attempt.best_score, attempt.best_state = primary, self.pack.state(index)

    def add_to(self, state: State, *, seconds: float) -> None:
        """Add the progress so far to a checkpoint: curves, scores, best states, and losses that no curve has yet."""
        state.tensors |= {"finite_steps": self._finite_steps, "last_select": torch.from_numpy(self.last_select)}
        state.tensors |= {f"loss.{place}": losses for place, losses in enumerate(self._losses)}
        runs = []
        for index, attempt in enumerate(self.attempts):
            seen = {"curve": attempt.curve, "epochs": attempt.epochs, "best_score": attempt.best_score}
            if attempt.best_state is not None:
                tensors, seen["scales"] = _flattened(attempt.best_state)
                state.tensors |= {f"best.{index}.{name}": tensor for name, tensor in tensors.items()}
            runs.append(seen)
        state.values |= {"runs": runs, "seconds": seconds, "n_losses": len(self._losses)}

    def restore(self, state: State) -> float:
        """Restore what `add_to` added, and send it to the mirror. Returns the seconds that the pack had trained."""
        device = self._finite_steps.device
        self._finite_steps = state.tensors["finite_steps"].to(device)
        self.last_select = state.tensors["last_select"].numpy()
        self._losses = [state.tensors[f"loss.{place}"].to(device) for place in range(state.values["n_losses"])]
        for index, (attempt, seen) in enumerate(zip(self.attempts, state.values["runs"], strict=True)):
            attempt.curve, attempt.epochs, attempt.best_score = seen["curve"], seen["epochs"], seen["best_score"]
            if "scales" in seen:
                prefix = f"best.{index}."
                tensors = {name: tensor.to(device) for name, tensor in state.tensors.items() if name.startswith(prefix)}
                tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
                attempt.best_state = _unflattened(tensors, seen["scales"])
            for place, step in enumerate(attempt.curve["step"]):
                attempt.tracked.log({"train": {name: attempt.curve[name][place] for name in CURVES}}, int(step))
            for epoch in attempt.epochs:
                attempt.tracked.log({"epoch": epoch["epoch"], "select": epoch["select"]}, epoch["step"])
        return state.values["seconds"]

    def finite_steps(self) -> list[int]:
        """Steps that each run took before its loss or gradient stopped being finite."""
        return self._finite_steps.tolist()


def _flattened(state: AdapterState) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """A run's tensors under one name each, and the scales of its pairs."""
    tensors = {
        f"low.{letter}.{path}": getattr(pair, letter) for path, pair in state.low_rank.items() for letter in "AB"
    }
    tensors |= {f"head.{name}": tensor for name, tensor in state.head.items()}
    tensors |= {f"extra.{name}": tensor for name, tensor in state.extra.items()}
    return tensors, {path: pair.scale for path, pair in state.low_rank.items()}


def _unflattened(tensors: Mapping[str, torch.Tensor], scales: Mapping[str, float]) -> AdapterState:
    def part(prefix: str) -> dict[str, torch.Tensor]:
        return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}

    low_rank = {
        path: adapters.LowRank(tensors[f"low.A.{path}"], tensors[f"low.B.{path}"], scale)
        for path, scale in scales.items()
    }
    return AdapterState(low_rank, part("head."), part("extra."))
