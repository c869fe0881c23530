"""The configuration of a run: its fields and their limits.

Values live in conf/; types and limits live here and nowhere else.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from lora_bench.config.errors import ConfigError, did_you_mean
from lora_bench.config.grammar import ROLES, parse_budget, parse_layers, parse_targets

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
