"""Where the files of a plan lie."""

from pathlib import Path

FOLDER = ".plans"


def mark_file(path: Path, number: int) -> Path:
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
    return path.with_suffix("") / f"pack-{number}.log"


def environment_file(path: Path, number: int) -> Path:
    return path.with_suffix("") / f"pack-{number}.environment.json"
