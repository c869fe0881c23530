"""The configuration of a run: its schema, its limits, and its identity.

Values live in conf/; types and limits live here and nowhere else. `parse` turns a composed configuration into
dataclasses, so below it no code sees a DictConfig. `science` reduces a run to what can change its result, and `run_id`
hashes that:

    run_id = sha256(canonical JSON of the science without display names)[:16]

The same science has the same id wherever, and with whatever neighbours, it ran.
"""

import contextlib
import copy
import difflib
import hashlib
import json
import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, get_args, get_origin

from omegaconf import MISSING, DictConfig, OmegaConf, open_dict
from omegaconf.errors import (
    ConfigKeyError,
    InterpolationResolutionError,
    MissingMandatoryValue,
    OmegaConfBaseException,
    ValidationError,
)

from lora_bench import paths

PROTOCOL = 1
"""Version of everything that turns a configuration into scores. Raised whenever old records stop being comparable."""

ROLES = ("q", "k", "v", "o", "up", "gate", "down")
GROUPS = {"attention": ("q", "k", "v", "o"), "mlp": ("up", "gate", "down"), "all": ROLES}
METHODS = ("lora", "lora_plus", "dora", "head_only", "bitfit", "full")
LORA_METHODS = ("lora", "lora_plus", "dora")
INITS = ("gaussian", "kaiming", "peft_gaussian", "pissa", "olora")
ALPHA_POLICIES = ("fixed", "ratio", "rslora")
SCHEDULES = ("linear", "constant")
PRECISIONS = ("auto", "fp32", "bf16", "fp64")
SOURCES = ("glue", "generated", "files", "planted")
KINDS = ("classification", "regression")
METRICS = ("accuracy", "balanced_accuracy", "matthews", "f1", "pearson", "spearman")

KEEP_ADAPTERS = ("all", "best", "none")

KEY_ALIASES = {"store.keep_adapters": "keep_adapters"}
"""Keys by the name that people give them, and by the name that the schema has: `store` itself is a folder."""

COMMAND_KEYS = ("hydra", "show", "pack")
"""Keys of a composed configuration that steer the command and are no part of a run."""

LATER_FIELDS: dict[str, Any] = {}
"""Scientific fields added after protocol 1, by dotted path, with the value that earlier versions amounted to.

They enter a run's identity only where they differ from it, so the records from before keep their ids.
"""


def resource_root() -> Path:
    """The folder that holds conf/ and sweeps/: this package in a wheel, the checkout in an editable install."""
    package = Path(__file__).resolve().parent
    return package if (package / "conf").is_dir() else package.parent


class ConfigError(ValueError):
    """A configuration that cannot run: names the key, the value given and what would work."""


@dataclass
class ModelConfig:
    """A frozen backbone: a Hub name, a local folder, or (`weights: random`) an architecture with seeded weights."""

    name: str = MISSING
    revision: str | None = None
    weights: str = MISSING  # pretrained | random
    packaged: dict[str, str] = field(
        default_factory=dict
    )  # a Python `package` with the weights of the Hub's `name`, and their `sha256`; other names leave it out
    sha256: str | None = None  # of model.safetensors, checked before loading
    architecture: dict[str, Any] = field(default_factory=dict)  # transformers config values, for random weights
    roles: dict[str, str] = field(
        default_factory=dict
    )  # role -> regular expression of module paths, where detection fails
    trust_remote_code: bool = False


@dataclass
class TaskConfig:
    """A task and where its rows come from. Column and file names matter to `source: files` only."""

    name: str = MISSING
    source: str = MISSING
    data_dir: str | None = None
    revision: str | None = None
    train_rows: int | None = None
    report_rows: int | None = None
    select_rows: int | None = None  # null: a tenth of train, at most 1,000
    phenomena: list[str] = field(default_factory=list)  # constructions of an embedded task; empty: all
    kind: str = "classification"
    train_file: str | None = None
    select_file: str | None = None
    report_file: str | None = None
    text_columns: list[str] = field(default_factory=list)
    label_column: str | None = None
    metrics: list[str] = field(default_factory=list)
    planted_texts: str | None = None  # the embedded task whose sentences a planted teacher labels
    planted_targets: str | None = None
    planted_rank: int | None = None
    planted_strength: float | None = None  # norm of the teacher's update over that of the weight
    planted_noise: float | None = None  # share of train and select labels that are turned over
    planted_seed: int | None = None


