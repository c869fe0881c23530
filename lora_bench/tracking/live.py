"""Mirror runs to Weights & Biases while they train, or keep silent. The mirror is only written to, never read.

    tracking = open_tracking(config.tracking, directory=store / ".tracking")
    run = tracking.start(head_of(...));  run.log({"train": {"loss": 0.3}}, step=10);  run.finish("finished", {...})

The store is the truth, so nothing here may fail a run: every failure of wandb is caught, reported once, and ends the
mirror rather than the run. One W&B run mirrors one run, many can be live at once, and each ends with its own status.
The server is asked once, for at most 5 seconds, whether it answers; if it does not, or there is no key, runs are
written to `directory` for `wandb sync`.
"""

from __future__ import annotations

import logging
import netrc
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol
from urllib.parse import urlsplit
from uuid import uuid4

from lora_bench.paths import home
from lora_bench.store.document import canonical
from lora_bench.store.frame import row_of
from lora_bench.store.secrets import scrub, scrub_override
from lora_bench.tracking import artifacts
from lora_bench.wording import command_line

if TYPE_CHECKING:
    from lora_bench.config.schema import TrackingConfig


log = logging.getLogger(__name__)

PROBE_SECONDS = 5.0
# When the server is lost half-way, starting and finishing stall for this long, once.
SERVER_SECONDS = 5.0
SETTINGS: dict[str, Any] = {
    "silent": True,
    "console": "off",
    "init_timeout": SERVER_SECONDS,
    "finish_timeout": SERVER_SECONDS,
    "finish_timeout_raises": True,
    # One machine trains many runs at once: its code, arguments and packages belong to none of them.
    "x_disable_meta": True,
    "x_save_requirements": False,
    "disable_git": True,
    "disable_code": True,
    "disable_job_creation": True,
    "symlink": False,
}
Mode = Literal["online", "offline", "disabled"]
CURVES = ("loss", "lr", "grad_norm")
SPLITS = ("select", "report", "report_mismatched")
NO_KEY = "no W&B key was found"


class TrackedRun(Protocol):
    """The mirror of one run."""

    def log(self, values: Mapping[str, Any], step: int) -> None:
        """Add curve points or scores; `step` counts optimizer steps, and scores carry their `epoch` as a value."""
        ...

    def attach(self, tables: Mapping[str, Any], figures: Mapping[str, bytes]) -> None:
        """Add tables (DataFrames) and figures (PNG files' content)."""
        ...

    def keep(self, folder: Path, report: Any = None) -> None:
        """Keep files of a stored run, as `tracking.artifacts` asks.

        Args:
            folder: of the run in the store.
            report: DataFrame of the report rows with idx, text_a and perhaps text_b, for the table of predictions.
        """
        ...

    def finish(self, status: str, summary: Mapping[str, Any] | None = None) -> None:
        """End the run as `finished`, `failed`, or `stopped` (without a record), with its final figures. Offline, one
        that was stopped leaves nothing: it is trained again, under another name."""
        ...


class Tracking(Protocol):
    """Where the runs of a sweep are mirrored to."""

    mode: Mode

    def start(self, run: Mapping[str, Any]) -> TrackedRun:
        """Begin to mirror a run: its `run_id`, `name`, `group`, `tags` and `config`, as `head_of` makes them.

        With `copy`, six characters, the W&B run always has the same name, so a second one replaces the first.
        """
        ...

    def close(self) -> None:
        """Wait, for a bounded time, for what is still being sent."""
        ...


def open_tracking(config: TrackingConfig, *, directory: Path) -> Tracking:
    """The mirror that `config` asks for, or the nearest one available here; a warning tells when it is another.

    Args:
        directory: where W&B's files go; nothing is written elsewhere.
    """
    if config.backend == "none":
        return Silence()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        # Else wandb's service puts its own log into the home folder, which a cluster node may not have.
        os.environ.setdefault("WANDB_CACHE_DIR", str(directory.absolute() / "cache"))
        os.environ.setdefault("WANDB_DATA_DIR", str(directory.absolute() / "data"))
        mode = choose_mode(config)
        if mode == "disabled":
            return Silence()
        return WandbTracking(config, directory=directory.absolute(), mode=mode)
    except Exception as error:
        log.warning("tracking: W&B is left out, the store keeps everything (%s)", _words(error))
        return Silence()


