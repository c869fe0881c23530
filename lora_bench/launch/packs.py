"""Which runs share a pack, and how many fit."""

import bisect
import heapq
import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from lora_bench.models import machine

LARGEST_PACK = {"cpu": 32, "cuda": 128}
GPU_BYTES = 32 * 2**30
"""Activations that one pack may hold on a GPU, a fixed rule."""
PROCESS_BYTES = 2**30
"""Of a process that trains, before weights and activations."""
PACK_SHARE = 0.75
"""Of the memory that is free when a sweep begins, what packs side by side are cut to; `plan.MEMORY_SHARE` is above
it."""
RESIDENT = {"cpu": 1.9, "cuda": 1.3}
"""Peak of what a process takes over what autograd keeps: gradients on the way back, and on a CPU the gaps between
tensors of unlike sizes, whatever glibc is told to do with freed memory (measured: 1.5 to 2.6 in bert, distilbert, gpt2
and llama, fp32 and bf16, with and without dropout; 1.1 to 1.3 without the gaps)."""


def form_packs(runs: Sequence[Any], pack_size: int | str, *, n_workers: int = 1) -> list[list[str]]:
    """Group runs that may share a pack, and cut each group into packs of nearly equal size: the fewest that fit, or as
    many more as let `n_workers` end soonest. Those with most work come first, so that the last round is full."""
    from lora_bench.training.resolve import pack_key

    by_key: dict[Any, list[Any]] = {}
    for run in runs:
        by_key.setdefault(pack_key(run), []).append(run)
    groups = list(by_key.values())
    most = [largest_pack(group, n_workers=n_workers) if pack_size == "auto" else int(pack_size) for group in groups]
    cuts = [math.ceil(len(group) / limit) for group, limit in zip(groups, most, strict=True)]
    if n_workers > 1 and pack_size == "auto":
        cuts = _evened(groups, cuts, n_workers)
    packs = [pack for group, n_packs in zip(groups, cuts, strict=True) for pack in _cut(group, n_packs)]
    if n_workers > 1:
        packs.sort(key=_work_of, reverse=True)
    return [[run.run_id for run in pack] for pack in packs]


def _evened(groups: Sequence[Sequence[Any]], cuts: Sequence[int], n_workers: int) -> list[int]:
    """Packs of each group with which `n_workers` end soonest, of those with up to four more rounds than the fewest."""
    cuts = list(cuts)
    works = sorted(work for group, n_packs in zip(groups, cuts, strict=True) for work in _works(group, n_packs))
    trials = []
    for _ in range(4 * n_workers + 1):
        trials.append((round(_end_of(works, n_workers), 9), len(works), list(cuts)))
        divisible = [number for number, group in enumerate(groups) if len(group) > cuts[number]]
        if not divisible:
            break
        largest = max(divisible, key=lambda number: _work_of(groups[number]) / cuts[number])
        for work in _works(groups[largest], cuts[largest]):
            del works[bisect.bisect_left(works, work)]
        cuts[largest] += 1
        for work in _works(groups[largest], cuts[largest]):
            bisect.insort(works, work)
    return min(trials)[2]


def _works(group: Sequence[Any], n_packs: int) -> list[float]:
    return [_work_of(pack) for pack in _cut(group, n_packs)]


def _end_of(works: Sequence[float], n_workers: int) -> float:
    """When the last of `n_workers` ends, each taking the largest pack that is left; `works` ascend."""
    ends = [0.0] * n_workers
    for work in reversed(works):
        heapq.heapreplace(ends, ends[0] + work)
    return max(ends)


def _cut(group: Sequence[Any], n_packs: int) -> list[Sequence[Any]]:
    bounds = [round(i * len(group) / n_packs) for i in range(n_packs + 1)]
    return [group[a:b] for a, b in itertools.pairwise(bounds)]


def _work_of(pack: Sequence[Any]) -> float:
    """Relative time of a pack: a run more for what all share (measured: a pack of 4 takes 2.7 times a run alone)."""
    return (len(pack) + 1) * pack[0].steps * pack[0].config.train.batch_size


def largest_pack(group: Sequence[Any], *, n_workers: int = 1) -> int:
    """Runs of a group that may train at once: as many as the memory holds at the longest batch of any split, where
    `n_workers` packs share what this machine has free; a GPU has a budget of its own."""
    from lora_bench.models import devices

    device = devices.resolve_device(group[0].config.device)
    budget = GPU_BYTES
    if device.type == "cpu":
        budget = int(PACK_SHARE * machine.available_memory() / n_workers) - process_bytes(group[0])
    most = budget // max(1, *(activation_bytes(run) for run in group))
    return max(1, min(LARGEST_PACK[device.type], most))


def process_bytes(run: Any) -> int:
    """What a process takes that trains a pack, before activations: libraries, and weights, read once and split once
    more."""
    return PROCESS_BYTES + 8 * sum(parameter.numel() for parameter in run.blueprint.skeleton.parameters())


def activation_bytes(run: Any) -> int:
    """The peak of what one run of a pack adds, at the longest batch of any split; remembered by what it depends on."""
    from lora_bench.models import devices
    from lora_bench.packing import memory

    device, train = devices.resolve_device(run.config.device), run.config.train
    longest = lengths(run).longest
    n_rows = math.ceil(train.batch_size / train.grad_accumulation)
    matrices = run.matrices or tuple(replace(matrix, rank=1) for matrix in run.blueprint.matrices)
    ranks = tuple((matrix.module, matrix.rank) for matrix in matrices)
    key = (
        run.science["model"]["fingerprint"],
        run.precision,
        device,
        n_rows,
        longest,
        train.dropout,
        run.config.adapter.dropout,
        ranks,
    )
    if key not in _known_bytes:
        _known_bytes[key] = memory.saved_bytes(
            run.blueprint,
            matrices,
            precision=run.precision,
            device=device,
            n_rows=n_rows,
            n_tokens=longest,
            dropout=train.dropout,
            adapter_dropout=run.config.adapter.dropout,
        )
    return int(RESIDENT[device.type] * _known_bytes[key])


_known_bytes: dict[tuple, int] = {}


class Lengths(NamedTuple):
    """Tokens of the rows that a run reads."""

    longest: int  # of any split
    tokens: dict[str, int]  # of a split, added up
    full: dict[str, float]  # share of a split's rows that fill train.max_length


def lengths(run: Any) -> Lengths:
    """How long the rows are, remembered by what that depends on."""
    drawn_by = run.config.seed if run.config.task.is_drawn_by_seed else None
    of_rows = (run.science["task"]["fingerprint"], run.n_train, drawn_by)
    most = run.config.train.max_length
    key = (*of_rows, run.science["model"]["fingerprint"], most)
    if key not in _known_lengths:
        by_split = {name: split.lengths for name, split in run.tokens().items()}
        _known_lengths[key] = Lengths(
            max(int(of_split.max()) for of_split in by_split.values()),
            {name: int(of_split.sum()) for name, of_split in by_split.items()},
            {name: float((of_split == most).mean()) for name, of_split in by_split.items()},
        )
    return _known_lengths[key]


_known_lengths: dict[tuple, Lengths] = {}
