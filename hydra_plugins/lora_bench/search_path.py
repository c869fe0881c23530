"""Let `+sweeps=NAME` find the user's own `./sweeps/NAME.yaml` and the shipped sweeps, from any folder."""

from pathlib import Path

from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.config_source import ConfigResult
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import OmegaConf

from lora_bench.config import sweep_file
from lora_bench.paths import resource_root

GROUP = "sweeps"


class SweepsSource(FileConfigSource):
    """A folder of which only sweeps/ is seen. Hydra takes every folder that it finds for a group of configurations:
    beside a folder called `store`, `store=runs` would ask for a file in it."""

    @staticmethod
    def scheme() -> str:
        return "sweeps"

    def is_group(self, config_path: str) -> bool:
        return config_path.partition("/")[0] in ("", GROUP) and super().is_group(config_path)

    def is_config(self, config_path: str) -> bool:
        return config_path.startswith(f"{GROUP}/") and super().is_config(config_path)

    def load_config(self, config_path: str) -> ConfigResult:
        """The file's content and header, its mistakes told in one line.

        Raises:
            ConfigError: as `sweep_file.check_sweep` does.
        """
        path = Path(self.path) / self._normalize_file_name(config_path)
        file = str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
        with sweep_file.readable(file):
            result = super().load_config(config_path)
        content = OmegaConf.to_container(result.config)
        sweep_file.check_sweep(file, content, package=result.header.get("package"))
        return result


class LoraBenchSearchPath(SearchPathPlugin):
    """Appends the sweeps of the current folder, then our own; other Hydra applications are left alone."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        ours = str(resource_root() / "conf")
        if not any(str(source.path).removeprefix("file://") == ours for source in search_path.get_path()):
            return
        search_path.append(provider="current folder", path=f"{SweepsSource.scheme()}://{Path.cwd()}")
        search_path.append(provider="lora_bench", path=f"{SweepsSource.scheme()}://{resource_root()}")
