"""Where the files of a plan lie."""

from pathlib import Path

FOLDER = ".plans"


def mark_file(path: Path, number: int) -> Path:
    """Lies there while a job trains the pack of this number, and holds the share of its steps that are done."""
    return path.with_suffix("") / f"pack-{number}.under_way"


def store_of(plan_path: Path) -> Path:
    """The store that a plan lies in."""
    return plan_path.parent.parent


def stop_file(plan_path: Path, launch: str) -> Path:
    """Once this file exists, jobs of that launch of the plan that have not begun do nothing; those of others go on.

    It stays: a cluster may begin a job of a launch that was stopped long ago.
    """
    return plan_path.with_suffix("") / f"{launch}.stop"


def offline_file(plan_path: Path) -> Path:
    """While this file exists, jobs of the plan do not ask again whether W&B answers: one of them has waited for it."""
    return plan_path.with_suffix("") / "offline"


def log_file(path: Path, number: int) -> Path:
    """What the process that trained a pack has said, without secrets."""
    return path.with_suffix("") / f"pack-{number}.log"


def pack_lock(path: Path, number: int) -> Path:
    """The lock of the job that trains a pack; it names its owner."""
    return path.with_suffix("") / f"pack-{number}.lock"


def environment_file(path: Path, number: int) -> Path:
    """The machine that trains a pack, as its records tell it, in case its process does not live to write them."""
    return path.with_suffix("") / f"pack-{number}.environment.json"
