"""Compare the store with its mirror on W&B, and upload what the mirror lacks, from the records alone.

    lora-bench sync store=runs entity=E project=P          compare, upload what is missing, say what differs
    lora-bench sync store=runs dry_run=true                compare only

A run is mirrored when a W&B run that names it ended with the record's status and every score of the record. With
offline=true or WANDB_MODE=offline the offline folders of the store are compared, and what they lack is written there.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import math
import os
import struct
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lora_bench import wording
from lora_bench.config.options import parsed
from lora_bench.config.schema import TrackingConfig
from lora_bench.paths import PathError, argument, settle_caches
from lora_bench.store import StoreReader, existing, holds_no_run
from lora_bench.store.document import RUN_ID
from lora_bench.store.errors import StoreError
from lora_bench.store.secrets import scrub
from lora_bench.tracking.live import (
    CURVES,
    NO_KEY,
    Tracking,
    head_of,
    open_tracking,
    summary_of,
    why_not_online,
)
from lora_bench.tracking.offline import sent_mark
from lora_bench.wording import command_line

log = logging.getLogger(__name__)

SHOWN = 20
"""How many runs are listed by name; the rest are only counted."""
BATCH = 8
"""How many uploads may be under way at once."""
BLOCK, CHUNK_HEADER = 32768, struct.Struct("<IHB")


@dataclass(frozen=True)
class Copy:
    """A W&B run that names a run of ours; `status` is None for one that never ended by itself."""

    where: str
    run_id: str
    status: str | None
    scores: Mapping[str, float]


@dataclass
class Comparison:
    """How far the store and its mirror agree.

    Attributes:
        same: runs that have a copy with their status and scores.
        missing: runs without any copy that ended.
        different: runs whose every copy disagrees, with what differs in the latest one.
        foreign: copies of runs that the store does not hold.
        unended: copies of runs that did not end by themselves: killed, or still being trained.
    """

    same: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    different: dict[str, list[str]] = field(default_factory=dict)
    foreign: list[Copy] = field(default_factory=list)
    unended: list[Copy] = field(default_factory=list)


def compare(records: Iterable[Mapping[str, Any]], copies: Iterable[Copy]) -> Comparison:
    """Compare every record with the copies that name its run."""
    by_run: dict[str, list[Copy]] = {}
    for copy in copies:
        by_run.setdefault(copy.run_id, []).append(copy)
    comparison = Comparison()
    for record in records:
        run_id = record["run_id"]
        copies_of_run = by_run.pop(run_id, [])
        comparison.unended += [copy for copy in copies_of_run if copy.status is None]
        ended = [copy for copy in copies_of_run if copy.status is not None]
        problems = [differences(record, copy) for copy in ended]
        if not ended:
            comparison.missing.append(run_id)
        elif all(problems):
            comparison.different[run_id] = problems[-1]
        else:
            comparison.same.append(run_id)
    for copies_of_run in by_run.values():
        for copy in copies_of_run:
            (comparison.foreign if copy.status is not None else comparison.unended).append(copy)
    return comparison


def differences(record: Mapping[str, Any], copy: Copy) -> list[str]:
    """Where a copy disagrees with the record, in words; empty when it agrees."""
    differing = []
    if copy.status != record["status"]:
        differing.append(f"it {record['status']}, but {copy.where} says {copy.status}")
    for split, values in record["scores"].items():
        for name, value in (values or {}).items():
            theirs = copy.scores.get(f"{split}/{name}")
            if value is None and theirs is None:
                continue
            if value is None or theirs is None or not math.isclose(value, theirs, rel_tol=1e-9, abs_tol=1e-12):
                differing.append(f"{split} {name} is {value}, but {copy.where} says {theirs}")
    return differing


# The copies


def copies_on_server(entity: str | None, project: str) -> tuple[str, list[Copy]]:
    """The project's path, and the copies that W&B holds; none when there is no such project yet."""
    import wandb

    # The client makes a folder for each run that it lists.
    with tempfile.TemporaryDirectory() as scratch, _environment("WANDB_DIR", scratch):
        api = wandb.Api(timeout=60)
        path = f"{entity or api.default_entity}/{project}"
        copies = []
        try:
            for run in api.runs(path, filters={"jobType": "train"}, per_page=500, lazy=False):
                copy = _copy(f"{path}/{run.id}", run.id, dict(run.config), _plain_summary(run))
                if copy:
                    copies.append(copy)
        except ValueError as error:
            if "Could not find project" not in str(error):
                raise
    return path, copies


def copies_offline(directory: Path) -> list[Copy]:
    """The copies in W&B's offline folders below `directory`; one that cannot be read counts as never ended."""
    from google.protobuf.message import DecodeError

    copies = []
    for path in sorted(directory.glob("wandb/*run-*/*.wandb")):
        try:
            name, config, summary = read_offline(path)
        except (OSError, ValueError, DecodeError) as error:
            log.warning("mirror: %s cannot be read (%s)", path.name, error)
            name, config, summary = None, {}, {}
        copy = _copy(path.parent.name, name or path.stem.removeprefix("run-"), config, summary)
        if copy:
            copies.append(copy)
    return copies


