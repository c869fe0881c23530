"""A task whose answer is known: sentences labelled by the backbone plus an adapter of our own making, the teacher.

    label = [ head(backbone + teacher)(sentence) > median ]        teacher: dW = c B A in every target matrix

A, B and the head are drawn from streams of their own, which no run shares, and c gives the update a chosen size,
||dW||_F = strength ||W||_F. The median is that of the first 500 train sentences, so that labels are balanced and a
sentence's label does not depend on how many others are used. Noise flips labels of train and select; report keeps the
teacher's own, so that a score there says how much of the teacher was learned.

The teacher runs in fp64 on the CPU whatever the run's precision and device are: a label is a property of the task.
"""

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from lora_bench.config.errors import ConfigError
from lora_bench.config.schema import ModelConfig, TaskConfig
from lora_bench.models import backbone, blueprint, budget, roles, seeds
from lora_bench.models.adapters import AdapterState, LowRank
from lora_bench.models.backbone import Backbone
from lora_bench.models.blueprint import Blueprint
from lora_bench.models.roles import Matrix
from lora_bench.packing.pack import Pack
from lora_bench.paths import cache_folder
from lora_bench.tasks.generated.grammars import generate
from lora_bench.tasks.load import EMBEDDED, GENERATED_REPORT_ROWS, GENERATED_TRAIN_ROWS
from lora_bench.tasks.rows import Rows, Source, Task, assemble
from lora_bench.tasks.tokens import DAMAGED, tokenise, write_arrays
from lora_bench.training.evaluate import predict

FORMAT = 1
"""Version of everything that turns a configuration into labels."""
N_LABELS = 2
MEDIAN_ROWS = 500
MAX_LENGTH = 128
THRESHOLD = "median rows"  # beside the splits: the sentences whose median separates the labels

log = logging.getLogger(__name__)
_loaded: dict[str, Task] = {}


def load(config: TaskConfig, model: ModelConfig) -> Task:
    """The planted task of a configuration on a backbone. Repeated calls in one process return the same object.

    Its fingerprint names the teacher and the sentences, and not the labels, so that a run has one id on all machines.

    Raises:
        ConfigError: on unknown sentences or targets, or a rank that does not fit them.
    """
    key = json.dumps([vars(config) | {"name": ""}, vars(model)], sort_keys=True)
    if key not in _loaded:
        plan = blueprint.blueprint(model, N_LABELS)
        _loaded[key] = _label(config, plan, _matrices(config, plan))
    return _loaded[key]


def name_of(config: TaskConfig, spelled: str) -> str:
    """The task's name in tables: `planted-qv-r4`, and what differs from the defaults."""
    parts = ["planted", spelled.replace("+", "."), f"r{config.planted_rank}"]
    if config.planted_noise:
        parts.append(f"noise{config.planted_noise:g}")
    if config.planted_seed:
        parts.append(f"s{config.planted_seed}")
    return "-".join(parts)


def teacher(loaded: Backbone, matrices: Sequence[Matrix], *, strength: float, seed: int) -> AdapterState:
    """The known adapter and head.

    Args:
        matrices: the teacher's matrices with their ranks.
        strength: Frobenius norm of the update over that of the weight, in every matrix.
    """
    low_rank = {}
    for matrix in matrices:
        stream = seeds.generator("planted", seed, matrix.module, matrix.rank)
        A, B = (
            torch.randn(shape, generator=stream, dtype=torch.float64)
            for shape in ((matrix.rank, matrix.d_in), (matrix.d_out, matrix.rank))
        )
        weight = loaded.model.get_submodule(matrix.module).get_parameter("weight").detach().double()
        scale = strength * float(weight.norm()) / LowRank(A, B, 1.0).norm()
        low_rank[matrix.module] = LowRank(A, B, scale)
    return AdapterState(low_rank, backbone.head_state(loaded, seeds.derive("planted head", seed)))


def flips(n_rows: int, split: str, *, noise: float, seed: int) -> np.ndarray:
    """Which labels of a split the noise flips, (n_rows,) bool.

    Each row has one uniform number whatever the noise is: more noise flips the same labels and others.
    """
    drawn = np.random.Generator(np.random.PCG64(seeds.derive("planted noise", seed, split))).random(n_rows)
    return drawn < noise


def _matrices(config: TaskConfig, plan: Blueprint) -> list[Matrix]:
    try:
        selected = roles.select_targets(plan.matrices, str(config.planted_targets), backbone=plan.name)
        return budget.solve_ranks(selected, rank=config.planted_rank, backbone=plan.name)
    except ConfigError as error:
        message = (
            str(error).replace("adapter.targets", "task.planted_targets").replace("adapter.rank", "task.planted_rank")
        )
        raise ConfigError(message) from None


