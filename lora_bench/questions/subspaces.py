"""Do different ranks, and different seeds, learn the same directions? The paper's Figures 3 and 4, on any sweep.

    phi(i, j) = ||U_i^T V_j||_F^2 / min(i, j)       averaged over pairs of runs, for every layer and matrix

For A's right-singular vectors and for those of the update B A itself. The band is that of random Gaussian matrices of
the same shape; --step-zero adds the overlap of the same runs' A before training (which needs torch, to draw it again).
Adapters are read from the store with safetensors. Source: Hu et al. 2021, arXiv:2106.09685, section 7.2, appendix G.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import pandas as pd

from lora_bench import wording
from lora_bench.reports.figures import section7
from lora_bench.reports.scope import Scope, each_setting
from lora_bench.reports.section import Column, SettingSection, Table
from lora_bench.store import StoreReader, open_store
from lora_bench.verdicts import arms, subspace, tuning
from lora_bench.verdicts.note import Note, gap
from lora_bench.verdicts.settings import OF_WEIGHTS, REFERENCE_TARGETS, NothingToShow, Setting

MOST_PAIRS = 10
LARGEST_SHOWN = 64  # directions, in a heatmap
VECTORS = {"A": "A", "update": "B A"}


def sections(
    runs: pd.DataFrame,
    scope: Scope,
    *,
    targets: str = "",
    ranks: tuple[int, int] | None = None,
    layer: int | None = None,
    step_zero: bool = False,
) -> list[SettingSection]:
    """One section per setting.

    Args:
        targets: the placement; empty takes the one with most ranks.
        ranks: the two to compare; None takes 8 and the highest, or the two highest.
        layer: of the heatmaps; None takes the middle one.
        step_zero: add the overlap before training, which loads torch.

    Raises:
        NothingToShow: when no setting has two adapters to compare.
    """
    store = open_store(scope.store)

    def of(setting: Setting) -> list[SettingSection]:
        name = f"subspace_{setting.slug}"
        return [section(setting, store, name=name, targets=targets, ranks=ranks, layer=layer, step_zero=step_zero)]

    return each_setting(runs, scope, of)


def section(
    setting: Setting,
    store: StoreReader,
    *,
    name: str,
    targets: str,
    ranks: tuple[int, int] | None,
    layer: int | None,
    step_zero: bool,
) -> SettingSection:
    """The table, the figures and the sentence for one setting, of what `sections` was asked for.

    Raises:
        NothingToShow: when fewer than two adapters can be compared.
    """
    runs = arms.name_arms(setting.runs[(setting.runs["targets"] != "") & setting.runs["rank"].notna()])
    if runs.empty:
        raise NothingToShow(f"{setting.title}: no run has one rank for all its matrices")
    chosen = tuning.at_chosen_rates(runs)
    targets, low, high = _choose(setting, chosen, store, targets, ranks)
    adapters, lacking = read(chosen[(chosen["targets"] == targets) & chosen["rank"].isin([low, high])], store)
    comparisons = _comparisons(adapters, low, high)
    if not comparisons:
        raise NothingToShow(
            f"{setting.title}: {len(adapters)} adapters of {targets} at ranks {low} and {high} in the store, "
            f"{lacking} runs without; a comparison needs two of one rank, or two ranks of one seed"
        )
    rng = np.random.default_rng(0)
    table, grids = _measure(adapters, comparisons, rng)
    if step_zero:
        starts = {key: adapter.at_start() for key, adapter in adapters.items()}
        before, _ = _measure(starts, comparisons, rng, vectors=("A",))
        table = table.merge(
            before[["comparison", "module", "vectors", "i", "j", "phi"]].rename(columns={"phi": "phi_step_zero"}),
            on=["comparison", "module", "vectors", "i", "j"],
            how="left",
        )
    layers = sorted(set(table["layer"]))
    drawn = layers[len(layers) // 2] if layer is None else layer
    if drawn not in layers:
        raise NothingToShow(f"--layer: no layer {drawn}; adapted layers are {', '.join(map(str, layers))}")
    made = _figures(name, table, grids, drawn, list(comparisons)[:2])
    return SettingSection(
        title=f"Subspaces: {setting.title}, {targets}",
        sentence=sentence(setting, targets, table),
        tables=[
            _table(name, setting, table),
            Table(f"{name}_matrices", "every matrix and number of directions", table),
        ],
        figures=made,
        captions=_captions(made, name, targets, drawn),
        notes=_notes(setting, targets, low, high, lacking, adapters),
        setting=setting,
    )


class Between(NamedTuple):
    """What is compared: runs of these two ranks and one seed (Figure 3), or of two seeds and one rank (Figure 4)."""

    rank: int
    other: int

    @property
    def is_of_ranks(self) -> bool:
        return self.rank != self.other

    @property
    def title(self) -> str:
        return f"rank {self.rank} and rank {self.other}" if self.is_of_ranks else f"seeds at rank {self.rank}"


class Adapter:
    """The pairs of one run, with what is needed to draw their A again."""

    def __init__(
        self, run, pairs: dict[str, subspace.LowRank], manifest: list[dict], init: str, replicate: int
    ) -> None:
        self.seed, self.rank, self.pairs, self.manifest = int(run.seed), int(run.rank), pairs, manifest
        self.init, self.replicate = init, replicate
        self._bases: dict = {}

    def basis(self, module: str, vectors: str) -> np.ndarray:
        """(d_in, rank): right-singular vectors of A, or of the update."""
        if (module, vectors) not in self._bases:
            pair = self.pairs[module]
            basis = subspace.right_basis(pair.A) if vectors == "A" else subspace.update_basis(pair.A, pair.B)[0]
            self._bases[module, vectors] = basis
        return self._bases[module, vectors]

    def at_start(self) -> Adapter:
        """The same run before its first step: A drawn again from the run's own stream, B zero."""
        from lora_bench.models.starts import DRAWN, draw_A

        if self.init not in DRAWN:
            raise NothingToShow(
                f"--step-zero: A of init={self.init} cannot be drawn again without the backbone's weights"
            )
        pairs = {}
        for matrix in self.manifest:
            shape = (matrix["rank"], matrix["d_in"])
            A = draw_A(self.init, matrix["module"], shape, seed=self.seed, replicate=self.replicate)
            pairs[matrix["module"]] = subspace.LowRank(A.numpy(), np.zeros((matrix["d_out"], matrix["rank"])))
        run = type("Run", (), {"seed": self.seed, "rank": self.rank})
        return Adapter(run, pairs, self.manifest, self.init, self.replicate)

    def kept_of_start(self) -> float:
        """The share of A's row space that lies in that of its start, mean over matrices; by chance rank / d_in.

        Raises:
            NothingToShow: when the start cannot be drawn again.
        """
        start = self.at_start()
        spans = [subspace.overlap(self.basis(name, "A"), start.basis(name, "A"))[-1, -1] for name in self.pairs]
        return float(np.mean(spans))


