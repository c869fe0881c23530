"""Records that are made up, part by part."""

from dataclasses import fields

from lora_bench.store.record import Failure, Measured, Outcome, Subject, failed, finished


def parts(number: int = 1, **changed):
    """The parts of a sound, finished record; `number` names the run."""
    role = {"role": "q", "layer": 0, "module": "encoder.layer.0.attention.self.query", "d_in": 8, "d_out": 8}
    sound = {
        "run_id": f"{number:016x}",
        "cell_id": f"{number // 8:016x}",
        "config": {
            "protocol": 1,
            "model": {"name": "tiny", "fingerprint": "f" * 8},
            "task": {"name": "cola", "fingerprint": "e" * 8, "train_rows": 100},
            "adapter": {"method": "lora", "targets": "qv", "rank": 4, "alpha": 16.0, "layers": "all", "dropout": 0.0},
            "train": {"lr": 1e-3, "head_lr": 1e-3, "epochs": 3.0, "batch_size": 32, "precision": "fp32"},
            "seed": number % 8,
        },
        "metrics": ["matthews", "accuracy"],
        "manifest": [{**role, "rank": 4}, {**role, "role": "v", "rank": 4}],
        "parameters": {"adapter": 128, "head": 18, "total": 1000},
        "environment": {"id": "cpu-a", "commit": None, "dirty": None},
        "scores": {"select": {"matthews": 0.5, "accuracy": 0.7}, "report": {"matthews": 0.4, "accuracy": 0.6}},
        "history": {"step": [0, 1], "loss": [0.7, 0.6], "lr": [1e-3, 0.0], "grad_norm": [1.0, 0.9], "epochs": []},
        "cost": {"pack_size": 1, "pack_seconds": 2.5},
        "guards": {"frozen": True, "reload_gap": 0.001},
        "started": "2026-01-01T00:00:00+00:00",
    }
    return sound | changed


def finished_record(number: int = 1, **changed):
    """The record of a run that finished, of `parts`."""
    named = parts(number, **changed)
    return finished(*_subject_and_measured(named), Outcome(**named))


def failed_record(failure: Failure, number: int = 1, **changed):
    """The record of the same run, if it failed."""
    return failed(*_subject_and_measured(parts(number, **changed)), failure)


def _subject_and_measured(named: dict):
    """Taken out of `named`, which keeps what an outcome holds."""
    taken = [
        {one.name: named.pop(one.name) for one in fields(kind) if one.name in named} for kind in (Subject, Measured)
    ]
    return Subject(**taken[0]), Measured(**taken[1])
