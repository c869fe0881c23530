"""Figures: what is drawn is what was given, legible at its printed size, the same bytes for the same input."""

from __future__ import annotations

import itertools
from itertools import combinations

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text

from lora_bench.reports import tables
from lora_bench.reports.figures import compose, curves, instrument, section7, speed, style
from lora_bench.reports.figures import verdicts as verdict_figures
from lora_bench.reports.figures.draws import draws
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
        row |= {"learns": dict.fromkeys(range(n_seeds), name != "head only")}
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
        | {"amplification_random": 12 / rank, "targets": "qv"}
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


def verdict_times_rows() -> pd.DataFrame:
    loop, study = "HF Trainer + peft, a process a run", "lora_bench, study"
    rows = [("a", loop, 8, 3600.0), ("a", loop, 32, 14400.0), ("b", "HF Trainer + peft, tuned", 8, 1900.0)]
    rows += [("c", "lora_bench, fixed design", 8, 310.0), ("d", study, 32, 400.0)]
    return pd.DataFrame(rows, columns=["arm", "name", "n_seeds", "seconds"]).assign(
        over_study=lambda table: table["seconds"] / 400
    )


def crossover_rows() -> pd.DataFrame:
    grid = itertools.product(["384x6", "768x12", "smollm2"], ["fp32", "bf16"], [32, 128, 512], [2, 4, 8])
    rows = [(*point, (1 + (point[1] == "bf16")) * (1 + point[3] / (1 + point[2] / 64))) for point in grid]
    return pd.DataFrame(rows, columns=["shape", "precision", "tokens", "pack", "gain"])


def stuck_rows() -> pd.DataFrame:
    """q's seeds 1 and 3 did not learn, and nor did the head alone, of which it is not asked."""
    rows = placement_rows()
    rows["learns"] = [{seed: name != "q" or seed % 2 == 0 for seed in range(4)} for name in rows["targets"]]
    return rows


def drawn_rows() -> pd.DataFrame:
    grid = itertools.product(("q", "qv"), (1e-3, 3e-3), range(4), range(3))
    rows = [
        (f"{targets} r=4", targets, lr, seed, start, 0.5 + 0.05 * seed, start > 0) for targets, lr, seed, start in grid
    ]
    return pd.DataFrame(rows, columns=["cell", "targets", "lr", "seed", "start", "report", "learns"])


ALL = {
    "draws": lambda: draws(drawn_rows(), metric="accuracy"),
    "stuck_seeds": lambda: verdict_figures.placements(stuck_rows(), metric="matthews"),
    "placements": lambda: verdict_figures.placements(
        placement_rows(), metric="matthews", published=paper.weight_types()
    ),
    "contrasts": lambda: verdict_figures.contrasts(contrast_rows(), margin=0.02),
    "contrasts_beside": lambda: verdict_figures.contrasts_beside(
        {name: (contrast_rows(), 0.02) for name in ("all-MiniLM-L6-v2 · sst2", "SmolLM2-135M-Instruct · sst2", "a · b")}
    ),
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
    "verdict_times": lambda: speed.verdict_times(verdict_times_rows()),
    "crossover": lambda: speed.crossover(crossover_rows()),
    "planted_matrix": lambda: instrument.planted_matrix(planted_rows(), metric="accuracy"),
}


def drawn_texts(figure):
    """Every text that a reader sees: (text, its box in pixels), tick labels outside the axes left out."""
    with matplotlib.rc_context(style.STYLE):
        figure.draw_without_rendering()
    unseen = set()
    for axes in figure.axes:
        for axis, limits in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
            low, high = sorted(limits)
            for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
                if not low - 1e-9 <= tick.get_loc() <= high + 1e-9:
                    unseen |= {tick.label1, tick.label2}
        if not axes.get_visible():
            unseen |= set(axes.findobj(Text))
    texts = [text for text in dict.fromkeys(figure.findobj(Text)) if text not in unseen]
    texts = [text for text in texts if text.get_visible() and text.get_text().strip()]
    return [(text, text.get_window_extent()) for text in texts]


def complaints(figure, *, smallest=7.0):
    """What keeps a reader from a text: it is small, leaves the figure, or lies over another."""
    texts = drawn_texts(figure)
    width, height = figure.get_size_inches() * figure.dpi
    said = [f"small: {text.get_text()}" for text, _ in texts if float(text.get_fontsize()) < smallest]
    for text, box in texts:
        if box.x0 < -1 or box.y0 < -1 or box.x1 > width + 1 or box.y1 > height + 1:
            said.append(f"cut: {text.get_text()}")
    for (one, first), (other, second) in combinations(texts, 2):
        over_x = min(first.x1, second.x1) - max(first.x0, second.x0)
        over_y = min(first.y1, second.y1) - max(first.y0, second.y0)
        if over_x > 1.5 and over_y > 2.5:  # pixels of 1/100 inch; boxes are higher than letters
            said.append(f"over: {one.get_text()} | {other.get_text()}")
    return said


