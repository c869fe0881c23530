"""Does the update amplify directions that the weight has but does not stress? The paper's Table 7, on any sweep.

    amplification = ||dW||_F / ||U^T W V||_F        U, V: the update's own singular directions, at rank r

A factor says little by itself: random directions hold little of a weight too. So the weight in the update's directions
stands beside what random ones hold (exact, without a draw; a root mean square, as is all that stands beside it), and a
figure has the factor that they would give. At a high rank A's span is for the most part its random start, whose ratio
to random directions is near 1: so the leading direction of the update, the same at r = 1, stands beside the whole
subspace. Read from the norms that every record keeps, the leading direction in older stores from kept adapters and the
backbone (--leading, which imports torch). dW carries the scale alpha / rank (or what the policy makes of it):
factors compare across ranks only at the alpha policy shown. Source: Hu et al. 2021, arXiv:2106.09685, section 7.3.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping

import numpy as np
import pandas as pd

from lora_bench import wording
from lora_bench.reports.figures import section7
from lora_bench.reports.leading import KEYS, Weights, with_leading
from lora_bench.reports.scope import Scope, each_setting
from lora_bench.reports.section import Column, SettingSection, Table
from lora_bench.store import StoreReader, open_store
from lora_bench.verdicts import arms, power, settings, subspace, tuning
from lora_bench.verdicts import paper as published
from lora_bench.verdicts.note import Note, gap

RECORDED = ("weight", "update", "weight_in_update", "weight_in_weight")
NORMS = (*RECORDED, "weight_in_random", *KEYS, "random_in_leading")
RATIOS = {  # to what random directions hold, of the whole subspace and of its leading direction
    "over_random": ("weight_in_update", "weight_in_random"),
    "leading_over_random": ("weight_in_leading", "random_in_leading"),
}
FACTORS = {"amplification": "weight_in_update", "amplification_random": "weight_in_random"}  # of which norm, as a log


def sections(
    runs: pd.DataFrame, scope: Scope, *, targets: str = "", weights: Weights | None = None
) -> list[SettingSection]:
    """One section per setting.

    Args:
        targets: only this placement; empty takes every one.
        weights: the backbone's, for the leading direction of runs whose records lack it.

    Raises:
        NothingToShow: when no run at a chosen rate keeps its norms.
    """
    store = open_store(scope.store)
    return each_setting(
        runs,
        scope,
        lambda setting: [
            section(setting, store, targets=targets, name=f"amplification_{setting.slug}", weights=weights)
        ],
    )


def section(
    setting: settings.Setting, store: StoreReader, *, targets: str, name: str, weights: Weights | None = None
) -> SettingSection:
    """The table, the figures and the sentence for one setting.

    Raises:
        NothingToShow: when no run at a chosen rate keeps its norms.
    """
    runs = arms.name_arms(setting.runs[setting.runs["targets"] != ""])
    if targets:
        runs = runs[[arms.same_targets(targets, run_on) for run_on in runs["targets"]]]
        if runs.empty:
            there = ", ".join(sorted(set(setting.runs["targets"]) - {""}))
            raise settings.NothingToShow(f"{setting.title}: no run of targets {targets!r}; the store holds {there}")
    norms, lacking, without = read_norms(runs, store, weights)
    if norms.empty:
        raise settings.NothingToShow(
            f"{setting.title}: no record keeps its norms ({lacking} runs looked at); "
            "they are kept by finished LoRA runs"
        )
    by_matrix = _intervals(norms, ["targets", "rank", "role", "layer"])
    summary = _intervals(norms, ["targets", "rank", "role"])
    shown = _drawn(by_matrix)
    figures = {name: section7.amplifications(shown.rename(columns={"amplification": "mean"}))}
    of_targets = summary[summary["targets"] == shown["targets"].iloc[0]]
    if of_targets["leading_over_random"].notna().any():
        figures[f"{name}_leading"] = section7.over_random(of_targets)
    return SettingSection(
        title=f"Amplification: {setting.title}",
        sentence=sentence(setting, summary),
        tables=[_table(name, setting, summary), Table(f"{name}_layers", "by layer", by_matrix)],
        figures=figures,
        captions={
            name: f"Amplification factor by layer, targets {shown['targets'].iloc[0]}: geometric means over seeds with "
            "95 % t intervals of the logarithm, each rank at its own learning rate. Dashed: the factor in random "
            "directions, at the lowest and the highest rank.",
            f"{name}_leading": f"Weight within the update's directions over that within random ones, targets "
            f"{shown['targets'].iloc[0]}: of its leading direction, and of its whole subspace. Root mean squares over "
            "layers and seeds, with 95 % intervals over seeds; dashed: as much as random ones.",
        },
        notes=_notes(setting, lacking, without),
        setting=setting,
    )


def read_norms(
    runs: pd.DataFrame, store: StoreReader, weights: Weights | None = None
) -> tuple[pd.DataFrame, int, Counter[str]]:
    """One row per matrix of every scored run at its arm's chosen rate, how many such runs kept no norms, and how many
    have no leading direction, by why."""
    rows, lacking, without = [], 0, Counter[str]()
    for run in tuning.at_chosen_rates(runs).itertuples():
        record = store.record(str(run.run_id))
        shapes = {(matrix["role"], matrix["layer"]): (matrix["d_out"], matrix["d_in"]) for matrix in record["manifest"]}
        norms = record.get("norms") or []
        kept = [entry for entry in norms if all((entry.get(key) or 0) > 0 for key in RECORDED)]
        lacking += not kept
        kept, why = with_leading(record, kept, store, weights)
        without.update([why] if why and kept else [])
        for entry in kept:
            row = {key: entry.get(key, math.nan) for key in ("role", "layer", "rank", *RECORDED, *KEYS)}
            shape = shapes[entry["role"], entry["layer"]]
            row["weight_in_random"] = subspace.weight_in_random(entry["weight"], entry["rank"], shape)
            is_known = math.isfinite(row["weight_in_leading"])
            row["random_in_leading"] = subspace.weight_in_random(entry["weight"], 1, shape) if is_known else math.nan
            row |= {"targets": run.targets, "seed": run.seed, "scale": entry.get("scale"), "lr": run.lr}
            for factor, norm in FACTORS.items():
                row[factor] = math.log(subspace.amplification(row["update"], row[norm]))
            rows.append(row)
    return pd.DataFrame(rows), lacking, without


def sentence(setting: settings.Setting, summary: pd.DataFrame) -> str:
    """What was found here, in one sentence."""
    low, high = summary["amplification"].min(), summary["amplification"].max()
    ratios, of_leading = summary["over_random"], summary["leading_over_random"].dropna()
    leading = f", the leading one {of_leading.min():.2g} to {of_leading.max():.2g} times" if len(of_leading) else ""
    paper = wording.listed(
        [f"{ratio:.2g}" for ratio in published.TABLE_7["weight_in_update"] / published.TABLE_7["weight_in_random"]]
    )
    return (
        f"On {setting.title} the update is {_short(low)} to {_short(high)} times as large as the weight in the "
        f"update's own directions (geometric means by placement, rank and role); those directions hold "
        f"{ratios.min():.2g} to {ratios.max():.2g} times as much of the weight as random ones do{leading} "
        f"(paper: {paper})."
    )


def _intervals(norms: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Root mean squares over matrices and seeds, of the factors geometric means, with t intervals over seeds: of the
    factor's logarithm, and of the squared ratios to random directions.

    Where an update is nearly orthogonal to the weight, one factor of a thousand would be the arithmetic mean.
    """
    kept = [*NORMS, *FACTORS, "scale"]
    squared = norms.assign(**{name: norms[name] ** 2 for name in NORMS})
    per_seed = squared.groupby([*by, "seed"], sort=False)[kept].mean().reset_index()
    for ratio, (within, random) in RATIOS.items():
        per_seed[ratio] = per_seed[within] / per_seed[random]
    grouped = per_seed.groupby(by, sort=False)
    means = grouped[[*kept, *RATIOS]].mean()
    spread = grouped["amplification"].agg(["std", "count"])
    half = power.half_width(spread["std"], spread["count"])
    low, high = np.exp(means["amplification"] - half), np.exp(means["amplification"] + half)
    made = means.assign(low=low, high=high, n_seeds=spread["count"])
    made[list(FACTORS)] = np.exp(means[list(FACTORS)])
    for ratio in RATIOS:
        spread = grouped[ratio].agg(["std", "count"])
        half = power.half_width(spread["std"], spread["count"])
        made[f"{ratio}_low"] = np.sqrt((means[ratio] - half).clip(lower=0))
        made[f"{ratio}_high"] = np.sqrt(means[ratio] + half)
        made[f"{ratio}_seeds"] = spread["count"]
    rooted = [*NORMS, *RATIOS]
    made[rooted] = np.sqrt(means[rooted])
    made["leading_factor"] = made["update_leading"] / made["weight_in_leading"]
    return made.reset_index()