def sentence(setting: Setting, targets: str, table: pd.DataFrame) -> str:
    """What was found here, in one sentence: the leading direction against chance, and the whole spans."""
    parts = []
    of_a = table[table["vectors"] == "A"]
    for comparison, of_comparison in of_a.groupby("comparison", sort=False):
        first = of_comparison[(of_comparison["i"] == 1) & (of_comparison["j"] == 1)]
        whole = of_comparison[
            (of_comparison["i"] == of_comparison["i"].max()) & (of_comparison["j"] == of_comparison["j"].max())
        ]
        above = (first["phi"] > first["null_high"]).sum()
        parts.append(
            f"between {comparison}, A's leading directions overlap by {first['phi'].mean():.2f} "
            f"(chance {first['null_mean'].mean():.3f}; above the random band in {above} of {len(first)} matrices) "
            f"and its whole spans by {whole['phi'].mean():.2f} (chance {whole['null_mean'].mean():.2f})"
        )
    return f"On {setting.title}, {targets}: {'; '.join(parts)}."


def _choose(
    setting: Setting, chosen: pd.DataFrame, store: StoreReader, wanted: str, ranks: tuple[int, int] | None
) -> tuple[str, int, int]:
    """The placement and the two ranks that were asked for, else those of which the store holds adapters."""
    has_adapter = chosen["run_id"].map(lambda run_id: store.adapter(str(run_id)) is not None).astype(bool)
    with_adapter = chosen[has_adapter]
    asked = next((targets for targets in set(chosen["targets"]) if arms.same_targets(wanted, targets)), wanted)
    if not ranks and (asked in set(with_adapter["targets"]) or (not asked and len(with_adapter))):
        chosen = with_adapter
    n_ranks = chosen.groupby("targets", sort=False)["rank"].nunique()
    if n_ranks.empty:
        raise NothingToShow(f"{setting.title}: no finished run of one rank at its chosen rate")
    targets = asked or max(n_ranks.index, key=lambda t: (n_ranks[t], t == REFERENCE_TARGETS))
    if targets not in n_ranks.index:
        raise NothingToShow(
            f"{setting.title}: no run of targets {targets!r}; the store holds {', '.join(n_ranks.index)}"
        )
    known = sorted({int(rank) for rank in chosen.loc[chosen["targets"] == targets, "rank"]})
    if ranks:
        absent = [str(rank) for rank in ranks if rank not in known]
        if absent:
            raise NothingToShow(
                f"{setting.title}: no run of {targets} at rank {', '.join(absent)}; "
                f"ranks are {', '.join(map(str, known))}"
            )
        return targets, *ranks
    high = known[-1]
    low = 8 if 8 in known and high > 8 else known[-2] if len(known) > 1 else high
    return targets, low, high