@dataclass
class AdapterConfig:
    """Which matrices are adapted, how, and how much."""

    method: str = MISSING
    targets: str = MISSING
    rank: int | None = None
    budget: int | str | None = None  # adapter parameters, or what a placement costs: q@8
    alpha: float = MISSING
    alpha_policy: str = MISSING  # fixed: alpha/rank; ratio: alpha; rslora: alpha/sqrt(rank)
    dropout: float = MISSING
    init: str = MISSING
    layers: Any = MISSING  # all, first:N, last:N or a list of layer numbers
    replicate: int = MISSING
    b_lr_ratio: float = 1.0  # learning rate of B over that of A (LoRA+, arXiv:2402.12354)


@dataclass
class TrainConfig:
    """The optimisation: AdamW, one schedule, per-run clipping."""

    lr: float = MISSING
    head_lr: float | None = None
    epochs: float = MISSING
    batch_size: int = MISSING
    grad_accumulation: int = MISSING
    max_length: int = MISSING
    schedule: str = MISSING
    warmup_ratio: float = MISSING
    weight_decay: float = MISSING
    max_grad_norm: float = MISSING
    precision: str = MISSING
    dropout: float | None = None  # null keeps the backbone's own
    checkpoint: str = MISSING  # last | best (by the primary metric on select, at epoch ends)
    compile: bool = False


@dataclass
class TrackingConfig:
    """Where runs are mirrored to. The store stays the truth."""

    backend: str = MISSING
    project: str = "lora_bench"
    entity: str | None = None
    mode: str = "auto"  # auto | online | offline
    tags: list[str] = field(default_factory=list)


