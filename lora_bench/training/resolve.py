"""From a configuration to a run: everything that can be known, and everything that can be refused, before weights
load."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from lora_bench.config.errors import ConfigError
from lora_bench.config.grammar import parse_rank_pattern, spell_targets
from lora_bench.config.identity import cell_id, run_id, science
from lora_bench.config.schema import LORA_METHODS, RunConfig
from lora_bench.models import adapters, blueprint, budget, devices, roles, seeds, starts
from lora_bench.models.blueprint import Blueprint
from lora_bench.models.published import published_matrices
from lora_bench.models.roles import Matrix
from lora_bench.paths import cache_folder, resource_root
from lora_bench.tasks.load import load_task
from lora_bench.tasks.rows import Task
from lora_bench.tasks.tokens import Tokens, require_known, tokenise


@dataclass(frozen=True)
class Run:
    """A run that can be trained.

    Attributes:
        science: what its result depends on, canonically; `run_id` hashes it, `cell_id` hashes it without the seed.
        matrices: the adapted matrices with their ranks; empty for methods without targets.
        budget_gap: adapter parameters over what `adapter.budget` asks for, minus 1; None without a budget.
        task, blueprint: shared by all runs of a process that name the same ones.
        cache: the folder where tokens are kept between processes.
    """

    config: RunConfig
    science: dict[str, Any]
    run_id: str
    cell_id: str
    matrices: tuple[Matrix, ...]
    budget_gap: float | None
    steps: int
    task: Task = field(repr=False, compare=False)
    blueprint: Blueprint = field(repr=False, compare=False)
    cache: Path = field(repr=False, compare=False)

    @property
    def adapter_parameters(self) -> int:
        """Trainable parameters of the low-rank pairs; the head is counted separately, once the backbone is loaded."""
        return budget.adapter_parameters(self.matrices)

    @property
    def counted_parameters(self) -> int | None:
        """The same, but None for full fine-tuning and BitFit, whose trained parameters are the backbone's own."""
        return None if self.config.adapter.method in ("full", "bitfit") else self.adapter_parameters

    @property
    def n_train(self) -> int:
        """Rows that it trains on; with `task.train_draw=seed` fewer than the task's train split holds."""
        return self.science["task"]["train_rows"]

    def tokens(self) -> dict[str, Tokens]:
        """The token ids of every split, from the cache where they are known; of train, the rows that it trains on."""
        tokens = tokenise(
            self.task,
            self.blueprint.tokenizer,
            max_length=self.config.train.max_length,
            tokenizer_fingerprint=self.blueprint.tokenizer_fingerprint,
            n_embeddings=self.blueprint.n_embeddings,
            cache=self.cache,
        )
        if self.n_train == len(tokens["train"]):  # where a seed draws, it draws fewer
            return tokens
        drawn = seeds.permutation(len(tokens["train"]), "train rows", self.config.seed)[: self.n_train]
        return tokens | {"train": tokens["train"].take(drawn)}

    @property
    def precision(self) -> str:
        return self.science["train"]["precision"]

    @property
    def manifest(self) -> list[dict[str, Any]]:
        """The record's manifest: one row per adapted matrix."""
        keys = ("role", "layer", "module", "d_in", "d_out", "rank", "fused")
        return [{key: getattr(matrix, key) for key in keys} for matrix in self.matrices]


def resolve(config: RunConfig) -> Run:
    """Check a configuration against its backbone and its data, and name the run. Loads rows, but no weights.

    Raises:
        ConfigError: when a role, rank, budget, layer, length or split does not exist here.
    """
    task = task_of(config)
    config = replace(config, task=replace(config.task, name=task.name))  # a planted task is named by its teacher
    backbone = blueprint.blueprint(config.model, task.n_labels)
    device = devices.resolve_device(config.device)
    _check_length(config, backbone)
    require_known(task, backbone.tokenizer)
    matrices, gap, spelled, layers = select(config, backbone)
    _check_method(config, matrices)
    n_train = task.facts["splits"]["train"]["rows"]  # in use: a seed may draw them from more
    steps = count_steps(n_train, config)
    _check_steps(config, n_train, steps)
    document = science(
        config,
        model_fingerprint=backbone.fingerprint,
        task_fingerprint=task.fingerprint,
        metrics=task.metrics,
        train_rows=n_train,
        targets=spelled,
        rank=_identifying_rank(matrices, backbone),
        layers=layers,
        precision=devices.resolve_precision(config.train.precision, device),
    )
    return Run(
        config=config,
        science=document,
        run_id=run_id(document),
        cell_id=cell_id(document),
        matrices=tuple(matrices),
        budget_gap=gap,
        steps=steps,
        task=task,
        blueprint=backbone,
        cache=cache_folder(),
    )


def task_of(config: RunConfig) -> Task:
    """The task's rows. The backbone makes the labels of a planted task; all others are read.

    Raises:
        ConfigError: when the rows cannot be read, or the teacher cannot be made.
    """
    if config.task.source == "planted":
        from lora_bench.training import planted

        return planted.load(config.task, config.model)
    return load_task(config.task)


def packable(run: Run) -> bool:
    """Whether a run can share a backbone with others: its method leaves the frozen weights as they are."""
    return _is_stacked(run.config, run.matrices)


