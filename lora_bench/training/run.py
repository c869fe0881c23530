"""Pack in, records out: the one place that joins backbone, task, adapters, loop, guards, store and tracking."""

import contextlib
import logging
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from lora_bench.config.errors import ConfigError
from lora_bench.models import adapters, backbone, devices, label_names, seeds
from lora_bench.models.adapters import AdapterState
from lora_bench.models.backbone import Backbone
from lora_bench.store.environment import environment
from lora_bench.store.errors import AlreadyFinished, NonFiniteError, StoreError, explained
from lora_bench.store.folder import Store, adapter_dropped
from lora_bench.store.reader import ADAPTER
from lora_bench.store.record import Failure, Measured, Outcome, Subject, failed, finished, require_guards, utc_now
from lora_bench.tasks.metrics import score
from lora_bench.tasks.rows import Task
from lora_bench.tasks.summary import summarise
from lora_bench.tasks.tokens import Tokens
from lora_bench.tracking.live import Silence, Tracking, head_of, summary_of
from lora_bench.training import guards
from lora_bench.training.checkpoint import Checkpoint
from lora_bench.training.cost import attribute, run_flops
from lora_bench.training.curves import Listener, RunProgress
from lora_bench.training.evaluate import predict
from lora_bench.training.loop import Position, batches, train_pack
from lora_bench.training.norms import matrix_norms
from lora_bench.training.opening import open_pack
from lora_bench.training.readback import read_back
from lora_bench.training.reloaded import Reloader
from lora_bench.training.resolve import Run
from lora_bench.training.scored import train_sample
from lora_bench.training.work import Notify, Work

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _TrainedPack:
    """The outcome of a pack's training."""

    states: list[AdapterState]
    logits: dict[str, np.ndarray]  # split -> (P, n, n_labels)
    start_gap: float
    is_frozen_intact: bool
    finite_steps: list[int]  # steps before the loss or the gradient stopped being finite


def run_pack(
    runs: Sequence[Run],
    store: Store,
    *,
    only: Collection[str] | None = None,
    tracking: Tracking | None = None,
    invocation: Mapping[str, Any] | None = None,
    on_progress: Notify | None = None,
    own_process: bool = False,
    halves_on_cpu: bool = True,
) -> list[dict[str, Any]]:
    """Train, score, check and store the runs of one pack. Runs that the store holds, or another process trains, are
    left out.

    A run's failure ends in a failed record, never in an exception; only a store that cannot be written raises. When
    memory runs out the pack is halved and tried again, down to single runs.

    Args:
        only: ids of the runs that are wanted; the others train along and leave nothing, so that a pack of which
            some runs are finished is trained as the same pack. None wants every run.
        on_progress: called with {"event": "step" | "work" | "epoch" | "record" | "split", ...} as the pack proceeds.
        own_process: whether this process trains nothing else, so that its peak memory is the pack's.
        halves_on_cpu: False leaves the halving of a pack on a CPU to the caller, who has other processes for it: this
            one keeps what memory it took.

    Returns:
        The records written, in the order of `runs`.

    Raises:
        MemoryError: when memory ran out for several runs and the caller is to halve them; they stay missing.
        StoreError: when a record cannot be written; its run stays missing.
    """
    with contextlib.ExitStack() as claims:
        claimed = {
            run.run_id
            for run in runs
            if (only is None or run.run_id in only)
            and claims.enter_context(store.claim(run.run_id))
            and not store.has(run.run_id)
        }
        desk = _Desk(
            store, tracking or Silence(), dict(invocation or {}), _at_no_cost(on_progress), own_process, halves_on_cpu
        )
        return desk.work([run for run in runs if only is not None or run.run_id in claimed], claimed)


def _at_no_cost(listener: Notify | None) -> Notify:
    """The listener; a log that cannot be written does not stop the pack."""

    def notify(event: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):
            if listener is not None:
                listener(event)

    return notify


def environment_here(device: str, threads: int | None = None) -> dict[str, Any]:
    """What the records of this process say of it (`environment.environment`), for a configured device; with `threads`,
    what those of a process beside it with so many threads do."""
    try:
        where = devices.resolve_device(device)
        name = torch.cuda.get_device_name(where) if where.type == "cuda" else where.type
    except (ConfigError, RuntimeError):  # absent or broken: its runs fail, and their records name it
        name = device
    return environment(device=name, threads=threads or devices.set_threads())


