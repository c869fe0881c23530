"""The GPUs of this machine, one for each pack."""

import contextlib
import logging
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator

from lora_bench import paths
from lora_bench.store.locks import Lock

GPU_POLL_SECONDS = 1.0

messages = logging.getLogger(__name__)


@contextlib.contextmanager
def claim_gpu(device: str, *, any_of_them: bool = True) -> Iterator[dict[str, str]]:
    """Hold a GPU for one pack, against every other pack of this user on this machine; waits until one is free.

    Args:
        device: as in the configuration; `cpu` holds nothing.
        any_of_them: False takes the first visible one, for a process that may have touched it already.

    Raises:
        PathError: when the folder of the locks is not this account's alone.

    Yields:
        The environment of a process that shall see that GPU alone; empty where there is none.
    """
    gpus = visible_gpus() if device != "cpu" else {}
    if not gpus:
        yield {}
        return
    folder, is_ours = paths.temporary_folder("lora_bench-gpus")
    if not is_ours:
        works = "remove it, or set TMPDIR to a folder of your own"
        raise paths.PathError(f"TMPDIR: the locks of GPUs lie in {str(folder)!r}, which others can write; {works}")
    choices = list(gpus.items()) if any_of_them else list(gpus.items())[:1]
    has_said = False
    while True:
        for name, unique in choices:
            lock = Lock(folder / f"{unique}.lock")
            if not lock.acquire():
                continue
            try:
                yield {"CUDA_VISIBLE_DEVICES": name}
            finally:
                lock.release()
            return
        if not has_said:
            messages.info("waiting for a GPU: other packs train on %s", ", ".join(name for name, _ in choices))
            has_said = True
        time.sleep(GPU_POLL_SECONDS)


def visible_gpus() -> dict[str, str]:
    """The GPUs that this process may use: what CUDA_VISIBLE_DEVICES calls each, and a name that is its alone."""
    command = shutil.which("nvidia-smi")
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if not command or listed == "":
        return {}
    said = subprocess.run([command, "-L"], capture_output=True, encoding="utf-8", timeout=60, check=False).stdout
    unique = dict(re.findall(r"^GPU (\d+): .*\(UUID: (\S+)\)", said, flags=re.MULTILINE))
    names = list(unique) if listed is None else [name.strip() for name in listed.split(",")]
    return {name: unique.get(name, name) for name in names if name not in ("", "-1")}
