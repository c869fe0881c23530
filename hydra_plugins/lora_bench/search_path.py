"""Let `+sweeps=NAME` find the user's own `./sweeps/NAME.yaml` and the shipped sweeps, from any folder."""

from pathlib import Path

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin

from lora_bench.paths import resource_root


class LoraBenchSearchPath(SearchPathPlugin):
    """Appends the current folder, then the folder that holds sweeps/; other Hydra applications are left alone."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        ours = str(resource_root() / "conf")
        if not any(str(each.path).removeprefix("file://") == ours for each in search_path.get_path()):
            return
        search_path.append(provider="current folder", path=f"file://{Path.cwd()}")
        search_path.append(provider="lora_bench", path=f"file://{resource_root()}")
