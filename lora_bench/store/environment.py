"""The machine and the software that a result may depend on."""

from __future__ import annotations

import functools
import hashlib
import json
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from lora_bench import __version__

PACKAGES = (
    "torch",
    "transformers",
    "tokenizers",
    "peft",
    "safetensors",
    "numpy",
    "scipy",
    "pandas",
    "scikit-learn",
    "datasets",
    "hydra-core",
    "wandb",
)
SOURCES = ("lora_bench", "hydra_plugins", "conf", "sweeps", "analysis", "pyproject.toml")
SOFTWARE_KEYS = ("python", "torch", "transformers", "peft", "numpy")
ENVIRONMENT_KEYS = ("device", "cpu", "threads", *SOFTWARE_KEYS)


def environment(*, device: str, threads: int) -> dict[str, Any]:
    """What a result may depend on besides its configuration; `id` names what must agree for two to be comparable.

    Versions come from the installed packages' metadata, so nothing is imported. A package that is absent is null, and
    so are `commit` and `dirty` outside a git checkout of this project.

    Args:
        device: what trained the run: `cpu`, or the accelerator's name.
        threads: CPU threads that the training process used.
    """
    facts: dict[str, Any] = {"device": device, "threads": threads, **_machine()}
    identity = json.dumps([facts[key] for key in ENVIRONMENT_KEYS])
    return {"id": hashlib.sha256(identity.encode()).hexdigest()[:12], **facts, **_source()}


@functools.cache
def _machine() -> dict[str, Any]:
    versions = {name.replace("-", "_"): _version(name) for name in PACKAGES}
    machine = {"cpu": _cpu_model(), "platform": platform.platform(), "python": platform.python_version()}
    return {**machine, "lora_bench": __version__, **versions}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


@functools.cache
def _source() -> dict[str, Any]:
    """Commit and dirty flag of the checkout that holds this file; only changes to the source make it dirty."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return {"commit": None, "dirty": None}
    commit = _git(root, "rev-parse", "HEAD")
    changes = _git(root, "status", "--porcelain", "--", *SOURCES)
    return {"commit": commit or None, "dirty": None if changes is None else bool(changes)}


def _git(root: Path, *arguments: str) -> str | None:
    command = ["git", "--no-optional-locks", "-C", str(root), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
