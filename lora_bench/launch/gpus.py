"""The GPUs of this machine, one for each pack."""

import contextlib
import logging
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

GPU_POLL_SECONDS = 1.0

messages = logging.getLogger(__name__)


@contextlib.contextmanager
def claim_gpu(device: str, *, any_of_them: bool = True) -> Iterator[dict[str, str]]:
    """Hold a GPU for one pack, against every other pack of this user on this machine; waits until one is free.

    Args:
        device: as in the configuration; `cpu` holds nothing.
        any_of_them: False takes the first visible one, for a process that may have touched it already.

    Yields:
        The environment of a process that shall see that GPU alone; empty where there is none.
    """
    gpus = visible_gpus() if device != "cpu" else {}
    if not gpus:
        yield {}
        return
    folder = Path(tempfile.gettempdir()) / f"lora_bench-gpus-{os.getuid()}"
    folder.mkdir(exist_ok=True)
    choices = list(gpus.items()) if any_of_them else list(gpus.items())[:1]
    has_said = False
    while True:
        for name, unique in choices:
            lock = FileLock(folder / f"{unique}.lock")
            try:
                lock.acquire(timeout=0)
            except Timeout:
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
