"""The record document: what it refuses, what it hides, and that a damaged file is noticed."""

import contextlib
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_bench.store import record as records
from lora_bench.store.document import dumps, loads
from lora_bench.store.environment import environment
from lora_bench.store.errors import GuardError, NewerRecord, NonFiniteError, RecordError, UnreadableRecord
from lora_bench.store.record import Failure, check_record, problems, require_guards
from lora_bench.store.secrets import scrub, without_folders
from records import failed_record, finished_record, parts


def raised(error: Exception) -> Exception:
    try:
        raise error
    except type(error) as caught:
        return caught


def test_a_record_reads_back_as_it_was_written():
    record = finished_record()
    assert record["status"] == "finished"
    assert loads(dumps(record), run_id=record["run_id"]) == record
    check_record(loads(dumps(record)))


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=20), st.text(max_size=30))
def test_numbers_and_texts_survive_exactly(losses, text):
    """Tables are built from these files: no digit may move."""
    curve = [0.0] * len(losses)
    history = {"step": list(range(len(losses))), "loss": losses, "lr": curve, "grad_norm": curve, "epochs": []}
    record = finished_record(history=history, data={"note": text})
    read = loads(dumps(record))
    assert read["history"]["loss"] == losses
    assert read["data"] == record["data"]


@given(st.data())
def test_every_cut_and_every_changed_byte_is_noticed_or_harmless(data):
    """A number must not change in silence, and the checksum is what sees it."""
    record = finished_record()
    content = bytearray(dumps(record))
    place = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        del content[place:]
    else:
        content[place] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(UnreadableRecord):
        read = loads(bytes(content))
        assert {key: read[key] for key in record} == record


def test_numpy_values_become_plain_json():
    history = {
        "step": np.arange(2),
        "loss": np.array([0.5, 0.25], "float32"),
        "lr": (1.0, 2.0),
        "grad_norm": [np.float64(1), 2],
    }
    record = finished_record(history=history, guards={"frozen": np.bool_(True), "gap": np.float32(0.5)})
    assert json.loads(dumps(record))["history"]["loss"] == [0.5, 0.25]
    assert record["guards"] == {"frozen": True, "gap": 0.5}


@pytest.mark.parametrize("value", [math.nan, math.inf, np.float32("nan")], ids=str)
def test_a_finished_run_cannot_report_a_score_that_is_not_finite(value):
    with pytest.raises(RecordError, match=r"scores\.report\.matthews is not finite"):
        finished_record(scores={"report": {"matthews": value}})


def test_a_loss_that_is_not_finite_becomes_null_and_is_noted():
    """A diverged run keeps its curve, but JSON has no NaN and a stand-in number would be a lie."""
    history = parts()["history"] | {"loss": [0.7, math.nan]}
    record = failed_record(Failure.of(raised(NonFiniteError("loss at step 1"))), history=history)
    assert record["history"]["loss"] == [0.7, None]
    assert record["not_finite"] == ["history.loss[1]"]
    assert record["error"]["kind"] == "nonfinite"
    assert loads(dumps(record)) == record


CHANGES = {
    "no status": (lambda record: record.pop("status"), "no 'status'"),
    "format": (lambda record: record.update(format=7), "format 7"),
    "run id": (lambda record: record.update(run_id="../up"), "'run_id' must be"),
    "status": (lambda record: record.update(status="done"), "status 'done'"),
    "failed without error": (lambda record: record.update(status="failed"), "a failed record with error None"),
    "unknown error kind": (
        lambda record: record.update(
            status="failed", error={"kind": "bad", "type": "", "message": "", "traceback": ""}
        ),
        "error kind 'bad'",
    ),
    "wrong type": (lambda record: record.update(manifest={}), "'manifest' has the wrong type"),
    "seed": (lambda record: record["config"].pop("seed"), "config has no 'seed'"),
    "adapter": (lambda record: record["config"].pop("adapter"), "config has no 'adapter'"),
    "manifest": (lambda record: record["manifest"][1].pop("rank"), r"manifest\[1\] lacks rank"),
    "no metrics": (lambda record: record.update(metrics=[]), "metrics must be names"),
    "no scores": (lambda record: record["scores"].update(select=None, report=None), "needs scores on select or report"),
    "primary metric": (lambda record: record["scores"]["report"].pop("matthews"), "scores.report lacks matthews"),
    "score in words": (lambda record: record["scores"]["report"].update(matthews="0.4"), "scores.report must be"),
    "curves": (lambda record: record["history"]["loss"].pop(), "history curves differ in length"),
    "guard": (lambda record: record["guards"].update(frozen=False), "guard 'frozen' did not hold"),
    "environment": (lambda record: record["environment"].pop("id"), "environment has no 'id'"),
    "not finite": (lambda record: record["cost"].update(flops=math.inf), "cost.flops is not finite"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_no_record_is_refused_with_the_reason(change):
    break_it, message = CHANGES[change]
    record = finished_record()
    break_it(record)
    with pytest.raises(RecordError, match=message):
        check_record(record)


def test_a_document_that_is_no_object_is_refused():
    assert problems([1]) == ["expected an object, got list"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"{", "not JSON"),
        (b"[]", "expected an object"),
        (b'{"run_id": "00"}', "no 'cell_id'"),
        (b'{"x": NaN}', "NaN is no JSON number"),
        (b"[" * 100_000, "not JSON"),
    ],
    ids=["empty", "cut", "list", "keys", "nan", "deep"],
)
def test_unreadable_files_say_why(content, message):
    with pytest.raises(UnreadableRecord, match=message):
        loads(content)


