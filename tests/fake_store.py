"""Stores with invented scores, written through the real Store: what the analysis tests read."""

from __future__ import annotations

import hashlib
import itertools
import json
from pathlib import Path

import numpy as np
import pandas as pd

from lora_bench.config.schema import LORA_METHODS
from lora_bench.reports.figures import compose, style
from lora_bench.store.folder import Store
from lora_bench.store.frame import COLUMNS, row_of
from lora_bench.verdicts import settings

D_MODEL, N_LAYERS = 384, 6
RANKS = {"q": 8, "k": 8, "v": 8, "o": 8, "qk": 4, "qv": 4, "qkvo": 2}


def fake_record(
    *,
    targets: str = "qv",
    rank: int = 4,
    lr: float | None = 1e-3,
    seed: int = 0,
    report: float | None = 0.5,
    select: float | None = None,
    method: str = "lora",
    task: str = "cola",
    model: str = "minilm",
    metric: str = "matthews",
    environment: str = "cpu-a",
    head_lr: float = 1e-3,
    error: str | None = None,
    train: dict | None = None,
    adapter: dict | None = None,
    **extra,
) -> dict:
    """One record as the contract has it; `error` is a kind, and makes the run failed."""
    is_lora = method in LORA_METHODS
    manifest = [
        {
            "role": role,
            "layer": layer,
            "module": f"encoder.layer.{layer}.{role}",
            "d_in": D_MODEL,
            "d_out": D_MODEL,
            "rank": rank,
        }
        for layer in range(N_LAYERS)
        for role in (targets if is_lora else "")
    ]
    science_adapter = {"method": method}
    if is_lora:
        science_adapter |= {
            "targets": targets, "rank": rank, "alpha": 16.0, "alpha_policy": "fixed", "dropout": 0.0,
            "init": "gaussian", "layers": "all", "replicate": 0,
        } | (adapter or {})  # fmt: skip
    science_train = {"head_lr": head_lr, "epochs": 3.0, "batch_size": 32, "precision": "fp32"} | (train or {})
    if method != "head_only":
        science_train["lr"] = lr
    config = {
        "model": {"name": model, "revision": None, "fingerprint": f"m-{model}"},
        "task": {"name": task, "fingerprint": f"t-{task}", "train_rows": 2000},
        "adapter": science_adapter,
        "train": science_train,
        "seed": seed,
        "protocol": 1,
    }
    digest = lambda value: hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]  # noqa: E731
    select = report if select is None else select
    score = lambda value: None if value is None else {metric: value}  # noqa: E731
    failed = error is not None
    spent = sum(rank * (m["d_in"] + m["d_out"]) for m in manifest)
    return {
        "format": 1,
        "run_id": digest([config, environment]),
        "cell_id": digest({**config, "seed": None}),
        "status": "failed" if failed else "finished",
        "error": {"kind": error, "type": "Error", "message": "it broke", "traceback": ""} if failed else None,
        "config": config,
        "metrics": [metric],
        "manifest": manifest,
        "parameters": {"adapter": spent, "head": 770, "total": spent + 770},
        "scores": {
            "train": None if failed else score(None if report is None else report + 0.05),
            "select": None if failed else score(select),
            "report": None if failed else score(report),
        },
        "history": {"step": [], "loss": [], "lr": [], "grad_norm": [], "epochs": []},
        "cost": {
            "pack_seconds": 60.0, "pack_size": 7, "attributed_seconds": 8.0 + rank * 0.1, "tokens": 70_000,
            "flops": 1e12, "adapter_bytes": spent * 4, "peak_bytes": None, "overhead_seconds": 0.3,
        },
        "norms": [] if failed else fake_norms(manifest, seed, rank),
        "guards": {} if failed else {"frozen": True},
        "data": {"source": "generated"},
        "environment": {"id": environment, "device": "cpu", "cpu": "x", "threads": 2, "commit": "abc", "dirty": False},
        "invocation": {"overrides": [f"task={task}"], "sweep": "weight_types"},
        "started": "2026-01-01T00:00:00+00:00",
        "finished": "2026-01-01T00:01:00+00:00",
        **extra,
    }  # fmt: skip


def fake_norms(manifest: list[dict], seed: int, rank: int) -> list[dict]:
    """Norms whose amplification is 8 / rank, times 1.02 to the seed, times 1.1 to the layer."""
    return [
        {
            **{key: matrix[key] for key in ("module", "role", "layer", "rank")},
            "scale": 16 / rank, "weight": 30.0, "update": 8.0 / rank * 1.02**seed * 1.1 ** matrix["layer"],
            "weight_in_update": 1.0, "weight_in_weight": 10.0, "weight_in_random": 0.3,
        }
        for matrix in manifest
    ]  # fmt: skip