def read_offline(path: Path) -> tuple[str | None, dict[str, Any], dict[str, Any]]:
    """The name, configuration and summary in a `.wandb` file, as far as it was written."""
    from wandb.proto import wandb_internal_pb2

    name, config, summary = None, {}, {}
    for content in _log_records(path.read_bytes()):
        record = wandb_internal_pb2.Record()  # pyright: ignore[reportAttributeAccessIssue]    made by protobuf
        record.ParseFromString(content)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            name = record.run.run_id
            config |= _items(record.run.config.update)
        elif kind == "config":
            config |= _items(record.config.update)
        elif kind == "summary":
            summary |= _items(record.summary.update)
    return name, config, summary


def _log_records(content: bytes) -> Iterator[bytes]:
    """The records of a LevelDB log after W&B's seven-byte header; ends where the file was cut."""
    place, pieces = 7, b""
    if content[:4] != b":W&B":
        return
    while place + CHUNK_HEADER.size <= len(content):
        left = BLOCK - place % BLOCK
        if left < CHUNK_HEADER.size:
            place += left
            continue
        _, length, kind = CHUNK_HEADER.unpack_from(content, place)
        place += CHUNK_HEADER.size
        piece = content[place : place + length]
        place += length
        if len(piece) < length or kind not in (1, 2, 3, 4):
            return
        pieces = piece if kind in (1, 2) else pieces + piece
        if kind in (1, 4):
            yield pieces


def _items(updates: Iterable[Any]) -> dict[str, Any]:
    """Keys and values of a protocol message's items; nested keys are joined by points."""
    values = {}
    for item in updates:
        key = ".".join(item.nested_key) or item.key
        values[key] = json.loads(item.value_json)
    return values


def _copy(where: str, name: str, config: Mapping[str, Any], summary: Mapping[str, Any]) -> Copy | None:
    run_id = config.get("run_id") or name.partition("-")[0]
    if not isinstance(run_id, str) or not RUN_ID.fullmatch(run_id):
        return None
    status = summary.get("status")
    scores = {
        key.removeprefix("scores/"): value
        for key, value in summary.items()
        if key.startswith("scores/") and isinstance(value, (int, float))
    }
    return Copy(where, run_id, status if status in ("finished", "failed") else None, scores)


def _plain_summary(run: Any) -> dict[str, Any]:
    return {key: value for key, value in dict(run.summary_metrics).items() if not key.startswith("_")}


# Uploading


def upload(record: Mapping[str, Any], tracking: Tracking, *, folder: Path | None = None) -> None:
    """Mirror a run from its record: the same curves, scores and status as while it trained.

    Args:
        folder: of the run in its store, for the files that `tracking.artifacts` asks for.
    """
    head = head_of(
        run_id=record["run_id"],
        cell_id=record["cell_id"],
        config=record["config"],
        manifest=record["manifest"],
        parameters=record["parameters"],
        metrics=record["metrics"],
        environment=record["environment"],
        invocation=record.get("invocation"),
    )
    head["config"] |= {"from_record": True, "started": record.get("started"), "finished": record.get("finished")}
    # Named by the record's content, so that two uploads make one W&B run.
    content = json.dumps([record["status"], record["scores"], record.get("finished")], sort_keys=True)
    run = tracking.start(head | {"copy": hashlib.sha256(content.encode()).hexdigest()[:6]})
    history = record.get("history") or {}
    epochs = sorted(history.get("epochs") or [], key=lambda epoch: epoch["step"])
    for place, step in enumerate(history.get("step") or []):
        while epochs and epochs[0]["step"] < step:
            _log_epoch(run, epochs.pop(0))
        run.log({"train": {name: history[name][place] for name in CURVES}}, step)
    for epoch in epochs:
        _log_epoch(run, epoch)
    if folder is not None:
        run.keep(folder)
    run.finish(record["status"], summary_of(record))


def _log_epoch(run: Any, epoch: Mapping[str, Any]) -> None:
    run.log({"epoch": epoch["epoch"], "select": epoch["select"]}, epoch["step"])


def upload_all(run_ids: Iterable[str], store: StoreReader, config: TrackingConfig) -> int:
    """Upload these runs; returns how many went where `config` asked, before the server was lost."""
    tracking = open_tracking(config, directory=_directory(store))
    mode, n_done = tracking.mode, 0
    if mode == "disabled":  # W&B is left out, which a warning has told
        return 0
    for place, run_id in enumerate(run_ids, start=1):
        upload(store.record(run_id), tracking, folder=store.path(run_id))
        if place % BATCH == 0:
            tracking.close()
        if tracking.mode != mode:
            break
        n_done = place
    tracking.close()
    return n_done


def mark_sent(run_ids: Iterable[str], directory: Path) -> int:
    """Keep `wandb sync` from sending offline folders of runs that W&B already has; returns how many are marked."""
    wanted, n_marked = set(run_ids), 0
    for path in directory.glob("wandb/offline-run-*/*.wandb"):
        if path.stem.removeprefix("run-").partition("-")[0] in wanted and not sent_mark(path).exists():
            sent_mark(path).touch()
            n_marked += 1
    return n_marked


