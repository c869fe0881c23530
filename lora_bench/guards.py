"""Checks that fail a run rather than let it report nonsense."""

from pathlib import Path

import numpy as np
import torch

from lora_bench import adapters
from lora_bench.backbone import Backbone
from lora_bench.evaluate import to_tensors
from lora_bench.packing import Pack
from lora_bench.record import GuardError
from lora_bench.solo import SoloPack
from lora_bench.tasks.tokens import Tokens, batch

START_ROWS = 16
RELOADED_ROWS = 64
RELOAD_TOLERANCE = {"fp64": 1e-9, "fp32": 1e-3, "bf16": 2e-2}
"""Largest gap between a run's logits and those of its saved adapter in stock peft, relative to the largest logit (at
least 1)."""


def require_unchanged_start(pack: Pack | SoloPack, tokens: Tokens) -> float:
    """Before the first step every adapter must compute what the backbone computes. Returns the largest relative gap
    seen.

    Raises:
        GuardError: when an output differs by more than the method's tolerance; LoRA's is 0, since B starts at zero.
    """
    rows = np.arange(min(START_ROWS, len(tokens)))
    tensors = to_tensors(batch(tokens, rows, pack.pad_id), pack.backbone.device)
    with pack.evaluate():
        adapted = pack.logits(tensors)
        with pack.bare():
            bare = pack.logits(tensors)
    gap = float((adapted - bare).abs().max()) / max(1.0, float(bare.abs().max()))
    if not gap <= pack.start_tolerance:
        raise GuardError(
            f"the outputs before the first step differ from the backbone's by {gap:.3g}; "
            f"{pack.start_tolerance:g} is allowed"
        )
    return gap


def reload_gap(
    folder: Path, backbone: Backbone, tokens: Tokens, logits: np.ndarray, n_rows: int | None = RELOADED_ROWS
) -> float:
    """Load a saved run through stock peft and compare its logits on the first rows of a split.

    Args:
        logits: (n, n_labels), the run's own logits of the split.
        n_rows: how many rows; None for the whole split.

    Returns:
        The largest difference, relative to the largest logit (at least 1).

    Raises:
        GuardError: when a label differs that is no tie.
    """
    count = min(n_rows or len(tokens), len(tokens))
    model = adapters.load_stock(folder, backbone)
    reloaded = []
    with torch.inference_mode():
        for start in range(0, count, RELOADED_ROWS):
            rows = np.arange(start, min(start + RELOADED_ROWS, count))
            tensors = to_tensors(batch(tokens, rows, backbone.blueprint.tokenizer.pad_token_id), backbone.device)
            inputs = {key: value for key, value in tensors.items() if key in backbone.inputs}
            reloaded.append(model(**inputs).logits.double().cpu().numpy())
    theirs, ours = np.concatenate(reloaded), logits[:count].astype(np.float64)
    scale = max(1.0, float(np.abs(ours).max()))
    gap = float(np.abs(theirs - ours).max()) / scale
    if ours.shape[1] > 1:
        top_two = np.sort(ours, axis=1)[:, -2:]
        is_tie = top_two[:, 1] - top_two[:, 0] <= 2 * RELOAD_TOLERANCE[backbone.precision] * scale
        differs = (theirs.argmax(1) != ours.argmax(1)) & ~is_tie
        if differs.any():
            raise GuardError(
                f"the saved adapter gives other labels in stock peft on {differs.sum()} of {count} report rows"
            )
    return gap
