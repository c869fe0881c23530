"""The command of a study: how it ends when it is stopped, or its time is over."""

import pydoc
import re
from pathlib import Path

import pytest

from lora_bench.cli import report
from lora_bench.launch import tell, tell_study
from lora_bench.launch.plan_file import PlanFile, parse_reference
from lora_bench.questions import studies
from lora_bench.reports.figures import style
from lora_bench.store.folder import Store
from lora_bench.store.journal import journals

SMALL = (
    *("study=weight_types", "model=tiny", "tracking=none", "task.train_rows=40", "task.report_rows=20"),
    *("train.precision=fp32", "device=cpu", "adapter.targets=q,qv", "study.looks=[4,8]"),
    "hydra.sweeper.workers=2",
)


@pytest.fixture(autouse=True)
def crew(monkeypatch, training):
    """Workers that train at once, in this process."""
    from lora_bench.training.resolve import resolve

    def train(self, references, *, n_workers):
        for path, number in map(parse_reference, references):
            runs = [resolve(entry.checked_config()) for entry in PlanFile.load(path).packs[number]]
            training(runs, Store(runs[0].config.store), tracking=None, invocation={"overrides": [], "sweep": None})
        return []

    monkeypatch.setattr("lora_bench.launch.jobs.Crew.train", train)


MOMENTS = {
    "in_training": "lora_bench.launch.jobs.Crew.train",
    "before_a_plan": "lora_bench.launch.tell_study.announce",
    "while_following": "lora_bench.verdicts.scheme.follow",
    "while_planning": "lora_bench.launch.plan.make",
}


@pytest.mark.parametrize("moment", MOMENTS.values(), ids=MOMENTS)
def test_a_study_that_is_stopped_says_how_it_goes_on(command, monkeypatch, moment):
    """During training and between two plans: whoever stops it at night pastes that line in the morning."""
    room, _, name = moment.rpartition(".")
    owner = pydoc.locate(room)
    function, calls = getattr(owner, name), []

    def stop_at_the_second(*arguments, **options):
        calls.append(name)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return function(*arguments, **options)

    monkeypatch.setattr(owner, name, stop_at_the_second)
    ended = command(*SMALL)
    assert ended.status == 130, ended.text
    assert "Traceback" not in ended.text
    stopped, again = ended.out.rstrip().splitlines()[-2:]
    assert stopped == "stopped early: Ctrl-C; every finished run is kept. Go on with:"
    assert again.split()[:3] == ["lora-bench", "study=weight_types", "model=tiny"], again
    assert Store("runs").statuses()


def test_a_study_whose_time_is_over_is_no_failure_and_says_what_is_open(command):
    """A night's hours are over in the morning; whoever reads it then must not look for a fault."""
    ended = command(*SMALL, "hours=0.00001")
    assert ended.status == 0, ended.text
    assert "stopped early: the hours that it was given are over; every finished run is kept. Go on with:" in ended.out
    assert "tiny · acceptability: no look yet (search)" in ended.out
    assert not list(Path(".").glob("report/*")) and "no report" in ended.out  # nothing has a score yet


def test_a_studys_progress_has_one_total_that_of_the_step_it_announced(command, monkeypatch):
    """`18 runs to train` above `19/27 runs`: of what the second is a part, nobody could tell."""
    monkeypatch.setattr(report, "write", lambda *_, **__: report.Written([], "no report"))
    ended = command(*SMALL, "study.looks=[4]")
    lines = ended.out.splitlines()
    announced = [int(told[1]) for line in lines if (told := re.search(r", (\d+) runs? to train", line))]
    ends = [line.partition("  ")[0] for line in lines if "of this step" in line]
    assert len(announced) > 2
    assert ends == [f"{n}/{n} run{'s' * (n != 1)} of this step" for n in announced]
    (size,) = [line for line in lines if "dry_run=true" in line]
    assert lines.index(size) < next(number for number, line in enumerate(lines) if "to train" in line)
    assert re.search(r"^  \d+ to \d+ runs in all, step by step; dry_run=true tells hours and chances", size)


