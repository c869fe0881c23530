"""The adapters of a pack's runs on their backbone."""

from collections.abc import Sequence

from lora_bench.models import adapters, backbone
from lora_bench.models.backbone import Backbone
from lora_bench.packing.pack import Pack
from lora_bench.packing.packed import Packed
from lora_bench.packing.solo import SoloPack
from lora_bench.training.resolve import Run, packable


def open_pack(loaded: Backbone, runs: Sequence[Run]) -> Packed:
    """The runs' adapters on the backbone: stacked where methods allow it, else alone on a copy."""
    config = runs[0].config
    head = backbone.head_state(loaded, config.seed)
    if not packable(runs[0]):
        return SoloPack(loaded, config.adapter, runs[0].matrices, head, dropout=config.train.dropout, seed=config.seed)
    return Pack(
        loaded,
        [adapters.make(loaded, run.config.adapter, run.matrices, head, config.seed) for run in runs],
        adapter_dropouts=[run.config.adapter.dropout if run.matrices else 0.0 for run in runs],
        dropout=config.train.dropout,
        seed=config.seed,
        compile=config.train.compile,
    )
