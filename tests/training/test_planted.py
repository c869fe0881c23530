"""Planted tasks: labels are the teacher's, by a second way of computing them, and what is named is what was planted."""

import copy
import logging

import numpy as np
import pytest
import torch
from scipy.stats import binom

from lora_bench.config.errors import ConfigError
from lora_bench.config.schema import TaskConfig
from lora_bench.models import adapters, backbone, blueprint
from lora_bench.store.folder import Store
from lora_bench.tasks.generated.grammars import generate
from lora_bench.training import planted
from lora_bench.training.resolve import resolve
from lora_bench.training.run import run_pack
from tiny import VALUES, tiny_config

TEACHER = {
    "name": "planted",
    "source": "planted",
    "train_rows": 64,
    "report_rows": 40,
    "select_rows": 20,
    "planted_texts": "acceptability",
    "planted_targets": "qv",
    "planted_rank": 2,
    "planted_strength": 1.0,
    "planted_noise": 0.0,
    "planted_seed": 0,
}


def config_of(**values):
    return tiny_config(task={**TEACHER, **values})


def task_of(**values):
    config = config_of(**values)
    return planted.load(config.task, config.model)


@pytest.fixture(autouse=True)
def few_sentences(monkeypatch):
    """The median of a hundred will do."""
    monkeypatch.setattr(planted, "MEDIAN_ROWS", 100)


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """Nothing remembered, neither in memory nor on disk; called again, it forgets again."""

    def forget(folder: str = "cache") -> None:
        monkeypatch.setenv("LORA_BENCH_CACHE", str(tmp_path / folder))
        monkeypatch.setattr(planted, "_loaded", {})

    forget()
    return forget


def labels(task, split="train"):
    return task.splits[split]["label"].to_numpy()


def test_labels_are_those_of_the_merged_weights():
    """The second way: the teacher's update added to the weights, the head put in place, one sentence at a time."""
    config = config_of()
    plan = blueprint.blueprint(config.model, 2)
    loaded = backbone.load(plan, precision="fp64", device=torch.device("cpu"))
    state = planted.teacher(loaded, planted._matrices(config.task, plan), strength=1.0, seed=0)
    model = copy.deepcopy(loaded.model)
    model.config._attn_implementation = "eager"
    with torch.no_grad():
        for path, pair in state.low_rank.items():
            model.get_submodule(path).weight += pair.scale * pair.B @ pair.A
        model.load_state_dict(state.head, strict=False)

        def margin(text: str) -> float:
            logits = model(**plan.tokenizer(text, return_tensors="pt", return_token_type_ids=False)).logits[0]
            return float(logits[1] - logits[0])

        median = np.median([margin(text) for text in generate("acceptability", "train", planted.MEDIAN_ROWS)["text_a"]])
        report = planted.load(config.task, config.model).splits["report"]
        expected = [int(margin(text) > median) for text in report["text_a"]]
    assert report["label"].tolist() == expected
    assert 0 < sum(expected) < len(expected)


def test_labels_are_reproducible_and_cached(fresh, monkeypatch):
    first = task_of()
    fresh("elsewhere")
    again = task_of()
    assert again is not first
    assert again.fingerprint == first.fingerprint
    assert first.splits
    for split in first.splits:
        np.testing.assert_array_equal(labels(again, split), labels(first, split))
    fresh("elsewhere")
    monkeypatch.setattr(planted, "_compute", lambda *_: pytest.fail("labelled again"))
    assert task_of().facts["planted"]["labels"] == first.facts["planted"]["labels"]


def test_a_damaged_cache_is_labelled_again(fresh, tmp_path, caplog):
    first = task_of()
    (kept,) = (tmp_path / "cache" / "planted").glob("*.npz")
    kept.write_bytes(kept.read_bytes()[:100])
    fresh()
    with caplog.at_level(logging.WARNING, logger="lora_bench"):
        assert task_of().facts["planted"]["labels"] == first.facts["planted"]["labels"]
    assert "labelling again" in caplog.text
    assert len(list((tmp_path / "cache" / "planted").iterdir())) == 1


def test_labels_are_balanced_and_do_not_depend_on_how_many_rows_are_used():
    few, many = task_of(), task_of(train_rows=300, report_rows=120)
    assert few.splits["train"]["text_a"].tolist() == many.splits["train"]["text_a"].tolist()[:64]
    np.testing.assert_array_equal(labels(few), labels(many)[:64])
    np.testing.assert_array_equal(labels(few, "select"), labels(many, "select"))
    share = labels(many).mean()
    assert binom.ppf(0.001, 300, 0.5) / 300 <= share <= binom.ppf(0.999, 300, 0.5) / 300


def test_noise_flips_its_share_of_train_and_select_and_leaves_report():
    clean, noisy = task_of(train_rows=300), task_of(train_rows=300, planted_noise=0.2)
    flipped = labels(clean) != labels(noisy)
    assert binom.ppf(0.001, 300, 0.2) <= flipped.sum() <= binom.ppf(0.999, 300, 0.2)
    np.testing.assert_array_equal(labels(clean, "report"), labels(noisy, "report"))
    assert (labels(clean, "select") != labels(noisy, "select")).any()


def test_more_noise_flips_the_same_labels_and_others():
    drawn = [planted.flips(20_000, "train", noise=noise, seed=0) for noise in (0.1, 0.3)]
    assert (drawn[1] | ~drawn[0]).all()
    for share, noise in zip(drawn, (0.1, 0.3), strict=True):
        assert binom.ppf(0.0005, 20_000, noise) <= share.sum() <= binom.ppf(0.9995, 20_000, noise)
    assert (drawn[1] != planted.flips(20_000, "train", noise=0.3, seed=1)).any()


