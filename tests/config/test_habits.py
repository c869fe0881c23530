"""What people bring from peft, transformers and axolotl is answered with the spelling that works here."""

import inspect
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from peft import LoraConfig
from transformers import TrainingArguments

from lora_bench.config import grammar, habits
from lora_bench.config.compose import unknown_key, with_rank_yielding
from lora_bench.config.errors import ConfigError
from lora_bench.config.schema import KEYS, RunConfig

TABLES = (habits.PEFT, habits.TRANSFORMERS, habits.AXOLOTL)
WORDS = {"learning_rate": "train.lr", "target_modules": "adapter.targets", "r": "adapter.rank", "output_dir": "store"}


def test_every_answer_is_a_key_or_a_choice_that_there_is():
    paths = {key.path for key in KEYS} | {"task", "tracking"}
    adapters = {path.stem for path in (Path(__file__).parents[2] / "conf" / "adapter").glob("*.yaml")} | {"METHOD"}
    for answer in (answer for table in TABLES for answer in table.values()):
        for word in answer.partition(" (")[0].split():
            key, _, value = word.partition("=")
            assert value in adapters if key == "adapter" else key in paths, answer


def test_the_names_are_those_of_the_tools():
    """Each tool's own spelling is among them, or the table has drifted from what people type."""
    peft = {"r", "lora_alpha", "lora_dropout", "target_modules", "use_rslora", "use_dora", "init_lora_weights"}
    trainer = {"learning_rate", "num_train_epochs", "per_device_train_batch_size", "output_dir", "lr_scheduler_type"}
    assert peft <= set(inspect.signature(LoraConfig).parameters) & set(habits.PEFT)
    assert trainer <= set(inspect.signature(TrainingArguments).parameters) & set(habits.TRANSFORMERS)


@pytest.mark.parametrize("head", ["", "adapter.", "train.", "lora_config.", "training_args."])
@pytest.mark.parametrize(("name", "here"), WORDS.items())
def test_a_key_of_another_tool_is_answered_wherever_it_is_put(head, name, here):
    said = unknown_key(f"{head}{name}")
    assert said.startswith(f"{head}{name}: no such key; ")
    assert f" {name} is {here} here" in said


@pytest.mark.parametrize("given", ["learning_rate=1e-3", "+adapter.r=8", "train.num_train_epochs=3", "--lora_alpha=8"])
def test_the_command_line_says_so_in_one_line(command, training, given):
    ended = command(given)
    assert ended.status == 2 and not training.packs
    assert len(ended.err.splitlines()) == 1 and " here" in ended.err


def test_a_key_of_another_section_is_named_with_its_own():
    assert unknown_key("adapter.lr") == "adapter.lr: no such key; did you mean train.lr?"


@pytest.mark.parametrize(
    ("given", "here"),
    [
        *(("QV", "qv"), ("Q", "q"), ("Wq", "q"), ("W_q", "q"), ("WqWv", "qv"), ("Wq,Wv", "qv"), ("query", "q")),
        *(("q_proj", "q"), ("q_proj,v_proj", "qv"), ("q_proj+v_proj", "qv"), ("['query', 'value']", "qv")),
        *(("[q, v]", "qv"), ("query_key_value", "qkv"), ("c_attn", "qkv"), ("attention.self.query", "q")),
        *(("all-linear", "all"), ("MLP", "mlp"), ("gate_proj up_proj down_proj", "gate+up+down")),
        ("q_proj,k_proj,v_proj,o_proj,down_proj", "qkvo+down"),
    ],
)
def test_targets_of_another_spelling_are_refused_with_ours(given, here):
    """Not read in silence: one spelling is one cell. What the message says is read as the same roles."""
    assert habits.targets_here(given) == here
    assert grammar.parse_targets(here)
    with pytest.raises(ConfigError, match=rf"adapter\.targets: .*; .* is {here.replace('+', '[+]')} here$"):
        grammar.parse_targets(given)


@pytest.mark.parametrize("given", ["c_proj", "dense", "qw", "lm_head", "", "q_proj,query", "[]"])
def test_what_is_not_clear_gets_no_guess(given):
    assert habits.targets_here(given) is None


def test_a_list_is_answered_with_one_text(command):
    assert "qvo is all of them" in command("adapter.targets=[q_proj,v_proj,o_proj]").err
    assert "or qvo is all of them at once" in command("adapter.targets=q_proj,v_proj,o_proj").err


def test_a_budget_of_another_spelling_is_answered_as_targets_are(command):
    assert "adapter.budget: no role 'Q' in 'QV'" in command("adapter.budget=QV@8").err
    assert command("adapter.budget=QV@8").err.rstrip().endswith("'QV' is qv here")


# A budget beside a rank


@pytest.mark.parametrize("given", ["adapter.budget=q@8", "+adapter.budget=4096", "++adapter.budget=q@8"])
def test_a_rank_that_nobody_gave_yields_to_a_budget(given):
    assert with_rank_yielding(("seed=1", given)) == ("seed=1", given, "adapter.rank=null")


@pytest.mark.parametrize("others", [("adapter.rank=8",), ("+adapter.rank=null",), ("++adapter.rank=4",)])
def test_a_rank_that_was_given_stays(others):
    assert with_rank_yielding(("adapter.budget=q@8", *others)) == ("adapter.budget=q@8", *others)
    assert with_rank_yielding(("adapter.budget=null",)) == ("adapter.budget=null",)


def test_a_run_and_a_sweep_take_a_budget_alone(command, training):
    shown = OmegaConf.create(command("show=config", "model=tiny", "adapter.budget=q@8").out)
    assert (shown.adapter.rank, shown.adapter.budget) == (None, "q@8")
    small = ("model=tiny", "tracking=none", "task.train_rows=40", "dry_run=true", "seed=0")
    planned = command("-m", *small, "adapter.budget=q@8,null", "adapter.targets=q,qv")
    assert planned.status == 0, planned.text
    assert "grid: 3 cells, 1 seed, 3 runs (1 duplicate dropped)" in planned.out  # q@8 is q at rank 8
    refused = command("-m", *small, "adapter.budget=q@8", "adapter.rank=4,8")
    assert refused.status == 2 and "beside adapter.budget=q@8" in refused.err


# What is no choice


@pytest.mark.parametrize("given", ["./folder", "org/name", "/abs/folder", "own"])
def test_a_model_that_is_a_place_is_answered_with_its_key(command, tmp_path, given):
    (tmp_path / "own").mkdir()
    assert command(f"model={given}").err == (
        f"lora-bench: model: no {given!r}; a folder, or a name on the Hub, is model.name={given}\n"
    )
    assert command("-m", f"model={given}", "seed=0,1").status == 2


@pytest.mark.parametrize("given", ["./rows.csv", "rows.tsv", "/abs/rows.jsonl"])
def test_a_task_that_is_a_file_is_answered_with_its_keys(command, given):
    assert (
        f"files of your own are task=files task.train_file={given} task.report_file=FILE"
        in command(f"task={given}").err
    )


def test_the_schema_has_none_of_the_others_keys():
    """Where it had, the answer would be wrong."""
    ours = {name for key in KEYS for name in (key.path, key.name)} | set(RunConfig.__dataclass_fields__)
    assert not ours & {name for table in TABLES for name in table}