@pytest.mark.parametrize("width", [3.03, 6.3], ids=["a column", "a page"])
@pytest.mark.parametrize("name", ALL)
def test_every_text_can_be_read_at_the_width_of_the_venue(name, width):
    """Nothing below 7 points, cut off or over another text, with the name of backbone and task above."""
    with compose.printed(width):
        figure = ALL[name]()
    style.name(figure, "a-backbone-with-a-long-name_v2-base · $a_task$^2")
    assert complaints(figure) == []
    assert figure.get_figwidth() <= width


LONG_NAMES = ("q", "qkvo+up+down", "gate+up+down", "bottleneck_adapter_with_a_long_name")


@pytest.mark.parametrize("n_settings", [1, 4, 9])
def test_heads_of_a_matrix_of_long_names_do_not_touch(n_settings):
    """They overprinted: columns were as wide as a number is, whatever stood above them."""
    rows = contrast_rows().assign(contrast=[f"qv − {name}" for name in LONG_NAMES])
    table = pd.concat(rows.assign(setting=f"all-MiniLM-L6-v2 · task_{i}, 36,864") for i in range(n_settings))
    for width in (None, 3.03, 5.5):
        with compose.printed(width):
            figure = verdict_figures.verdict_matrix(table)
        assert complaints(figure) == []
        signs = [text for axis in figure.axes for text in axis.texts if text.get_text()[:1] in "▲▼=?"]
        assert len(signs) == 4 * n_settings


@pytest.mark.parametrize("n_series", [1, 2, 3, 6])
def test_series_are_moved_aside_by_equal_steps_that_keep_the_rank(n_series):
    """Rank 4 stood at 4.5: a reader took it for another rank."""
    moved = np.array([compose.dodge([1, 4, 64], place, n_series) for place in range(n_series)])
    shift = np.log2(moved) - np.log2([1, 4, 64])
    np.testing.assert_allclose(shift, np.repeat(shift[:, :1], 3, axis=1), atol=1e-12)
    assert np.abs(moved / [1, 4, 64] - 1).max() <= 0.05
    if n_series > 1:
        steps = np.diff(shift[:, 0])
        np.testing.assert_allclose(steps, steps[0])
        assert steps[0] > 0


def test_what_the_marks_of_two_seeds_mean_is_in_the_key():
    """A dash that no key explains is taken for a mean; what is not drawn has no key."""
    few = rate_rows().assign(low=np.nan, high=np.nan)
    said = {text.get_text() for text in curves.learning_rates(few, metric="f1", split="select").legends[0].get_texts()}
    assert {"a seed (of two)", "fewer seeds", "chosen on select"} <= said
    whole = rate_rows().assign(is_full=True)
    said = {
        text.get_text() for text in curves.learning_rates(whole, metric="f1", split="select").legends[0].get_texts()
    }
    assert not {"a seed (of two)", "fewer seeds"} & said


@pytest.mark.parametrize("top", [0.55, 0.8])
def test_the_interval_of_a_chosen_rate_stays_in_its_panel(top):
    """A bar that leaves its panel has no end that can be read."""
    rows = rate_rows().assign(high=top, low=1 - top)
    low, high = curves.learning_rates(rows, metric="f1", split="select").axes[0].get_ylim()
    assert low <= 100 * (1 - top) and 100 * top <= high


def test_axes_say_what_they_show_and_in_which_unit():
    assert style.metric_label("matthews") == "Matthews correlation (×100)"
    assert style.metric_label("accuracy").endswith("(%)")
    axis = verdict_figures.placements(placement_rows(), metric="matthews").axes[0]
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


@pytest.mark.parametrize("n_studies", [2, 3])
def test_studies_side_by_side_are_on_one_scale(n_studies):
    """A difference of 7 points was drawn longer than one of 16 beside it."""
    families = {f"backbone {i}": (contrast_rows(), 0.02) for i in range(n_studies)}
    wide = contrast_rows().assign(high=[0.3, -0.03, 0.006, 0.03])
    figure = verdict_figures.contrasts_beside(families | {"backbone 0": (wide, 0.02)})
    figure.draw_without_rendering()
    panels = [axis for axis in figure.axes if axis.get_visible()]
    assert len(panels) == n_studies
    assert len({axis.get_xlim() for axis in panels}) == 1 and panels[-1].get_xlim()[1] > 30
    has_numbers = [any(tick.label1.get_visible() for tick in axis.xaxis.get_major_ticks()) for axis in panels]
    assert has_numbers == [True, True] if n_studies == 2 else has_numbers == [False, True, True]