def test_the_teacher_has_the_rank_and_the_size_that_were_asked_for():
    config = config_of(planted_targets="q+up", planted_rank=3)
    plan = blueprint.blueprint(config.model, 2)
    loaded = backbone.load(plan, precision="fp64", device=torch.device("cpu"))
    matrices = planted._matrices(config.task, plan)
    state = planted.teacher(loaded, matrices, strength=0.7, seed=1)
    assert {matrix.role for matrix in matrices} == {"q", "up"}
    for matrix in matrices:
        pair = state.low_rank[matrix.module]
        update = pair.scale * pair.B @ pair.A
        weight = loaded.model.get_submodule(matrix.module).get_parameter("weight")
        assert torch.linalg.matrix_rank(update) == 3
        assert float(update.norm() / weight.norm()) == pytest.approx(0.7)


def test_no_student_starts_from_the_teacher():
    """A student of the teacher's seed, targets and rank must share neither its A nor its head."""
    run = resolve(config_of())
    loaded = backbone.load(run.blueprint, precision="fp64", device=torch.device("cpu"))
    head = backbone.head_state(loaded, 0)
    matrices = planted._matrices(run.config.task, run.blueprint)
    student = adapters.make(loaded, run.config.adapter, matrices, head, 0)
    teacher = planted.teacher(loaded, matrices, strength=1.0, seed=0)
    assert teacher.low_rank
    for path, pair in teacher.low_rank.items():
        cosine = torch.nn.functional.cosine_similarity(pair.A.flatten(), student.low_rank[path].A.flatten(), dim=0)
        assert abs(float(cosine)) < 0.6
    assert not any(torch.equal(tensor, head[name]) for name, tensor in teacher.head.items() if tensor.any())


# ---------------------------------------------------------------- names and identity


@pytest.mark.parametrize(
    "values",
    [
        {"planted_targets": "q"},
        {"planted_rank": 3},
        {"planted_strength": 0.5},
        {"planted_noise": 0.1},
        {"planted_seed": 1},
        {"planted_texts": "sentiment"},
        {"train_rows": 65},
    ],
    ids=lambda values: next(iter(values)),
)
def test_another_teacher_is_another_run(values):
    plain, other = resolve(config_of()), resolve(config_of(**values))
    assert plain.task.fingerprint != other.task.fingerprint
    assert plain.run_id != other.run_id


def test_another_backbone_is_another_teacher():
    config = config_of()
    model = copy.deepcopy(config.model)
    model.architecture["num_hidden_layers"] = 1
    assert planted.load(config.task, model).fingerprint != planted.load(config.task, config.model).fingerprint


def test_one_teacher_has_one_id_however_it_is_spelled():
    plain, other = resolve(config_of()), resolve(config_of(planted_targets="v+q", name="mine"))
    assert plain.run_id == other.run_id
    assert other.config.task.name == "planted-qv-r2"
    assert resolve(other.config).run_id == plain.run_id, "a plan file holds the teacher's name and is read again"


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"planted_targets": "mlp"}, "planted-up.down-r2"),
        ({"planted_noise": 0.25, "planted_seed": 3}, "planted-qv-r2-noise0.25-s3"),
    ],
)
def test_a_task_is_named_by_its_teacher(values, name):
    assert resolve(config_of(**values)).science["task"]["name"] == name


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"planted_targets": "qz"}, "task.planted_targets: no role 'z'"),
        ({"planted_targets": "gate"}, "task.planted_targets: tiny has no 'gate'"),
        ({"planted_rank": 33}, "task.planted_rank: 33 does not fit"),
        ({"planted_rank": 0}, "task.planted_rank: 0 is too small"),
        ({"planted_noise": 0.6}, "task.planted_noise: 0.6 is too large"),
        ({"planted_strength": 0.0}, "task.planted_strength: 0.0 is too small"),
        ({"planted_seed": None}, "task.planted_seed: no value given"),
        ({"planted_texts": "cola"}, "task.planted_texts: no embedded task 'cola'"),
        ({"metrics": ["f1"], "train_rows": 99_999}, "task.train_rows: 99999 asked, but 'planted' has 7980 train rows"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_bad_teacher_is_told_by_key_value_and_remedy(values, message):
    with pytest.raises(ConfigError) as caught:
        resolve(config_of(**values))
    assert message in str(caught.value)


def test_a_task_without_a_teacher_refuses_its_keys():
    with pytest.raises(ConfigError, match=r"task\.planted_rank: 4, but 'acceptability' has no teacher"):
        tiny_config(task={**VALUES["task"], "planted_rank": 4})


def test_the_schema_leaves_other_tasks_without_a_teacher():
    assert {value for key, value in vars(TaskConfig()).items() if key.startswith("planted_")} == {None}


# ---------------------------------------------------------------- a run


def test_a_planted_run_trains_and_its_record_tells_the_teacher(tmp_path):
    run = resolve(tiny_config(task=TEACHER, train__epochs=1))
    (record,) = run_pack([run], Store(tmp_path))
    assert record["status"] == "finished", record["error"]
    told = record["data"]["planted"]
    assert (told["targets"], told["rank"], told["noise"], told["backbone"]) == ("qv", 2, 0.0, run.blueprint.fingerprint)
    assert record["config"]["task"]["name"] == "planted-qv-r2"
    assert 0 <= record["scores"]["report"]["accuracy"] <= 1
