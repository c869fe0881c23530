"""The backbone's weights for an analysis that needs them: records and adapters hold none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from lora_bench.config.compose import compose, parse
from lora_bench.config.errors import ConfigError
from lora_bench.reports.explicit import preset_words


def weights_of(record: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Module -> (d_out, d_in) weight of the backbone that a run adapted, as its own words or a preset find it.

    Raises:
        ConfigError: when it is not at hand.
    """
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    words = [str(word) for word in record["invocation"].get("overrides") or []]
    words = [word for word in words if word.partition("=")[0].partition(".")[0] == "model"]
    try:
        config = parse(compose([*words, *preset_words("model", record["config"]["model"]["name"], words)]))
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(f"model: cannot be found again ({str(error).splitlines()[0]})") from None

    import torch

    from lora_bench.models import backbone
    from lora_bench.models.blueprint import blueprint

    n_labels = 2  # whatever the head was: it is no matrix of a role
    loaded = backbone.load(blueprint(config.model, n_labels), precision="fp32", device=torch.device("cpu"))
    return {
        matrix["module"]: loaded.model.get_submodule(matrix["module"]).get_parameter("weight").detach().double().numpy()
        for matrix in record["manifest"]
    }