def choose_mode(config: TrackingConfig) -> Mode:
    """`online`, `offline` or `disabled`: what was asked for, as far as the key and the network allow.

    `tracking.mode` decides unless it is `auto`; then WANDB_MODE does, then the presence of a key. Online needs a key
    and a server that answers. The server is asked once per process.
    """
    wanted = os.environ.get("WANDB_MODE", "").lower()
    if wanted == "disabled":
        return "disabled"
    wanted = {"dryrun": "offline", "run": "online"}.get(wanted, wanted)
    if config.mode != "auto":
        wanted = config.mode
    if wanted == "offline":
        return "offline"
    problem = why_not_online()
    if problem is None:
        return "online"
    say = log.info if problem == NO_KEY and wanted != "online" else log.warning
    remedy = "; `wandb login` once to send them as they train" if problem == NO_KEY else " for `wandb sync`"
    say(f"tracking: {problem}, so runs are kept offline{remedy}")
    return "offline"


def why_not_online() -> str | None:
    """What keeps runs from being sent, in words: no key, or a server that does not answer; None if nothing does."""
    url = _base_url()
    if not _has_key(url):
        return NO_KEY
    problem = _unreachable(url)
    return f"{url} does not answer ({problem})" if problem else None


def head_of(
    *,
    run_id: str,
    cell_id: str,
    config: Mapping[str, Any],
    manifest: Iterable[Mapping[str, Any]],
    parameters: Mapping[str, Any],
    metrics: Iterable[str],
    environment: Mapping[str, Any] | None = None,
    invocation: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What `Tracking.start` takes, from the parts of a record: names in words, and a flat config in the store's terms.

    The config has the columns of `Store.frame`, so a filter reads the same in both places, and `rank_<role>` for each
    role that the adapter changes; and what can be pasted: `adapter.<key>` and `train.<key>` as overrides, and the
    `command` that was given. The group is the cell: its runs differ by seed alone.
    """
    sweep = (invocation or {}).get("sweep")
    parts = {"run_id": run_id, "cell_id": cell_id, "status": "running", "config": config, "metrics": list(metrics)}
    parts |= {"manifest": list(manifest), "parameters": parameters, "environment": environment or {}}
    row = row_of(parts | {"scores": {}, "cost": {}, "invocation": {"sweep": sweep}})
    flat = {name: value for name, value in row.items() if name not in ("status", "by_metric")}
    by_role: dict[str, set[int]] = {}
    for matrix in parts["manifest"]:
        by_role.setdefault(matrix["role"], set()).add(matrix["rank"])
    flat |= {f"rank_{role}": max(ranks) for role, ranks in by_role.items()}
    flat |= {part: config[part] for part in ("adapter", "train") if part in config}
    overrides = (invocation or {}).get("overrides")
    if overrides:
        flat["command"] = command_line(["lora-bench", *map(scrub_override, overrides)])
    place = row.get("targets") or row.get("method") or "run"
    rank = f"r{row['ranks']}".replace(" ", ",") if row.get("ranks") else ""
    rate = f"lr{row['lr']:g}" if "lr" in row else ""
    cell = " ".join(word for word in (row.get("model"), row.get("task"), place, rank, rate) if word)
    marks = [row.get("model"), row.get("task"), row.get("method"), row.get("targets"), rank, sweep]
    return {
        "run_id": run_id,
        "name": f"{cell} s{row.get('seed')}",
        "group": f"{cell} {cell_id[:8]}",
        "tags": [str(mark) for mark in marks if mark],
        "config": flat,
    }


def summary_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """What `TrackedRun.finish` is given of a record: every score, the cost, and the error of a failed run.

    `report_score` and `select_score` are those of the primary metric, under one name for every task.
    """
    error = record.get("error") or {}
    primary = {
        f"{split}_score": (record["scores"].get(split) or {}).get(record["metrics"][0])
        for split in ("select", "report")
    }
    failure = {"error_kind": error.get("kind"), "error_message": (error.get("message") or "").partition("\n")[0][:200]}
    return {"scores": record["scores"], "cost": record["cost"], **primary, **(failure if error else {})}


class Silence:
    """No mirror: imports nothing, writes nothing."""

    mode: Mode = "disabled"

    def start(self, run: Mapping[str, Any]) -> TrackedRun:
        return _SilentRun()

    def close(self) -> None:
        pass


class _SilentRun:
    def log(self, values: Mapping[str, Any], step: int) -> None:
        pass

    def attach(self, tables: Mapping[str, Any], figures: Mapping[str, bytes]) -> None:
        pass

    def keep(self, folder: Path, report: Any = None) -> None:
        pass

    def finish(self, status: str, summary: Mapping[str, Any] | None = None) -> None:
        pass


class WandbTracking:
    """W&B runs under one directory; drops to offline when the server is lost, and to silence when wandb fails."""

    def __init__(self, config: TrackingConfig, *, directory: Path, mode: Mode):
        self.mode: Mode = mode
        self.artifacts = config.artifacts
        self._config = config
        self._directory = directory
        self._has_reported = False
        self._is_broken = False
        self._endings: list[threading.Thread] = []
        self._measures: _WandbRun | None = None  # the run that carries the machine's load

    def start(self, run: Mapping[str, Any]) -> TrackedRun:
        while not self._is_broken:
            try:
                has_load = self._measures is None or self._measures.is_finished
                tracked = _WandbRun(self._init(run, has_load=has_load), self)
                self._measures = tracked if has_load else self._measures
                return tracked
            except Exception as error:
                if self.mode == "online":
                    log.warning("tracking: W&B could not start a run (%s), so runs are kept offline", _words(error))
                    self.mode = "offline"
                else:
                    self.report("start a run", error)
                    self._is_broken = True
        return _SilentRun()

    def close(self) -> None:
        deadline = time.monotonic() + 2 * SERVER_SECONDS
        for ending in self._endings:
            ending.join(max(0.0, deadline - time.monotonic()))
        self._endings.clear()

    def report(self, action: str, error: BaseException) -> None:
        """Say once per sweep that the mirror has a gap."""
        if not self._has_reported:
            self._has_reported = True
            log.warning("tracking: W&B could not %s, the store keeps everything (%s)", action, _words(error))

    def end_beside(self, end: Callable[[], None]) -> None:
        """End a run in a thread: its data take time to send, and with a lost server every run waits for a timeout."""
        ending = threading.Thread(target=end, name="lora_bench-tracking")
        ending.start()
        self._endings = [other for other in self._endings if other.is_alive()] + [ending]

    def lost_server(self, error: BaseException) -> None:
        if self.mode == "online":
            self.mode = "offline"
            log.warning("tracking: W&B stopped answering (%s), so later runs are kept offline", _words(error))

    def _init(self, run: Mapping[str, Any], *, has_load: bool) -> Any:
        """Begin a W&B run; of those that train at once, one measures what the machine does (`has_load`)."""
        import wandb

        # An older wandb may lack some of these settings; it then does as it always did.
        settings: dict[str, Any] = SETTINGS | {"x_disable_stats": not has_load}
        settings = {name: value for name, value in settings.items() if name in wandb.Settings.model_fields}
        tracked = wandb.init(
            # A new name each time: a run trained again is another W&B run, never a continuation.
            id=f"{run.get('run_id', 'run')}-{run.get('copy') or uuid4().hex[:6]}",
            name=_clipped(run["name"], 128),
            group=_clipped(run["group"], 128),
            job_type=run.get("job_type", "train"),
            tags=list(dict.fromkeys(_clipped(tag, 64) for tag in [*run.get("tags", ()), *self._config.tags] if tag)),
            config=_flat(run["config"], "."),
            project=self._config.project,
            entity=self._config.entity,
            dir=str(self._directory),
            mode=self.mode,
            reinit="create_new",
            settings=wandb.Settings(**settings),
        )
        tracked.define_metric("step", hidden=True)
        tracked.define_metric("epoch", hidden=True)
        tracked.define_metric("train/*", step_metric="step")
        for split in SPLITS:
            tracked.define_metric(f"{split}/*", step_metric="epoch")
        return tracked


class _WandbRun:
    def __init__(self, run: Any, tracking: WandbTracking):
        self._run = run
        self._tracking = tracking
        self._is_online = tracking.mode == "online"
        self.is_finished = False

    def log(self, values: Mapping[str, Any], step: int) -> None:
        try:
            self._run.log({"step": step, **_flat(values, "/")})
        except Exception as error:
            self._tracking.report("log", error)

    def attach(self, tables: Mapping[str, Any], figures: Mapping[str, bytes]) -> None:
        for kind, make, parts in (("figures", artifacts.image, figures), ("tables", artifacts.table, tables)):
            try:
                self._run.log({f"{kind}/{name}": make(part) for name, part in parts.items()})
            except Exception as error:
                self._tracking.report(f"add {kind}", error)

    def keep(self, folder: Path, report: Any = None) -> None:
        if self._tracking.artifacts == "none":
            return
        try:
            artifacts.keep(self._run, folder, has_all=self._tracking.artifacts == "all")
            if self._tracking.artifacts == "all" and (table := artifacts.predictions(folder, report)) is not None:
                self._run.log({"predictions": artifacts.table(table)})
        except Exception as error:
            self._tracking.report("keep files", error)

    def finish(self, status: str, summary: Mapping[str, Any] | None = None) -> None:
        if self.is_finished:
            return
        self.is_finished = True
        try:
            self._run.summary.update({"status": status, **_flat(summary or {}, "/")})
        except Exception as error:
            self._tracking.report("write a summary", error)
        exit_code = 0 if status == "finished" else 1
        if self._is_online:
            self._tracking.end_beside(lambda: self._end(exit_code))
            return
        self._end(exit_code)
        if status == "stopped":
            shutil.rmtree(Path(self._run.dir).parent, ignore_errors=True)

    def _end(self, exit_code: int) -> None:
        try:
            self._run.finish(exit_code=exit_code)
        except TimeoutError as error:
            self._tracking.lost_server(error)
        except Exception as error:
            self._tracking.report("finish a run", error)


def _flat(values: Mapping[str, Any], separator: str, prefix: str = "") -> dict[str, Any]:
    """Nested values under joined names, as plain types and without secrets; null and non-finite values are left out."""
    plain = values if prefix else {name: value for name, value in canonical(values).items() if name != "not_finite"}
    flat: dict[str, Any] = {}
    for name, value in plain.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, separator, f"{prefix}{name}{separator}")
        elif value is not None:
            flat[f"{prefix}{name}"] = value
    return flat


def _clipped(text: str, length: int) -> str:
    text = scrub_override(str(text))
    return text if len(text) <= length else f"{text[: length - 1]}…"


def _words(error: BaseException) -> str:
    lines = scrub(str(error)).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


# Key and server


def _base_url() -> str:
    import wandb

    # Silent before anything can print; the singleton reads WANDB_BASE_URL and the settings files of `wandb login`.
    return wandb.setup(settings=wandb.Settings(silent=True)).settings.base_url.rstrip("/")


def _has_key(url: str) -> bool:
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    # wandb's hosted service has had two names, and a key stored under the older one is still valid.
    hosts = {urlsplit(url).netloc} | ({"api.wandb.ai"} if url.endswith(("coreweave.com", "wandb.ai")) else set())
    own = os.environ.get("NETRC")
    folder = home()
    for path in [Path(own)] if own else [folder / ".netrc", folder / "_netrc"] if folder else []:
        try:
            entries = netrc.netrc(path)
        except (OSError, netrc.NetrcParseError):
            continue
        if any(entry and entry[2] for entry in (entries.hosts.get(host) for host in hosts)):
            return True
    return False


@cache
def _unreachable(url: str) -> str | None:
    """The reason why the server does not answer, or None when it does."""
    answer: list[str | None] = []
    # In a thread, because a silent name server blocks its caller for longer than any timeout.
    asking = threading.Thread(target=lambda: answer.append(_ask(url)), daemon=True, name="lora_bench-probe")
    asking.start()
    asking.join(PROBE_SECONDS)
    return answer[0] if answer else f"no answer within {PROBE_SECONDS:g} s"


def _ask(url: str) -> str | None:
    import requests

    try:
        # Explicitly no authentication: otherwise requests would send the key that it finds in .netrc.
        answer = requests.get(f"{url}/healthz", timeout=PROBE_SECONDS - 0.5, stream=True, auth=lambda request: request)
        answer.close()
    except Exception as error:
        return type(error).__name__
    return f"status {answer.status_code}" if answer.status_code >= 500 else None
