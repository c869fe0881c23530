"""The studies that can be run: sweep files with a `study` section, and the question that each begins with."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from lora_bench.paths import resource_root


def shipped() -> dict[str, str]:
    """Names and questions of those that come with the package."""
    return _in_folder(resource_root() / "sweeps")


def listed() -> str:
    """Every study that can be run from here, a line each."""
    known = shipped() | _in_folder(Path("sweeps"))
    width = max(map(len, known), default=0)
    lines = [f"  {name:<{width}}  {question}".rstrip() for name, question in sorted(known.items())]
    return "\n".join(
        [
            "studies, each run as lora-bench study NAME, with task= and model= as for one run:",
            *lines,
            "add dry_run=true to see what one would do, and hours=2 to stop in time; sweeps/NAME.yaml of the current",
            "folder is a study, too, once it has a hydra.sweeper.study section",
            "",
        ]
    )


def _in_folder(folder: Path) -> dict[str, str]:
    questions = {}
    for path in sorted(folder.glob("*.yaml")):
        try:
            text = path.read_text(encoding="utf-8")
            content: Any = yaml.safe_load(text) if "study:" in text else None
            section = content["hydra"]["sweeper"]["study"]
        except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
            continue  # running it tells what is wrong with it
        if section:
            question = re.search(r"^# Question: (.*)$", text, flags=re.MULTILINE)
            questions[path.stem] = question[1].strip() if question else ""
    return questions
