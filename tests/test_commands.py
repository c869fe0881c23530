"""The commands beside training: one code for `lora-bench NAME` and `python analysis/NAME.py`, in either spelling."""

from pathlib import Path

import pytest

from fake_store import fake_record, write_store
from lora_bench.cli import commands

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
    assert told[0].out.startswith(f"usage: lora-bench{'-' if name == 'sync' else ' '}{name}")


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
    ended = command("archive", "--store", str(store), str(other), "--out", "kept", "--overwrite")
    assert "unchanged" in ended.out or ended.status == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["reprot"], "no command 'reprot'; commands are study, "),
        (["weight-type"], "(did you mean 'weight_types'?)"),
        (["adapter.rank"], "a run is described by key=value"),
        (["report", "stroe=runs"], "stroe: no such option; options are help, store, out"),
        (["report", "mix_environments=1"], "mix_environments: '1' is no switch; give true or false"),
        (["show"], "show: targets, store or config; give one"),
        (["show", "nothing"], "show: no 'nothing'; choices are targets, store, config"),
        (["study", "task=cola"], "study: 'task=cola' is no name; lora-bench study lists"),
        (["study="], "study: '' is no name"),
        (["study=a,b"], "study: one at a time, not a,b"),
        (["study", "a", "+sweeps=b"], "study: one at a time, not a and b"),
        (["study.margin=1", "task=cola"], "study.margin: no study is named; run one as lora-bench study NAME"),
        (["study", "quick"], "study: sweeps/quick.yaml declares none"),
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
    assert not {"quick", "broken"} & {line[0] for line in lines if line}
