"""What must never happen: code from data, and secrets in files."""

import ast
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from lora_bench.config.errors import ConfigError
from lora_bench.config.schema import ModelConfig
from lora_bench.launch import jobs, worker
from lora_bench.launch.plan import make, save
from lora_bench.store.folder import Store
from lora_bench.training.resolve import resolve
from lora_bench.training.run import run_pack
from patience import PATIENCE_SECONDS
from tiny import tiny_config

ROOT = Path(__file__).parents[1]
SOURCES = sorted(
    path for folder in ("lora_bench", "hydra_plugins", "analysis") for path in (ROOT / folder).rglob("*.py")
)
KEY = "f00dfeedf00dfeedf00dfeedf00dfeedf00dfeed"

PICKLES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "jsonpickle"}
CALLS = {"eval", "exec", "compile", "__import__"}
ATTRIBUTES = {
    *("torch.load", "torch.save", "pd.read_pickle", "pandas.read_pickle", "os.system", "os.popen", "yaml.load"),
    *("yaml.unsafe_load", "torch.jit.load", "torch.package"),
}
KEYWORDS = {("allow_pickle", True), ("trust_remote_code", True), ("shell", True), ("weights_only", False)}


# No code from data


def faults(text: str) -> list[str]:
    """Ways to run code from data that a source file uses."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.partition(".")[0] in PICKLES]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in PICKLES:
            found.append(str(node.module))
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            found += [name] if name in CALLS | ATTRIBUTES or name.endswith((".to_pickle", ".read_pickle")) else []
            found += [
                f"{word.arg}={word.value.value}"
                for word in node.keywords
                if isinstance(word.value, ast.Constant) and (word.arg, word.value.value) in KEYWORDS
            ]
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_source_runs_code_from_data(path):
    assert faults(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from joblib import load",
        "torch.load(path)",
        "eval(text)",
        "np.load(path, allow_pickle=True)",
        "frame.to_pickle(path)",
        "subprocess.run(command, shell=True)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
    ],
)
def test_the_search_finds_what_it_looks_for(text):
    assert faults(text)


class Trap:
    """Unpickling this writes a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (os.system, (f"touch {self.path}",))


def model_folder(folder: Path) -> Path:
    """A local backbone as transformers keeps it, without weights."""
    from transformers import BertConfig

    folder.mkdir()
    config = BertConfig(
        **{key: value for key, value in tiny_config().model.architecture.items() if key != "model_type"}
    )
    config.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt"])
def test_a_malicious_checkpoint_is_refused_unread(tmp_path, name):
    folder = model_folder(tmp_path / "model")
    sprung = tmp_path / "sprung"
    (folder / name).write_bytes(pickle.dumps({"weight": Trap(sprung)}))
    with pytest.raises(ConfigError, match=r"model\.name"):
        resolve(tiny_config(model__name=str(folder), model__weights="pretrained", model__architecture={}))
    assert not sprung.exists()


def test_a_pickle_that_calls_itself_safetensors_fails_its_run(tmp_path):
    folder = model_folder(tmp_path / "model")
    sprung = tmp_path / "sprung"
    (folder / "model.safetensors").write_bytes(pickle.dumps({"weight": Trap(sprung)}))
    (folder / "tokenizer.json").write_bytes(pickle.dumps(Trap(sprung)))
    config = tiny_config(model__name=str(folder), model__weights="pretrained", model__architecture={})
    try:
        records = run_pack([resolve(config)], Store(tmp_path / "runs"))
    except ConfigError:
        records = [{"status": "failed"}]
    assert [record["status"] for record in records] == ["failed"]
    assert not sprung.exists()


