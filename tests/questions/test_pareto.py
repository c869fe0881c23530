"""Cost: what all cells spend alike is no axis, and no front is drawn over the noise of a clock."""

import numpy as np
import pytest

from fake_store import fake_record, write_store
from lora_bench.questions import pareto
from lora_bench.reports.scope import Scope


def costs_drawn(tmp_path, cells, seconds):
    records = []
    for (targets, rank), time in zip(cells, seconds, strict=True):
        for seed in range(3):
            record = fake_record(targets=targets, rank=rank, seed=seed, lr=1e-3, report=0.5 + 0.01 * seed + 0.02 * rank)
            record["cost"]["attributed_seconds"] = time
            records.append(record)
    write_store(tmp_path, records)
    scope = Scope(tmp_path)
    (section,) = pareto.sections(scope.read(), scope)
    axes = [axis.get_xlabel() for figure in section.figures.values() for axis in figure.axes if axis.get_visible()]
    return axes, section


@pytest.mark.parametrize("noise", [0.0, 0.006, 0.04])
def test_a_sweep_of_one_budget_has_no_figure_of_costs(tmp_path, noise):
    """It was one vertical line, and a front between times of equal work; the table keeps the numbers."""
    seconds = 146 * (1 + noise * np.array([0.0, 1.0, 0.5]))
    axes, section = costs_drawn(tmp_path, [("q", 8), ("v", 8), ("o", 8)], seconds)
    assert axes == [] and section.figures == {}
    assert any("cost the same" in remark for remark in section.remarks)


def test_a_cost_that_differs_keeps_its_panel(tmp_path):
    axes, _ = costs_drawn(tmp_path, [("q", 1), ("q", 8), ("qv", 64)], [100.0, 100.5, 101.0])
    assert "adapter parameters" in axes and not any("time" in label for label in axes)


@pytest.mark.parametrize("faster", [0.2, 0.9, 4.0])
def test_no_cell_is_on_the_front_of_time_for_less_than_its_noise(tmp_path, faster):
    """A front over 0.9 s of 100 s says that the slower cell is dearer, which the same two runs may deny tomorrow."""
    _, section = costs_drawn(tmp_path, [("q", 1), ("q", 8), ("qv", 64)], [100.0 - faster, 100.0, 300.0])
    front = section.tables[0].frame.set_index("cell")["front_seconds"]
    assert front.to_dict() == {"q r=1": False, "q r=8": True, "qv r=64": True}


def test_times_further_apart_than_noise_keep_their_front():
    """Chains do not join: each group is told from its cheapest member."""
    np.testing.assert_array_equal(
        pareto.grouped(np.array([104.0, 100.0, np.nan, 106.0, 111.0])), [100.0, 100.0, np.nan, 106.0, 106.0]
    )
