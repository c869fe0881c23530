"""`task.train_draw=seed`: every seed trains on rows of its own, which all cells of the seed share."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from configs import composed
from lora_bench.config.compose import parse
from lora_bench.config.errors import ConfigError
from lora_bench.config.schema import TaskConfig
from lora_bench.launch import tell_tasks
from lora_bench.models import seeds
from lora_bench.store.folder import Store
from lora_bench.tasks.load import load_task
from lora_bench.tasks.rows import DATA_SEED
from lora_bench.tasks.tokens import tokenise
from lora_bench.training.resolve import pack_key, resolve
from lora_bench.training.run import run_pack
from tiny import tiny_config

N_ROWS = 48


def drawn(**values):
    return resolve(tiny_config(task__train_draw="seed", task__train_rows=N_ROWS, **values))


def texts(run):
    """The rows that a run trains on, read back from its tokens."""
    tokens = run.tokens()["train"]
    ends = zip(tokens.offsets[:-1], tokens.offsets[1:], strict=True)
    return [tuple(tokens.input_ids[start:end].tolist()) for start, end in ends]


def test_each_seed_draws_rows_of_its_own_and_its_cells_share_them():
    first, beside, other = drawn(seed=1), drawn(seed=1, adapter__rank=2), drawn(seed=2)
    assert texts(first) == texts(beside) != texts(other)
    assert len(texts(first)) == len(texts(other)) == N_ROWS == first.n_train
    assert len(set(texts(first)) & set(texts(other))) < N_ROWS / 2
    assert pack_key(first) == pack_key(beside)
    assert first.steps == resolve(tiny_config(task__train_rows=N_ROWS)).steps


def test_seeds_are_one_cell_of_one_task_and_not_that_of_fixed_rows():
    first, other, fixed = drawn(seed=1), drawn(seed=2), resolve(tiny_config(seed=1, task__train_rows=N_ROWS))
    assert first.cell_id == other.cell_id != fixed.cell_id and first.run_id != other.run_id
    assert first.science["task"]["train_draw"] == "seed"
    for split in ("select", "report"):
        assert np.array_equal(first.tokens()[split].input_ids, other.tokens()[split].input_ids)


def test_rows_drawn_are_tokenised_as_they_are_alone():
    """`Tokens.take` against the tokenizer itself, on a table of those rows."""
    run = drawn(seed=3)
    order = seeds.permutation(len(run.task.splits["train"]), "train rows", 3)[:N_ROWS]
    table = run.task.splits["train"].iloc[order].reset_index(drop=True)
    alone = replace(run.task, splits=run.task.splits | {"train": table}, fingerprint="rows of seed 3")
    plan = run.blueprint
    about = {"max_length": run.config.train.max_length, "tokenizer_fingerprint": plan.tokenizer_fingerprint}
    wanted, made = tokenise(alone, plan.tokenizer, **about)["train"], run.tokens()["train"]
    for name in ("input_ids", "offsets", "labels", "token_type_ids"):
        assert np.array_equal(getattr(wanted, name), getattr(made, name)), name


def test_a_run_is_that_of_a_task_with_these_rows_alone(tmp_path):
    """Rows drawn, against a user's file that holds just them: the same losses and the same predictions, bit for bit."""
    run = drawn(seed=4)
    order = seeds.permutation(len(run.task.splits["train"]), "train rows", 4)[:N_ROWS]
    rows = run.task.splits["train"].iloc[order]
    shuffled = np.random.Generator(np.random.PCG64(DATA_SEED)).permutation(N_ROWS)
    written = rows.iloc[np.argsort(shuffled)]  # so that the shuffle of files gives them in the order drawn
    tables = {"train": written, "select": run.task.splits["select"], "report": run.task.splits["report"]}
    for name, table in tables.items():
        table[["text_a", "label"]].to_csv(tmp_path / f"{name}.csv", index=False)
    columns = {"text_columns": ["text_a"], "label_column": "label", "metrics": ["matthews"]}
    files = {f"{name}_file": f"{name}.csv" for name in tables}
    own = TaskConfig(name="own", source="files", data_dir=str(tmp_path), **columns, **files)
    same = resolve(replace(run.config, task=own))
    assert texts(same) == texts(run)
    records = [run_pack([one], Store(tmp_path / name))[0] for one, name in ((run, "drawn"), (same, "own"))]
    assert records[0]["history"]["loss"] == records[1]["history"]["loss"]
    predicted = [
        pd.read_parquet(tmp_path / name / one.run_id / "predictions.parquet").drop(columns=["idx", "label"])
        for one, name in ((run, "drawn"), (same, "own"))
    ]
    pd.testing.assert_frame_equal(*predicted)


def test_a_record_says_how_its_rows_were_drawn(tmp_path):
    (record,) = run_pack([drawn(seed=1)], Store(tmp_path / "runs"))
    assert record["data"]["splits"]["train"]["rows"] == record["config"]["task"]["train_rows"] == N_ROWS
    assert record["data"]["cut"]["train"] == "drawn by the seed from the rest"


def test_a_plan_says_what_is_drawn_from_what():
    said = "\n".join(tell_tasks.lines([drawn(seed=1)]))
    n_train = len(drawn(seed=1).task.splits["train"])
    assert f"{n_train:,} train, of which each seed draws {N_ROWS}" in said


def test_a_plan_says_once_that_rows_are_cut():
    """Each seed's rows are cut in another share."""
    runs = [drawn(seed=seed, train__max_length=8) for seed in range(3)]
    assert sum("train.max_length=8" in line for line in tell_tasks.lines(runs)) == 1


def test_a_draw_has_the_usual_rows_to_draw_from():
    """Were more made because more are asked for, the rest would always be what was asked, and never drawn from."""
    task = parse(composed("model=tiny", "task=acceptability", "task.select_rows=100")).task
    with pytest.raises(ConfigError, match=r"9000 asked, but .* has 7900 train rows"):
        load_task(replace(task, train_draw="seed", train_rows=9000))


@pytest.mark.parametrize("n_rows", [None, "all"])
def test_a_draw_of_all_rows_is_refused(n_rows):
    """It would be the same rows for every seed, whatever the key says."""
    task = parse(composed("model=tiny", "task=acceptability", "task.select_rows=100")).task
    if n_rows == "all":
        n_rows = len(load_task(task).splits["train"])
    with pytest.raises(ConfigError, match=r"task\.train_draw: seed draws from 7900 train rows, and .* the same rows"):
        load_task(replace(task, train_draw="seed", train_rows=n_rows))
