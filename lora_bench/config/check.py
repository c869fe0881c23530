"""Refuse the values of a configuration that cannot be, alone or beside each other."""

import re

from lora_bench.config.errors import ConfigError
from lora_bench.config.facts import Key, check_value
from lora_bench.config.grammar import ROLES, parse_budget, parse_layers, parse_rank_pattern, parse_targets
from lora_bench.config.schema import KEYS, LORA_METHODS, AdapterConfig, ModelConfig, RunConfig, TaskConfig


def check(config: RunConfig) -> None:
    """Refuse impossible values; what depends on the backbone or the data is checked where those are known.

    Raises:
        ConfigError: naming the key, the value and what would work.
    """
    for key in KEYS:
        if _is_read(key, config):
            check_value(key, key.of(config))
    _check_model(config.model)
    _check_task(config.task)
    _check_adapter(config.adapter)
    if config.train.batch_size % config.train.grad_accumulation:
        raise ConfigError(
            f"train.grad_accumulation: {config.train.grad_accumulation} does not divide "
            f"train.batch_size={config.train.batch_size}"
        )


def _is_read(key: Key, config: RunConfig) -> bool:
    """Whether a run reads the field, so that its limits matter."""
    if key.name.startswith("planted_"):
        return config.task.source == "planted"
    if key.path == "adapter.rank":
        adapter = config.adapter
        return adapter.method in LORA_METHODS and adapter.budget is None and adapter.like is None
    return True


def _check_model(model: ModelConfig) -> None:
    if model.packaged and set(model.packaged) != {"name", "package", "sha256"}:
        raise ConfigError(
            f"model.packaged: {', '.join(sorted(model.packaged))}; give name, package and sha256, or nothing"
        )
    if (package := model.packaged.get("package")) is not None and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", package):
        raise ConfigError(
            f"model.packaged.package: {package!r} is no package; give the name of one that is installed, without dots"
        )
    for key, value in (("sha256", model.sha256), ("packaged.sha256", model.packaged.get("sha256"))):
        if value is not None and not re.fullmatch(r"[0-9a-f]{64}", value):
            raise ConfigError(f"model.{key}: {value!r} is no sha256; give 64 hexadecimal digits, or null")
    if model.gguf is not None:
        if model.weights == "random":
            raise ConfigError(f"model.gguf: {model.gguf!r} beside model.weights=random; add model.weights=pretrained")
        if model.revision is not None:
            raise ConfigError(f"model.revision: {model.revision!r} beside model.gguf; a file has none, give null")
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
    if not re.fullmatch(r"[A-Za-z0-9_.-]+", task.name):
        raise ConfigError(f"task.name: {task.name!r}; use letters, digits, '.', '_' and '-'")
    if task.phenomena and task.source != "generated":
        raise ConfigError(f"task.phenomena: {task.name!r} is no embedded task; add task.phenomena=[]")
    if task.select_rows is not None and task.select_file:
        raise ConfigError("task.select_rows: select has a file of its own; give select_rows or select_file, not both")
    for metric in task.metrics:
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
    parse_targets(str(task.planted_targets), key="task.planted_targets")


def _check_adapter(adapter: AdapterConfig) -> None:
    if adapter.method == "lora_plus" and adapter.b_lr_ratio == 1:
        raise ConfigError("adapter.b_lr_ratio: 1 makes lora_plus plain lora; give a ratio such as 16")
    if adapter.method != "lora_plus" and adapter.b_lr_ratio != 1:
        raise ConfigError(f"adapter.b_lr_ratio: {adapter.b_lr_ratio} has no effect on {adapter.method}; use lora_plus")
    if adapter.method not in LORA_METHODS:
        return
    if adapter.like is not None:
        _check_alone(adapter)
        return
    parse_targets(adapter.targets)
    parse_layers(adapter.layers)
    pattern = parse_rank_pattern(adapter.rank_pattern)
    if adapter.budget is not None:
        parse_budget(adapter.budget)
        if adapter.rank is not None:
            raise ConfigError(
                f"adapter.rank: {adapter.rank} beside adapter.budget={adapter.budget}; add adapter.rank=null to use "
                "the budget, or adapter.budget=null to use the rank"
            )
    elif adapter.rank is None and not pattern:
        raise ConfigError("adapter.rank: null without adapter.budget; give a rank such as 8, or a budget such as q@8")


def _check_alone(adapter: AdapterConfig) -> None:
    """Refuse what says where an adapter lies beside the file that says it; targets and rank may be a preset's."""
    given = {"budget": adapter.budget, "rank_pattern": adapter.rank_pattern}
    given |= {} if adapter.layers == "all" else {"layers": adapter.layers}
    for name, value in given.items():
        if value is not None:
            works = f"give {'all' if name == 'layers' else 'null'}, or no adapter.like"
            raise ConfigError(f"adapter.{name}: {value!r} beside adapter.like, whose file says it; {works}")
