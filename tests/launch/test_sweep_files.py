"""A typing error in a sweep's file is told in one line that names the file, and the key or the line."""

import pytest

from analysis import next_stage
from configs import composed, names
from fake_store import fake_record, write_store
from lora_bench.config import sweep_file
from lora_bench.config.compose import parse
from lora_bench.config.errors import ConfigError
from lora_bench.store import open_store

HEAD = "# @package _global_\n"
PARAMS = f"{HEAD}hydra:\n  mode: MULTIRUN\n  sweeper:\n    params:\n"
TYPING_ERRORS = {
    "indentation": (f"{PARAMS}      seed: range(2)\n     adapter.rank: 1,2\n", "line 7: "),
    "tab": (f"{PARAMS}\tseed: range(2)\n", "line 6: .*; indent with spaces"),
    "duplicate": (f"{PARAMS}      seed: 0\n      seed: 1\n", "line 7: found duplicate key seed"),
    "duplicate_section": (f"{HEAD}train: {{lr: 1}}\nhydra: {{}}\ntrain: {{lr: 2}}\n", "line 4: .* key train"),
    "colon": (f"{HEAD}hydra: {{sweeper: {{params: {{seed: 0: 1}}}}}}\n", "line 2: .*; put quotes"),
    "quote": (f"{PARAMS}      seed: 'range(2)\n", "not closed"),
    "bracket": (f"{PARAMS}      seed: [0, 1\n", "line 7: "),
    "no_package": (PARAMS.removeprefix(HEAD) + "      seed: 0,1\n", "its first line must be: # @package _global_"),
    "package": (PARAMS.replace("_global_", "global") + "      seed: 0,1\n", "must be: # @package _global_"),
    "empty": ("", "is empty"),
    "header_alone": (HEAD, "is empty"),
    "text": ("seed\n", "# @package _global_"),
    "list": (f"{HEAD}- seed\n", "a list where keys and values belong"),
    "latin_1": (f"{HEAD}# caf\xe9\n".encode("latin-1"), r"is not UTF-8 \(byte 0xe9 in line 2\)"),
    "utf_16": (PARAMS.encode("utf-16"), "is not UTF-8"),
    "section": (f"{HEAD}adaptor: {{rank: 2}}\n", "adaptor: no such key; .*did you mean 'adapter'"),
    "sweeper_key": (f"{HEAD}hydra: {{sweeper: {{parms: {{seed: 1}}}}}}\n", "hydra.sweeper.parms: no .*'params'"),
    "params": (f"{HEAD}hydra: {{sweeper: {{params: [seed]}}}}\n", "hydra.sweeper.params: a list where"),
    "sweeper": (f"{HEAD}hydra: {{sweeper: 3}}\n", "hydra.sweeper: 3 where"),
    "grids": (f"{HEAD}hydra: {{sweeper: {{grids: {{seed: 1}}}}}}\n", "hydra.sweeper.grids: "),
    "hydra": (f"{HEAD}hydra:\nseed: 1\n", "hydra: nothing where"),
    "mode": (f"{HEAD}hydra: {{mode: MULTI}}\n", "hydra.mode: 'MULTI'"),
    "part": (f"{HEAD}train: 3\nhydra: {{sweeper: {{params: {{seed: 1}}}}}}\n", "train: 3 where"),
}  # fmt: skip


@pytest.mark.parametrize(("content", "said"), TYPING_ERRORS.values(), ids=TYPING_ERRORS)
def test_a_typing_error_is_told_in_one_line(command, training, tmp_path, content, said):
    """A traceback of the YAML library names neither what to change nor, at times, the file."""
    (tmp_path / "sweeps").mkdir()
    (tmp_path / "sweeps" / "mine.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    ended = command("+sweeps=mine", "model=tiny", "task.train_rows=40", "tracking=none")
    assert ended.status == 2
    (line,) = ended.err.splitlines()
    assert line.startswith("lora-bench: sweeps: sweeps/mine.yaml")
    with pytest.raises(AssertionError, match=said):
        raise AssertionError(line)
    assert not training.packs


@pytest.mark.parametrize("name", ["tab", "duplicate_section", "latin_1", "empty", "list", "params", "sweeper"])
def test_the_next_stage_says_the_same_of_the_stage_before(tmp_path, monkeypatch, capsys, name):
    monkeypatch.chdir(tmp_path)
    content = TYPING_ERRORS[name][0]
    (tmp_path / "mine.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    write_store(tmp_path / "runs", [fake_record()])
    if name == "duplicate_section":  # YAML itself takes the last
        content = content.replace("train: {lr: 2}", "trane: {lr: 2}")
        (tmp_path / "mine.yaml").write_text(content, encoding="utf-8")
    assert next_stage.main(["--store", "runs", "--sweep", "mine.yaml", "--out", "next.yaml"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("lora-bench next_stage: sweeps: mine.yaml")


def test_a_file_that_cannot_be_read_is_named():
    said = r"sweeps: x\.yaml cannot be read \(Permission denied\)"
    with pytest.raises(ConfigError, match=said), sweep_file.readable("x.yaml"):
        raise PermissionError(13, "Permission denied")


def test_records_without_norms_are_told_in_one_line(tmp_path, capsys, monkeypatch):
    """Records of other programs lack the key."""
    from analysis import amplification

    class Lacking:
        def __init__(self, root):
            self._store = open_store(root)

        def record(self, run_id):
            return {key: value for key, value in self._store.record(run_id).items() if key != "norms"}

    write_store(tmp_path / "runs", [fake_record()])
    monkeypatch.setattr("lora_bench.questions.amplification.open_store", Lacking)
    assert amplification.main(["--store", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "no record keeps its norms (1 runs looked at)" in line


# Its rows are of its own task


OWN = ["task=files", "task.train_file=train.csv", "task.report_file=report.csv"]


@pytest.mark.parametrize("task", [OWN, ["task=cola"], ["task=entailment"]], ids=lambda words: words[0])
@pytest.mark.parametrize("name", [name for name in names("sweeps") if name != "calibration_planted"])
def test_a_task_that_is_named_brings_its_own_rows_to_any_sweep(name, task):
    """The constructions of an embedded task mean nothing on another, and its few rows would cut a user's in silence."""
    words = [f"+sweeps={name}", *task, "adapter.budget=null", "adapter.rank=8"]
    assert parse(composed(*words)).task == parse(composed(*task)).task


def test_a_sweep_without_a_task_that_is_named_has_the_rows_that_it_states():
    """Records of the quick sweep are found again: its task is part of their ids."""
    task = parse(composed("+sweeps=quick", "adapter.rank=null")).task
    assert (task.name, task.phenomena) == ("acceptability", ["pronoun_case"])
    assert (task.train_rows, task.select_rows, task.report_rows) == (800, 200, 400)
