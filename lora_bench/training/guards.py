"""Checks that fail a run rather than let it report nonsense."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from lora_bench.models import weights
from lora_bench.models.backbone import Backbone
from lora_bench.packing.packed import Packed
from lora_bench.store.errors import GuardError
from lora_bench.tasks.tokens import Tokens, batch
from lora_bench.training.evaluate import to_tensors
from lora_bench.training.reloaded import Reloader

START_ROWS, EXACT_START_ROWS = 16, 4
"""Train rows on which the start is compared: a few where every output must be equal, more where a gap is allowed. In
packs of nine short runs sixteen rows took a fiftieth of their training."""
RELOADED_ROWS = {"fp64": 16, "fp32": 16, "bf16": 64}
"""Report rows that a saved run is read back on. Where every row must agree a few say it; bf16's median and share of
labels need more. In packs of 12 short runs 64 rows took a fourteenth of their training."""
RELOADED_AT_ONCE = 64
RELOAD_TOLERANCE = {"fp64": 1e-9, "fp32": 1e-3, "bf16": 2e-2}
"""Gap between a run's logits and those of its saved adapter in stock peft, relative to the largest logit (at least
1)."""
RELOAD_QUANTILE = {"fp64": 1.0, "fp32": 1.0, "bf16": 0.5}
"""Which quantile of the rows' gaps counts: the largest, or in bf16 the median. With 8 bits the order of rounding shows,
and a trained model is steep between its classes: there single rows move by .09, as far as stock peft in bf16 moves from
stock peft in fp32 (MiniLM on sentiment, 400 rows). The median is .003; it is .04 with an update a fifth too large, and
.06 or more with one of its matrices lost."""
RELOAD_OTHER_LABELS = {"fp64": 0.0, "fp32": 0.0, "bf16": 0.1}
"""Share of rows whose label may differ without being a tie."""


def require_known_start(backbone: Backbone) -> None:
    """Before anything trains, check that exactly a fresh model's head trains as the head, and that only it was drawn.

    A pooler that the weights lack counts as head. Whatever the method, everything outside the head is the backbone's: a
    random part of it would be measured as if it were pretrained.

    Raises:
        GuardError: with the parameter that is of another shape, trained as a head or drawn at random.
    """
    skeleton = backbone.blueprint.skeleton
    fresh = {name: skeleton.get_parameter(name).shape for name in weights.head_parameters(skeleton)}
    prefixes = tuple(f"{name}." for name in backbone.new_modules)
    for name, parameter in backbone.model.named_parameters():
        if name.startswith(prefixes):
            if not weights.is_pooler(name) and parameter.shape != fresh.get(name):
                raise GuardError(f"{name} would train as part of the head, and a fresh model's head has no such part")
        elif name in backbone.fresh_parameters:
            raise GuardError(f"{name} is drawn at random and would not train; the weights lack it")
        elif name in fresh:
            raise GuardError(f"{name} is part of the head and would not train")


def require_unchanged_start(pack: Packed, tokens: Tokens) -> float:
    """Before the first step every adapter must compute what the backbone computes. Returns the largest relative gap
    seen.

    Raises:
        GuardError: when an output differs by more than the method's tolerance; LoRA's is 0, since B starts at zero.
    """
    n_rows = EXACT_START_ROWS if pack.start_tolerance == 0 else START_ROWS
    rows = np.arange(min(n_rows, len(tokens)))
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


class ReloadGap(NamedTuple):
    """How far two sets of logits of the same rows are apart."""

    logits: float
    """The precision's quantile of the rows' largest differences, relative to the largest logit (at least 1)."""
    labels: float
    """Share of rows whose label differs without being a tie."""

    def is_rounding(self, precision: str) -> bool:
        """Whether no more differs than the precision explains; never of logits that are not finite."""
        return self.logits <= RELOAD_TOLERANCE[precision] and self.labels <= RELOAD_OTHER_LABELS[precision]


def reload_gap(
    folder: Path,
    backbone: Backbone,
    tokens: Tokens,
    logits: np.ndarray,
    n_rows: int | None = None,
    *,
    reloader: Reloader | None = None,
) -> ReloadGap:
    """Load a saved run through stock peft and compare its logits on the first rows of a split.

    Args:
        logits: (n, n_labels), the run's own logits of the split.
        n_rows: how many rows; None for those of the precision.
        reloader: of the backbone, where several runs are read back.
    """
    count = min(n_rows or RELOADED_ROWS[backbone.precision], len(tokens))
    model = (reloader or Reloader(backbone)).load(folder)
    reloaded = []
    with torch.inference_mode():
        for start in range(0, count, RELOADED_AT_ONCE):
            rows = np.arange(start, min(start + RELOADED_AT_ONCE, count))
            tensors = to_tensors(batch(tokens, rows, backbone.blueprint.tokenizer.pad_token_id), backbone.device)
            inputs = {key: value for key, value in tensors.items() if key in backbone.inputs}
            reloaded.append(model(**inputs).logits.double().cpu().numpy())
    return gap_of(np.concatenate(reloaded), logits[:count], backbone.precision)


def gap_of(theirs: np.ndarray, ours: np.ndarray, precision: str) -> ReloadGap:
    """The gap of two (n, n_labels) arrays of logits; ties and the largest logit are those of `ours`."""
    ours = ours.astype(np.float64)
    scale = max(1.0, float(np.abs(ours).max()))
    gaps = np.abs(theirs - ours).max(axis=1) / scale
    labels = 0.0
    if ours.shape[1] > 1:
        top_two = np.sort(ours, axis=1)[:, -2:]
        is_tie = top_two[:, 1] - top_two[:, 0] <= 2 * RELOAD_TOLERANCE[precision] * scale
        labels = float(((theirs.argmax(1) != ours.argmax(1)) & ~is_tie).mean())
    return ReloadGap(float(np.quantile(gaps, RELOAD_QUANTILE[precision])), labels)
