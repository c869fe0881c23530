"""How much of a matrix's inputs a rank explains: EVA's ranks, through peft.

    score = the rank that peft gives, of 8 a matrix on average and 16 at most, to the largest explained-variance ratios

Inputs alone decide, and q, k and v read the same: EVA cannot tell them apart. Source: Paischer et al. 2024,
arXiv:2410.07170 (an incremental principal component analysis of each matrix's inputs, until its components stay).
"""

from typing import Any

import torch
from peft import EvaConfig, LoraConfig
from peft.tuners.lora.eva import get_eva_state_dict

from lora_bench.predictors.evidence import Evidence

RANK = 8
MOST_PASSES = 1000


def scores(evidence: Evidence) -> dict[str, float]:
    """The rank of each matrix, by module.

    Raises:
        ValueError: when the components do not settle, as with fewer tokens a batch than they number.
    """
    rank = min(RANK, *(min(matrix.d_in, matrix.d_out) // 2 for matrix in evidence.matrices))
    config = LoraConfig(
        r=rank,
        target_modules=[matrix.module for matrix in evidence.matrices],
        init_lora_weights="eva",
        eva_config=EvaConfig(rho=2.0),
    )
    n_passes = 0

    def forward(model: Any, batch: dict[str, torch.Tensor]) -> None:
        nonlocal n_passes
        n_passes += 1
        if n_passes > MOST_PASSES:
            raise ValueError(f"eva: its components have not settled after {MOST_PASSES} batches; give a larger batch")
        model(**{name: batch[name] for name in evidence.inputs if name in batch})

    starts = get_eva_state_dict(
        evidence.model,
        list(evidence.batches),
        config,
        forward_fn=forward,
        prepare_model_inputs_fn=lambda batch, _: batch["attention_mask"].reshape(-1).bool(),
        prepare_layer_inputs_fn=_real_tokens,
        show_progress_bar=False,
    )
    return {matrix.module: float(len(starts[matrix.module])) for matrix in evidence.matrices}


def _real_tokens(given: Any, mask: torch.Tensor, _: str) -> torch.Tensor:
    """A matrix's input without padding: (n_tokens, d_in)."""
    tokens = (given[0] if isinstance(given, tuple) else given).flatten(0, -2)
    return tokens[mask] if len(tokens) == len(mask) else tokens