def test_code_that_comes_with_a_backbone_is_not_run(tmp_path):
    folder = model_folder(tmp_path / "model")
    document = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    document |= {"model_type": "unheard_of", "auto_map": {"AutoConfig": "trap.TrapConfig"}}
    (folder / "config.json").write_text(json.dumps(document), encoding="utf-8")
    sprung = tmp_path / "sprung"
    (folder / "trap.py").write_text(f"open({str(sprung)!r}, 'w').close()\n", encoding="utf-8")
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"model\.name"):
        resolve(tiny_config(model__name=str(folder), model__weights="pretrained", model__architecture={}))
    assert not sprung.exists()
    assert ModelConfig().trust_remote_code is False


def test_a_cache_that_was_swapped_for_a_pickle_is_made_anew(tmp_path, monkeypatch):
    """The token cache may lie in a folder that others can write."""
    from lora_bench.tasks.tokens import tokenise

    monkeypatch.setenv("LORA_BENCH_CACHE", str(tmp_path / "cache"))
    run = resolve(tiny_config(task__train_rows=40))
    plan = run.blueprint
    arguments = (run.task, plan.tokenizer)
    options = {"max_length": 31, "tokenizer_fingerprint": plan.tokenizer_fingerprint}
    first = tokenise(*arguments, **options)
    files = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert files
    sprung = tmp_path / "sprung"
    for path in files:
        path.write_bytes(pickle.dumps(Trap(sprung)))
    forget = [value for value in vars(sys.modules["lora_bench.tasks.tokens"]).values() if isinstance(value, dict)]
    for memory in forget:
        if any(isinstance(key, tuple) for key in memory):
            memory.clear()
    again = tokenise(*arguments, **options)
    assert not sprung.exists()
    assert (again["train"].input_ids == first["train"].input_ids).all()


SHADOWS = ("queue", "torch", "json", "sitecustomize", "shlex", "hydra", "yaml", "filelock", "numpy", "hydra_plugins")


@pytest.fixture
def shadowed(tmp_path, monkeypatch):
    """A working folder with files that are called like modules, and a command run in it; PYTHONPATH has a folder of the
    user's."""
    for name in SHADOWS:
        text = f"open({str(tmp_path / 'sprung')!r}, 'a').write({name!r})\nraise SystemExit({name!r})\n"
        (tmp_path / f"{name}.py").write_text(text, encoding="utf-8")
    (tmp_path / "users").mkdir()
    (tmp_path / "users" / "sitecustomize.py").write_text("import sys\nsys.is_users = True\n", encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": f"{tmp_path / 'users'}{os.pathsep}{ROOT}"}
    environment.pop("PYTHONSAFEPATH", None)

    def run(*command, **options):
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=PATIENCE_SECONDS, **options
        )

    return run


def test_the_command_runs_no_module_of_the_current_folder(shadowed, tmp_path):
    """A folder of data that someone sent may hold a `json.py`."""
    ended = shadowed(sys.executable, "-m", "lora_bench", "model=tiny", "train.precision=fp32", "show=config")
    assert ended.returncode == 0, ended.stderr
    assert "hidden_size" in ended.stdout
    assert not (tmp_path / "sprung").exists()


def test_the_process_of_a_pack_runs_no_module_of_the_current_folder(shadowed, tmp_path):
    """It failed every run of a launched sweep, and ran what lay there. What PYTHONPATH names is the user's wish."""
    ended = shadowed(*worker.child_command(1), input="")
    assert ended.returncode == 0, ended.stderr
    assert not (tmp_path / "sprung").exists()
    flag = shadowed(*worker.child_command(1)[:2], "-c", "import sys; print(sys.is_users)")
    assert flag.stdout == "True\n"


def test_processes_that_a_launcher_starts_run_no_module_of_the_current_folder(command, training, monkeypatch):
    """joblib, submitit and Ray start Python by themselves."""
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    seen = []
    training.fate = lambda run: seen.append(os.environ.get("PYTHONSAFEPATH"))
    assert command("model=tiny", "tracking=none", "task.train_rows=40").status == 0
    assert seen == ["1"]
    assert "PYTHONSAFEPATH" not in os.environ


# No secrets in files


def files_with(folder: Path, text: str) -> list[str]:
    holding = (path for path in folder.rglob("*") if path.is_file() and text.encode() in path.read_bytes())
    return [str(path.relative_to(folder)) for path in holding]