def _drawn(by_matrix: pd.DataFrame) -> pd.DataFrame:
    """The placement that a figure shows: the one with most ranks, qv first among equals."""
    n_ranks = by_matrix.groupby("targets", sort=False)["rank"].nunique()
    best = max(n_ranks.index, key=lambda targets: (n_ranks[targets], targets == settings.REFERENCE_TARGETS))
    return by_matrix[by_matrix["targets"] == best]


def _table(name: str, setting: settings.Setting, summary: pd.DataFrame) -> Table:
    frame = summary.assign(
        alpha_policy=setting.facts.get("alpha_policy"),
        factor_shown=[
            f"{factor:.3g}" if not np.isfinite(high) else f"{factor:.3g} ({low:.3g} to {high:.3g})"
            for factor, low, high in zip(summary["amplification"], summary["low"], summary["high"], strict=True)
        ],
        leading_shown=[
            _short(ratio) if not np.isfinite(high) else f"{ratio:.3g} ({low:.3g} to {high:.3g})"
            for ratio, low, high in summary[[f"leading_over_random{end}" for end in ("", "_low", "_high")]].to_numpy()
        ],
    )
    leading = [
        Column("leading_over_random", "leading", _short),
        Column("leading_shown", "leading over random (95 %)", wording.text, on_screen=False),
        Column("leading_over_random_seeds", "of seeds", wording.count, on_screen=False),
        Column("leading_factor", "factor of leading", _short, on_screen=False),
    ] * bool(frame["leading_over_random"].notna().any())
    columns = [
        Column("targets", "targets", wording.text, is_number=False, is_name=True),
        Column("rank", "rank", wording.count),
        Column("role", "role", wording.text, is_number=False),
        Column("n_seeds", "seeds", wording.count, in_paper=False),
        Column("scale", "scale", _short, on_screen=False),
        Column("weight", "‖W‖", _short, on_screen=False),
        Column("update", "‖ΔW‖", _short, in_paper=False),
        Column("weight_in_update", "W in ΔW", _short),
        Column("weight_in_weight", "W in W", _short, on_screen=False),
        Column("weight_in_random", "W in random", _short),
        Column("over_random", "over random", _short),
        *leading,
        Column("factor_shown", "factor", wording.text),
    ]
    return Table(name, f"{setting.title}: norms, root mean squares over layers and seeds", frame, columns)


