"""Which runs share a pack, and how many fit."""

import bisect
import heapq
import itertools
import math
from collections.abc import Sequence
from typing import Any

LARGEST_PACK = {"cpu": 32, "cuda": 128}
ACTIVATION_BYTES = {"cpu": 2 * 2**30, "cuda": 32 * 2**30}
"""Activations that one pack may hold: a fixed rule; beside it only the number of workers decides how packs are cut."""


def form_packs(runs: Sequence[Any], pack_size: int | str, *, n_workers: int = 1) -> list[list[str]]:
    """Group runs that may share a pack, and cut each group into packs of nearly equal size: the fewest that fit, or as
    many more as let `n_workers` end soonest. Those with most work come first, so that the last round is full."""
    from lora_bench.training.resolve import pack_key

    by_key: dict[Any, list[Any]] = {}
    for run in runs:
        by_key.setdefault(pack_key(run), []).append(run)
    groups = list(by_key.values())
    most = [largest_pack(group[0]) if pack_size == "auto" else int(pack_size) for group in groups]
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


def largest_pack(run: Any) -> int:
    """Runs whose activations fit the budget of a pack, at the longest batch of any split.

    One token keeps about 13 d values and, where attention weights are kept, 3 per head and token in each layer
    (measured: 26 d bytes in bf16).
    """
    from lora_bench.models import devices

    device = devices.resolve_device(run.config.device)
    most = ACTIVATION_BYTES[device.type] // max(1, activation_bytes(run))
    return max(1, min(LARGEST_PACK[device.type], int(most)))


def activation_bytes(run: Any) -> int:
    """Of one run of a pack, at the longest batch of any split."""
    width = {"bf16": 2, "fp32": 4, "fp64": 8}[run.precision]
    architecture = run.blueprint.architecture.get_text_config()
    n_heads = getattr(architecture, "num_attention_heads", 12)
    longest, _ = lengths(run)
    n_rows = math.ceil(run.config.train.batch_size / run.config.train.grad_accumulation)
    per_token = architecture.num_hidden_layers * width * (13 * architecture.hidden_size + 3 * n_heads * longest)
    return per_token * longest * n_rows


def lengths(run: Any) -> tuple[int, dict[str, int]]:
    """Tokens of the longest row of any split, and the tokens of each split; remembered by what they depend on."""
    key = (run.science["task"]["fingerprint"], run.science["model"]["fingerprint"], run.config.train.max_length)
    if key not in _known_lengths:
        splits = run.tokens()
        longest = max(int(split.lengths.max()) for split in splits.values())
        _known_lengths[key] = longest, {name: int(split.lengths.sum()) for name, split in splits.items()}
    return _known_lengths[key]


_known_lengths: dict[tuple[str, str, int], tuple[int, dict[str, int]]] = {}