def read(chosen: pd.DataFrame, store: StoreReader) -> tuple[dict[tuple[int, int], Adapter], int]:
    """(rank, seed) -> Adapter, and how many of these runs kept none that can be read."""
    adapters, lacking = {}, 0
    for run, rank, seed in zip(chosen.itertuples(), chosen["rank"], chosen["seed"], strict=True):
        record = store.record(str(run.run_id))
        try:
            pairs = subspace.read_adapter(store.path(str(run.run_id)), record["manifest"])
        except (FileNotFoundError, ValueError):
            lacking += 1
            continue
        settings = record["config"]["adapter"]
        key = (int(rank), int(seed))
        adapters[key] = Adapter(run, pairs, record["manifest"], settings.get("init", ""), settings.get("replicate", 0))
    return adapters, lacking


def _comparisons(adapters: dict, low: int, high: int) -> dict[Between, list[tuple]]:
    """Pairs of adapter keys of each comparison that the adapters allow."""
    seeds = {rank: sorted(seed for r, seed in adapters if r == rank) for rank in (low, high)}
    comparisons = {}
    if low != high:
        both = [((low, seed), (high, seed)) for seed in seeds[low] if seed in seeds[high]]
        if both:
            comparisons[Between(low, high)] = both[:MOST_PAIRS]
    for rank in dict.fromkeys((high, low)):
        pairs = list(itertools.combinations(seeds[rank], 2))
        if pairs:
            step = max(1, len(pairs) // MOST_PAIRS)
            comparisons[Between(rank, rank)] = [((rank, a), (rank, b)) for a, b in pairs[::step][:MOST_PAIRS]]
    return comparisons


def _measure(
    adapters: dict, comparisons: dict[Between, list[tuple]], rng: np.random.Generator, vectors=tuple(VECTORS)
) -> tuple[pd.DataFrame, dict]:
    """phi at (1, 1), along the diagonal and at the whole spans, with null bands; and whole grids for the heatmaps."""
    manifest = next(iter(adapters.values())).manifest
    rows, grids, bands = [], {}, {}
    for comparison, pairs in comparisons.items():
        n, m = comparison
        for matrix in manifest:
            d = matrix["d_in"]
            if (comparison, d) not in bands:
                draws = 200 if m * d <= 64 * 1024 else 40
                bands[comparison, d] = subspace.null_band(
                    d, n, m, n_pairs=len(pairs), n_draws=_draws(draws, len(pairs)), rng=rng
                )
            low, high = bands[comparison, d]
            chance = subspace.chance_overlap(d, n, m)
            for kind in vectors:
                phi = np.mean(
                    [
                        subspace.overlap(
                            adapters[a].basis(matrix["module"], kind), adapters[b].basis(matrix["module"], kind)
                        )
                        for a, b in pairs
                    ],
                    axis=0,
                )
                grids[comparison, kind, matrix["role"], matrix["layer"]] = phi
                for i, j in sorted({(min(k, n), k) for k in range(1, m + 1)}):
                    rows.append(
                        {
                            "comparison": comparison.title, "vectors": kind, "role": matrix["role"],
                            "layer": matrix["layer"], "module": matrix["module"], "d_in": d,
                            "n_pairs": len(pairs), "i": i, "j": j,
                            "phi": phi[i - 1, j - 1], "null_mean": chance[i - 1, j - 1],
                            "null_low": low[i - 1, j - 1], "null_high": high[i - 1, j - 1],
                        }
                    )  # fmt: skip
    return pd.DataFrame(rows), grids


def _draws(draws: int, n_pairs: int) -> int:
    return max(40, draws // max(1, n_pairs // 2))


def _table(name: str, setting: Setting, table: pd.DataFrame) -> Table:
    """One row per comparison, vectors and role: means over layers at the leading direction and at the whole spans."""
    rows = []
    for (comparison, kind, role), group in table.groupby(["comparison", "vectors", "role"], sort=False):
        first = group[group["j"] == 1]
        whole = group[group["j"] == group["j"].max()]
        row = {
            "comparison": comparison, "vectors": VECTORS[str(kind)], "role": role, "layers": first["layer"].nunique(),
            "pairs": int(first["n_pairs"].iloc[0]),
            "first": first["phi"].mean(), "first_null": first["null_high"].mean(),
            "whole": whole["phi"].mean(), "whole_null": whole["null_high"].mean(),
            "above": int((whole["phi"] > whole["null_high"]).sum()),
        }  # fmt: skip
        if "phi_step_zero" in table:
            row["whole_step_zero"] = whole["phi_step_zero"].mean()
        rows.append(row)
    frame = pd.DataFrame(rows)
    show: Callable[[object], str] = lambda x: "–" if x is None or math.isnan(float(x)) else f"{float(x):.2f}"  # type: ignore[arg-type]  # noqa: E731
    columns = [
        Column("comparison", "between", wording.text, is_number=False),
        Column("vectors", "of", wording.text, is_number=False),
        Column("role", "role", wording.text, is_number=False),
        Column("pairs", "pairs", wording.count),
        Column("first", "first", show),
        Column("first_null", "null ≤", show),
        Column("whole", "whole", show),
        Column("whole_null", "null ≤", show),
        *([Column("whole_step_zero", "step 0", show)] if "whole_step_zero" in frame else []),
        Column("above", "layers above", wording.count, in_paper=False),
    ]
    return Table(
        name, f"{setting.title}: overlap φ of leading directions and of whole spans, means over layers", frame, columns
    )


def _figures(name: str, table: pd.DataFrame, grids: dict, layer: int, shown: list[Between]) -> dict:
    made = {}
    for comparison in shown:
        panels = []
        for (compared, kind, role, at), phi in grids.items():
            if compared == comparison and at == layer and kind == "A" and len(panels) < 4:
                d = int(table[(table["role"] == role) & (table["layer"] == layer)]["d_in"].iloc[0])
                phi = phi[:LARGEST_SHOWN, :LARGEST_SHOWN]
                sides = (
                    ("i, lower rank", "j, higher rank") if comparison.is_of_ranks else ("i, one seed", "j, other seed")
                )
                null = np.minimum(subspace.chance_overlap(d, *phi.shape), 1.0)
                panels.append({"label": role, "phi": phi, "null": null, "first": sides[0], "second": sides[1]})
        kind = "ranks" if comparison.is_of_ranks else "seeds"
        alike = [other for other in shown if other.is_of_ranks == comparison.is_of_ranks]
        rank = f"_{comparison.rank}" if len(alike) > 1 else ""  # of seeds, where no seed has both ranks
        made[f"{name}_{kind}{rank}"] = section7.overlaps(
            panels, title=f"{comparison.title}, layer {layer}, right-singular vectors of A"
        )
    profiles = (
        table.groupby(["comparison", "vectors", "role", "j"], sort=False)[["phi", "null_mean", "null_low", "null_high"]]
        .mean()
        .reset_index()
    )
    kept = profiles[profiles["comparison"].isin([comparison.title for comparison in shown])]
    kept = kept.assign(panel=kept["comparison"] + ", " + kept["vectors"].map(VECTORS))
    made[f"{name}_profile"] = section7.overlap_profiles(kept)
    return made


def _captions(made: Iterable[str], name: str, targets: str, layer: int) -> dict[str, str]:
    same = "Measured above, the mean of random Gaussian matrices of the same shape below, on one scale."
    of_kind = {
        "ranks": f"Overlap φ(i, j) of two ranks of one seed ({targets}, layer {layer}), averaged over seeds. {same}",
        "seeds": f"Overlap φ(i, j) of two seeds of one rank ({targets}, layer {layer}), averaged over pairs. {same}",
        "profile": "Overlap of the first directions, averaged over layers and pairs, against the number of "
        "directions j (i = min(j, lower rank)). Grey: the 95 % band and the mean of random Gaussian matrices.",
    }
    return {figure: of_kind[figure.removeprefix(f"{name}_").partition("_")[0]] for figure in made}


def _notes(setting: Setting, targets: str, low: int, high: int, lacking: int, adapters: dict) -> list[Note]:
    notes = list(setting.notes)
    init = setting.facts.get("init")
    if init in OF_WEIGHTS:
        notes.append(
            Note(
                f"init={init} starts A from the weight, so subspaces agree before any training: "
                "chance is not the right null"
            )
        )
    elif init in ("gaussian", "kaiming", "peft_gaussian"):
        notes.append(Note("A starts from a stream of its own for every rank and seed, so what agrees was learned"))
    if low == high:
        notes.append(gap(f"{targets} was run at rank {high} only: Figure 3 needs a second rank"))
    if lacking:
        notes.append(gap(f"{lacking} of these runs kept no readable adapter and are left out"))
    counts = ", ".join(f"rank {rank}: {sum(r == rank for r, _ in adapters)}" for rank in dict.fromkeys((low, high)))
    notes.append(Note(f"adapters compared: {counts}"))
    return notes
