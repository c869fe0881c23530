"""The tables and notes that several questions share."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from lora_bench.config.grammar import group_words
from lora_bench.config.overrides import key_of
from lora_bench.reports.figures import verdicts
from lora_bench.reports.section import Column, Table, one_look
from lora_bench.store.secrets import scrub_override
from lora_bench.verdicts import gaps, pairwise, settings, stats, tuning
from lora_bench.verdicts.arms import Judgement, learned
from lora_bench.verdicts.looks import LESS_OFTEN, MORE_OFTEN, NOT_LEARNED, failed_interval
from lora_bench.verdicts.note import Note, gap
from lora_bench.wording import count, counted, interval, listed, p_value, plus_minus, points, signed, text

BEST_OF = "best_shown"
"""The column of `cell_frame` of which the highest is best: the mean of a cell that learned."""
UNCORRECTED = (
    "95 % intervals, which are uncorrected; words are Holm-corrected over the contrasts, so that one may stay "
    "unresolved whose interval leaves zero out"
)
"""What the caption of contrasts at one look says of its intervals."""


def cell_frame(setting: settings.Setting, estimates: pd.DataFrame, rates: pd.DataFrame) -> pd.DataFrame:
    """Estimates as a tidy frame with the rate's certificate, and the columns that are shown in words."""
    frame = estimates.drop(columns=["arm", "scores", "failures", "learns"]).rename_axis("cell").reset_index()
    drawn = [_bootstrap(tuple(scores.values())) for scores in estimates["scores"]]
    frame["bootstrap_low"], frame["bootstrap_high"] = np.array(drawn, dtype=float).reshape(-1, 2).T
    frame.insert(0, "task", setting.facts["task"])
    frame.insert(0, "model", setting.facts["model"])
    frame["metric"] = setting.metric
    chosen = rates.loc[frame["cell"]]
    frame["certificate"], frame["select"] = chosen["certificate"].to_numpy(), chosen["select"].to_numpy()
    frame["seeds_shown"] = [
        f"{n}" + (f" ({failed} failed)" if failed else "") + (f" ({lacks} missing)" if lacks else "")
        for n, failed, lacks in zip(frame["n_seeds"], frame["n_failed"], frame["n_missing"], strict=True)
    ]
    frame["score_shown"] = [plus_minus(mean, high) for mean, high in zip(frame["mean"], frame["high"], strict=True)]
    frame[BEST_OF] = frame["mean"].where(learned(estimates, rates).to_numpy())
    mark = dict.fromkeys(tuning.UNCERTIFIED, "*") | {"none": " (no score)"}
    frame["rate_shown"] = [
        "– (flat)"
        if certificate == tuning.FLAT
        else f"{rate:g}" + ("" if method == settings.FLOOR else mark.get(certificate, ""))
        for rate, certificate, method in zip(frame["lr"], frame["certificate"], frame["method"], strict=True)
    ]
    return frame


@functools.lru_cache(maxsize=4096)  # a report shows one cell in several sections
def _bootstrap(scores: tuple[float, ...]) -> tuple[float, float]:
    """The percentile interval of a cell's mean, for the files: seeds resampled, the same draws for the same number."""
    if len(scores) < 2:
        return math.nan, math.nan
    return stats.bootstrap_interval(np.array(scores)[:, None], rng=np.random.default_rng(0))


def verdict_phrases(margin: float) -> dict[str, str]:
    """Each verdict as words before and after the other cell, in the order in which they are told."""
    return {
        "better": "better than {}",
        "worse": "worse than {}",
        "tied": f"tied with {{}} within {100 * margin:g} point{'s' if margin != 0.01 else ''}",
        MORE_OFTEN: "learning more often than {}",
        LESS_OFTEN: "learning less often than {}",
        "unresolved": "unresolved against {}",
        NOT_LEARNED: "not comparable with {} (no learning at any rate tried)",
    }


def with_contrasts(frame: pd.DataFrame, contrasts: pd.DataFrame, *, side: str, prefix: str) -> pd.DataFrame:
    """A frame of `cell_frame` with the difference, p and verdict of the contrast whose `side` the cell is."""
    by_cell = contrasts.set_index(side)
    columns = ("difference", "p_holm", "verdict")
    return frame.assign(**{f"{prefix}_{column}": frame["cell"].map(by_cell[column]) for column in columns})


def _marks(estimates: pd.DataFrame, rates: pd.DataFrame) -> list[str]:
    """What a figure puts behind a cell's name: † failed seeds, * a rate that is not certified."""
    certificates = rates.loc[estimates.index, "certificate"]
    return [
        "†" * (failed > 0) + "*" * (certificate in tuning.UNCERTIFIED and method != settings.FLOOR)
        for failed, method, certificate in zip(estimates["n_failed"], estimates["method"], certificates, strict=True)
    ]