@dataclass(frozen=True)
class _Desk:
    """What handles a pack's runs: the store that they go to, and the listener."""

    store: Store
    tracking: Tracking
    invocation: dict[str, Any]
    notify: Notify
    own_process: bool
    halves_on_cpu: bool

    def work(self, runs: Sequence[Run], claimed: Collection[str]) -> list[dict[str, Any]]:
        """Train these runs together; write, mirror and report those that are `claimed`."""
        if not any(run.run_id in claimed for run in runs):
            return []
        started = utc_now()
        about: dict[str, Any] = {
            "environment": environment_here(runs[0].config.device),
            "invocation": self.invocation,
        }
        attempts = [self._begin(run, about["environment"], is_wanted=run.run_id in claimed) for run in runs]
        try:
            return self._train_and_store(attempts, started, about)
        except StoreError:
            for attempt in attempts:
                attempt.tracked.finish("stopped")
            raise
        except Exception as error:
            failure = Failure.of(error)
            if failure.kind != "out_of_memory" or len(runs) == 1:
                log.debug("pack failed", exc_info=error)
                return [
                    self._store(attempt, failed(_subject(attempt, started, about), _measured(attempt), failure))
                    for attempt in attempts
                    if attempt.is_wanted
                ]
        except BaseException:
            for attempt in attempts:
                attempt.tracked.finish("stopped")
            raise
        # Out of memory: outside the handler, whose traceback keeps the pack's tensors alive.
        for attempt in attempts:
            attempt.tracked.finish("stopped")
        is_cuda = devices.resolve_device(runs[0].config.device).type == "cuda"
        if is_cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        elif not self.halves_on_cpu:
            raise MemoryError(failure.message)
        half = (len(runs) + 1) // 2
        log.warning(
            "pack of %d runs: out of memory (%s); trying %d and %d", len(runs), failure.message, half, len(runs) - half
        )
        self.notify({"event": "split", "runs": len(runs), "message": failure.message})
        # A CPU process's peak stays that of the attempt that failed.
        desk = self if is_cuda else replace(self, own_process=False)
        return desk.work(runs[:half], claimed) + desk.work(runs[half:], claimed)

    def _begin(self, run: Run, where: dict[str, Any], *, is_wanted: bool) -> RunProgress:
        tracking = self.tracking if is_wanted else Silence()
        return RunProgress(run, tracking.start(_head(run, where, self.invocation)), is_wanted)

    def _train_and_store(
        self, attempts: list[RunProgress], started: str, about: dict[str, Any]
    ) -> list[dict[str, Any]]:
        runs = [attempt.run for attempt in attempts]
        first = runs[0]
        device = devices.resolve_device(first.config.device)
        loaded = backbone.load(first.blueprint, precision=first.precision, device=device)
        guards.require_known_start(loaded)
        task, tokens = first.task, first.tokens()
        n_sample = train_sample(len(tokens["train"]), len(tokens["select"]))
        sample = np.sort(seeds.permutation(len(tokens["train"]), "train sample")[:n_sample])
        checkpoint = Checkpoint(self.store.root, [run.run_id for run in runs], about["environment"]["id"])
        checkpoint.clear_finished(self.store.has)
        try:
            trained, pack_seconds = self._train(attempts, loaded, task, tokens, sample, checkpoint)
        except Exception:
            checkpoint.remove()
            raise
        peak = _peak_bytes(loaded.device) if self.own_process else None

        n_tokens = _tokens_trained(first, tokens["train"].lengths)
        flops = [run_flops(loaded.blueprint, run.config, run.matrices, n_tokens) for run in runs]
        shares = attribute(pack_seconds, flops)
        records, reloader = [], Reloader(loaded)
        start_head = backbone.head_state(loaded, first.config.seed)  # a pack's runs share their seed
        for index, attempt in enumerate(attempts):
            if not attempt.is_wanted:
                continue
            state = trained.states[index]
            cost = {
                "pack_seconds": pack_seconds,
                "pack_size": len(attempts),
                "attributed_seconds": shares[index],
                "tokens": n_tokens,
                "flops": flops[index],
                "adapter_bytes": sum(tensor.nbytes for tensor in state.tensors()),
                "peak_bytes": peak,
                "overhead_seconds": None,
            }
            subject = _subject(attempt, started, about)
            measured = _measured(attempt, parameters=_count(attempt.run, state, loaded), cost=cost)
            try:
                if (step := trained.finite_steps[index]) < first.steps:
                    raise NonFiniteError(f"the loss or the gradient is not finite at step {step}")
                logits = {split: values[index] for split, values in trained.logits.items()}
                checks = {"start_gap": trained.start_gap, "frozen_weights_unchanged": trained.is_frozen_intact}
                data: dict[str, Any] = {"task": task, "tokens": tokens, "sample": sample}
                data |= {"state": state, "logits": logits, "checks": checks}
                data |= {"start_head": start_head, "reloader": reloader}
                record = self._checked(attempt, subject, measured, loaded, **data)
            except AlreadyFinished:
                attempt.tracked.finish("finished")
                continue
            except StoreError:  # a full disk is no failure of the run: it stays missing, and the caller must stop
                raise
            except Exception as error:
                record = failed(subject, measured, Failure.of(error))
            records.append(self._store(attempt, record))
        checkpoint.remove()
        return records

    def _train(
        self,
        attempts: list[RunProgress],
        loaded: Backbone,
        task: Task,
        tokens: dict[str, Tokens],
        sample: np.ndarray,
        checkpoint: Checkpoint,
    ) -> tuple[_TrainedPack, float]:
        """Train and predict, resuming at the checkpoint; returns the outcome and the seconds that all of it took."""
        clock = time.perf_counter()
        runs, configs = [attempt.run for attempt in attempts], [attempt.run.config for attempt in attempts]
        with (pack := open_pack(loaded, runs)):
            start_gap = guards.require_unchanged_start(pack, tokens["train"])
            work = Work(runs[0], tokens, sum(attempt.is_wanted for attempt in attempts), self.notify)
            listener = Listener(pack, attempts, task, tokens["select"], work=work, notify=self.notify)
            start = checkpoint.load()
            if start is not None:
                clock -= listener.restore(start)
                log.info("pack of %d runs: goes on at step %d of %d", len(runs), start.values["steps"], runs[0].steps)

            def keep(position: Position) -> None:
                if checkpoint.is_due():
                    state = position.state()
                    listener.add_to(state, seconds=time.perf_counter() - clock)
                    checkpoint.save(state)

            train_pack(
                pack,
                tokens["train"],
                configs,
                total_steps=runs[0].steps,
                on_step=listener.on_step,
                on_epoch=listener.on_epoch,
                on_boundary=keep,
                start=start,
            )
            if configs[0].train.checkpoint == "best":
                pack.set_states([attempt.best_state or pack.state(index) for index, attempt in enumerate(attempts)])
            known = {"select": listener.last_select} if configs[0].train.checkpoint == "last" else {}
            logits = known | {
                split: predict(pack, part, has_scored=work.has_scored)
                for split, part in tokens.items()
                if split not in ("train", *known)
            }
            logits["train"] = predict(pack, tokens["train"], sample, has_scored=work.has_scored)
            states = [pack.state(index) for index in range(len(runs))]
        trained = _TrainedPack(states, logits, start_gap, pack.is_frozen_intact(), listener.finite_steps())
        return trained, time.perf_counter() - clock

    def _checked(
        self,
        attempt: RunProgress,
        subject: Subject,
        measured: Measured,
        loaded: Backbone,
        *,
        task: Task,
        tokens: dict[str, Tokens],
        sample: np.ndarray,
        state: AdapterState,
        logits: dict[str, np.ndarray],
        checks: dict[str, Any],
        start_head: dict[str, torch.Tensor],
        reloader: Reloader,
    ) -> dict[str, Any]:
        """Score a run, check its guards, and write it with its predictions and adapter."""
        clock = time.perf_counter()
        run = attempt.run
        scores: dict[str, Any] = {
            split: score(task.metrics, tokens[split].labels, logits[split]) for split in logits if split != "train"
        }
        scores["train"] = score(task.metrics, tokens["train"].labels[sample], logits["train"])
        scores |= {split.replace("validation", "report"): None for split in task.facts["absent"]}
        checks["head_moved"] = any(not torch.equal(state.head[name].cpu(), start_head[name]) for name in start_head)
        if run.matrices:
            checks["update_moved"] = all(pair.norm() > 0 for pair in state.low_rank.values())
        elif state.extra:
            weights = dict(loaded.model.named_parameters())
            checks["update_moved"] = any(
                not torch.equal(tensor, weights[name].to(tensor.dtype)) for name, tensor in state.extra.items()
            )
        with tempfile.TemporaryDirectory(prefix="lora_bench-") as scratch:
            folder = Path(scratch) / "adapter"
            with explained(f"keep the adapter of run {run.run_id}", Path(scratch)):
                adapters.save(folder, loaded, run.config.adapter, run.matrices, state)
                label_names.write(folder, loaded.blueprint, task.label_names)
            report = {"tokens": tokens["report"], "logits": logits["report"]}
            checks |= read_back(run, state, folder, loaded=loaded, reloader=reloader, **report)
            require_guards(checks)
            norms = matrix_norms(loaded, run.matrices, state)
            measured.cost["overhead_seconds"] = time.perf_counter() - clock
            record = finished(subject, measured, Outcome(scores=scores, guards=checks, norms=norms))
            is_kept = run.config.keep_adapters != "none"
            if not is_kept:
                record["adapter_dropped"] = adapter_dropped("store.keep_adapters=none")
            predictions = _predictions(task, tokens, logits)
            self.store.write(record, predictions=predictions, adapter=_copier(folder) if is_kept else None)
        return record

    def _store(self, attempt: RunProgress, record: dict[str, Any]) -> dict[str, Any]:
        """Write a failed record (a finished one is already written), close the mirror and notify the listener."""
        if record["status"] == "failed":
            self.store.write(record)
        attempt.tracked.keep(self.store.path(record["run_id"]), attempt.run.task.splits["report"])
        attempt.tracked.finish(record["status"], summary_of(record))
        self.notify({"event": "record", "run_id": record["run_id"], "status": record["status"], "record": record})
        return record