def _notes(setting: settings.Setting, lacking: int, without: Mapping[str, int]) -> list[Note]:
    notes = list(setting.notes)
    policy = setting.facts.get("alpha_policy")
    notes.append(
        Note(
            f"alpha {setting.facts.get('alpha'):g}, policy {policy}: ‖ΔW‖ carries the scale shown, so factors of "
            "different ranks compare only under this policy"
        )
    )
    if lacking:
        notes.append(gap(f"{lacking} runs at their chosen rate keep no norms and are left out"))
    notes += [
        Note(f"{wording.counted(n_runs, 'run')} without the leading direction: {why}")
        for why, n_runs in without.items()
    ]
    paper = "; ".join(
        f"r={row['rank']}: ‖W‖ {row['weight']:g}, ‖ΔW‖ {row['update']:g}, W in ΔW {row['weight_in_update']:g}, "
        f"in W {row['weight_in_weight']:g}, in random {row['weight_in_random']:g}, "
        f"factor {subspace.amplification(row['update'], row['weight_in_update']):.3g}"
        for row in published.TABLE_7.to_dict("records")
    )
    notes.append(Note(f"the paper's Table 7 (q of layer 48, GPT-3 175B, alpha not published): {paper}"))
    return notes


def _short(value: object) -> str:
    return "–" if value is None or not np.isfinite(float(value)) else f"{float(value):.3g}"  # type: ignore[arg-type]