def _labelled(contrasts: pd.DataFrame, words: Mapping[str, str]) -> pd.DataFrame:
    """Contrasts as `verdicts.contrasts` draws them: a label, the pairs where these are fewer than the seeds, and the
    seeds that an unresolved one needs.

    Args:
        words: arms that have another name on the figure.
    """
    needed = [seeds_needed(row) for row in contrasts.to_dict("records")]
    return contrasts.assign(
        label=contrasts["first"].replace(words) + " − " + contrasts["second"].replace(words),
        extra=[
            fewer_pairs(n_pairs, n_seeds) + (f"\nneeds {words.split()[0]} seeds" if words else "")
            for n_pairs, n_seeds, words in zip(contrasts["n_pairs"], contrasts["n_seeds"], needed, strict=True)
        ],
    )


def fewer_pairs(n_pairs: int, n_seeds: int) -> str:
    """A line of a figure that says how many pairs a difference is of, where seeds were set aside."""
    return "" if n_pairs == n_seeds else f"\n{counted(n_pairs, 'pair') if n_pairs else 'no pair'}"


def arm_figures(
    name: str,
    judged: Judgement,
    *,
    metric: str,
    margin: float,
    with_ranks: bool = False,
    paper: pd.DataFrame | None = None,
    differences: pd.DataFrame | None = None,
) -> dict[str, Figure]:
    """The score of every arm, and the contrasts where seeds are shared; none without a score.

    Args:
        with_ranks: the arms' names have their ranks behind them.
        paper: what another study scored, as `verdicts.placements` takes it.
        differences: the same for `verdicts.contrasts`.
    """
    if not np.isfinite(judged.estimates["mean"]).any():
        return {}
    drawn = judged.estimates.assign(is_floor=judged.estimates["method"] == settings.FLOOR)
    words = group_words(judged.estimates.index) if differences is None else {}  # the paper's keep its letters
    drawn["label"] = [
        ("head only" if is_floor else f"{words.get(arm, arm)}  r={ranks}" if with_ranks else str(arm)) + mark
        for arm, ranks, is_floor, mark in zip(
            drawn.index, drawn["ranks"], drawn["is_floor"], _marks(drawn, judged.rates), strict=True
        )
    ]
    made = {name: verdicts.placements(drawn, metric=metric, published=paper)}
    shown = judged.contrasts[judged.contrasts["n_seeds"] > 0]
    if len(shown):
        made[f"{name}_contrasts"] = verdicts.contrasts(_labelled(shown, words), margin=margin, published=differences)
    return made


def marks_in_words(estimates: pd.DataFrame) -> str:
    """What the marks of `arm_figures` are, for its caption."""
    said = "Large marks: means over seeds with 95 % t intervals; small marks: seeds"
    adapted = estimates[estimates["method"] != settings.FLOOR]
    seeds = zip(adapted["scores"], adapted["learns"], strict=True)
    is_hollow = any(not learns.get(seed, True) for scores, learns in seeds for seed in scores)
    hollow = ", hollow where they did not learn (one class for nearly all rows), which contrasts set aside"
    return f"{said}{hollow if is_hollow else ''}."


def contrast_table(name: str, table: pd.DataFrame, margin: float) -> Table:
    """Paired contrasts as a table; the screen leaves the second-rank columns to the files."""
    has_stuck = table["n_stuck_first"] + table["n_stuck_second"] > 0
    columns = [
        Column("first", "cell", text, is_number=False, is_name=True),
        Column("second", "against", text, is_number=False, is_name=True),
        Column("n_pairs", "n", count),
        *([Column("learn_shown", "learn", text)] if has_stuck.any() else []),
        Column("difference_shown", "difference", text),
        Column("p", "p", p_value, on_screen=False),
        Column("p_holm", "p Holm", p_value),
        Column("p_sign_flip", "p flip", p_value, on_screen=not has_stuck.any(), in_paper=False),
        Column("p_equivalent_holm", "p tie", p_value),
        Column("verdict", "verdict", text, is_number=False),
        Column("seeds_needed_shown", "seeds needed", text, in_paper=False),
        Column("smallest_difference", "can see", points, on_screen=False),
        Column("note", "note", text, is_number=False, on_screen=False),
    ]
    shown = table.assign(
        difference_shown=[
            plus_minus(mean, high, signed) for mean, high in zip(table["difference"], table["high"], strict=True)
        ],
        learn_shown=[
            f"{n - first}, {n - second} of {n}" if first or second else ""
            for n, first, second in table[["n_seeds", "n_stuck_first", "n_stuck_second"]].itertuples(index=False)
        ],
        seeds_needed_shown=[seeds_needed(row) for row in table.to_dict("records")],
        interval_shown=[interval(low, high, signed) for low, high in zip(table["low"], table["high"], strict=True)],
    )
    title = f"Paired contrasts in points (± 95 %); a tie is within {100 * margin:g}; {one_look(table)}"
    return Table(name, title, shown, columns)


