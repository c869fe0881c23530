"""Let `+sweeps=NAME` find the shipped sweeps and the user's own `./sweeps/NAME.yaml`, from any folder."""

from pathlib import Path

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin

from lora_bench.config import resource_root


class LoraBenchSearchPath(SearchPathPlugin):
    """Appends the folder that holds sweeps/, then the current folder."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        search_path.append(provider="lora_bench", path=f"file://{resource_root()}")
        search_path.append(provider="current folder", path=f"file://{Path.cwd()}")
