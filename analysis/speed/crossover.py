"""Where packing pays: the gain of a pack over its runs one after another, by tokens per step, size of the pack, size of
the backbone and precision.

    gain = (K times the seconds of a step alone) / (seconds of a step of the pack of K)

Backbones have random weights, batches random tokens without padding, and every run adapts q and v at rank 8. Steps are
forward, backward and AdamW, after one that warms up. The step alone is measured again beside each pack, in turns, and
the fastest of each counts, since other work can only slow them down. A point that OUT/curve.json holds is not measured
again.
"""

import argparse
import itertools
import json
import time
from typing import Any

ROWS = 8
SHAPES: dict[str, dict[str, Any]] = {
    "384x6": {
        "model_type": "bert",
        "hidden_size": 384,
        "num_hidden_layers": 6,
        "num_attention_heads": 12,
        "intermediate_size": 1536,
    },
    "768x12": {
        "model_type": "bert",
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
    },
    "smollm2": {
        "model_type": "llama",
        "hidden_size": 576,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "intermediate_size": 1536,
        "pad_token_id": 0,
    },
}


def measure(options: argparse.Namespace, machine: dict[str, Any]) -> dict[str, Any]:
    """Every point of the grid: shape, precision, tokens (of a step of one run), pack, alone, packed (seconds) and
    gain."""
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "curve.json"
    document: dict[str, Any] = {"machine": machine, "rounds": options.rounds, "points": []}
    if path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))
        if before["machine"]["id"] == machine["id"] and before["rounds"] == options.rounds:
            document = before
    points = document["points"]
    known = {(point["shape"], point["precision"], point["tokens"], point["pack"]) for point in points}
    for shape, precision, length, pack in grid(options):
        if (shape, precision, ROWS * length, pack) in known:
            continue
        alone, packed = _seconds(shape, precision, length, pack, rounds=options.rounds)
        gain = pack * alone / packed
        point = {"shape": shape, "precision": precision, "tokens": ROWS * length, "pack": pack}
        points.append({**point, "alone": alone, "packed": packed, "gain": gain})
        path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        print(f"{shape:8} {precision}  {ROWS * length:5} tokens  K={pack:<3} gain {gain:.2f}", flush=True)
    return document


def grid(options: argparse.Namespace) -> list[tuple[str, str, int, int]]:
    """(shape, precision, tokens of a row, pack), as the options have them."""
    shapes, precisions = str(options.shapes).split(","), str(options.precisions).split(",")
    lengths, packs = map(int, str(options.lengths).split(",")), map(int, str(options.curve_packs).split(","))
    return list(itertools.product(shapes, precisions, lengths, packs))


def _seconds(shape: str, precision: str, length: int, pack: int, *, rounds: int) -> tuple[float, float]:
    """The fastest step alone and of the pack, in turns."""
    steps = [_step(shape, precision, length, n_runs) for n_runs in (1, pack)]
    best = [float("inf"), float("inf")]
    for number in range(rounds + 1):
        for place, step in enumerate(steps):
            start = time.perf_counter()
            step()
            if number:  # the first warms up
                best[place] = min(best[place], time.perf_counter() - start)
    return best[0], best[1]


def _step(shape: str, precision: str, length: int, n_runs: int) -> Any:
    import torch

    from lora_bench.config.schema import ModelConfig
    from lora_bench.models import adapters, backbone, blueprint, devices
    from lora_bench.models.budget import solve_ranks
    from lora_bench.models.roles import select_targets
    from lora_bench.packing.pack import Pack

    devices.set_threads()
    architecture = {**SHAPES[shape], "vocab_size": 1000, "max_position_embeddings": 512}
    plan = blueprint.blueprint(ModelConfig(name=shape, weights="random", architecture=architecture), 2)
    loaded = backbone.load(plan, precision=precision, device=torch.device("cpu"))
    matrices = solve_ranks(select_targets(plan.matrices, "qv", "all"), rank=8)
    head = {name: tensor.float() for name, tensor in backbone.head_state(loaded, 0).items()}
    low_rank = {
        matrix.module: adapters.LowRank(
            torch.randn(matrix.rank, matrix.d_in), torch.zeros(matrix.d_out, matrix.rank), 2.0
        )
        for matrix in matrices
    }
    state = adapters.AdapterState(low_rank=low_rank, head=head)
    ids = torch.randint(5, 900, (ROWS, length))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}
    pack = Pack(loaded, [state] * n_runs, dropout=0.0)
    optimizer = torch.optim.AdamW([stack.parameter for stack in pack.trained], lr=1e-3, fused=True)

    def step() -> None:
        with pack, pack.train():
            labels = torch.zeros(n_runs * ROWS, dtype=torch.long)
            torch.nn.functional.cross_entropy(pack.logits(batch).flatten(0, 1).float(), labels).backward()
            optimizer.step()
            optimizer.zero_grad()

    return step
