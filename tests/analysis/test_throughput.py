"""Throughput is measured on the runs that `lora-bench` composes, not on a copy of its configuration."""

import pytest

from analysis import throughput
from analysis.speed import crossover, verdict, whole_command
from configs import composed
from lora_bench.config.compose import parse

SAME = ("tracking=none", "device=cpu", "task.report_rows=64", "adapter.rank=null", "adapter.budget=q@8")
SMALL = ("--rows", "48", "--batch-size", "8", "--epochs", "2", "--precision", "fp32", "--child", "packed", "--pack")
WORDS = ("task.train_rows=48", "train.batch_size=8", "train.epochs=2", "train.precision=fp32", *SAME)


@pytest.mark.parametrize("task", ["acceptability", "similarity", "cola"])
def test_an_arm_trains_what_the_command_line_composes(task):
    """A copy of conf/ took regression tasks for classification, and followed no change of a default."""
    configs = throughput.configurations(throughput.parse(["--task", task, *SMALL, "9"]))
    assert [config.adapter.targets for config in configs] == [*throughput.PLACEMENTS, "q", "k"]
    for config, targets, rate in ((configs[5], "qv", 1e-3), (configs[8], "k", 2e-3)):
        point = (f"task={task}", f"adapter.targets={targets}", f"train.lr={rate}")
        assert config == parse(composed(*WORDS, *point))


def test_the_backbone_of_the_papers_size_is_drawn_at_random():
    """Measuring speed needs no download."""
    (config,) = throughput.configurations(throughput.parse(["--backbone", "roberta_base", *SMALL, "1"]))
    assert (config.model.weights, dict(config.model.architecture or {})) == ("random", throughput.ROBERTA_BASE)


def timed(*, process_a_run):
    seconds = {"1": 10.0, "2": 12.0, "4": 16.0}
    return {"process_a_run": process_a_run, "startup_seconds": 5.0, "n_timed": 3, "seconds": seconds}


@pytest.mark.parametrize(("process_a_run", "starts"), [(True, 280), (False, 1)])
def test_a_sample_is_extended_by_what_the_grid_has_of_each_kind(process_a_run, starts):
    """Four placements of one matrix, two of two and one of four, five rates and eight seeds."""
    expected = 5 * 8 * (4 * 10.0 + 2 * 12.0 + 16.0) + starts * 5.0
    assert verdict.extended(timed(process_a_run=process_a_run), 8) == expected


@pytest.mark.parametrize(("n_seeds", "seeds"), [(8, [8]), (32, [8, 32])])
def test_a_grid_is_shown_with_as_many_seeds_as_the_study_took(n_seeds, seeds):
    """Eight seeds give the words of eight seeds: held against the study's, the loop would look cheaper than it is."""
    ours = {"n_runs": 280, "n_seeds": 8, "seconds": 300.0, "basis": "run", "words": {"better": ["q"]}}
    measured = {"a": timed(process_a_run=True), "b": timed(process_a_run=False), "c": ours}
    measured["d"] = {**ours, "n_runs": 150, "n_seeds": n_seeds, "seconds": 100.0, "words": {"better": ["q", "k"]}}
    rows = verdict.rows(measured)
    assert [row["n_seeds"] for row in rows if row["arm"] == "a"] == seeds
    assert [row["n_runs"] for row in rows if row["arm"] == "b"] == [35 * n for n in seeds]
    by_count = {row["n_seeds"]: row["words"] for row in rows if row["arm"] == "a"}
    assert by_count[8] == {"better": ["q"]} and all(by_count[n] is None for n in seeds[1:])
    assert [row["over_study"] for row in rows if row["arm"] == "c"] == [3.0]


@pytest.mark.parametrize("name", ["small", "sst2"])
def test_the_question_of_each_way_is_the_same(name, monkeypatch):
    """A fixed design of other rows than the study's, or than the loop's, would be another question."""
    options = throughput.parse(["--verdict", name, *(["--data-dir", "glue/sst2"] if name == "sst2" else [])])
    asked = verdict.plan(throughput._words("verdict", verdict.QUESTIONS, options))
    fixed, study = (line.split()[2:] for line in asked[2:])
    assert [word for word in study if not word.strip("'").startswith("study")] == fixed[1:]
    assert {"task.train_rows", "train.epochs", "train.dropout"} <= {word.partition("=")[0] for word in fixed}


@pytest.mark.parametrize(
    ("option", "name", "known"), [("verdict", "sst2", verdict.QUESTIONS), ("profile", "cola", whole_command.COMMANDS)]
)
def test_what_reads_a_tasks_files_asks_for_their_folder(option, name, known, tmp_path):
    with pytest.raises(SystemExit, match=f"--{option} {name} needs --data-dir"):
        throughput._words(option, known, throughput.parse([f"--{option}", name]))
    given = throughput.parse([f"--{option}", name, "--data-dir", str(tmp_path)])
    assert throughput._words(option, known, given) == [*known[name], f"task.data_dir={tmp_path}"]


def test_a_curve_goes_on_where_it_was_stopped(tmp_path, monkeypatch):
    """On the same machine; points of another would be compared with these."""
    options = throughput.parse(["--shapes", "384x6", "--precisions", "fp32", "--out", str(tmp_path)])
    measured = []

    def seconds(shape, precision, length, pack, *, rounds):
        measured.append((length, pack))
        if len(measured) == 4:
            raise KeyboardInterrupt
        return 1.0, pack / 2

    monkeypatch.setattr(crossover, "_seconds", seconds)
    with pytest.raises(KeyboardInterrupt):
        crossover.measure(options, {"id": "here"})
    points = crossover.measure(options, {"id": "here"})["points"]
    assert len(points) == 9 == len(measured) - 1
    assert {point["gain"] for point in points} == {2.0}
    assert len(crossover.measure(options, {"id": "elsewhere"})["points"]) == 9 and len(measured) == 19