def _subject(attempt: RunProgress, started: str, about: dict[str, Any]) -> Subject:
    run = attempt.run
    return Subject(
        run_id=run.run_id,
        cell_id=run.cell_id,
        config=run.science,
        metrics=run.task.metrics,
        manifest=run.manifest,
        data=run.task.facts | ({"budget_gap": run.budget_gap} if run.budget_gap is not None else {}),
        task=summarise(run.task).as_facts(run.task),
        started=started,
        **about,
    )


def _measured(
    attempt: RunProgress, *, parameters: dict[str, int] | None = None, cost: dict[str, Any] | None = None
) -> Measured:
    return Measured(
        parameters=parameters or {"adapter": attempt.run.counted_parameters},
        history={**attempt.curve, "epochs": attempt.epochs},
        cost=cost or {},
    )


def _head(run: Run, where: dict[str, Any], invocation: dict[str, Any]) -> dict[str, Any]:
    return head_of(
        run_id=run.run_id,
        cell_id=run.cell_id,
        config=run.science,
        manifest=run.manifest,
        parameters={"adapter": run.counted_parameters, "head": None, "total": None},
        metrics=run.task.metrics,
        environment=where,
        invocation=invocation,
    )


def _tokens_trained(run: Run, lengths: np.ndarray) -> int:
    """Tokens of the rows of every step; the last batch of an epoch may be short."""
    steps = batches(lengths, run.config.train.batch_size, run.config.seed, run.steps)
    return sum(int(lengths[rows].sum()) for _, _, rows in steps)