def test_seeds_that_did_not_learn_are_hollow_and_in_the_key():
    """On CoLA 20 of 24 seeds at zero looked like those that learn the task."""
    figure = ALL["stuck_seeds"]()
    filled, hollow = [], []
    for drawn in figure.axes[0].collections:
        if type(drawn).__name__ == "PathCollection":
            is_white = (drawn.get_facecolor() == 1).all()
            (hollow if is_white else filled).extend(np.asarray(drawn.get_offsets())[:, 0])
    scores = stuck_rows().set_index("targets")["scores"]
    np.testing.assert_allclose(sorted(hollow), sorted(100 * scores["q"][seed] for seed in (1, 3)))
    assert len(filled) == 4 * 4 - 2
    (key,) = figure.legends
    assert [text.get_text() for text in key.get_texts()] == ["a seed", "a seed that did not learn"]
    assert not ALL["placements"]().legends


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


@pytest.mark.parametrize("is_corrected", [False, True])
def test_contrasts_say_where_words_are_corrected_and_intervals_are_not(is_corrected):
    """An interval that leaves zero out beside `unresolved` reads as a mistake."""
    with compose.printed(6.3):
        figure = verdict_figures.contrasts(contrast_rows(), margin=0.02, is_corrected=is_corrected)
    assert ("words Holm-corrected, intervals not" in figure.get_supxlabel()) != is_corrected


@pytest.mark.parametrize(("n_pairs", "says"), [(8, ""), (2, "\n2 pairs"), (1, "\n1 pair"), (0, "\nno pair")])
def test_pairs_are_told_where_seeds_were_set_aside(n_pairs, says):
    """k and qk stand on two seeds of eight."""
    assert tables.fewer_pairs(n_pairs, 8) == says


def test_words_beside_a_row_leave_the_panel_its_room():
    """The longest word of a study took half of the figure."""
    rows = (
        contrast_rows()
        .iloc[:2]
        .assign(verdict=["not told from the head alone", "open"], extra=[", 8 seeds\n2 pairs", ", 8 seeds\n7 pairs"])
    )
    beside = [text.get_text() for text in verdict_figures.contrasts(rows, margin=0.02).axes[0].texts]
    assert beside == ["not told from the head\nalone, 8 seeds, 2 pairs", "open, 8 seeds\n7 pairs"]


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


@pytest.mark.parametrize("ranks", [(4,), (1, 8), (1, 2, 4, 8)])
def test_amplification_names_its_placement_and_dashes_the_outermost_ranks(ranks):
    """Dashes of four ranks ran into each other's lines, and no word said whose q and v these are."""
    rows = pd.concat(
        amplification_rows().query("rank == 1").assign(rank=rank, amplification_random=rank) for rank in ranks
    )
    figure = section7.amplifications(rows)
    for axis, role in zip(figure.axes, "qv", strict=True):
        assert axis.get_title(loc="left").startswith(f"{role} of qv")
        dashed = [float(np.asarray(line.get_ydata())[0]) for line in axis.lines if line.get_linestyle() == "--"]
        assert dashed == sorted({ranks[0], ranks[-1]})
    said = figure.legends[0].get_texts()[-1].get_text()
    assert all(str(rank) in said for rank in {ranks[0], ranks[-1]}) if len(ranks) > 1 else said == "random U, V"


@pytest.mark.parametrize("text", ["seeds at rank 64, layer 3, right-singular vectors of A", "rank 4 and rank 64, B A"])
@pytest.mark.parametrize("width", [1.2, 2.0, 3.05])
def test_no_line_of_a_wrapped_text_is_a_lone_letter(text, width):
    """A last line of one letter is read as a mark of its own."""
    lines = compose.wrapped(text, width).split("\n")
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert min(map(len, lines)) > 2


def test_no_panel_of_the_crossover_cuts_a_point():
    """All panels share an axis: one that was fixed at the first was too low for those after it."""
    rows = crossover_rows()
    for axes in speed.crossover(rows).axes:
        assert axes.get_ylim()[0] <= 0 and axes.get_ylim()[1] >= rows["gain"].max()


@pytest.mark.parametrize(("n_panels", "n_columns"), [(2, 2), (5, 3), (7, 4), (8, 4), (9, 3), (10, 4)])
def test_rows_of_panels_are_about_as_long_as_each_other(n_panels, n_columns):
    """Nine placements were two rows of four and one panel alone, beside three that stayed empty."""
    assert compose.across(n_panels)[1] == n_columns
    with compose.printed(3.03):
        assert compose.across(n_panels)[1] == 2