def test_a_record_under_another_runs_name_is_refused():
    with pytest.raises(UnreadableRecord, match="it is the record of run"):
        loads(dumps(finished_record(1)), run_id=f"{2:016x}")


def test_a_newer_format_is_not_called_broken():
    record = finished_record() | {"format": 2}
    with pytest.raises(NewerRecord, match="newer lora_bench"):
        loads(dumps(record))


class OutOfMemoryError(RuntimeError):
    """Named as torch names its own."""


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ValueError("bad"), "exception"),
        (NonFiniteError("loss"), "nonfinite"),
        (GuardError("frozen"), "guard"),
        (MemoryError(), "out_of_memory"),
        (OutOfMemoryError("CUDA"), "out_of_memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "out_of_memory"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_failures_have_a_kind(error, kind):
    record = failed_record(Failure.of(raised(error)))
    assert record["status"] == "failed"
    assert record["error"]["kind"] == kind
    assert "raised" in record["error"]["traceback"]


def test_a_process_that_died_leaves_a_sound_record():
    record = failed_record(Failure.died("the process ended with signal 9"))
    assert record["error"]["kind"] == "died"


def test_no_secret_and_no_machine_path_enters_a_record(monkeypatch):
    """Records are shared; a key in a traceback would be shared with them."""
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef-key")
    monkeypatch.setenv("MY_SERVICE_PASSWORD", "hunter2hunter2")
    error = RuntimeError(
        f"0123456789abcdef-key refused for {Path.home()}/data, hf_{'a' * 34}, https://me:pw12345@host/x"
    )
    record = failed_record(
        Failure.of(raised(error)), invocation={"overrides": ["model.name=hunter2hunter2"], "sweep": None}
    )
    text = dumps(record).decode()
    for hidden in ("0123456789abcdef-key", "hunter2", "hf_aaa", "pw12345", str(Path(records.__file__).parents[2])):
        assert hidden not in text
    assert "~/data" in record["error"]["message"]
    assert 'test_record.py", line' in record["error"]["traceback"]


@pytest.mark.parametrize("name", ["TOKENIZERS_PARALLELISM", "KEYBOARD_LAYOUT", "MAX_TOKENIZED"])
def test_settings_that_only_sound_like_secrets_are_left_alone(monkeypatch, name):
    monkeypatch.setenv(name, "falsehood")
    assert scrub("a falsehood") == "a falsehood"


def test_guards_that_do_not_hold_are_named():
    require_guards({"frozen": True, "gap": 0.01, "skipped": None})
    with pytest.raises(GuardError, match=r"frozen \(False\), gap \(nan\)"):
        require_guards({"frozen": False, "moved": True, "gap": math.nan})


def test_the_environment_id_follows_what_moves_numbers():
    """Records of different environments are not mixed, so the id must differ where results may, and only there."""
    one = environment(device="cpu", threads=1)
    assert one["id"] == environment(device="cpu", threads=1)["id"]
    assert (
        len({one["id"], environment(device="cpu", threads=2)["id"], environment(device="H100", threads=1)["id"]}) == 3
    )
    assert one["numpy"] == np.__version__
    assert {"commit", "dirty", "platform", "cpu", "peft", "lora_bench"} <= set(one)


def test_records_and_stores_need_no_torch():
    """A report is made on a laptop without the training stack, and quickly."""
    code = (
        "import sys; from lora_bench.store import environment, folder, record\n"
        "environment.environment(device='cpu', threads=1); "
        "heavy = {'torch', 'transformers', 'peft', 'wandb'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("cannot read /mnt/lab/cola/train.tsv", "cannot read train.tsv"),
        ("task.data_dir='/mnt/lab/cola'", "task.data_dir='cola'"),
        ("OSError:/mnt/lab/cola {train:/mnt/a/b.tsv}", "OSError:cola {train:b.tsv}"),
        ("PATH=/opt/bin:/usr/bin", "PATH=bin:bin"),
        ("no ~/lab/cola/train.tsv", "no train.tsv"),
        ('File "/opt/x/lib/torch/nn.py", line 3', 'File "nn.py", line 3'),
        ("see https://example.org/a/b and q/k/v, and/or 3 / 4", "see https://example.org/a/b and q/k/v, and/or 3 / 4"),
    ],
)
def test_folders_of_the_machine_are_cut_from_a_text(text, left):
    assert without_folders(text) == left


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("could not create a memory object"),
        RuntimeError("could not create a primitive"),
        RuntimeError("could not create a primitive descriptor for a matmul primitive"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:114] . DefaultCPUAllocator: can't allocate memory: you tried ..."),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:80] DefaultCPUAllocator: not enough memory: you tried to allocate"
        ),
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("std::bad_alloc"),
        OSError(12, "Cannot allocate memory"),
    ],
    ids=str,
)
def test_memory_that_ran_out_is_known_by_every_allocators_words(error):
    """A pack is halved then; oneDNN's words were not known, and 8 runs of 8 failed that fit one by one."""
    assert Failure.of(error).kind == "out_of_memory"
    assert Failure.of(RuntimeError("mat1 and mat2 shapes cannot be multiplied")).kind == "exception"