def test_a_key_in_the_environment_or_in_a_tag_is_in_no_file_of_a_sweep(command, training, monkeypatch, tmp_path):
    for name, value in (("WANDB_API_KEY", KEY), ("HF_TOKEN", f"hf_{KEY}"), ("HOME", str(tmp_path))):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
    training.fate = lambda run: "failed" if run.config.seed else None
    small = (
        "model=tiny",
        "task.train_rows=40",
        "task.report_rows=20",
        "tracking.mode=offline",
        f"tracking.tags=[{KEY}]",
    )
    ended = command("-m", *small, "adapter.targets=q,qv", "seed=0,1")
    assert ended.status == 1
    assert len(Store("runs").statuses()) == 4
    assert {".json", ".jsonl", ".wandb"} <= {path.suffix for path in tmp_path.rglob("*")}
    assert files_with(tmp_path, KEY) == []
    assert KEY not in ended.out.replace(f"tracking.tags=[{KEY}]", "")  # the command to go on with is the user's own


@pytest.mark.slow
def test_a_planted_key_is_in_no_output(tmp_path):
    """The key of W&B and others in the environment, and once more where a user should not put it: in a tag."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    environment |= {
        "WANDB_API_KEY": KEY,
        "HF_TOKEN": f"hf_{KEY}",
        "MY_SECRET": KEY[::-1],
        "HOME": str(tmp_path / "home"),
    }
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "WANDB_BASE_URL": "http://127.0.0.1:9"}
    arguments = (
        "-m",
        "model=tiny",
        "task.train_rows=40",
        "task.report_rows=20",
        "train.epochs=1",
        "train.max_length=32",
    )
    arguments = (*arguments, "adapter.targets=q,qv", "seed=0,1", "train.lr=1e-3", f"tracking.tags=[mine,{KEY}]")
    (tmp_path / "home").mkdir()
    (tmp_path / "work").mkdir()
    said = ""
    for command in (
        ["-m", "lora_bench", *arguments],
        ["-m", "lora_bench", "show=store"],
        [str(ROOT / "analysis" / "report.py"), "--store", "runs", "--out", "report"],
        ["-m", "lora_bench.tracking.sync", "--store", "runs", "--offline"],
    ):
        done = subprocess.run(
            [sys.executable, *command],
            cwd=tmp_path / "work",
            env=environment,
            capture_output=True,
            encoding="utf-8",
            timeout=PATIENCE_SECONDS,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        said += done.stdout + done.stderr
    written = [path for path in (tmp_path / "work").rglob("*") if path.is_file()]
    kinds = {path.suffix for path in written}
    assert {".json", ".jsonl", ".wandb", ".html", ".csv", ".parquet", ".safetensors"} <= kinds
    for secret in (KEY, f"hf_{KEY}", KEY[::-1]):
        assert files_with(tmp_path, secret) == []
        assert secret not in said
    # Nor where this machine keeps its files.
    store = Store(tmp_path / "work" / "runs")
    for run_id in store.statuses():
        content = (store.path(run_id) / "record.json").read_text(encoding="utf-8")
        assert str(tmp_path) not in content
        assert str(ROOT) not in content


def test_a_child_that_prints_a_key_as_it_dies_leaves_none(tmp_path, monkeypatch):
    from configs import candidates

    monkeypatch.setenv("WANDB_API_KEY", KEY)
    store = Store(tmp_path / "runs")
    plan = make(candidates(("seed=0",), store=store.root), store)
    save(plan)
    code = f"import os, sys; print('key {KEY}', flush=True); os._exit(3)"
    monkeypatch.setattr(worker, "child_command", lambda answers: [sys.executable, "-c", code])
    assert jobs.run_isolated(f"{plan.path}#0")["failed"] == 1
    assert files_with(tmp_path, KEY) == []
    (record,) = store.records()
    assert "it said last:\nkey " in record["error"]["message"]
