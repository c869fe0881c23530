"""Check what a run reads before torch is imported: its rows, then its backbone's files.

torch, transformers and peft take seconds to import. A faulty file, column or folder is reported without them, so every
program that resolves runs calls this first; `resolve` then finds the rows and the folder already read.
"""

from lora_bench.config.schema import ModelConfig, RunConfig
from lora_bench.models import files
from lora_bench.tasks.load import load_task


def check(config: RunConfig) -> None:
    """Refuse rows and folders that cannot be used.

    Raises:
        ConfigError: as `load_task` and `files.find` do.
    """
    if config.task.source != "planted":  # the backbone makes its labels
        load_task(config.task)
    check_backbone(config.model)


def check_backbone(model: ModelConfig) -> None:
    """Refuse a backbone's folder or file that cannot be used.

    Raises:
        ConfigError: as `files.find` does.
    """
    if model.weights == "pretrained":
        files.find(model)