def word_matrix(name: str, title: str, names: Sequence[str], pairs: Iterable[pairwise.Worded]) -> Table:
    """All pairs as one word a cell: what the row is, held against the column."""
    frame = pd.DataFrame(pairwise.matrix(names, pairs), columns=list(names))
    frame.insert(0, "it is, against", list(names))
    columns = [Column(str(column), str(column), text, is_number=False) for column in frame]
    return Table(name, title, frame, columns)


def seeds_needed(contrast: Mapping[Any, Any]) -> str:
    """`17 (8 to 70)`: the seeds that an unresolved contrast needs with their 95 % interval; empty for others."""
    if pd.isna(contrast["seeds_needed"]):
        return ""
    needed, low, high = (count(contrast[f"seeds_needed{end}"]) for end in ("", "_low", "_high"))
    return f"{needed} ({low} to {high})"


def run_notes(runs: pd.DataFrame, rates: pd.DataFrame, estimates: pd.DataFrame) -> list[Note]:
    """What the reader of a table of cells must know: what failed, what has few seeds, which rates are in doubt."""
    notes = failure_notes(runs)
    few = sorted({int(n) for n in estimates["n_seeds"] if n < stats.MIN_PAIRS})
    if few:
        notes.append(
            gap(
                f"some cells have only {listed([str(n) for n in few])} scored seed(s): "
                f"no verdict is possible below {stats.MIN_PAIRS}"
            )
        )
    return [*notes, *rate_notes(rates.loc[estimates.index]), *seed_notes(estimates)]


def failure_notes(runs: pd.DataFrame) -> list[Note]:
    """Which runs ended without a score, if any did."""
    failed = gaps.failures(runs)
    text = f"runs without a score, kept out of the means and counted: {'; '.join(failed)}"
    return [gap(text)] if failed else []


def rate_notes(rates: pd.DataFrame) -> list[Note]:
    """Which chosen rates are not certified, with what to add, and which rates could not compete."""
    notes = []
    doubtful = rates[rates["certificate"].isin(tuning.UNCERTIFIED)]
    for (certificate, _), arms in doubtful.groupby([doubtful["certificate"], doubtful["add"].map(tuple)], sort=False):
        names = listed(list(arms.index))
        have = {rate for grid in arms["rates"] for rate in grid}
        values = ",".join(f"{rate:g}" for rate in arms["add"].iloc[0])
        at = {
            "single": "one rate only was tried",
            "edge": f"is best at the edge of its rates ({', '.join(f'{r:g}' for r in sorted(have))})",
            "behind": "a rate with fewer seeds scores higher on those that both have",
            tuning.FLAT: "none, since at no rate tried does select tell it from the head alone",
        }[str(certificate)]
        notes.append(gap(f"learning rate of {names}: {at}; add train.lr={values}"))
    passed_over = rates["passed_over"].map(", ".join)
    for which, arms in rates[passed_over != ""].groupby(passed_over, sort=False):
        notes.append(Note(f"learning rate of {listed(list(arms.index))}: {which} could not compete"))
    return notes


def settled_overrides(overrides: Sequence[str]) -> list[str]:
    """Of the overrides that started a run, what a further sweep shares with it: no axis, sweep, store or launcher.

    Nor is leave to run a repository's code among them: a record may come from anywhere, and who pastes a line need not
    have read it.
    """
    axes = {"adapter.targets", "adapter.rank", "train.lr", "seed", "store"}
    names = {word: key_of(word) for word in map(scrub_override, map(str, overrides))}
    return [
        written
        for written, name in names.items()
        if name not in axes
        and name != "sweeps"
        and not name.startswith("hydra")
        and written not in ("-m", "--multirun")
        and written != "adapter.budget=null"
        and "trust_remote_code" not in written
    ]


def seed_notes(estimates: pd.DataFrame) -> list[Note]:
    """Cells whose seeds all score the same, and cells some of whose seeds did not learn."""
    notes = []
    has_learned = estimates["n_stuck"] < estimates["learns"].map(len)  # else the line below says why it is constant
    constant = [str(cell) for cell in estimates.index[(estimates["sd"] == 0) & has_learned]]
    if constant:
        notes.append(gap(f"the score of {listed(constant)} is the same in every seed: is the metric stuck?"))
    for cell, n_stuck, learns in zip(estimates.index, estimates["n_stuck"], estimates["learns"], strict=True):
        if n_stuck:
            low, high = failed_interval(n_stuck, len(learns))
            words = f"{cell}: {n_stuck} of {len(learns)} seeds predict one class or diverged"
            notes.append(gap(f"{words} ({100 * low:.0f} to {100 * high:.0f} %); contrasts are of those that learn"))
    return notes