BROKEN = {
    "a_full_disk": (OSError(28, "No space left on device"), "no report (OSError: [Errno 28] No space left on device)"),
    "a_fault_in_a_figure": (ValueError("math domain\nerror"), "no report (ValueError: math domain error)"),
    "ctrl_c": (KeyboardInterrupt(), "no report: stopped (Ctrl-C)"),
    "a_signal": (KeyboardInterrupt("SIGTERM"), "no report: stopped (SIGTERM)"),
}


def undrawn(figure, folder, name, **_):
    """A figure that is not rendered: that takes a second."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.svg").write_text("<svg></svg>", encoding="utf-8")
    return folder / name


def test_a_study_writes_its_report_and_no_failure_of_it_is_the_studys(command, monkeypatch, capsys):
    """Whoever types one command gets words and a page; what goes wrong with the page must not cost the words."""
    monkeypatch.setattr(style, "save", undrawn)
    ended = command(*SMALL, "study.looks=[4]")
    assert ended.status == 0, ended.text
    *_, over, written = ended.out.rstrip().splitlines()
    assert over == "the study is over" and written.startswith("written: report/index.html with "), ended.out
    page = Path("report/index.html")
    assert "Study: tiny · acceptability" in page.read_text(encoding="utf-8")
    assert list(Path("report").glob(".*")) == []
    before = page.read_bytes()
    from hydra_plugins.lora_bench import study

    for error, said in BROKEN.values():
        monkeypatch.setattr(report.page, "build", lambda *_, error=error, **__: (_ for _ in ()).throw(error))
        study.write_report(Store("runs"), tell.console())
        (line,) = capsys.readouterr().out.splitlines()
        assert line.startswith(said) and line.endswith("write it with lora-bench report store=runs"), line
        assert page.read_bytes() == before


@pytest.mark.parametrize(
    ("store", "folder"),
    [
        ("runs", "report"),
        ("mine", "report_mine"),
        ("deep/runs", "report_deep_runs"),
        ("/elsewhere/mine", "report_mine"),
    ],
)
def test_studies_of_two_stores_do_not_replace_each_others_report(tmp_path, monkeypatch, store, folder):
    """Whoever runs a second study beside the first still has the first one's page."""
    monkeypatch.chdir(tmp_path)
    assert report.folder_of(Path(store)) == Path(folder)
    if not store.startswith("/"):
        assert report.folder_of(tmp_path / store) == Path(folder)


def test_several_tasks_are_one_command_each_with_words_of_its_own(command, monkeypatch):
    """From the dry run to the page, and on from where it was stopped."""
    both = (*SMALL, "task=acceptability,sentiment", "study.looks=[4]", "store=two")
    planned = command(*both, "dry_run=true")
    assert planned.status == 0 and "2 families: 48 runs at least, 152 at most" in planned.out, planned.text
    pages = []
    shown = report.Written(verdict=[], summary="written")
    monkeypatch.setattr(report, "write", lambda scope, out: pages.append(out) or shown)
    with monkeypatch.context() as patched:
        patched.setattr(tell_study, "announce", stop_after(3, tell_study.announce))
        assert command(*both).status == 130
    ended = command(*both)
    assert ended.status == 0, ended.text
    titles = ["tiny · acceptability", "tiny · sentiment"]
    assert all(f"{title} | look 1 of 1" in ended.out for title in titles)
    assert sorted((journal.read() or {})["title"] for journal in journals(Path("two"))) == titles
    assert [section.title for section in studies.sections(Path("two"))] == [f"Study: {title}" for title in titles]
    assert pages == [Path("report_two")]


def stop_after(n_calls, function):
    """The function, and Ctrl-C in place of a call after so many."""
    calls = []

    def stopping(*arguments):
        calls.append(arguments)
        if len(calls) > n_calls:
            raise KeyboardInterrupt
        return function(*arguments)

    return stopping


def test_a_study_whose_time_is_over_shows_what_it_has(command, monkeypatch):
    """In the morning the page is there, though the study is not over."""
    shown = report.Written(verdict=[], summary="written: report/index.html")
    monkeypatch.setattr(report, "write", lambda scope, out: shown)
    ended = command(*SMALL, "hours=0.00001")
    assert ended.status == 0, ended.text
    assert ended.out.rstrip().splitlines()[-1] == shown.summary
