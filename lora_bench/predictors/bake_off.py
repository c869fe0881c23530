"""A study of what predictors chose: every map trained beside the paper's seven placements, all at one budget.

The study's file, and beside it a folder with an adapter_config.json for each predictor, so that a placement is called
by its predictor and anything that reads peft's configurations can train the same map.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lora_bench.config.errors import ConfigError
from lora_bench.config.overrides import value
from lora_bench.models.roles import Matrix
from lora_bench.predictors.predict import Prediction

PLACEMENTS = "q,k,v,o,qk,qv,qkvo"
TEXT = """# @package _global_
# Question: does a predictor's map beat the placements that people take, when all have {budget:,} parameters?
# {n_maps} maps that predictors chose before any training, and seven placements: {about}.
adapter:
  rank: null
  budget: {budget}
  layers: {layers}
train:
  head_lr: 1.0e-3              # fixed, so that tuning lr does not tune the head
hydra:
  mode: MULTIRUN
  sweeper:
    study:
      reference: qv
      rates: [1.0e-3, 3.0e-3, 1.0e-2]
    grids:
      - adapter.targets: {placements}
        train.lr: 1e-3,3e-3,1e-2
        seed: range(8)
      - adapter.like: {likes}
        adapter.budget: null
        adapter.layers: all
        train.lr: 1e-3,3e-3,1e-2
        seed: range(8)
"""


def write(
    file: Path,
    predictions: Sequence[Prediction],
    matrices: Sequence[Matrix],
    about: Mapping[str, Any],
    *,
    layers: str | Sequence[int] = "all",
) -> None:
    """Write the study's file and the folder of the same name beside it.

    Args:
        matrices: of the backbone, in those layers.
        about: what the predictions rest on, with `budget`, `model`, `task` and `rows`.
        layers: those of the placements, as `adapter.layers` has them.

    Raises:
        ConfigError: for a backbone whose roles share matrices, since one rank of peft's is theirs together.
        OSError: when the files cannot be written.
    """
    shared = next((matrix for matrix in matrices if matrix.fused is not None), None)
    if shared is not None:
        raise ConfigError(
            f"sweep: {about['model']} keeps several roles in {shared.fused!r}, and an adapter_config.json has one "
            "rank for them; train the lines that predict prints"
        )
    folder = file.with_suffix("")
    for prediction in predictions:
        path = folder / prediction.predictor / "adapter_config.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(_adapter_config(prediction), indent=2) + "\n", encoding="utf-8")
    file.write_text(
        TEXT.format(
            n_maps=len(predictions),
            about=f"{about['model']}, {about['task']}, {about['rows']} train rows".replace("\n", " "),
            placements=PLACEMENTS,
            layers=json.dumps(layers if isinstance(layers, str) else list(layers)),
            budget=about["budget"],
            likes=json.dumps(",".join(value(str(folder / said.predictor)) for said in predictions)),
        ),
        encoding="utf-8",
    )


def _adapter_config(prediction: Prediction) -> dict[str, Any]:
    ranks = prediction.ranks
    return {
        "peft_type": "LORA",
        "target_modules": sorted(ranks),
        "r": max(ranks.values()),
        "rank_pattern": {f"^{module}": rank for module, rank in sorted(ranks.items())},
    }