@dataclass
class RunConfig:
    """One run: a cell and a seed."""

    model: ModelConfig = field(default_factory=ModelConfig)
    task: TaskConfig = field(default_factory=TaskConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    seed: int = MISSING
    store: str = MISSING
    keep_adapters: str = "all"  # all | best | none: which runs keep their adapters on disk; no part of a run's identity
    device: str = "auto"  # auto | cpu | cuda


def parse(composed: DictConfig | Mapping[str, Any]) -> RunConfig:
    """Check a composed configuration against the schema and the limits.

    Raises:
        ConfigError: on an unknown key, a wrong type, a missing or impossible value.
    """
    with _in_our_words():
        config: Any = OmegaConf.to_object(_typed(composed))
    config = _with_whole_paths(config)
    check(config)
    return config


class Template:
    """A composed configuration that is parsed again and again with other values: parsing anew costs 30 ms, this 1 ms.

    Every parse must set the same keys, so that none keeps the value of an earlier one; they must exist in the schema,
    and no value may refer to another (`is_fit`).
    """

    def __init__(self, composed: DictConfig):
        with _in_our_words():
            self._typed = _typed(composed)
            self._first: Any = OmegaConf.to_object(self._typed)

    @staticmethod
    def can_set(key: str) -> bool:
        """Whether a dotted key names one value of the schema."""
        return _is_value(key)

    @staticmethod
    def is_fit(composed: DictConfig, keys: Iterable[str]) -> bool:
        """Whether parsing by this class equals parsing anew."""
        return "${" not in OmegaConf.to_yaml(composed) and all(map(_is_value, keys))

    def parse(self, values: Mapping[str, Any]) -> RunConfig:
        """The configuration with these values, by dotted key, checked as `parse` does.

        Raises:
            ConfigError: as `parse` does.
        """
        config = self._first
        for key, value in values.items():
            section, _, name = key.rpartition(".")
            kind = {each.name: each.type for each in fields(getattr(config, section) if section else config)}[name]
            _refuse_switch(key, kind, value)
            with _in_our_words():
                OmegaConf.update(self._typed, key, value, merge=False)
                held = OmegaConf.select(self._typed, key)
            held = OmegaConf.to_object(held) if OmegaConf.is_config(held) else held
            part = {section: replace(getattr(config, section), **{name: held})} if section else {name: held}
            config = replace(config, **part)
        config = _with_whole_paths(config)
        check(config)
        return config


def check(config: RunConfig) -> None:
    """Refuse impossible values; what depends on the backbone or the data is checked where those are known.

    Raises:
        ConfigError: naming the key, the value and what would work.
    """
    _check_model(config.model)
    _check_task(config.task)
    _check_adapter(config.adapter)
    _check_train(config.train)
    _choice("tracking.backend", config.tracking.backend, ("wandb", "none"))
    _choice("tracking.mode", config.tracking.mode, ("auto", "online", "offline"))
    _text("tracking.project", config.tracking.project)
    _number("seed", config.seed, low=0, high=2**31 - 1)
    _text("store", config.store)
    _choice("store.keep_adapters", config.keep_adapters, KEEP_ADAPTERS)
    _choice("device", config.device, ("auto", "cpu", "cuda"))


def _with_whole_paths(config: RunConfig) -> RunConfig:
    """Every path with its `~` replaced: the one place that does so. Ids hold no paths, so none moves.

    Raises:
        ConfigError: when there is no such home, or the locale cannot spell the path.
    """
    parts: dict[str, Any] = {"": config, "model.": config.model, "task.": config.task}
    keys = {"": ("store",), "model.": ("name",), "task.": ("data_dir", "train_file", "select_file", "report_file")}
    for section, part in parts.items():
        for name in keys[section]:
            try:
                text = getattr(part, name)
                part = replace(part, **{name: paths.expanded(text)}) if text else part
            except paths.PathError as error:
                raise ConfigError(f"{section}{name}: {error}") from None
        parts[section] = part
    return replace(parts[""], model=parts["model."], task=parts["task."])


def parse_targets(text: str, *, key: str = "adapter.targets") -> tuple[str, ...]:
    """The roles and groups that a target string names, in order, each once.

    Parts are joined by `+`; a part is a group, an MLP role, or letters of `qkvo`: `qv`, `qkvo+up+down`.

    Raises:
        ConfigError: on an unknown, empty or repeated role.
    """
    works = f"roles are {', '.join(ROLES)}, groups {', '.join(GROUPS)}"
    if not isinstance(text, str) or not text.strip():
        raise ConfigError(f"{key}: no role in {text!r}; roles are {', '.join(ROLES)}, groups {', '.join(GROUPS)}")
    found: list[str] = []
    for part in text.strip().split("+"):
        part = part.strip()
        if part in GROUPS or part in ROLES:
            found.append(part)
            continue
        unknown = [letter for letter in part if letter not in "qkvo"] if len(part) <= 4 else [part]
        if not part or unknown:
            named = unknown[0] if unknown else part
            hint = did_you_mean(named, (*ROLES, *GROUPS))
            raise ConfigError(f"{key}: no role {named!r} in {text!r}; {works}{hint}")
        found.extend(part)
    repeated = [role for role in dict.fromkeys(found) if found.count(role) > 1]
    if repeated:
        raise ConfigError(f"{key}: role {repeated[0]!r} is named twice in {text!r}; name each once")
    return tuple(found)


def spell_targets(roles: Collection[str]) -> str:
    """Canonical text of a set of roles: attention letters joined, then the MLP roles: `qv+up+down`."""
    letters = "".join(role for role in "qkvo" if role in roles)
    return "+".join([*([letters] if letters else []), *(role for role in ("up", "gate", "down") if role in roles)])


def parse_budget(budget: int | str) -> int | tuple[tuple[str, ...], int]:
    """A budget as a number of adapter parameters, or as (roles, rank) whose cost it is.

    Raises:
        ConfigError: when it is neither a positive number nor of the form `q@8`.
    """
    if isinstance(budget, int) and not isinstance(budget, bool):
        if budget < 1:
            raise ConfigError(
                f"adapter.budget: {budget} is below 1; give a number of parameters, or a cost such as q@8"
            )
        return budget
    text = str(budget).strip()
    if re.fullmatch(r"[0-9][0-9_]*", text):
        return parse_budget(int(text))
    matched = re.fullmatch(r"([a-z+]+)@([0-9]+)", text)
    if not matched or int(matched[2]) < 1:
        raise ConfigError(f"adapter.budget: cannot read {budget!r}; give a number of parameters, or a cost such as q@8")
    return parse_targets(matched[1]), int(matched[2])


def parse_layers(layers: Any, n_layers: int | None = None) -> str | tuple[str, int] | tuple[int, ...]:
    """`all`, ('first' | 'last', n) or layer numbers, counted from 0.

    Raises:
        ConfigError: when unreadable, empty, repeated or (with `n_layers`) out of range.
    """
    say = "adapter.layers"
    works = "give all, first:N, last:N or a list such as [0,2,5]"
    if layers == "all":
        return "all"
    if isinstance(layers, str) and (matched := re.fullmatch(r"(first|last):([0-9]+)", layers)):
        count = int(matched[2])
        if count < 1 or (n_layers is not None and count > n_layers):
            raise ConfigError(f"{say}: {layers!r} is out of range; the backbone has {n_layers or 'at least 1'} layers")
        return str(matched[1]), count
    if isinstance(layers, (list, tuple)) and layers and all(type(layer) is int for layer in layers):
        if len(set(layers)) < len(layers):
            raise ConfigError(f"{say}: {list(layers)} names a layer twice; name each once")
        outside = [layer for layer in layers if layer < 0 or (n_layers is not None and layer >= n_layers)]
        if outside:
            limit = f"0 to {n_layers - 1}" if n_layers else "0 and above"
            raise ConfigError(f"{say}: no layer {outside[0]} in {list(layers)}; layers are {limit}")
        return tuple(sorted(int(layer) for layer in layers))
    raise ConfigError(f"{say}: cannot read {layers!r}; {works}")


def science(
    config: RunConfig,
    *,
    model_fingerprint: str,
    task_fingerprint: str,
    metrics: Sequence[str],
    train_rows: int,
    targets: str,
    rank: int | dict[str, int] | None,
    layers: str | Sequence[int],
    precision: str,
) -> dict[str, Any]:
    """What can change a run's result, canonically: resolved values in, ignored fields out.

    Args:
        targets: canonical roles of this backbone (`spell_targets`); empty for methods without targets.
        rank: one rank, or module path -> rank where they differ.
        layers: `all`, or the layer numbers.
        train_rows: rows of the train split after cutting.
    """
    adapter, train = config.adapter, config.train
    head_lr = train.lr if train.head_lr is None else train.head_lr
    model = {"name": display_name(config.model.name), "fingerprint": model_fingerprint}
    if config.model.revision:
        model["revision"] = config.model.revision
    result: dict[str, Any] = {
        "protocol": PROTOCOL,
        "model": model,
        "task": {
            "name": config.task.name,
            "fingerprint": task_fingerprint,
            "metrics": list(metrics),
            "train_rows": train_rows,
        },
        "adapter": {"method": adapter.method},
        "train": {
            "head_lr": head_lr,
            "epochs": train.epochs,
            "batch_size": train.batch_size,
            "grad_accumulation": train.grad_accumulation,
            "max_length": train.max_length,
            "schedule": train.schedule,
            "warmup_ratio": train.warmup_ratio,
            "weight_decay": train.weight_decay,
            "max_grad_norm": train.max_grad_norm,
            "precision": precision,
            "dropout": train.dropout,
            "checkpoint": train.checkpoint,
        },
        "seed": config.seed,
    }
    if adapter.method != "head_only":
        result["train"]["lr"] = train.lr
    if adapter.method in LORA_METHODS:
        result["adapter"] |= {
            "targets": targets,
            "rank": rank,
            "alpha": adapter.alpha,
            "alpha_policy": adapter.alpha_policy,
            "dropout": adapter.dropout,
            "init": adapter.init,
            "layers": layers if isinstance(layers, str) else list(layers),
            "replicate": adapter.replicate,
        }
    if adapter.method == "lora_plus":
        result["adapter"]["b_lr_ratio"] = adapter.b_lr_ratio
    return result


def run_id(science: Mapping[str, Any]) -> str:
    """Sixteen hexadecimal digits of the science's hash. Display names and revisions do not enter, weights do."""
    identity = dict(science)
    identity["model"] = {"fingerprint": science["model"]["fingerprint"]}
    for path, before in LATER_FIELDS.items():
        section, _, name = path.rpartition(".")
        held = identity.get(section) if section else identity
        if isinstance(held, Mapping) and name in held and held[name] == before:
            held = {key: value for key, value in held.items() if key != name}
            identity = identity | {section: held} if section else held
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def cell_id(science: Mapping[str, Any]) -> str:
    """The id of a run's cell: its science without the seed."""
    return run_id({key: value for key, value in science.items() if key != "seed"})


def schema_override(override: str) -> str:
    """An override whose key is spelled as the schema has it (`KEY_ALIASES`)."""
    key, mark, value = override.partition("=")
    name = key.lstrip("+~")
    return f"{key[: len(key) - len(name)]}{KEY_ALIASES.get(name, name)}{mark}{value}"


def display_name(name: str) -> str:
    """A backbone's name for people: the Hub name, or the last part of a local folder."""
    is_path = name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name
    return re.split(r"[/\\]", name.rstrip("/\\"))[-1] if is_path else name


def to_dict(config: Any) -> dict[str, Any]:
    """A dataclass configuration as plain JSON values, in schema order."""
    values = ((each.name, getattr(config, each.name)) for each in fields(config))
    return {name: to_dict(value) if is_dataclass(value) else value for name, value in values}


def _check_model(model: ModelConfig) -> None:
    _text("model.name", model.name)
    _choice("model.weights", model.weights, ("pretrained", "random"))
    if model.packaged and set(model.packaged) != {"name", "package", "sha256"}:
        raise ConfigError(
            f"model.packaged: {', '.join(sorted(model.packaged))}; give name, package and sha256, or nothing"
        )
    for key, value in (("sha256", model.sha256), ("packaged.sha256", model.packaged.get("sha256"))):
        if value is not None and not re.fullmatch(r"[0-9a-f]{64}", value):
            raise ConfigError(f"model.{key}: {value!r} is no sha256; give 64 hexadecimal digits, or null")
    if model.weights == "random" and "model_type" not in model.architecture:
        raise ConfigError("model.architecture: no model_type; random weights need one, such as bert")
    for role in model.roles:
        if role not in ROLES:
            raise ConfigError(f"model.roles: no role {role!r}; roles are {', '.join(ROLES)}")
    for role, pattern in model.roles.items():
        try:
            re.compile(pattern)
        except re.error as error:
            raise ConfigError(f"model.roles.{role}: {pattern!r} is no regular expression ({error})") from None


def _check_task(task: TaskConfig) -> None:
    _text("task.name", task.name)
    if not re.fullmatch(r"[A-Za-z0-9_.-]+", task.name):
        raise ConfigError(f"task.name: {task.name!r}; use letters, digits, '.', '_' and '-'")
    _choice("task.source", task.source, SOURCES)
    _choice("task.kind", task.kind, KINDS)
    for key in ("train_rows", "select_rows", "report_rows"):
        value = getattr(task, key)
        if value is not None:
            _number(f"task.{key}", value, low=1)
    if task.phenomena and task.source != "generated":
        raise ConfigError(f"task.phenomena: {task.name!r} is no embedded task; add task.phenomena=[]")
    if task.select_rows is not None and task.select_file:
        raise ConfigError("task.select_rows: select has a file of its own; give select_rows or select_file, not both")
    for metric in task.metrics:
        _choice("task.metrics", metric, METRICS)
        if (metric in ("pearson", "spearman")) != (task.kind == "regression"):
            raise ConfigError(f"task.metrics: {metric!r} does not score a {task.kind} task")
    _check_planted(task)
    if task.source == "files":
        for key in ("train_file", "report_file"):
            if not getattr(task, key):
                raise ConfigError(f"task.{key}: no file given; task=files needs train_file and report_file")
        if not 1 <= len(task.text_columns) <= 2:
            raise ConfigError(f"task.text_columns: {len(task.text_columns)} given; name one or two columns")
        if not task.label_column:
            raise ConfigError("task.label_column: no column given; name the column that holds the labels")


def _check_planted(task: TaskConfig) -> None:
    given = {key: value for key, value in vars(task).items() if key.startswith("planted_")}
    if task.source != "planted":
        for key, value in given.items():
            if value is not None:
                raise ConfigError(f"task.{key}: {value!r}, but {task.name!r} has no teacher; use task=planted, or null")
        return
    for key, value in given.items():
        if value is None:
            raise ConfigError(f"task.{key}: no value given; task=planted needs one")
    _text("task.planted_texts", task.planted_texts)
    parse_targets(str(task.planted_targets), key="task.planted_targets")
    _number("task.planted_rank", task.planted_rank or 0, low=1, high=65536)
    _number("task.planted_strength", task.planted_strength or 0, low=0, high=1e3, open_low=True)
    _number("task.planted_noise", task.planted_noise or 0, low=0, high=0.5)
    _number("task.planted_seed", task.planted_seed or 0, low=0, high=2**31 - 1)


def _check_adapter(adapter: AdapterConfig) -> None:
    _choice("adapter.method", adapter.method, METHODS)
    _choice("adapter.alpha_policy", adapter.alpha_policy, ALPHA_POLICIES)
    _choice("adapter.init", adapter.init, INITS)
    _number("adapter.alpha", adapter.alpha, low=0, open_low=True)
    _number("adapter.dropout", adapter.dropout, low=0, high=1, open_high=True)
    _number("adapter.replicate", adapter.replicate, low=0)
    _number("adapter.b_lr_ratio", adapter.b_lr_ratio, low=0, open_low=True)
    if adapter.method == "lora_plus" and adapter.b_lr_ratio == 1:
        raise ConfigError("adapter.b_lr_ratio: 1 makes lora_plus plain lora; give a ratio such as 16")
    if adapter.method != "lora_plus" and adapter.b_lr_ratio != 1:
        raise ConfigError(f"adapter.b_lr_ratio: {adapter.b_lr_ratio} has no effect on {adapter.method}; use lora_plus")
    if adapter.method not in LORA_METHODS:
        return
    parse_targets(adapter.targets)
    parse_layers(adapter.layers)
    if adapter.budget is not None:
        parse_budget(adapter.budget)
        if adapter.rank is not None:
            raise ConfigError(
                f"adapter.rank: {adapter.rank} beside adapter.budget={adapter.budget}; add adapter.rank=null to use "
                "the budget, or adapter.budget=null to use the rank"
            )
    elif adapter.rank is None:
        raise ConfigError("adapter.rank: null without adapter.budget; give a rank such as 8, or a budget such as q@8")
    else:
        _number("adapter.rank", adapter.rank, low=1, high=65536)


def _check_train(train: TrainConfig) -> None:
    _number("train.lr", train.lr, low=0, high=1e7, open_low=True)
    if train.head_lr is not None:
        _number("train.head_lr", train.head_lr, low=0, high=1e7)
    _number("train.epochs", train.epochs, low=0, high=10_000, open_low=True)
    _number("train.batch_size", train.batch_size, low=1)
    _number("train.grad_accumulation", train.grad_accumulation, low=1)
    if train.batch_size % train.grad_accumulation:
        raise ConfigError(
            f"train.grad_accumulation: {train.grad_accumulation} does not divide train.batch_size={train.batch_size}"
        )
    _number("train.max_length", train.max_length, low=4, high=1_000_000)
    _choice("train.schedule", train.schedule, SCHEDULES)
    _number("train.warmup_ratio", train.warmup_ratio, low=0, high=1)
    _number("train.weight_decay", train.weight_decay, low=0, high=10)
    _number("train.max_grad_norm", train.max_grad_norm, low=0, open_low=True)
    _choice("train.precision", train.precision, PRECISIONS)
    if train.dropout is not None:
        _number("train.dropout", train.dropout, low=0, high=1, open_high=True)
    _choice("train.checkpoint", train.checkpoint, ("last", "best"))


def _choice(key: str, value: object, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ConfigError(f"{key}: no {value!r}; choices are {', '.join(choices)}{did_you_mean(str(value), choices)}")


def _text(key: str, value: object) -> None:
    if not isinstance(value, str) or not value.strip():
        raise ConfigError(f"{key}: {value!r} is empty; give a name")


def _number(
    key: str,
    value: float,
    *,
    low: float | None = None,
    high: float | None = None,
    open_low: bool = False,
    open_high: bool = False,
) -> None:
    """Refuse a number that is not finite or lies outside its interval."""
    if not math.isfinite(value):
        raise ConfigError(f"{key}: {value} is not finite")
    if low is not None and (value < low or (open_low and value == low)):
        raise ConfigError(f"{key}: {value} is too small; give a value {'above' if open_low else 'of at least'} {low}")
    if high is not None and (value > high or (open_high and value == high)):
        raise ConfigError(f"{key}: {value} is too large; give a value {'below' if open_high else 'of at most'} {high}")


def _typed(composed: DictConfig | Mapping[str, Any]) -> DictConfig:
    given = _own_part(composed)
    _refuse_wrong_scalars(given)
    merged: Any = OmegaConf.merge(OmegaConf.structured(RunConfig), given)
    return merged


@contextlib.contextmanager
def _in_our_words() -> Iterator[None]:
    """Turn OmegaConf's errors into ours."""
    try:
        yield
    except ConfigKeyError as error:
        raise ConfigError(unknown_key(str(error.full_key or error.key))) from None
    except MissingMandatoryValue as error:
        raise ConfigError(f"{error.full_key}: no value given; set it on the command line or in a config file") from None
    except ValidationError as error:
        raise ConfigError(f"{error.full_key}: {_explain(error)}") from None
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key or 'configuration'}: {_first_line(error)}") from None


def _is_value(key: str) -> bool:
    """Whether a dotted key of the schema names one value: no section, no mapping, nothing inside a value."""
    section, _, name = key.rpartition(".")
    schema: Any = RunConfig
    if section:
        held = next((each for each in fields(schema) if each.name == section), None)
        schema = held.type if held else None
    kinds = {each.name: each.type for each in fields(schema)} if is_dataclass(schema) else {}
    return name in kinds and not is_dataclass(kinds[name]) and get_origin(kinds[name]) is not dict


def _refuse_wrong_scalars(given: DictConfig) -> None:
    """OmegaConf reads `true` as the number 1: a switch where a number belongs is a mistake, not a value."""

    def walk(schema: Any, values: Any, prefix: str) -> None:
        if not OmegaConf.is_dict(values):
            return
        for each in fields(schema):
            name = each.name
            if name not in values or OmegaConf.is_missing(values, name) or OmegaConf.is_interpolation(values, name):
                continue
            value = values[name]
            nested = each.default_factory() if callable(each.default_factory) else None  # type: ignore[misc]
            if is_dataclass(nested):
                if value is None:
                    raise ConfigError(f"{prefix}{name}: null; give its keys, or leave it out")
                walk(nested, value, f"{prefix}{name}.")
            else:
                _refuse_switch(f"{prefix}{name}", each.type, value)

    walk(RunConfig, given, "")


def _refuse_switch(key: str, kind: Any, value: Any) -> None:
    if isinstance(value, bool) and kind is not bool and kind is not Any:
        raise ConfigError(f"{key}: {str(value).lower()} is a switch; give a {_type_name(kind)}")


def _type_name(kind: Any) -> str:
    words = {int: "whole number", float: "number", str: "text"}
    members = [member for member in (get_args(kind) or (kind,)) if member is not type(None)]
    return " or ".join(words.get(member, getattr(member, "__name__", str(member))) for member in members)


def unknown_key(full: str) -> str:
    """The message for a key that the schema does not have: its neighbours, and the likeliest one."""
    head, _, tail = full.rpartition(".")
    schema: Any = RunConfig
    for part in head.split(".") if head else []:
        known = {each.name: each for each in fields(schema)} if is_dataclass(schema) else {}
        if part not in known or not callable(known[part].default_factory):
            return unknown_key(head) if schema is RunConfig else f"{full}: no such key"
        schema = type(known[part].default_factory())  # type: ignore[misc]
    if full == "sweeps":
        return "sweeps: no sweep was loaded; name a file of sweeps/ as +sweeps=NAME, such as +sweeps=quick"
    names = [each.name for each in fields(schema)] if is_dataclass(schema) else []
    if not head and (found := _sections_with(tail)):
        return f"{full}: no such key; did you mean {' or '.join(f'{section}.{tail}' for section in found)}?"
    where = f"keys of {head} are" if head else "keys are"
    return f"{full}: no such key; {where} {', '.join(names)}{did_you_mean(tail, names)}"


def _sections_with(name: str) -> list[str]:
    """Sections of the schema that have a key of this name."""
    parts = {each.name: each.default_factory for each in fields(RunConfig) if callable(each.default_factory)}
    held = {section: make() for section, make in parts.items()}
    return [one for one, part in held.items() if is_dataclass(part) and name in {each.name for each in fields(part)}]


def did_you_mean(given: str, choices: Sequence[str]) -> str:
    """The closest choice, as the end of a message; empty when none is close."""
    hint = difflib.get_close_matches(given, choices, n=1)
    return f" (did you mean {hint[0]!r}?)" if hint else ""


def _own_part(composed: DictConfig | Mapping[str, Any]) -> DictConfig:
    """The composed configuration without the command's own keys, with a preset's per-task table looked up."""
    given: Any = copy.deepcopy(composed) if isinstance(composed, DictConfig) else OmegaConf.create(dict(composed))
    with open_dict(given):
        for key in COMMAND_KEYS:
            given.pop(key, None)
        train = given.get("train")
        table = train.get("per_task") if isinstance(train, DictConfig) else None
        if table is None:
            return given
        task = OmegaConf.select(given, "task.name")
        try:
            values: Any = OmegaConf.to_container(given.train, resolve=True)
        except InterpolationResolutionError:
            known = ", ".join(map(str, table))
            raise ConfigError(f"train: this preset has no values for task {task!r}; it has {known}") from None
        given.train = {key: value for key, value in values.items() if key != "per_task"}
    return given


def _explain(error: Exception) -> str:
    """OmegaConf's first line, with what would work."""
    said = _first_line(error)
    if "is not a ListConfig" in said:
        return "one value where a list belongs; write it in brackets, as [a,b]"
    hints = {"to Integer": "give a whole number", "to Float": "give a number", "valid bool": "give true or false"}
    hint = next((hint for kind, hint in hints.items() if kind in said), None)
    return f"{said}; {hint}" if hint else said


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
