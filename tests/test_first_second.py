"""What needs no torch is refused without it: torch, transformers and peft take seconds to import, a typo none."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = (
    "task=files",
    "task.train_file=train.csv",
    "task.report_file=report.csv",
    "task.text_columns=[sentence]",
    "task.label_column=label",
)
REFUSED = {
    "rank": (["adapter.rank=0"], "adapter.rank: 0 is too small"),
    "role": (["adapter.targets=qw"], "adapter.targets: no role 'w' in 'qw'"),
    "epochs": (["train.epochs=0"], "train.epochs: 0.0 is too small"),
    "seed": (["seed=-1"], "seed: -1 is too small"),
    "budget": (["adapter.rank=null", "adapter.budget=q@0"], "adapter.budget: cannot read 'q@0'"),
    "key": (["adapter.rnak=4"], "adapter.rnak: no such key"),
    "sweep": (["+sweeps=nope"], "sweeps: no 'nope'"),
    "no_file_given": (["task=files"], "task.train_file: no file given"),
    "no_file": ([*FILES, "task.train_file=gone.csv"], "task.train_file: no file 'gone.csv'"),
    "empty_file": ([*FILES, "task.train_file=empty.csv"], "task.train_file: 'empty.csv' is empty"),
    "no_text_column": ([*FILES, "task.text_columns=[text]"], "task.text_columns: no column 'text'"),
    "no_label_column": ([*FILES, "task.label_column=lable"], "task.label_column: no column 'lable'"),
    "no_data_dir": (["task=cola", "task.data_dir=gone"], "task.data_dir: no folder 'gone'"),
    "too_many_rows": (["task.select_rows=8000"], "task.select_rows: 8000 asked"),
    "no_model": (["model.name=./gone"], "model.name: no folder './gone'"),
    "no_config": (["model.name=./bare"], "model.name: no readable config.json for './bare'"),
    "config_no_json": (["model.name=./broken"], "model.name: no readable config.json for './broken'"),
    "config_no_object": (["model.name=./list"], "model.name: no readable config.json for './list'"),
    "encoder_decoder": (["model.name=./both"], "model.name: './both' is an encoder-decoder"),
    "quantised": (["model.name=./quantised"], "model.name: './quantised' is quantised"),
    "no_weights": (["model.name=./weightless"], "model.name: './weightless' has no safetensors"),
    "cut_weights": (["model.name=./cut"], "model.name: 'cut/model.safetensors' (0 bytes) is empty, cut"),
    "adapter_alone": (["model.name=./adapter"], "model.name: './adapter' is an adapter of 'bert-base-uncased'"),
    "other_weights": (
        ["model.name=./other", f"model.sha256={'0' * 64}"],
        "model.sha256: model.safetensors of './other'",
    ),
    "show_targets": (["show=targets", "model.name=./gone"], "model.name: no folder './gone'"),
}
SWEEPS = {
    "limits": (["-m", "adapter.rank=0,4", "train.epochs=0,1"], ["adapter.rank: 0 is", "train.epochs: 0.0 is"]),
    "named": (["+sweeps=quick", "train.epochs=0"], ["36 of 36 runs cannot run", "train.epochs: 0.0 is"]),
    "option": (["-m", "seed=0,1", "hydra.sweeper.pack_size=0"], ["hydra.sweeper.pack_size: no 0"]),
    "files": (
        ["-m", *FILES, "task.train_file=gone.csv,empty.csv", "seed=0,1"],
        ["4 of 4 runs cannot run", "no file 'gone.csv'", "'empty.csv' is empty"],
    ),
    "models": (
        ["-m", "model.name=./gone,./broken", "seed=0,1"],
        ["4 of 4 runs cannot run", "no folder './gone'", "no readable config.json for './broken'"],
    ),
}
DRIVER = """
import contextlib, io, json, sys
from lora_bench.__main__ import main

for arguments in json.loads(sys.argv[1]):
    sys.argv = ["lora-bench", *arguments]
    told, status = io.StringIO(), 0
    with contextlib.redirect_stderr(told):
        try:
            main()
        except SystemExit as end:
            status = end.code
    heavy = [name for name in ("torch", "transformers", "peft", "datasets", "wandb", "scipy") if name in sys.modules]
    print(json.dumps([status, told.getvalue(), heavy]))
"""


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """How each command ended, what it said, and what it had imported by then. All share one process, to save time."""
    folder = tmp_path_factory.mktemp("inputs")
    (folder / "train.csv").write_text("sentence,label\na b,0\nc d,1\ne f,1\n")
    (folder / "report.csv").write_text("sentence,label\ng h,0\ni j,1\n")
    (folder / "empty.csv").write_text("")
    configs = {
        "bare": None,
        "broken": "{not json",
        "list": "[1]",
        "both": '{"model_type": "t5", "is_encoder_decoder": true}',
        "quantised": '{"model_type": "bert", "quantization_config": {"bits": 4}}',
        "weightless": '{"model_type": "bert"}',
        "other": '{"model_type": "bert"}',
        "cut": '{"model_type": "bert"}',
    }
    for name, config in configs.items():
        (folder / name).mkdir()
        if config:
            (folder / name / "config.json").write_text(config)
        if name != "weightless":
            header = b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}'
            (folder / name / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    (folder / "cut" / "model.safetensors").write_bytes(b"")
    (folder / "adapter").mkdir()
    (folder / "adapter" / "adapter_config.json").write_text('{"base_model_name_or_path": "bert-base-uncased"}')
    commands = {name: arguments for name, (arguments, _) in {**REFUSED, **SWEEPS}.items()}
    ended = subprocess.run(
        [sys.executable, "-c", DRIVER, json.dumps(list(commands.values()))],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    lines = ended.stdout.splitlines()
    assert len(lines) == len(commands), ended.stderr
    return dict(zip(commands, map(json.loads, lines), strict=True))


@pytest.mark.parametrize("name", REFUSED)
def test_what_needs_no_torch_is_refused_in_one_line_without_it(answers, name):
    """A typo is answered at once: nobody waits for libraries that will not be used."""
    status, told, heavy = answers[name]
    assert (status, heavy) == (2, [])
    assert told.startswith(f"lora-bench: {REFUSED[name][1]}")
    assert len(told.splitlines()) == 1


@pytest.mark.parametrize("name", SWEEPS)
def test_a_sweep_says_every_such_problem_at_once_without_torch(answers, name):
    status, told, heavy = answers[name]
    assert (status, heavy) == (2, [])
    for said in SWEEPS[name][1]:
        assert said in told


def test_a_sweep_still_says_at_once_what_only_some_of_its_runs_can_say_without_torch(command):
    """A run whose files are there is judged to the end, so that a sweep is mended once and not in turns."""
    ended = command("-m", "model=tiny", "task.select_rows=10,8000", "adapter.targets=qv,gate", "tracking=none")
    assert ended.status == 2
    assert "3 of 4 runs cannot run" in ended.err
    assert "task.select_rows: 8000 asked" in ended.err
    assert "adapter.targets: " in ended.err


def test_a_command_without_arguments_prints_the_help(command):
    """It started a training run before anybody had read what it does."""
    ended = command()
    assert (ended.status, ended.out, ended.err) == (0, command("--help").out, "")
