"""Figures: what is drawn is what was given, legible at its printed size, the same bytes for the same input."""

from __future__ import annotations

from itertools import pairwise

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text

from lora_bench.reports.figures import curves, instrument, section7, style
from lora_bench.reports.figures import verdicts as verdict_figures
from lora_bench.verdicts import paper


def placement_rows(n_seeds: int = 4, names: tuple[str, ...] = ("q", "qv", "qkvo", "head only")) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    rows = []
    for i, name in enumerate(names):
        scores = 0.5 + 0.03 * i + rng.normal(0, 0.01, n_seeds)
        row = {
            "label": name,
            "targets": name,
            "mean": scores.mean(),
            "low": scores.mean() - 0.01,
            "high": scores.mean() + 0.01,
        }
        rows.append(row | {"scores": dict(enumerate(scores)), "is_floor": name == "head only"})
    return pd.DataFrame(rows)


def contrast_rows() -> pd.DataFrame:
    verdicts = ["better", "worse", "tied", "unresolved"]
    return pd.DataFrame(
        {
            "label": [f"qv − {name}" for name in ("q", "k", "v", "o")],
            "difference": [0.04, -0.05, 0.001, 0.01],
            "low": [0.03, -0.07, -0.004, -0.01],
            "high": [0.05, -0.03, 0.006, 0.03],
            "verdict": verdicts,
            "extra": ["", "", "", ": 12 seeds"],
        }
    )


def rank_rows() -> pd.DataFrame:
    rows = placement_rows(names=("q",) * 5 + ("qv",) * 5)
    return rows.assign(rank=[1, 2, 4, 8, 64] * 2, gap=0.05, gap_low=0.04, gap_high=0.06)


def rate_rows() -> pd.DataFrame:
    rows = [
        {
            "targets": targets,
            "rank": str(rank),
            "rank_order": rank,
            "lr": lr,
            "mean": 0.5,
            "low": 0.4,
            "high": 0.6,
            "scores": [0.4, 0.6],
            "is_chosen": lr == 1e-3,
            "is_full": lr != 3e-3,
        }
        for targets in ("q", "qv", "qkvo")
        for rank in (1, 8)
        for lr in (3e-4, 1e-3, 3e-3)
    ]
    return pd.DataFrame(rows)


def overlap_panels() -> list[dict]:
    grid = np.full((4, 16), 0.3)
    return [{"label": role, "phi": grid, "null": grid / 3, "first": "i", "second": "j"} for role in "qv"]


def profile_rows() -> pd.DataFrame:
    rows = [
        {"panel": panel, "role": role, "j": j, "phi": 0.3, "null_low": 0.01, "null_high": 0.03, "null_mean": 0.02}
        for panel in ("ranks, A", "seeds, A")
        for role in "qv"
        for j in range(1, 9)
    ]
    return pd.DataFrame(rows)


def amplification_rows() -> pd.DataFrame:
    rows = [
        {"role": role, "layer": layer, "rank": rank, "mean": 10 / rank, "low": 9 / rank, "high": 11 / rank}
        | {"amplification_random": 12 / rank}
        for role in "qv"
        for layer in range(6)
        for rank in (1, 8)
    ]
    return pd.DataFrame(rows)


def pareto_rows() -> pd.DataFrame:
    return placement_rows(names=("q", "qv", "qkvo")).assign(size=[100, 200, 4000], front_size=[True, False, True])


def matrix_rows() -> pd.DataFrame:
    rows = contrast_rows()
    return rows.assign(setting="minilm · cola", contrast=rows["label"])


def error_rows() -> pd.DataFrame:
    labels = ["normal, 3 seeds", "heavy, 8 seeds", "coarse, 8 seeds"]
    rows = pd.DataFrame({"label": labels, "share": [0.03, 0.045, 0.04]})
    return rows.assign(low=0.02, high=0.06, other=0.2, other_low=0.18, other_high=0.22)


def power_rows() -> pd.DataFrame:
    rows = [
        {"n_seeds": n_seeds, "effect": effect, "found": 0.5, "low": 0.4, "high": 0.6, "promised": 0.45}
        for n_seeds in (3, 5, 8)
        for effect in (0.0, 1.0, 3.0)
    ]
    return pd.DataFrame(rows)


