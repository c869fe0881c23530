"""Predictions of every run of a pack over one split, in batches of similar length."""

from collections.abc import Callable, Iterator

import numpy as np
import torch

from lora_bench.packing.packed import Packed
from lora_bench.tasks.tokens import Tokens, batch

TOKENS_PER_PASS = {"cpu": 4_096, "cuda": 262_144}
"""Tokens, padding and all runs included, of one forward pass without gradients. On a CPU activations of four times as
many leave its caches: scoring then takes 3 % longer with nine runs of MiniLM, 8 % with four, 14 % alone."""


def predict(
    pack: Packed,
    tokens: Tokens,
    rows: np.ndarray | None = None,
    *,
    has_scored: Callable[[int], None] = lambda n_tokens: None,
) -> np.ndarray:
    """Logits of every run: (P, n_rows, n_labels) float32 (float64 in fp64 runs), in the order of `rows` (default:
    all).

    Args:
        has_scored: called after each batch with its tokens.
    """
    rows = np.arange(len(tokens)) if rows is None else rows
    all_logits: np.ndarray | None = None
    with pack.evaluate():
        for places in _by_length(tokens.lengths[rows], TOKENS_PER_PASS[pack.backbone.device.type] // pack.n_runs):
            logits = pack.logits(to_tensors(batch(tokens, rows[places], pack.pad_id), pack.backbone.device))
            if all_logits is None:
                all_logits = np.empty(
                    (pack.n_runs, len(rows), logits.shape[-1]), dtype=logits.new_empty(0).cpu().numpy().dtype
                )
            all_logits[:, places] = logits.cpu().numpy()
            has_scored(int(tokens.lengths[rows[places]].sum()))
    assert all_logits is not None, "a split without rows never gets here"
    return all_logits


def to_tensors(arrays: dict[str, np.ndarray], device: torch.device) -> dict[str, torch.Tensor]:
    """A batch of numpy arrays as tensors; token ids and masks in int64."""
    return {
        key: torch.from_numpy(value if key == "labels" else value.astype(np.int64)).to(device, non_blocking=True)
        for key, value in arrays.items()
    }


def _by_length(lengths: np.ndarray, tokens_per_run: int) -> Iterator[np.ndarray]:
    """Positions of rows, sorted by length and cut so that rows x longest stays within the budget; at least one row per
    batch."""
    order = np.argsort(lengths, kind="stable")
    start = 0
    while start < len(order):
        stop = start + 1
        while stop < len(order) and (stop + 1 - start) * lengths[order[stop]] <= tokens_per_run:
            stop += 1
        yield order[start:stop]
        start = stop