def _directory(store: StoreReader) -> Path:
    return store.root / ".tracking"


# The command


def main(argv: list[str] | None = None) -> int:
    """Entry point of `lora-bench sync`; 0: the mirror is complete, 1: runs are missing or differ, 2: it failed."""
    wording.spell_out()
    options = parsed(_parser(), argv)
    logging.basicConfig(format="%(message)s")
    try:
        settle_caches()
        return synchronise(options)
    except (PathError, StoreError) as error:
        print(f"lora-bench sync: {error}", file=sys.stderr)
    except Exception as error:  # wandb's errors have no common class
        print(f"lora-bench sync: W&B refused ({type(error).__name__}: {scrub(str(error))})", file=sys.stderr)
    return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lora-bench sync",
        description="Compare the store with W&B, upload what W&B lacks from the records alone, and say what differs.",
        epilog="example: lora-bench sync store=runs entity=me project=lora_bench",
    )
    parser.add_argument("--store", type=argument, default=Path("runs"), metavar="DIR", help="folder of records (runs)")
    parser.add_argument("--entity", metavar="NAME", help="W&B user or team (default: the key's own)")
    parser.add_argument("--project", default="lora_bench", metavar="NAME", help="W&B project (lora_bench)")
    parser.add_argument("--offline", action="store_true", help="compare with the offline folders only")
    parser.add_argument("--repair", action="store_true", help="upload those that differ again, beside their copies")
    parser.add_argument(
        "--artifacts",
        choices=("none", "records", "all"),
        default="none",
        help="files of the runs that are uploaded: none, records, all (record, predictions, adapter; default: none)",
    )
    parser.add_argument("--dry-run", action="store_true", help="compare and say; upload nothing")
    return parser


def synchronise(options: argparse.Namespace) -> int:
    """Compare, upload and print what differs; returns the exit status of the command."""
    store = existing(options.store)
    n_runs = len(store.statuses())
    if not n_runs:
        raise holds_no_run(store.root)
    asked = os.environ.get("WANDB_MODE", "").lower()
    if asked == "disabled":
        print("WANDB_MODE=disabled: nothing to compare with")
        return 2
    is_offline = options.offline or asked in ("offline", "dryrun")
    problem = None if is_offline else why_not_online()
    if problem:
        login = "; `wandb login` once, or set WANDB_API_KEY" if problem == NO_KEY else ""
        print(f"lora-bench sync: {problem}{login}; --offline compares with the offline folders", file=sys.stderr)
        return 2
    mode = "offline" if is_offline else "online"
    config = TrackingConfig(
        backend="wandb", project=options.project, entity=options.entity, mode=mode, artifacts=options.artifacts
    )
    if mode == "online":
        place, copies = copies_on_server(options.entity, options.project)
    else:
        place, copies = f"{_directory(store)} (offline)", copies_offline(_directory(store))
    comparison = compare(store.records(), copies)
    print(f"{store.root}: {n_runs} runs; {place}: {len(copies)} copies")
    _tell(comparison)
    wanted = [*comparison.missing, *(comparison.different if options.repair else ())]
    n_done = 0 if options.dry_run else upload_all(wanted, store, config)
    if wanted and not options.dry_run:
        print(f"uploaded {n_done} of {len(wanted)}" if mode == "online" else f"written offline: {n_done}")
    if mode == "online" and not options.dry_run:
        n_marked = mark_sent([*comparison.same, *wanted[:n_done]], _directory(store))
        if n_marked:
            print(f"{n_marked} offline folders are marked as sent: W&B holds their runs")
    elif mode == "offline" and not options.dry_run:
        sync = command_line(["wandb", "sync", str(_directory(store) / "wandb")])
        print(f"with a key and a network, the same command sends them; or: {sync}/*")
    is_whole = n_done == len(wanted) and (options.repair or not comparison.different)
    return 0 if is_whole else 1


def _tell(comparison: Comparison) -> None:
    print(f"  same: {len(comparison.same)}")
    print(f"  missing: {len(comparison.missing)}{_listed(comparison.missing)}")
    print(f"  different: {len(comparison.different)}")
    for run_id, problems in list(comparison.different.items())[:SHOWN]:
        print(f"    {run_id}: {'; '.join(problems)}")
    if comparison.foreign:
        print(f"  of runs that this store does not hold: {len(comparison.foreign)}")
    if comparison.unended:
        print(f"  of runs that did not end by themselves, or are in training: {len(comparison.unended)}")


def _listed(names: list[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f" ({', '.join(names[:SHOWN])}{more})"


class _environment:
    """One environment variable for the length of a block."""

    def __init__(self, name: str, value: str):
        self._name, self._value = name, value

    def __enter__(self) -> None:
        self._former = os.environ.get(self._name)
        os.environ[self._name] = self._value

    def __exit__(self, *_: object) -> None:
        if self._former is None:
            os.environ.pop(self._name, None)
        else:
            os.environ[self._name] = self._former


if __name__ == "__main__":
    sys.exit(main())
