"""Whether a saved run reproduces its own predictions in stock peft; in fp32 where bf16 cannot tell.

bf16 rounds each of some hundred products, and where a trained model is steep two orders of summation drift apart: the
logits of a decoder of 30 layers whose q or k learned at a high rate differ by more than those of a spoilt adapter
elsewhere. What is to be shown does not depend on the precision: that the saved adapter is the trained one. Where bf16
leaves it open, both are asked in fp32, in which a lost or rescaled matrix shows and rounding does not.
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

DOUBTFUL = 2.0
"""Tolerances of bf16 up to which fp32 decides. Runs that were saved right were seen at 1.06 to 1.18; a lost matrix
is at 3 or more. Beyond it the run's own predictions, which fp32 does not look at, are not those of what was saved."""


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
    """A record's `reload_gap` and `reloads`, and `reload_gap_fp32` where that was asked.

    Args:
        state: what was trained.
        folder: what was saved of it.
        tokens, logits: of the report split, the latter (n, n_labels) as the run computed them.

    Raises:
        GuardError: when more labels differ than the precision explains.
    """
    gap, tolerance = guards.reload_gap(folder, loaded, tokens, logits, reloader=reloader), guards.RELOAD_TOLERANCE
    checks: dict[str, Any] = {"reload_gap": gap, "reloads": gap <= tolerance[loaded.precision]}
    if loaded.precision == "bf16" and tolerance["bf16"] < gap <= DOUBTFUL * tolerance["bf16"]:
        checks["reload_gap_fp32"] = _gap_in_fp32(run, state, folder, tokens)
        checks["reloads"] = checks["reload_gap_fp32"] <= tolerance["fp32"]
    return checks


def _gap_in_fp32(run: Run, state: AdapterState, folder: Path, tokens: Tokens) -> float:
    """On the CPU, whose memory holds the larger weights beside the pack."""
    exact = backbone.load(run.blueprint, precision="fp32", device=torch.device("cpu"))
    rows = np.arange(min(guards.RELOADED_ROWS["fp32"], len(tokens)))
    with open_pack(exact, [run]) as pack:
        pack.set_states([state])
        (logits,) = predict(pack, tokens, rows)
    return guards.reload_gap(folder, exact, tokens, logits, len(rows))