def weight_types_records(
    *,
    effects: dict[str, float] | None = None,
    rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2),
    best_rate: dict[str, float] | None = None,
    n_seeds: int = 8,
    noise: float = 0.008,
    level: float = 0.52,
    with_floor: bool = True,
    rng: np.random.Generator | None = None,
    **common,
) -> list[dict]:
    """The Table 5 design with invented effects (a score above qv's), a peaked curve over rates, shared seed noise."""
    rng = rng or np.random.default_rng(0)
    effects = {"q": -0.06, "k": -0.07, "v": -0.01, "o": -0.012, "qk": -0.05, "qv": 0.0, "qkvo": 0.001} | (effects or {})
    best_rate = best_rate or {}
    of_seed = rng.normal(0, 0.01, size=n_seeds)
    records = []
    for targets, effect in effects.items():
        peak = np.log10(best_rate.get(targets, 3e-3))
        for rate in rates:
            for seed in range(n_seeds):
                mean = level + effect - 0.06 * (np.log10(rate) - peak) ** 2 + of_seed[seed]
                select, report = mean + rng.normal(0, noise, size=2)
                records.append(
                    fake_record(
                        targets=targets,
                        rank=RANKS[targets],
                        lr=rate,
                        seed=seed,
                        report=float(report),
                        select=float(select),
                        **common,
                    )
                )
    if with_floor:
        records.extend(
            fake_record(method="head_only", seed=seed, report=float(level - 0.12 + of_seed[seed]), lr=None, **common)
            for seed in range(n_seeds)
        )
    return records


def rank_records(
    *,
    ranks: tuple[int, ...] = (1, 2, 4, 8, 64),
    n_seeds: int = 8,
    rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2),
    rng=None,
    **common,
) -> list[dict]:
    """The Table 6 design with invented effects: q gains with rank, qv a little, qkvo not."""
    rng = rng or np.random.default_rng(1)
    slope = {"q": 0.01, "qv": 0.003, "qkvo": 0.0}
    of_seed = rng.normal(0, 0.01, size=n_seeds)
    records = []
    for targets, gain in slope.items():
        for rank in ranks:
            for rate in rates:
                for seed in range(n_seeds):
                    mean = (
                        0.5
                        + 0.02 * len(targets)
                        + gain * np.log2(rank)
                        - 0.1 * (np.log10(rate) + 2.5) ** 2
                        + of_seed[seed]
                    )
                    select, report = mean + rng.normal(0, 0.008, size=2)
                    records.append(
                        fake_record(
                            targets=targets,
                            rank=rank,
                            lr=rate,
                            seed=seed,
                            report=float(report),
                            select=float(select),
                            **common,
                        )
                    )
    return records


def depth_records(*, targets: str = "qv", n_seeds: int = 8, rates=(1e-3, 3e-3, 1e-2)) -> list[dict]:
    """The depth sweep with invented effects of the layers on qv, best at 3e-3."""
    rng = np.random.default_rng(3)
    effects = {"all": 0.0, "first:3": -0.05, "last:3": 0.001}
    of_seed = rng.normal(0, 0.01, n_seeds)
    records = []
    for (layers, effect), lr, seed in itertools.product(effects.items(), rates, range(n_seeds)):
        score = 0.8 + effect - 0.1 * (np.log10(lr) + 2.5) ** 2 + of_seed[seed] + rng.normal(0, 0.002)
        records.append(fake_record(targets=targets, lr=lr, seed=seed, report=score, adapter={"layers": layers}))
    return records


def write_store(root: Path, records: list[dict]) -> Path:
    """The records as a real store."""
    store = Store(root)
    for record in records:
        store.write(record)
    return root


def write_with_adapters(root: Path, records: list[dict], *, shared: float = 0.6, d: int = D_MODEL) -> Path:
    """Records with PEFT folders whose first direction is shared by all runs (weight `shared`), the rest random."""
    from safetensors.numpy import save_file

    store = Store(root)
    common = np.random.default_rng(99).normal(size=d)
    for record in records:
        seed, manifest = record["config"]["seed"], record["manifest"]

        def write(folder: Path, seed=seed, manifest=manifest) -> None:
            tensors = {}
            for matrix in manifest:
                rng = np.random.default_rng([seed, matrix["layer"], matrix["rank"], ord(matrix["role"][0])])
                A = rng.normal(size=(matrix["rank"], d))
                A[0] = 3 * (shared * common + (1 - shared) * A[0])
                name = f"base_model.model.{matrix['module']}"
                tensors[f"{name}.lora_A.weight"] = A.astype(np.float32)
                tensors[f"{name}.lora_B.weight"] = rng.normal(size=(matrix["d_out"], matrix["rank"])).astype(np.float32)
            (folder / "adapter").mkdir(parents=True)
            save_file(tensors, folder / "adapter" / "adapter_model.safetensors")

        store.write(record, adapter=write if record["status"] == "finished" and manifest else None)
    return root


def frame_of(records: list[dict]) -> pd.DataFrame:
    """What Store.frame gives for these records, without a disk."""
    rows = [row_of(record) for record in records]
    frame = pd.DataFrame([{**row, **row.pop("by_metric")} for row in rows])
    return settings.prepare(frame.reindex(columns=[*COLUMNS, *frame.columns.difference(list(COLUMNS))]))


def blank_figures(patch) -> set[tuple[str, ...]]:
    """Have figures left blank and written as empty files, where a test reads what stands around them.

    Returns:
        the formats that are asked for from here on.
    """
    asked: set[tuple[str, ...]] = set()

    def save(_figure, folder: Path, name: str, formats: tuple[str, ...]) -> Path:
        asked.add(tuple(formats))
        path = folder / f"{name}.svg"
        path.write_text("<svg/>", encoding="utf-8")
        return path

    patch.setattr(compose, "is_blank", lambda: True)
    patch.setattr(style, "_save", save)
    return asked
