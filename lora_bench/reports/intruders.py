"""Intruder dimensions of LoRA against those of full fine-tuning, in the same matrices, seed by seed.

    value(seed) = mean over matrices of (intruders of W_0 + s B A) - (intruders of the weight that was trained whole)

What counts as one says `subspace.intruders`. Both sides are saved runs at the rate that `select` chose, and W_0 is the
backbone's weight. Source: Shuttleworth et al. 2024, arXiv:2410.21228.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lora_bench.config.errors import ConfigError
from lora_bench.reports.leading import SAME_WEIGHT, Weights
from lora_bench.store import StoreReader
from lora_bench.verdicts import subspace, tuning

WHOLE = "weights.safetensors"  # of a run that trains whole weights, by parameter path


@dataclass(frozen=True)
class Counted:
    """Intruders a matrix by seed, of an arm and of full fine-tuning, and the scores of the same runs."""

    arm: str
    lora: Mapping[int, float]
    full: Mapping[int, float]
    scores: tuple[np.ndarray, np.ndarray]  # on report, LoRA's and full fine-tuning's, in the order of the seeds

    @property
    def differences(self) -> np.ndarray:
        return np.array([self.lora[seed] - self.full[seed] for seed in self.lora])


def counted(end: str, named: pd.DataFrame, store: StoreReader | None, weights: Weights | None) -> Counted | str:
    """The intruders of the arm of lowest or highest rank, or in words what the store lacks for them.

    Args:
        end: `lowest` or `highest`; of several arms of that rank the one with most seeds, then most matrices.
        named: runs of a setting, with their arms.
    """
    if store is None or weights is None:
        return "needs the saved weights of a store, and the backbone"
    chosen = tuning.at_chosen_rates(named)
    chosen = chosen[chosen["learns"].astype(bool)] if "learns" in chosen else chosen
    is_kept = [store.adapter(str(run_id)) is not None for run_id in chosen["run_id"]]
    kept = chosen[np.array(is_kept, dtype=bool)]  # no run at all is an empty mask, and no list of columns
    whole = kept[kept["arm"] == tuning.FULL].set_index("seed")
    arms = kept[kept["rank"].notna() & kept["seed"].isin(whole.index)]
    if arms.empty:
        return "needs saved weights of LoRA and of full fine-tuning, with common seeds (keep_adapters=best)"
    ranks = sorted(arms["rank"].unique())
    if end == "highest" and len(ranks) < 2:
        return f"needs two ranks beside full fine-tuning; the store has {ranks[0]:g}"
    of_rank = arms[arms["rank"] == ranks[0 if end == "lowest" else -1]]
    sizes = of_rank.groupby("arm", sort=False)["adapter_parameters"].agg(["size", "max"])
    name = sizes.sort_values(["size", "max"], kind="stable").index[-1]
    arm = of_rank[of_rank["arm"] == name].set_index("seed").sort_index()
    try:
        by_seed = dict(_by_seed(arm, whole, store, weights))
    except (ConfigError, FileNotFoundError, ValueError) as error:
        return f"cannot be counted: {error}"
    scores = arm["report"].to_numpy(float), whole.loc[arm.index, "report"].to_numpy(float)
    lora, full = ({seed: pair[side] for seed, pair in by_seed.items()} for side in (0, 1))
    return Counted(str(name), lora, full, scores)


def _by_seed(
    arm: pd.DataFrame, whole: pd.DataFrame, store: StoreReader, weights: Weights
) -> Iterator[tuple[int, tuple[float, float]]]:
    """(seed, intruders a matrix of the low-rank run and of the whole one).

    Raises:
        ConfigError: when the backbone's weights are not at hand, or are not those that the runs began with.
        FileNotFoundError, ValueError: when a saved file lacks a matrix.
    """
    frozen: dict[str, np.ndarray] = {}
    bases: dict[str, np.ndarray] = {}
    of_full = whole["run_id"].astype(str).to_dict()
    for seed, run_id in arm["run_id"].astype(str).to_dict().items():
        record = store.record(run_id)
        if not frozen:
            frozen = {module: np.asarray(weight, float) for module, weight in weights(record).items()}
            bases = {module: subspace.left_basis(weight) for module, weight in frozen.items()}
        pairs = subspace.read_adapter(store.path(run_id), record["manifest"])
        tuned = _mean(_merged(record, pairs, frozen), bases)
        yield int(str(seed)), (tuned, _mean(_whole(store.path(of_full[seed]), list(pairs)), bases))


def _mean(weights: Iterator[tuple[str, np.ndarray]], bases: Mapping[str, np.ndarray]) -> float:
    """Intruders a matrix."""
    return float(np.mean([subspace.intruders(bases[module], weight) for module, weight in weights]))


def _merged(
    record: Mapping[str, Any], pairs: Mapping[str, subspace.LowRank], frozen: Mapping[str, np.ndarray]
) -> Iterator[tuple[str, np.ndarray]]:
    """Module and W_0 + s B A, with s of the record's norms."""
    about = {entry["module"]: entry for entry in record["norms"]}
    for module, pair in pairs.items():
        if not np.isclose(np.linalg.norm(frozen[module]), about[module]["weight"], rtol=SAME_WEIGHT):
            name = record["config"]["model"]["name"]
            raise ConfigError(f"model: the weights of {name} at hand are not the run's")
        yield module, frozen[module] + about[module]["scale"] * (pair.B.astype(float) @ pair.A.astype(float))


def _whole(folder: Path, modules: list[str]) -> Iterator[tuple[str, np.ndarray]]:
    """Module and its weight as trained, one at a time: the file holds the whole backbone."""
    from safetensors import safe_open

    path = folder / "adapter" / WHOLE
    with safe_open(str(path), framework="numpy") as file:
        names = set(file.keys())
        for module in modules:
            if f"{module}.weight" not in names:
                raise ValueError(f"{path} has no {module}.weight; of fused projections it holds the whole")
            yield module, file.get_tensor(f"{module}.weight").astype(float)