def _label(config: TaskConfig, plan: Blueprint, matrices: Sequence[Matrix]) -> Task:
    """The sentences, cut into splits, with the teacher's labels."""
    spelled = roles.canonical_targets(plan.matrices, str(config.planted_targets), backbone=plan.name)
    base, first = _sentences(config)
    about = {
        "format": FORMAT,
        "backbone": plan.fingerprint,
        "targets": spelled,
        "rank": config.planted_rank,
        "strength": config.planted_strength,
        "seed": config.planted_seed,
        "median_rows": MEDIAN_ROWS,
    }
    logits = _logits(about, config, plan, matrices, replace(base, splits=base.splits | {THRESHOLD: first}))
    median = float(np.median(logits[THRESHOLD]))
    splits, share_above = {}, {}
    digest = hashlib.sha256()
    for split, table in base.splits.items():
        labels = (logits[split] > median).astype(np.int64)
        digest.update(labels.tobytes())
        share_above[split] = float(labels.mean())
        noise = 0.0 if split == "report" else float(config.planted_noise or 0)
        is_flipped = flips(len(table), split, noise=noise, seed=int(config.planted_seed or 0))
        splits[split] = table.assign(label=np.where(is_flipped, 1 - labels, labels))
    identity = json.dumps([about, config.planted_noise, base.fingerprint], sort_keys=True)
    facts = about | {
        "texts": config.planted_texts,
        "noise": config.planted_noise,
        "share_above": share_above,
        "labels": digest.hexdigest(),
    }
    return replace(
        base,
        name=name_of(config, spelled),
        splits=splits,
        fingerprint=hashlib.sha256(identity.encode()).hexdigest(),
        facts=base.facts | {"planted": facts},
    )


def _sentences(config: TaskConfig) -> tuple[Task, pd.DataFrame]:
    """The task before it has labels, and the sentences whose median separates the labels.

    Report follows train in one stream of sentences, with the same words: a placement's gap there is due to what it did
    not learn of the teacher, not to new words.
    """
    texts = str(config.planted_texts)
    if texts not in EMBEDDED:
        raise ConfigError(f"task.planted_texts: no embedded task {texts!r}; embedded tasks are {', '.join(EMBEDDED)}")
    n_report = config.report_rows or GENERATED_REPORT_ROWS
    rows = generate(texts, "train", GENERATED_TRAIN_ROWS + n_report).assign(label=0)
    train, report = rows.iloc[:GENERATED_TRAIN_ROWS], rows.iloc[GENERATED_TRAIN_ROWS:]
    source = Source(
        origin=f"planted in generated {texts}",
        kind="classification",
        label_names=("below", "above"),
        metrics=("accuracy",),
        splits={"train": Rows(train, "train"), "report": Rows(report, "report")},
    )
    return assemble(source, config), train.iloc[:MEDIAN_ROWS]


def _logits(
    about: dict[str, Any], config: TaskConfig, plan: Blueprint, matrices: Sequence[Matrix], task: Task
) -> dict[str, np.ndarray]:
    """The teacher's logit of label 1 minus that of label 0 for every row, from the cache where it is known."""
    key = hashlib.sha256(json.dumps([about, task.fingerprint, plan.tokenizer_fingerprint]).encode()).hexdigest()[:32]
    path = cache_folder() / "planted" / f"{key}.npz"
    logits = _read(path, task.splits)
    if logits is None:
        logits = _compute(config, plan, matrices, replace(task, fingerprint=f"{task.fingerprint}+{THRESHOLD}"))
        write_arrays(path, logits, what="planted labels")
    return logits


def _compute(config: TaskConfig, plan: Blueprint, matrices: Sequence[Matrix], task: Task) -> dict[str, np.ndarray]:
    loaded = backbone.load(plan, precision="fp64", device=torch.device("cpu"))
    length = min(MAX_LENGTH, plan.longest_input or MAX_LENGTH)
    tokens = tokenise(
        task,
        plan.tokenizer,
        max_length=length,
        tokenizer_fingerprint=plan.tokenizer_fingerprint,
        n_embeddings=plan.n_embeddings,
    )
    state = teacher(loaded, matrices, strength=float(config.planted_strength or 0), seed=int(config.planted_seed or 0))
    with Pack(loaded, [state]) as pack:
        logits = {split: predict(pack, part)[0] for split, part in tokens.items()}
    return {split: values[:, 1] - values[:, 0] for split, values in logits.items()}


def _read(path: Path, splits: dict[str, pd.DataFrame]) -> dict[str, np.ndarray] | None:
    """Cached logits, or None where they are absent, damaged or of other rows."""
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as stored:
            logits = {split: stored[split] for split in splits}
        for split, values in logits.items():
            if values.shape != (len(splits[split]),) or values.dtype != np.float64 or not np.isfinite(values).all():
                raise ValueError(f"{split} does not fit its {len(splits[split])} rows")
    except DAMAGED as error:
        log.warning("labelling again: damaged cache of planted labels %s (%s)", path, error)
        return None
    return logits