def pack_key(run: Run) -> tuple:
    """Runs with equal keys may be packed: same backbone, rows, batches, schedule length, precision and seed."""
    train = run.science["train"]
    shared = ("epochs", "batch_size", "grad_accumulation", "max_length", "precision", "dropout", "checkpoint")
    science = run.science
    alone = () if packable(run) else (run.run_id,)
    return (
        science["model"]["fingerprint"],
        science["task"]["fingerprint"],
        run.n_train,
        science["seed"],
        *(train[key] for key in shared),
        run.config.train.compile,
        run.config.train.curve,
        *alone,
    )


def count_steps(n_rows: int, config: RunConfig) -> int:
    """Optimizer steps of a run; a fraction of an epoch is rounded up to whole steps."""
    return max(1, math.ceil(config.train.epochs * math.ceil(n_rows / config.train.batch_size) - 1e-9))


def select(config: RunConfig, backbone: Blueprint) -> tuple[Sequence[Matrix], float | None, str, str | list[int]]:
    """Adapted matrices at their ranks, how far they are off a budget, their roles' spelling, and their layers.

    Raises:
        ConfigError: when a role, rank, budget or layer does not exist on this backbone.
    """
    adapter, gap = config.adapter, None
    if adapter.method not in LORA_METHODS:
        return [], None, "", "all"
    if adapter.like is not None:
        solved = published_matrices(adapter.like, backbone.skeleton, backbone.matrices)
        return solved, None, *_placed(solved, backbone)
    selected = roles.select_targets(backbone.matrices, adapter.targets, adapter.layers, backbone=backbone.name)
    solved = budget.solve_ranks(
        selected,
        rank=adapter.rank,
        budget=adapter.budget,
        pattern=parse_rank_pattern(adapter.rank_pattern),
        all_matrices=backbone.matrices,
        backbone=backbone.name,
    )
    if adapter.budget is not None:
        wanted = budget.budget_parameters(
            adapter.budget, selected, all_matrices=backbone.matrices, backbone=backbone.name
        )
        gap = budget.budget_gap(solved, wanted)
    adapted = [matrix for matrix in solved if matrix.rank]
    if len(adapted) < len(solved):
        return adapted, gap, *_placed(adapted, backbone)
    numbers = roles.select_layers(backbone.matrices, adapter.layers)
    spelled = roles.canonical_targets(backbone.matrices, adapter.targets, backbone=backbone.name)
    return adapted, gap, spelled, _spelled_layers(numbers, backbone)


def _placed(matrices: Sequence[Matrix], backbone: Blueprint) -> tuple[str, str | list[int]]:
    """Targets and layers of adapted matrices, spelled as if they had been asked for."""
    numbers = sorted({matrix.layer for matrix in matrices})
    return spell_targets({matrix.role for matrix in matrices}), _spelled_layers(numbers, backbone)


def _spelled_layers(numbers: list[int], backbone: Blueprint) -> str | list[int]:
    n_layers = 1 + max(matrix.layer for matrix in backbone.matrices)
    return "all" if len(numbers) == n_layers else numbers


def _is_stacked(config: RunConfig, matrices: Sequence[Matrix]) -> bool:
    adapter = config.adapter
    return adapter.method in adapters.PACKED_METHODS and (not matrices or adapter.init in starts.DRAWN)


def _check_method(config: RunConfig, matrices: Sequence[Matrix]) -> None:
    adapter = config.adapter
    if matrices and adapter.dropout and not _is_stacked(config, matrices):
        raise ConfigError(
            f"adapter.dropout: {adapter.dropout} does not go with {adapter.method}, init={adapter.init}; use 0"
        )


def _check_steps(config: RunConfig, n_rows: int, steps: int) -> None:
    """Refuse a run of one warm-up step: a warm-up begins at rate 0, so it would change nothing."""
    train = config.train
    if steps == 1 and train.warmup_ratio > 0:
        raise ConfigError(
            f"train.epochs: {train.epochs:g} of {n_rows} train rows in batches of {train.batch_size} is one "
            f"optimizer step, and train.warmup_ratio={train.warmup_ratio:g} makes its rate 0; give more epochs, a "
            "smaller train.batch_size, or train.warmup_ratio=0"
        )


def _identifying_rank(matrices: Sequence[Matrix], backbone: Blueprint) -> int | dict[str, int] | None:
    if not matrices:
        return None
    rank = budget.shared_rank(matrices, backbone.matrices)
    return {matrix.module: matrix.rank for matrix in matrices} if rank is None else rank


def _check_length(config: RunConfig, backbone: Blueprint) -> None:
    longest = backbone.longest_input
    if longest is not None and config.train.max_length > longest:
        usual = " (the default)" if config.train.max_length == _default_length() else ""
        raise ConfigError(
            f"train.max_length: {config.train.max_length}{usual} is above {longest}, the most tokens that "
            f"{backbone.name} can read; add train.max_length={longest}"
        )


def _default_length() -> int:
    """What conf/train/default.yaml has: who did not set it looks for it in vain on the command line."""
    text = (resource_root() / "conf" / "train" / "default.yaml").read_text(encoding="utf-8")
    return yaml.safe_load(text)["max_length"]