def _predictions(task: Task, tokens: dict[str, Tokens], logits: dict[str, np.ndarray]) -> pd.DataFrame:
    """Logits of every row outside train: split, idx, label, logit_0 ..."""
    tables = []
    for split in (name for name in logits if name != "train"):
        values = logits[split].astype(np.float32)
        columns = {f"logit_{label}": values[:, label] for label in range(values.shape[1])}
        rows = task.splits[split]
        tables.append(
            pd.DataFrame({"split": split, "idx": rows["idx"].to_numpy(), "label": tokens[split].labels, **columns})
        )
    return pd.concat(tables, ignore_index=True)


def _count(run: Run, state: AdapterState, loaded: Backbone) -> dict[str, int]:
    """Parameters that the adapter, the head and the frozen or fine-tuned backbone hold."""
    rest = sum(parameter.numel() for _, parameter in backbone.frozen_parameters(loaded.model, loaded.new_modules))
    head = sum(tensor.numel() for tensor in state.head.values())
    adapter = run.adapter_parameters + sum(tensor.numel() for tensor in state.extra.values())
    added = adapter if run.matrices else 0  # full fine-tuning and BitFit train parameters that `rest` holds
    return {"adapter": adapter, "head": head, "backbone": rest, "total": rest + added + head}


def _peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _copier(source: Path) -> Callable[[Path], object]:
    return lambda folder: shutil.copytree(source, folder / ADAPTER)
