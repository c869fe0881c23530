"""Whether a saved run reproduces its own predictions in stock peft; asked more exactly where rounding leaves it open.

bf16 rounds each of some hundred products, and where a trained model is steep two orders of summation drift apart: the
logits of a decoder of 30 layers that learned at a high rate differ by more than those of a spoilt adapter elsewhere (a
median of .068, all of it rounding). So two questions are asked of the same model in fp32, in which a lost or rescaled
matrix shows and rounding does not: is the saved adapter the trained one, and are the run's own predictions about as
near to those of fp32 as stock peft's in bf16 are? The second brings its own scale. What fp32 leaves open is asked
in fp64.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from lora_bench.models import backbone
from lora_bench.models.adapters import AdapterState
from lora_bench.models.backbone import Backbone
from lora_bench.tasks.tokens import Tokens
from lora_bench.training import guards
from lora_bench.training.evaluate import predict
from lora_bench.training.opening import open_pack
from lora_bench.training.reloaded import Reloader
from lora_bench.training.resolve import Run

EXACTER = {"bf16": "fp32", "fp32": "fp64"}
EXPLAINED = 3.0
"""How many times as far from the exacter precision as stock peft's a run's own predictions may be. Of a steep run that
was saved right they were 1.2 times as far."""


def read_back(
    run: Run,
    state: AdapterState,
    folder: Path,
    *,
    loaded: Backbone,
    tokens: Tokens,
    logits: np.ndarray,
    reloader: Reloader,
) -> dict[str, Any]:
    """A record's `reload_gap` and `reloads`, and what was found where these were in doubt.

    The exacter model is on the CPU, whose memory holds its larger weights beside the pack.

    Args:
        state: what was trained.
        folder: what was saved of it.
        tokens, logits: of the report split, the latter (n, n_labels) as the run computed them.
    """
    gap = guards.reload_gap(folder, loaded, tokens, logits, reloader=reloader)
    checks: dict[str, Any] = {"reload_gap": gap.logits, "reloads": gap.is_rounding(loaded.precision)}
    if gap.labels > guards.RELOAD_OTHER_LABELS[loaded.precision]:
        checks["reload_other_labels"] = gap.labels
    if checks["reloads"] or loaded.precision not in EXACTER or not np.isfinite(gap.logits):
        return checks
    exact = backbone.load(run.blueprint, precision=EXACTER[loaded.precision], device=torch.device("cpu"))
    truth = _predicted(exact, run, state, tokens)
    saved = read_back(run, state, folder, loaded=exact, tokens=tokens, logits=truth, reloader=Reloader(exact))
    peft = guards.reload_gap(folder, loaded, tokens, truth, len(truth), reloader=reloader)
    own = guards.gap_of(logits[: len(truth)].astype(np.float64), truth, loaded.precision)
    other_labels = peft.labels + guards.RELOAD_OTHER_LABELS[loaded.precision]
    is_explained = own.logits <= EXPLAINED * peft.logits and own.labels <= other_labels
    return checks | {
        f"reload_gap_{exact.precision}": saved["reload_gap"],
        f"rounding_of_{loaded.precision}": own.logits,
        f"rounding_of_{loaded.precision}_in_peft": peft.logits,
        "reloads": saved["reloads"] and is_explained,
    }


def _predicted(exact: Backbone, run: Run, state: AdapterState, tokens: Tokens) -> np.ndarray:
    """(n, n_labels): the trained state's logits of the first rows."""
    rows = np.arange(min(max(guards.RELOADED_ROWS.values()), len(tokens)))
    with open_pack(exact, [run]) as pack:
        pack.set_states([state])
        (logits,) = predict(pack, tokens, rows)
    return logits