def coverage_rows() -> pd.DataFrame:
    labels = ["q r=8, 8 seeds", "q r=8 − qv r=4, 8 seeds"]
    return pd.DataFrame({"label": labels, "coverage": [0.96, 0.85], "band_low": 0.92, "band_high": 0.99})


def planted_rows() -> pd.DataFrame:
    rows = [
        {"teacher": f"{teacher} r=4", "student": student, "mean": 0.6 + 0.02 * i, "is_own": teacher == student}
        for teacher in ("q", "v", "up+down")
        for i, student in enumerate(("q", "v", "qv", "up+down", "head only"))
    ]
    verdicts = ["better", "worse", "tied", "unresolved", ""] * 3
    return pd.DataFrame(rows).assign(verdict=verdicts)


def throughput_rows() -> pd.DataFrame:
    arms = [("trainer", 1), ("trainer_auto", 1), ("solo", 1), ("packed", 4), ("packed", 28)]
    return pd.DataFrame(
        [
            {"arm": arm, "pack": pack, "precision": "fp32", "examples_per_second": 100.0 + 60 * place, "fraction": 0.5}
            for place, (arm, pack) in enumerate(arms)
        ]
    )


ALL = {
    "placements": lambda: verdict_figures.placements(
        placement_rows(), metric="matthews", published=paper.weight_types()
    ),
    "contrasts": lambda: verdict_figures.contrasts(contrast_rows(), margin=0.02),
    "ranks": lambda: verdict_figures.ranks(rank_rows(), metric="accuracy", published=paper.rank()),
    "gaps": lambda: verdict_figures.gaps(rank_rows()),
    "learning_rates": lambda: curves.learning_rates(rate_rows(), metric="f1", split="select"),
    "overlaps": lambda: section7.overlaps(overlap_panels(), title="two ranks"),
    "overlap_profiles": lambda: section7.overlap_profiles(profile_rows()),
    "amplifications": lambda: section7.amplifications(amplification_rows()),
    "pareto": lambda: curves.pareto(pareto_rows(), [("size", "parameters")], metric="accuracy"),
    "verdict_matrix": lambda: verdict_figures.verdict_matrix(matrix_rows()),
    "marked_rank": lambda: verdict_figures.ranks(rank_rows(), metric="accuracy", marked=4),
    "error_rates": lambda: instrument.error_rates(error_rows(), nominal=0.05),
    "power_curves": lambda: instrument.power_curves(power_rows()),
    "coverages": lambda: instrument.coverages(coverage_rows()),
    "throughput": lambda: instrument.throughput(throughput_rows()),
    "planted_matrix": lambda: instrument.planted_matrix(planted_rows(), metric="accuracy"),
}


@pytest.mark.parametrize("name", ALL)
def test_text_is_legible_at_print_size_and_stays_on_the_page(name):
    """At most two columns wide, no text below 5.5 pt, none cut off, none on top of another tick label."""
    figure = ALL[name]()
    with matplotlib.rc_context(style.STYLE):
        figure.draw_without_rendering()
    width, height = figure.get_size_inches() * figure.dpi
    assert figure.get_figwidth() <= style.PAGE
    for text in figure.findobj(Text):
        if text.get_visible() and text.get_text().strip() and text.axes is not None and text.axes.get_visible():
            assert float(text.get_fontsize()) >= 5.5, text.get_text()
    ticks = [t for axis in figure.axes for t in (*axis.get_xticklabels(), *axis.get_yticklabels())]
    for text in figure.findobj(Text):
        if text in ticks or not (text.get_visible() and text.get_text().strip()):
            continue  # ticks beyond the limits exist but are not drawn
        box = text.get_window_extent()
        assert box.x0 >= -2 and box.x1 <= width + 2 and box.y0 >= -2 and box.y1 <= height + 2, text.get_text()
    for axis in figure.axes:
        low, high = sorted(axis.get_xlim())
        labels = [t for t in axis.get_xticklabels() if t.get_text() and low <= t.get_position()[0] <= high]
        boxes = [t.get_window_extent() for t in labels if t.get_visible()]
        assert all(a.x1 <= b.x0 + 1 for a, b in pairwise(boxes)), [t.get_text() for t in labels]


def test_axes_say_what_they_show_and_in_which_unit():
    assert style.metric_label("matthews") == "Matthews correlation (×100)"
    assert style.metric_label("accuracy").endswith("(%)")
    axis = ALL["placements"]().axes[0]
    assert axis.get_xlabel() == "Matthews correlation (×100)"
    assert [label.get_text() for label in axis.get_yticklabels()] == ["q", "qv", "qkvo", "head only"]


