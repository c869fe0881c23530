"""Launchers: the presets, what Slurm is sent, one GPU to one pack, and workers that die."""

import os
import re
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from configs import composed
from lora_bench.config.compose import parse
from lora_bench.launch import gpus
from lora_bench.paths import PathError, resource_root
from lora_bench.store.folder import Store
from patience import PATIENCE_SECONDS

ROOT = Path(__file__).parents[2]
EXTRAS = {"workers": "joblib", "slurm_gpu": "slurm", "slurm_cpu": "slurm", "ray_local": "ray", "ray_gpu": "ray"}
SMALL = (
    *("model=tiny", "tracking=none", "task.train_rows=40", "task.report_rows=20", "train.epochs=1"),
    *("train.max_length=32", "adapter.targets=q,v", "train.lr=1e-3", "seed=0,1"),
)


# Presets


def test_every_preset_is_known_here():
    assert {path.stem for path in (resource_root() / "conf" / "hydra" / "launcher").glob("*.yaml")} == set(EXTRAS)


@pytest.mark.parametrize(
    "preset", [pytest.param(preset, marks=pytest.mark.extra(name)) for preset, name in EXTRAS.items()]
)
def test_a_preset_changes_nothing_but_the_launcher(preset):
    assert parse(composed("model=tiny", f"hydra/launcher={preset}")) == parse(composed("model=tiny"))


@pytest.mark.parametrize("preset", ["ray", "ray_local"])
def test_a_launcher_that_is_not_installed_says_what_brings_it(command, training, preset):
    try:
        import hydra_plugins.hydra_ray_launcher  # noqa: F401
    except ImportError:
        ended = command("-m", *SMALL, f"hydra/launcher={preset}")
        assert ended.status == 2
        assert "in the clone, pip install -e '.[ray]' brings it" in ended.err
        assert len(ended.err.splitlines()) == 1
    else:
        pytest.skip("it is installed")


@pytest.mark.extra("slurm")
def test_slurm_is_sent_one_array_with_a_gpu_to_each_pack(command, training, monkeypatch, tmp_path):
    """As submitit itself writes the batch file; a stand-in for sbatch keeps it."""
    from submitit.core.utils import DelayedSubmission
    from submitit.slurm.slurm import SlurmJob

    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    for name, text in (("sbatch", f'cp "$1" {tmp_path}/sent.sh\necho Submitted batch job 4242'), ("srun", "exit 1")):
        path = bin_folder / name
        path.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(bin_folder), prepend=os.pathsep)

    def lose(job):
        raise RuntimeError("no cluster here")

    monkeypatch.setattr(SlurmJob, "results", lose)
    options = ("partition=short", "timeout_min=30", "array_parallelism=2")
    options = ("hydra/launcher=slurm_gpu", *(f"hydra.launcher.{one}" for one in options))
    ended = command("-m", *SMALL, *options, "hydra.sweeper.pack_size=1")
    assert ended.status == 1
    assert "stopped early: the launcher gave up (RuntimeError: no cluster here)" in ended.out
    sent = (tmp_path / "sent.sh").read_text(encoding="utf-8")
    asked = dict(re.findall(r"^#SBATCH --([a-z-]+)=(.*)$", sent, flags=re.MULTILINE))
    expected = {"partition": "short", "time": "30", "gpus-per-node": "1", "cpus-per-task": "8", "mem": "32GB"}
    assert expected.items() <= asked.items()
    assert asked["array"] == "0-3%2"
    assert "submitit.core._submit" in sent
    # What a job is given: a path and a number.
    (plan,) = (tmp_path / "runs" / ".plans").glob("*.json")
    payloads = sorted((tmp_path / "runs" / ".plans" / "jobs").rglob("*_submitted.pkl"))
    assert len(payloads) == 4
    for number, path in enumerate(payloads):
        (override,) = DelayedSubmission.load(path).args[0]
        assert override.startswith(f"pack='{plan}#{number}@")


# GPUs


@pytest.fixture
def two_gpus(monkeypatch, tmp_path):
    monkeypatch.setattr(gpus, "visible_gpus", lambda: {"0": "GPU-a", "1": "GPU-b"})
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(gpus, "GPU_POLL_SECONDS", 0.02)


