"""The commands beside training: one code for `lora-bench NAME` and `python analysis/NAME.py`, in either spelling."""

import errno
import os
import tempfile
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

import lora_bench.store
from fake_store import fake_record, write_store
from lora_bench.calibration import protocol
from lora_bench.cli import commands, predict
from lora_bench.config import arguments

ROOT = Path(__file__).parents[1]


@pytest.fixture
def store(tmp_path):
    records = [fake_record(targets=targets, lr=rate) for targets in ("q", "qv") for rate in (1e-3, 1e-2)]
    return write_store(tmp_path / "a store", records)


@pytest.mark.parametrize("name", commands.COMMANDS)
def test_every_command_that_help_names_has_help(command, name):
    assert name in command("help").out
    told = [command("help", name), command(name, "--help"), command(name.replace("_", "-"), "-h")]
    assert {ended.status for ended in told} == {0}
    assert len({ended.out for ended in told}) == 1
    assert told[0].out.startswith(f"usage: lora-bench {name}")


def test_every_script_is_the_command_of_its_name():
    scripts = {path.stem: path.read_text(encoding="utf-8") for path in (ROOT / "analysis").glob("*.py")}
    programs = {"throughput", "embedded_tasks"}
    assert set(scripts) - programs == set(commands.COMMANDS) - {"sync"}
    for name in set(scripts) - programs:
        assert f"from lora_bench.cli.{name} import main\n" in scripts[name]
        assert len(scripts[name].splitlines()) < 10


@pytest.mark.parametrize("spelling", ["store={} out={}", "--store {} out={}", "--store={} --out {}"])
def test_options_are_read_in_either_spelling(command, store, spelling, tmp_path):
    """Lines to paste say store=FOLDER, as a run does."""
    folder = str(tmp_path / "out, of a=b")
    ended = command("learning_rate", *(word.format(part) for word, part in _parts(spelling, (str(store), folder))))
    assert ended.status == 0, ended.text
    assert list((tmp_path / "out, of a=b" / "tables").glob("learning_rate*.csv"))


def _parts(spelling, values):
    remaining = iter(values)
    return [(word, next(remaining) if "{}" in word else "") for word in spelling.split(" ")]


def test_stores_to_be_joined_are_given_in_either_spelling(command, store, tmp_path):
    other = write_store(tmp_path / "other", [fake_record(targets="qkvo", lr=1e-3)])
    ended = command("archive", f"store={store}", f"store={other}", "out=kept", "overwrite=true", "keep_first=false")
    assert ended.status == 0, ended.text
    assert "5 runs" in ended.out
    mixed = command("archive", "--store", str(store), f"store={other}", "out=kept", "--overwrite")
    assert "5 runs" in mixed.out, mixed.text
    ended = command("archive", "--store", str(store), str(other), "--out", "kept", "--overwrite")
    assert "unchanged" in ended.out or ended.status == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["reprot"], "no command 'reprot'; commands are study, "),
        (["weight-type"], "(did you mean 'weight_types'?)"),
        (["adapter.rank"], "a run is described by key=value"),
        (["report", "stroe=runs"], "stroe: no such option; options are help, store, out"),
        (["report", "store=a", "store=b"], "store: given as 'a' and as 'b'; it takes one value: folder of records"),
        (["report", "store=a", "--store", "b"], "store: given as 'a' and as 'b'; it takes one value"),
        (["report", "--store=a", "--store", "b"], "store: given as 'a' and as 'b'; it takes one value"),
        (["archive", "out=c", "overwrite=true", "overwrite=false"], "overwrite: given as 'true' and as 'false'"),
        (["report", "store=a", "--out"], "argument --out: expected one argument"),
        (["report", "--stroe=a"], "unrecognized arguments: --stroe=a"),
        (["report", "mix_environments=1"], "mix_environments: '1' is no switch; give true or false"),
        (["show"], "show: targets, store or config; give one"),
        (["show", "nothing"], "show: no 'nothing'; choices are targets, store, config"),
        (["study", "task=cola"], "study: 'task=cola' is no name; lora-bench study lists"),
        (["study="], "study: '' is no name"),
        (["study=a,b"], "study: one at a time, not a,b"),
        (["study", "a", "+sweeps=b"], "study: one at a time, not a and b"),
        (["study.margin=1", "task=cola"], "study.margin: no study is named; run one as lora-bench study NAME"),
        (["study", "calibration_planted"], "study: sweeps/calibration_planted.yaml declares none"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_word_that_is_no_command_is_refused_with_what_there_is(command, training, words, said):
    ended = command(*words)
    assert ended.status == 2
    last = ended.err.splitlines()[-1]
    assert last.startswith("lora-bench") and said in last
    assert not training.packs


def test_studies_are_listed_with_their_questions(command, tmp_path):
    """A sweep without a declaration is none, and a file that cannot be read does not hide the others."""
    (tmp_path / "sweeps").mkdir()
    declared = "# Question: is it so?\nhydra:\n  sweeper:\n    study:\n      rates: [1e-3]\n"
    (tmp_path / "sweeps" / "own.yaml").write_text(declared, encoding="utf-8")
    (tmp_path / "sweeps" / "broken.yaml").write_text("study: [", encoding="utf-8")
    lines = [line.split() for line in command("study").out.splitlines()]
    assert ["own", "is", "it", "so?"] in lines
    assert "weight_types" in {line[0] for line in lines if line}
    assert not {"calibration_planted", "broken"} & {line[0] for line in lines if line}


# Short words


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["model=tiny", "dry_run=true"],
            "dry_run: it plans a sweep; add -m or +sweeps=NAME; what a single run would be",
        ),
        (["model=tiny", "hours=2"], "hours: a study stops when they are over, a single run does not"),
        (
            ["-m", "model=tiny", "seed=0,1", "hours=2"],
            "hours: a study stops when they are over; run one with study=NAME",
        ),
        (["study", "weight_types", "model=tiny", "hours=soon"], "hours: no 'soon'; give a number above 0"),
        (["study", "weight_types", "model=tiny", "study.margn=1"], "study.margn: no such key; keys are "),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_short_word_where_it_has_no_sense_is_answered_by_its_own_name(command, training, words, said):
    ended = command(*words)
    assert ended.status == 2 and len(ended.err.splitlines()) == 1
    assert ended.err.startswith(f"lora-bench: {said}")
    assert not training.packs