def test_marks_are_where_the_estimates_are():
    rows = placement_rows()
    axis = ALL["placements"]().axes[0]
    means = sorted(np.asarray(line.get_xdata())[0] for line in axis.lines if line.get_marker() in ("o", "s"))
    np.testing.assert_allclose(means, sorted(100 * rows["mean"]))
    offsets = [np.asarray(collection.get_offsets()) for collection in axis.collections]
    dots = np.concatenate([places[:, 0] for places in offsets if len(places) == 4])
    np.testing.assert_allclose(
        sorted(dots), sorted(100 * score for scores in rows["scores"] for score in scores.values())
    )


def test_a_floor_far_off_is_written_and_does_not_hide_the_intervals():
    rows = placement_rows()
    assert not [
        text for text in verdict_figures.placements(rows, metric="accuracy").axes[0].texts if "←" in text.get_text()
    ]
    floor = rows["is_floor"].to_numpy(bool)
    far = rows.assign(mean=np.where(floor, rows["mean"] - 0.5, rows["mean"]))
    axis = verdict_figures.placements(far, metric="accuracy").axes[0]
    assert [text.get_text() for text in axis.texts] == [f"← {100 * float(far['mean'][floor].iloc[0]):.1f}"]
    low, high = axis.get_xlim()
    assert 100 * float(far["mean"][floor].iloc[0]) < low < 100 * far["low"][~floor].min()
    assert high > 100 * far["high"][~floor].max()


def test_no_meaning_rests_on_colour_alone():
    """Verdicts differ by marker or filling and are written out; placements differ by marker."""
    assert len({marker for _, marker in style.SERIES.values()}) == len(style.SERIES)
    axis = ALL["contrasts"]().axes[0]
    assert {"better", "worse", "tied", "unresolved: 12 seeds"} <= {text.get_text() for text in axis.texts}


def test_an_interval_that_is_unknown_is_not_drawn():
    rows = placement_rows().assign(low=np.nan, high=np.nan)
    axis = verdict_figures.placements(rows, metric="accuracy").axes[0]
    assert len([c for c in axis.collections if type(c).__name__ == "LineCollection"]) == 0


def test_drawing_leaves_the_callers_matplotlib_alone():
    before = dict(matplotlib.rcParams)
    ALL["contrasts"]()
    assert dict(matplotlib.rcParams) == before
    import matplotlib.pyplot as plt

    assert plt.get_fignums() == []


def test_saving_writes_three_formats_and_equal_bytes(tmp_path):
    for name in "ab":
        style.save(ALL["contrasts"](), tmp_path / name, "figure")
    for suffix in ("pdf", "png", "svg"):
        assert (tmp_path / "a" / f"figure.{suffix}").read_bytes() == (tmp_path / "b" / f"figure.{suffix}").read_bytes()


def test_published_values_agree_with_the_paper():
    table = paper.weight_types().set_index(["dataset", "targets"])["score"]
    assert table["WikiSQL", "qv"] == table["WikiSQL", "qkvo"] == 0.737
    assert table["MultiNLI", "qkvo"] == table["MultiNLI"].max() == 0.917
    ranks = paper.rank().set_index(["dataset", "targets", "rank"])["score"]
    assert len(ranks) == 30
    assert ranks["WikiSQL", "qkvo", 1] == 0.741


@pytest.mark.parametrize(("make", "at"), [("error_rates", 5.0), ("coverages", 95.0)])
def test_the_dashed_line_is_what_is_promised(make, at):
    (line, *_) = ALL[make]().axes[0].get_lines()
    assert list(line.get_xdata()) == [at, at]


@pytest.mark.parametrize("n_ranks", [2, 7])
def test_the_legend_of_many_ranks_stays_on_the_page(n_ranks):
    rows = pd.concat(amplification_rows().assign(rank=2**power) for power in range(n_ranks))
    figure = section7.amplifications(rows)
    figure.draw_without_rendering()
    legend = figure.legends[0].get_window_extent()
    assert figure.bbox.x0 <= legend.x0 and legend.x1 <= figure.bbox.x1 and legend.y1 <= figure.bbox.y1
    assert len(figure.legends[0].get_texts()) == n_ranks + 1
