"""The journal of a family of contrasts: what was declared before the first look, and every look.

    STORE/.studies/<study>-<setting>/family.json

A look is written before it is shown, and never changed: verdicts keep their error rate only as long as nobody looks,
dislikes the result and declares something else. The first line of the file is its checksum, as in a record.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from lora_bench.store.disk import to_disk
from lora_bench.store.document import dumps
from lora_bench.store.errors import StoreError, explained

FOLDER = ".studies"
FILE = "family.json"
ARCHIVED = "studies"
"""The folder of an archive's journals, one file per family."""
JOURNAL_FORMAT = 1

_KINDS = {"title": str, "metric": str, "declared": str, "declaration": dict, "setting": dict, "looks": list}
_OF_LOOK = {"number", "n_seeds", "level", "spent", "alive", "chosen", "learning", "findings", "runs"}
_CHECKSUM = re.compile(rb'\{"checksum": "([0-9a-f]{64})",\n')


@dataclass(frozen=True)
class Journal:
    """One family's file, which may not exist yet."""

    path: Path

    @classmethod
    def of(cls, root: Path, study: str, setting: Mapping[str, Any]) -> Journal:
        """The journal of a study in a setting: all that its placements share, from the backbone to the first seed."""
        text = json.dumps(setting, sort_keys=True, ensure_ascii=False)
        name = re.sub(r"[^A-Za-z0-9_.-]", "-", study)[:60]
        return cls(root / FOLDER / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}" / FILE)

    @property
    def archived_as(self) -> str:
        """Its name in an archive."""
        return f"{ARCHIVED}/{self.path.parent.name if self.path.name == FILE else self.path.stem}.json"

    def read(self) -> dict[str, Any] | None:
        """The journal as it was last written; None when there is none yet.

        Raises:
            StoreError: when it cannot be read, or is not what was written.
        """
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StoreError(f"store: cannot read {self.path} ({error.strerror or error})") from error
        match = _CHECKSUM.match(content)
        is_whole = match and hashlib.sha256(content[match.end() :]).hexdigest().encode() == match[1]
        written = _parsed(content) if is_whole else None
        if written is None:
            raise StoreError(
                f"store: {self.path} is not what was written; put back the file that was, or declare a new family with "
                "study.first_seed=1000"
            )
        if written["format"] > JOURNAL_FORMAT:
            raise StoreError(f"store: {self.path} was written by a newer lora_bench")
        del written["checksum"]
        return written

    def write(self, content: Mapping[str, Any]) -> None:
        """Replace the file in one rename, with its content on the disk.

        Raises:
            StoreError: when the store cannot be written.
        """
        with explained("keep the journal of a study", self.path.parents[2]):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            scratch = self.path.with_name(f".{FILE}-{uuid4().hex[:12]}")
            try:
                scratch.write_bytes(dumps({"format": JOURNAL_FORMAT, **plain(content)}))
                to_disk(scratch)
                os.replace(scratch, self.path)
            finally:
                scratch.unlink(missing_ok=True)
            to_disk(self.path.parent)


def _parsed(content: bytes) -> dict[str, Any] | None:
    """A journal's document; None where its checksum fits, and its keys do not: somebody wrote both."""
    try:
        written = json.loads(content)
    except ValueError:
        return None
    if not isinstance(written.get("format"), int) or written["format"] > JOURNAL_FORMAT:
        return written if isinstance(written.get("format"), int) else None
    has_kinds = all(isinstance(written.get(key), kind) for key, kind in _KINDS.items())
    has_looks = has_kinds and all(isinstance(look, dict) and look.keys() >= _OF_LOOK for look in written["looks"])
    return written if has_looks else None


def journals(root: Path) -> list[Journal]:
    """Every family that a store or an archive holds, by name."""
    return [Journal(path) for path in sorted([*(root / FOLDER).glob(f"*/{FILE}"), *(root / ARCHIVED).glob("*.json")])]


def plain(value: Any) -> Any:
    """JSON values; a number that is not finite becomes null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value