def test_what_a_study_declares_takes_lists_as_a_sweep_does():
    """`study.rates=1e-3,3e-3` is one declaration, where Hydra would see two values of a sweep."""
    spelled = arguments.spelled_out(["study=x", "study.rates=1e-3,3e-3", "study.looks=[8,16]", "study.margin=1"])
    assert spelled[:2] == ["+sweeps=x", "hydra.sweeper.as_study=true"]
    declared = {
        override.key_or_group: override.value() for override in OverridesParser.create().parse_overrides(spelled)
    }
    assert declared["hydra.sweeper.study.rates"] == [1e-3, 3e-3]
    assert declared["hydra.sweeper.study.looks"] == [8, 16]
    assert declared["hydra.sweeper.study.margin"] == 1


@pytest.mark.parametrize(
    "words",
    [
        ["-m", "seed=0,1", "store=runs", "hydra.sweeper.dry_run=false"],
        ["-m", "seed=0,1", "dry_run=false", "store.keep_adapters=none"],
        ["+sweeps=quick", "adapter.targets=q", "train.lr=1e-3", "seed=0,1", "dry_run=false"],
    ],
    ids=" ".join,
)
def test_a_line_to_go_on_with_is_what_was_typed(command, training, words):
    """Short words stay short, and long ones long: a reader knows the line again. Records keep Hydra's spelling."""
    training.fate = lambda run: KeyboardInterrupt() if run.config.seed else None
    given = [*words, "model=tiny", "tracking=none", "task.train_rows=40"]
    ended = command(*given)
    assert ended.out.splitlines()[-1].split() == ["lora-bench", *given]
    assert not any(word.startswith("dry_run") for one in training.invocations for word in one["overrides"])


OF_STORES = {
    **{name: [name] for name in commands.READS},
    "factor": ["factor", "by=layers"],
    "next_stage": ["next_stage", "sweep=quick", "out=next.yaml"],
    "archive": ["archive", "out=archived"],
    "rescore": ["rescore"],
    "sync": ["sync"],
    "show": ["show", "store"],
}
"""Every command that must find runs in a store: a dashboard is also made before there are any."""


