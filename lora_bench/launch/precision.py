"""The precision that `auto` means on this CPU: measured once for a store."""

import contextlib
import functools
import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from lora_bench.config.schema import RunConfig
from lora_bench.launch.files import FOLDER
from lora_bench.store import StoreReader
from lora_bench.store.environment import environment
from lora_bench.store.errors import explained
from lora_bench.store.folder import Store


def settle(config: RunConfig, store: StoreReader) -> RunConfig:
    """The configuration with `train.precision=auto` decided for a CPU: measured once for a store on such a machine, so
    that no two of its runs differ for a measurement that came out otherwise. `keep_precision` writes it down.

    Raises:
        ConfigError: when the device is absent.
    """
    return settler(store)(config)


def settler(store: StoreReader) -> Callable[[RunConfig], RunConfig]:
    """`settle` for many configurations of one store, which is asked once."""
    from lora_bench.models import devices

    @functools.cache
    def precision_here() -> str:
        try:
            return json.loads(_precision_file(store).read_text(encoding="utf-8"))["precision"]
        except (OSError, ValueError, KeyError):
            return devices.resolve_precision("auto", devices.resolve_device("cpu"))

    def settled(config: RunConfig) -> RunConfig:
        if devices.resolve_device(config.device).type != "cpu" or config.train.precision != "auto":
            return config
        return replace(config, train=replace(config.train, precision=precision_here()))

    return settled


def keep_precision(store: Store) -> None:
    """Write down what `settle` has measured in this process, unless the store knows it already.

    Raises:
        StoreError: when the store cannot be written.
    """
    from lora_bench.models import devices

    if not devices.cpu_rates.cache_info().currsize:
        return
    path, rates = _precision_file(store), devices.cpu_rates()
    document = {"precision": devices.faster_precision(rates), **_this_cpu()}
    document |= {f"{name}_gflops": round(rate / 1e9, 1) for name, rate in rates.items()}
    with explained("keep the precision of this CPU", store.root):
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError), open(path, "x", encoding="utf-8") as file:
            json.dump(document, file, indent=1)


def _precision_file(store: StoreReader) -> Path:
    identity = hashlib.sha256(json.dumps(_this_cpu()).encode()).hexdigest()[:12]
    return store.root / FOLDER / "precision" / f"{identity}.json"


def _this_cpu() -> dict[str, str]:
    here = environment(device="cpu", threads=1)
    return {"cpu": here["cpu"], "torch": here["torch"]}