def test_packs_side_by_side_take_a_gpu_each_and_the_next_one_waits(two_gpus):
    with gpus.claim_gpu("auto") as first, gpus.claim_gpu("cuda") as second:
        assert [first, second] == [{"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "1"}]
        got: list[dict] = []

        def third() -> None:
            with gpus.claim_gpu("auto") as environment:
                got.append(environment)

        waiting = threading.Thread(target=third)
        waiting.start()
        time.sleep(0.2)
        assert not got
        with gpus.claim_gpu("cpu") as nothing:
            assert nothing == {}
    waiting.join(PATIENCE_SECONDS)
    assert got in ([{"CUDA_VISIBLE_DEVICES": "0"}], [{"CUDA_VISIBLE_DEVICES": "1"}])


def test_a_process_that_may_have_touched_the_first_gpu_takes_no_other(two_gpus):
    with gpus.claim_gpu("auto"), gpus.claim_gpu("auto", any_of_them=True) as other:
        assert other == {"CUDA_VISIBLE_DEVICES": "1"}
    with gpus.claim_gpu("auto", any_of_them=False) as first:
        assert first == {"CUDA_VISIBLE_DEVICES": "0"}


@pytest.mark.parametrize("kind", ["writable", "link", "file"])
def test_a_lock_folder_that_is_not_ours_alone_is_refused(two_gpus, tmp_path, kind):
    """Its name can be foreseen: whoever makes it first could keep every GPU, or have us write elsewhere."""
    folder = tmp_path / f"lora_bench-gpus-{os.getuid()}"
    if kind == "writable":
        folder.mkdir()
        folder.chmod(0o777)
    elif kind == "link":
        folder.symlink_to(tmp_path)
    else:
        folder.touch()
    with pytest.raises(PathError, match=r"TMPDIR: the locks of GPUs lie in .*which others can write"):
        gpus.claim_gpu("auto").__enter__()


def test_the_lock_folder_is_of_this_account_alone(two_gpus, tmp_path):
    with gpus.claim_gpu("auto"):
        (folder,) = tmp_path.glob("lora_bench-gpus-*")
        assert folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    ("listed", "expected"),
    [
        (None, {"0": "GPU-aa", "1": "GPU-bb"}),
        ("1", {"1": "GPU-bb"}),
        ("GPU-bb,0", {"GPU-bb": "GPU-bb", "0": "GPU-aa"}),
        ("", {}),
        ("-1", {}),
    ],
)
def test_gpus_are_known_by_names_that_are_theirs_alone(monkeypatch, tmp_path, listed, expected):
    """A scheduler may call the same card 0 in one job and by its UUID in another."""
    path = tmp_path / "nvidia-smi"
    path.write_text(
        "#!/bin/sh\necho 'GPU 0: Card (UUID: GPU-aa)'\necho 'GPU 1: Card (UUID: GPU-bb)'\n", encoding="utf-8"
    )
    path.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if listed is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", listed)
    assert gpus.visible_gpus() == expected


# Workers that die

DYING = """
import importlib.abc, importlib.util, os, signal, sys, time

class Patch(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "lora_bench.training.loop":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        load = spec.loader.exec_module

        def exec_module(module):
            load(module)
            train = module.train_pack

            def train_pack(pack, tokens, configs, **options):
                if any(one.adapter.targets == "v" and one.seed == 1 for one in configs):
                    if os.environ["WHO_DIES"] == "worker":
                        os.kill(os.getppid(), signal.SIGKILL)
                        time.sleep(60)
                    os._exit(7)
                return train(pack, tokens, configs, **options)

            module.train_pack = train_pack

        spec.loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, Patch())
"""


@pytest.mark.slow
@pytest.mark.parametrize("who", ["child", "worker"])
@pytest.mark.parametrize(
    "options",
    [
        pytest.param(["hydra/launcher=workers"], marks=pytest.mark.extra("joblib"), id="joblib"),
        pytest.param(
            ["hydra/launcher=submitit_local", "hydra.launcher.timeout_min=60"],
            marks=pytest.mark.extra("slurm"),
            id="submitit_local",
        ),
        pytest.param(
            ["hydra/launcher=ray_local", "hydra.launcher.ray.remote.num_cpus=2"],
            marks=pytest.mark.extra("ray"),
            id="ray",
        ),
    ],
)
def test_a_hard_exit_costs_its_packs_runs_and_nothing_else(tmp_path, options, who):
    """A crash in native code takes the whole process along, with no exception for a launcher to see; a machine that
    runs out of memory may take the launcher's own worker."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(DYING, encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": f"{tmp_path / 'site'}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}
    environment["WHO_DIES"] = who
    done = subprocess.run(
        [sys.executable, "-m", "lora_bench", "-m", *SMALL, *options, "hydra.sweeper.pack_size=1"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        encoding="utf-8",
        timeout=PATIENCE_SECONDS,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    store = Store(tmp_path / "runs")
    records = list(store.records())
    failed = [record for record in records if record["status"] == "failed"]
    assert (len(records), len(failed)) == (4, 1), done.stdout + done.stderr
    assert failed[0]["error"]["kind"] == "died"
    told = {"child": "ended with status 7", "worker": "the worker that trained this pack was lost"}
    assert told[who] in failed[0]["error"]["message"]
    assert failed[0]["config"]["adapter"]["targets"] == "v"
    assert "1 run failed:" in done.stdout
    assert "3 of 4 runs finished" in done.stdout