@pytest.mark.parametrize("words", OF_STORES.values(), ids=OF_STORES)
@pytest.mark.parametrize(
    ("store", "said"),
    [
        ("nowhere", "store: no folder 'nowhere'; give the folder that a sweep wrote"),
        ("taken", "store: 'taken' is a file; give the folder that a sweep wrote"),
        ("empty", "store: 'empty' holds no run; start with: lora-bench +sweeps=quick"),
    ],
)
def test_a_store_without_runs_is_told_by_every_command_alike(command, monkeypatch, words, store, said):
    """Under the command's own name: in a script of several lines nobody knows else which one had nothing to read."""
    monkeypatch.setattr(protocol, "PATTERNS", {})
    Path("taken").write_text("rows", encoding="utf-8")
    Path("empty").mkdir()
    part = ["planted"] if words == ["calibration"] else []
    ended = command(*words, *part, f"store={store}")
    name = "lora-bench" if words[0] == "show" else f"lora-bench {words[0]}"
    assert ended.status == 2, ended.text
    (line,) = [line for line in ended.err.splitlines() if "store" in line]
    assert line.startswith(f"{name}: ") and said in line
    assert "Traceback" not in ended.text


def test_a_dashboard_before_the_first_run_says_what_it_lacks(command):
    pytest.importorskip("wandb_workspaces")
    ended = command("dashboard", "entity=me", "project=ours", "store=nowhere", "dry_run=true")
    assert ended.status == 0
    assert ended.err.startswith("lora-bench dashboard: store: 'nowhere' holds no run")


WRITES = {
    "predict_out": ["predict", "model=tiny", "out={}"],
    "predict_sweep": ["predict", "model=tiny", "sweep={}"],
    "next_stage": ["next_stage", "sweep=quick", "overwrite=true", "out={}"],
    "claims": ["claims", "markdown={}"],
    "archive": ["archive", "out={}"],
}


@pytest.mark.parametrize("words", WRITES.values(), ids=WRITES)
@pytest.mark.parametrize("place", ["taken/below", "locked/below", "a folder", "shut.yaml"])
def test_a_file_that_cannot_be_written_is_refused_before_anything_is_read(command, monkeypatch, words, place):
    """A prediction takes minutes: it ended in a traceback, and was gone."""
    if words[0] == "archive" and place in ("a folder", "shut.yaml"):
        pytest.skip("its place is a folder")
    for name in ("taken", "shut.yaml"):
        Path(name).write_text("rows", encoding="utf-8")
    for name in ("locked", "a folder"):
        Path(name).mkdir()
    shut, allowed = {Path("locked").absolute(), Path("shut.yaml").absolute()}, os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).absolute() not in shut and allowed(path, mode))
    monkeypatch.setattr(lora_bench.store, "open_store", None)
    monkeypatch.setattr(predict, "_configured", None)
    ended = command(*(word.format(place) for word in words))
    assert ended.status == 2
    last, option = ended.err.splitlines()[-1], words[-1].partition("=")[0]
    assert last.startswith(f"lora-bench {words[0]}: error: argument --{option}: ")
    assert place.partition("/")[0] in last and "; give a f" in last
    assert Path("shut.yaml").read_text(encoding="utf-8") == "rows"


@pytest.mark.parametrize("name", [*commands.READS, "rescore"])
@pytest.mark.parametrize("out", ["file", "file/below", "locked", "locked/a/b", None])
def test_a_place_that_cannot_be_written_is_refused_before_anything_is_read(command, monkeypatch, tmp_path, name, out):
    """A page of a large store takes a minute, a calibration many: neither may end in a traceback at its last step."""
    (tmp_path / "file").write_text("rows")
    (tmp_path / "locked").mkdir()
    shut = tmp_path / "locked" if out else tmp_path  # without `out`, the current folder's `report`
    allowed = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).absolute() != shut and allowed(path, mode))
    options = [f"out={out}"] if out else []
    by = ["by=layers"] if name == "factor" else []
    ended = command(name, "store=nowhere", *by, *options)
    assert ended.status == 2
    said = ended.err.splitlines()[-1]
    assert said.startswith(f"lora-bench {name}: error: argument --out: ")
    assert "give a folder" in said and str(tmp_path if not out else Path(out).parts[0]) in said
    assert not (tmp_path / "report").exists()


def test_an_archive_that_cannot_be_written_names_the_key_of_its_place(command, store, tmp_path, monkeypatch):
    """A store can be read where it is: whoever is told to give another one looks in the wrong place."""

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(tempfile, "mkdtemp", refuse)
    monkeypatch.setattr(Path, "mkdir", refuse)
    ended = command("archive", f"store={store}", "out=published")
    assert ended.status == 2
    assert ended.err.strip() == (
        "lora-bench archive: out: cannot write the archive in published (Permission denied); "
        "give a folder that can be written, with out=FOLDER"
    )
