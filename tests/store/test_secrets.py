"""What counts as a secret and where: no key leaves the machine, and no variable rewrites what was trained."""

import json
from pathlib import Path

import pytest

from lora_bench.store.document import canonical, dumps
from lora_bench.store.folder import Store
from lora_bench.store.record import Failure
from lora_bench.store.secrets import scrub, scrub_override
from records import failed_record, finished_record, parts

KEY = "f00dfeedf00dfeedf00dfeedf00dfeedf00dfeed"
DRAWN = "Zk3pQ9xT7vLm2RbN8wYc"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MY_TOKEN", "gaussian"),
        ("MY_PASSWORD", "sentence-transformers/all-MiniLM-L6-v2"),
        ("DB_PASS", "matthews_correlation"),
    ],
)
def test_no_variable_rewrites_what_was_trained(monkeypatch, name, value):
    """MY_TOKEN=gaussian made a record's init three asterisks."""
    monkeypatch.setenv(name, value)
    config = parts()["config"]
    config["adapter"] |= {"init": value}
    config["model"] |= {"name": value}
    manifest = [{**matrix, "module": value} for matrix in parts()["manifest"]]
    scores = {"report": {"matthews": 0.4, value: 0.5}}
    record = finished_record(1, config=config, manifest=manifest, metrics=["matthews", value], scores=scores)
    assert (record["config"]["adapter"]["init"], record["config"]["model"]["name"]) == (value, value)
    assert record["metrics"] == ["matthews", value]
    assert {matrix["module"] for matrix in record["manifest"]} == {value}
    assert canonical({"init": value, "model": value}) == {"init": value, "model": value}  # as W&B is told


@pytest.mark.parametrize("name", ["PWD", "OLDPWD", "HOME", "SSH_KEY", "GOOGLE_APPLICATION_CREDENTIALS", "KEY_PATH"])
def test_a_folder_is_no_secret(monkeypatch, tmp_path, name):
    """Lines to paste said task.data_dir=***/data."""
    folder = tmp_path / "some_folder_of_mine"
    monkeypatch.chdir(tmp_path)
    folder.mkdir()
    monkeypatch.setenv(name, str(folder))
    assert "***" not in scrub(f"no file {folder}/data/train.tsv")
    assert "***" not in scrub_override(f"task.data_dir={folder}/data")
    monkeypatch.setenv(name if name != "HOME" else "PWD", folder.name)
    assert name == "HOME" or scrub(f"{folder.name}/data") == f"{folder.name}/data"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("WANDB_API_KEY", KEY), ("HF_TOKEN", "hf_" + "a1B2" * 9), ("HUGGING_FACE_HUB_TOKEN", "12345678")),
        *(("OPENAI_KEY", DRAWN), ("MY_SECRET", "correct-horse-battery"), ("DB_PASSWORD", "hunter2hunter2")),
    ],
)
@pytest.mark.parametrize("text", ["{}", "401 for key={}", "header '{}'", "({})", "[{}] refused", "{}, twice {}"])
def test_a_key_of_the_environment_reaches_no_error(monkeypatch, name, value, text):
    monkeypatch.setenv(name, value)
    record = failed_record(Failure.of(RuntimeError(text.replace("{}", value))))
    assert value.encode() not in dumps(record)
    assert value not in scrub(text.replace("{}", value))


@pytest.mark.parametrize("text", [f"https://hooks.example.org/x/{DRAWN}/y", f"/cache/{DRAWN}.json", f"id-{DRAWN}"])
def test_a_drawn_key_is_hidden_wherever_it_stands(monkeypatch, text):
    monkeypatch.setenv("HOOK_TOKEN", DRAWN)
    assert DRAWN not in scrub(text)


@pytest.mark.parametrize(
    "text",
    [
        *("hf_" + "aB3" * 12, "wandb_v1_" + "x9" * 20, "ghp_" + "a" * 36, "glpat-" + "b" * 20, "sk-" + "c" * 48),
        *("AKIA" + "D" * 16, "xoxb-1234567890-abc", "https://me:pw12345@host/x", "Bearer abcdefghijkl.mnop"),
    ],
)
def test_known_forms_of_keys_are_hidden(text):
    assert "***" in scrub(f"said {text} and left")


@pytest.mark.parametrize(
    "word",
    [
        *(
            f"+wandb_api_key={KEY}",
            f"hydra.job.env_set.WANDB_API_KEY={KEY}",
            f"++a.b.token='{KEY}'",
            f"x.password={KEY}",
        ),
        *(
            f"tracking.tags=[a,{KEY}]",
            f"+hydra.job.env_set={{HF_TOKEN:{KEY},A:b}}",
            f"+secret.name={KEY}",
            f"--key={KEY}",
        ),
        f'+hydra.job.env_set={{"MY_KEY": "{KEY} x"}}',
    ],
)
def test_a_key_on_the_command_line_is_not_recorded(word, tmp_path):
    """They went into each record, the plan and the page's lines to paste."""
    store = Store(tmp_path)
    store.write(finished_record(1, invocation={"overrides": ["adapter.rank=4", word], "sweep": None}))
    content = (store.path(f"{1:016x}") / "record.json").read_text(encoding="utf-8")
    assert KEY not in content
    assert json.loads(content)["invocation"]["overrides"][0] == "adapter.rank=4"


@pytest.mark.parametrize(
    "word",
    [
        *(f"model.revision={KEY}", "adapter.rank=1,2,4", "tracking.tags=[mine]", "+sweeps=rank", "-m", "task=monkey"),
        *("model.name=org/keys-2", "task.label_key=null", "hydra.sweeper.pack_size=4", "adapter.rank={q:2,v:4}"),
        *("seed=range(8)", "task.targets=[a,b]", "model.roles={q:'query$'}"),
    ],
)
def test_an_override_without_a_key_is_recorded_as_it_was_given(word):
    assert scrub_override(word) == word


def test_a_key_given_to_a_sweep_is_in_no_file_and_in_nothing_printed(command, training):
    ended = command(
        "-m", "model=tiny", "task.train_rows=40", "task.report_rows=20", "tracking=none", "seed=0,1",
        f"+hydra.job.env_set.MY_API_KEY={KEY}",
    )  # fmt: skip
    assert ended.status == 0, ended.text
    assert KEY not in ended.text
    assert [path for path in Path().rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()] == []
