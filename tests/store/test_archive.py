"""The archive: what the folder says, in few files, to the last digit; and nothing that was touched is read."""

from __future__ import annotations

import gzip
import hashlib
import json
import pickle
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from analysis import amplification as amplification_command
from analysis import archive as archive_command
from analysis import report as report_command
from analysis import rescore as rescore_script
from analysis import subspace as subspace_command
from analysis import weight_types as weight_types_command
from fake_store import fake_record, weight_types_records, write_store, write_with_adapters
from lora_bench.reports import publish
from lora_bench.store import StoreReader, open_store
from lora_bench.store.archive import Archive
from lora_bench.store.errors import StoreError
from lora_bench.store.folder import Store
from lora_bench.store.journal import Journal
from lora_bench.store.reader import MANIFEST, PREDICTIONS, RECORDS
from lora_bench.tasks.metrics import score
from lora_bench.verdicts.settings import NothingToShow

KINDS = {"cola": ("matthews", 2), "mnli": ("accuracy", 3), "stsb": ("pearson", 1)}
RATES = (3e-4, 1e-3, 3e-3)  # the last is the best one on select


def write_scored(root: Path, *, tasks: tuple[str, ...] = tuple(KINDS), n_seeds: int = 2) -> Path:
    """Runs of three rates with predictions that give their scores, and logits closer than float16 can tell."""
    store, rng = Store(root), np.random.default_rng(0)
    for task in tasks:
        metric, n_labels = KINDS[task]
        for seed in range(n_seeds):
            for rate in RATES:
                tables: list[pd.DataFrame] = []
                scores: dict[str, Any] = {"train": None}
                for split, n in (("select", 30), ("report", 50)):
                    logits = rng.normal(size=(n, n_labels)).astype(np.float32)
                    if n_labels > 1:
                        logits[:4] = 1 + np.float32(1e-5) * np.arange(n_labels)  # equal in float16
                        logits[4, :] = [-1e5, 1e5, 0.0][:n_labels]  # beyond float16
                    is_better = rate == RATES[-1]
                    labels = logits.argmax(axis=1) if n_labels > 1 else logits[:, 0]
                    labels = labels.copy() if is_better else rng.permutation(labels)
                    labels[5:10] = labels[[6, 7, 8, 9, 5]]  # no score is whole
                    scores[split] = score([metric], labels, logits)
                    columns = {f"logit_{i}": logits[:, i] for i in range(n_labels)}
                    tables.append(pd.DataFrame({"split": split, "idx": range(n), "label": labels, **columns}))
                record = fake_record(task=task, metric=metric, seed=seed, lr=rate)
                record["scores"] = scores
                tables[0]["idx"] += 7
                store.write(record, predictions=pd.concat(tables, ignore_index=True))
        store.write(fake_record(task=task, metric=metric, seed=9, lr=RATES[0], error="nonfinite"))
    return root


def archived(root: Path, out: Path, **options: Any) -> Path:
    return publish.write_archive([open_store(root)], out, **options).root


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def tables_of(script: Any, store: Path, out: Path, *options: str) -> dict[str, bytes]:
    assert script.main(["--store", str(store), "--out", str(out), *options]) == 0
    return {path.name: path.read_bytes() for path in (out / "tables").glob("*.csv")}


@pytest.fixture(scope="module")
def scored(tmp_path_factory) -> Path:
    return write_scored(tmp_path_factory.mktemp("scored") / "runs")


@pytest.fixture(scope="module")
def scored_archive(scored) -> Path:
    return archived(scored, scored.parent / "archive")


@pytest.fixture(scope="module")
def adapted(tmp_path_factory) -> Path:
    """Four runs of one matrix kind with their adapters."""
    records = [fake_record(targets="q", rank=rank, seed=seed) for rank in (2, 4) for seed in range(2)]
    return write_with_adapters(tmp_path_factory.mktemp("adapted") / "runs", records)


@pytest.fixture
def archive(scored_archive, tmp_path) -> Path:
    """An archive to spoil."""
    return shutil.copytree(scored_archive, tmp_path / "archive")


# Reading


def test_an_archive_reads_as_the_folder_does(scored, scored_archive):
    folder, archive = open_store(scored), open_store(scored_archive)
    assert isinstance(archive, Archive)
    pd.testing.assert_frame_equal(archive.frame(), folder.frame())
    assert list(archive.records()) == list(folder.records())
    assert archive.statuses() == folder.statuses()
    for run_id, status in folder.statuses().items():
        assert archive.record(run_id) == folder.record(run_id)
        assert (archive.status(run_id), archive.has(run_id)) == (status, status == "finished")
    assert archive.quarantined == []
    parts = archive.bytes_by_part()
    assert parts["record"] == (21, (scored_archive / RECORDS).stat().st_size)
    assert parts["predictions"] == (12, (scored_archive / PREDICTIONS).stat().st_size)
    assert parts["adapter"] == (0, 0)
    assert sorted(bytes_of(scored_archive)) == [MANIFEST, PREDICTIONS, RECORDS]
    with pytest.raises(StoreError, match=r"no run '0+'; it holds 21 runs"):
        archive.predictions("0" * 16)


def test_predictions_are_those_of_the_two_best_rates_and_keep_rows_and_labels(scored, scored_archive):
    folder, archive = open_store(scored), open_store(scored_archive)
    held = {run_id for run_id in folder.statuses() if archive.predictions(run_id) is not None}
    frame = folder.frame()
    finished = frame[frame["status"] == "finished"]
    by_rate = finished.groupby(["task", "lr"])["select"].mean().unstack("lr")
    worst = finished["task"].map(by_rate.idxmin(axis=1))
    assert held == set(finished.loc[finished["lr"] != worst, "run_id"]) and len(held) == 2 * 2 * len(KINDS)
    for run_id in held:
        ours, theirs = archive.predictions(run_id), folder.predictions(run_id)
        assert ours is not None and theirs is not None
        assert list(ours) == list(theirs)
        logits = [name for name in map(str, theirs) if name.startswith("logit_")]
        pd.testing.assert_frame_equal(ours.drop(columns=logits), theirs.drop(columns=logits), check_dtype=False)
        assert ours["label"].dtype == (theirs["label"].dtype if len(logits) > 1 else "float64")
        np.testing.assert_allclose(ours[logits], theirs[logits], rtol=2**-11)
        if len(logits) == 1:
            assert (ours["logit_0"] == theirs["logit_0"]).all()


def test_rescoring_an_archive_gives_the_records_numbers(scored, scored_archive, tmp_path, capsys):
    added = ("--add", "balanced_accuracy,spearman")
    for store, name in ((scored, "folder"), (scored_archive, "archive")):
        assert rescore_script.main(["--store", str(store), "--out", str(tmp_path / name), *added]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "24 of 24 scored splits of 12 runs are equal to the record, byte for byte" in out
    assert "6 not checked: the archive holds no predictions of the run" in out
    folder, archive = (pd.read_csv(tmp_path / name / "tables" / "rescored.csv") for name in ("folder", "archive"))
    checked = archive[archive["state"] != "unchecked"].reset_index(drop=True)
    same = folder[folder["run_id"].isin(set(checked["run_id"]))].reset_index(drop=True)
    pd.testing.assert_frame_equal(checked, same, check_dtype=False)  # what is not checked has no rows to count


def test_rows_keep_float32_where_rounding_could_move_a_score(scored_archive):
    manifest = json.loads((scored_archive / MANIFEST).read_text(encoding="utf-8"))
    regression, close = 4 * 80, 8 * 2 * (4 + 1)  # runs x rows; runs x splits x rows that float16 cannot hold
    assert manifest["float32_rows"] == regression + close
    assert manifest["float16_rows"] == 12 * 80 - regression - close


CLOSE = st.floats(1, np.float32(1.001).item(), width=32)  # as far apart as float16's steps are there


@given(
    hnp.arrays(
        np.float32,
        st.tuples(st.integers(1, 20), st.integers(2, 4)),
        elements=st.one_of(CLOSE, st.floats(-1e6, 1e6, width=32)),
    )
)
def test_rounding_never_moves_the_largest_logit(logits):
    rounded, is_rounded = publish._rounded(logits)
    assert (rounded.argmax(axis=1) == logits.argmax(axis=1)).all()
    assert (rounded[is_rounded] == rounded[is_rounded].astype(np.float16)).all()
    assert (rounded[~is_rounded] == logits[~is_rounded]).all()


def test_tables_from_an_archive_are_those_from_the_folder(tmp_path, unrendered, capsys):
    """The report has the tables of every command, and reads whatever a record may lack."""
    records = weight_types_records(rates=(1e-3, 3e-3), n_seeds=3)
    records += [fake_record(lr=0.3, seed=seed, error="nonfinite") for seed in range(3)]
    records += weight_types_records(rates=(3e-3,), n_seeds=1, environment="gpu-b", with_floor=False)
    store = write_store(tmp_path / "runs", records)
    archive = archived(store, tmp_path / "archive")
    ours, theirs = (tables_of(report_command, root, tmp_path / "out" / root.name) for root in (archive, store))
    goes_on = f" store={store}".encode()  # claims not run are run into their folder; no run goes into an archive
    assert goes_on in theirs["claims.csv"]
    assert ours == {name: content.replace(goes_on, b"") for name, content in theirs.items()}
    assert any(name.startswith("weight_types") for name in ours)


def test_section_7_reads_the_adapters_of_an_archive(adapted, tmp_path, unrendered):
    archive = archived(adapted, tmp_path / "archive", adapters=["all"])
    for script in (subspace_command, amplification_command):
        ours, theirs = (tables_of(script, one, tmp_path / script.__name__ / one.name) for one in (archive, adapted))
        assert ours == theirs
    run_id = next(iter(open_store(archive).statuses()))
    assert bytes_of(open_store(archive).path(run_id)) == {
        name: content for name, content in bytes_of(open_store(adapted).path(run_id)).items() if name != "record.json"
    }


# Damage


def spoil(archive: Path, name: str, content: bytes) -> None:
    """Change a file and let the manifest say that all is well."""
    (archive / name).write_bytes(content)
    manifest = json.loads((archive / MANIFEST).read_text(encoding="utf-8"))
    manifest["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (archive / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")


def change_manifest(archive: Path, change: Callable[[dict], object]) -> None:
    manifest = json.loads((archive / MANIFEST).read_text(encoding="utf-8"))
    change(manifest)
    (archive / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")


@pytest.mark.parametrize("name", [RECORDS, PREDICTIONS])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda content: content[:50] + bytes([content[50] ^ 1]) + content[51:], "does not match its checksum"),
        (lambda content: content + b"x", "does not match its checksum"),
        (lambda content: content[:-9], "is cut short"),
        (None, "is missing"),
    ],
    ids=["flipped", "longer", "truncated", "absent"],
)
def test_a_file_that_was_touched_is_refused_by_name(archive, name, change, said, tmp_path, capsys):
    assert len(open_store(archive).frame()) == 21  # so that an archive once found sound is looked at again
    content = (archive / name).read_bytes()
    (archive / name).unlink()
    if change:
        (archive / name).write_bytes(change(content))
    with pytest.raises(StoreError, match=f"{name} {said}"):
        open_store(archive)
    assert weight_types_command.main(["--store", str(archive), "--out", str(tmp_path / "out")]) == 2
    assert f"{archive / name} {said}" in capsys.readouterr().err


def test_a_changed_adapter_is_refused_by_name(adapted, tmp_path):
    archive = archived(adapted, tmp_path / "archive", adapters=["all"])
    path = next(archive.rglob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(StoreError, match=f"{path} does not match its checksum"):
        open_store(archive)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda manifest: manifest.update(format=2), f"{MANIFEST} has format 2, and this lora_bench reads format 1"),
        (lambda manifest: manifest.pop("format"), f"{MANIFEST} has format None"),
        (lambda manifest: manifest.pop("files"), f"{MANIFEST} is no manifest"),
        (lambda manifest: manifest["files"].pop(RECORDS), f"{MANIFEST} is no manifest"),
        (lambda manifest: manifest.update(runs="many"), f"{MANIFEST} is no manifest"),
        (lambda manifest: manifest.update(runs=3), f"{RECORDS} has 21 records of 21 runs; {MANIFEST} says 3"),
    ],
)
def test_a_manifest_that_cannot_be_followed_is_refused(archive, change, said):
    change_manifest(archive, change)
    with pytest.raises(StoreError, match=said):
        open_store(archive).frame()


def test_a_manifest_that_is_absent_or_garbled_is_refused(archive):
    (archive / MANIFEST).write_bytes(b'{"format": 1')
    with pytest.raises(StoreError, match=f"cannot read .*{MANIFEST}"):
        open_store(archive)
    (archive / MANIFEST).unlink()
    with pytest.raises(StoreError, match=f"{MANIFEST} is missing"):
        open_store(archive)


@pytest.mark.parametrize(
    "name",
    [
        "../runs.json",
        "/etc/passwd",
        "adapters/../../x.json",
        "adapters/00000000/adapter/../x.json",
        "adapters/0000000A/adapter/x.json",
        "adapters/00000000/adapter/.hidden.json",
        "adapters/00000000/adapter/adapter_model.bin",
        f"{RECORDS}\n",
    ],
)
def test_a_name_that_leaves_the_folder_or_is_no_kind_of_ours_is_refused(archive, name):
    change_manifest(archive, lambda manifest: manifest["files"].update({name: {"bytes": 0, "sha256": ""}}))
    with pytest.raises(StoreError, match="is no file of an archive"):
        open_store(archive)


@pytest.mark.parametrize("name", ["../../etc", "/tmp/00000000", "0000000A", "00000000/..", "00000000\n"])
def test_a_run_id_that_leaves_the_folder_is_refused(scored_archive, name):
    store = open_store(scored_archive)
    for use in (store.path, store.status, store.record, store.predictions):
        with pytest.raises(StoreError, match="is no run id"):
            use(name)


def test_links_and_files_that_are_not_listed_are_refused(archive, tmp_path):
    shutil.move(archive / RECORDS, tmp_path / RECORDS)
    (archive / RECORDS).symlink_to(tmp_path / RECORDS)
    with pytest.raises(StoreError, match=f"{RECORDS} is a link"):
        open_store(archive)
    (archive / RECORDS).unlink()
    shutil.move(tmp_path / RECORDS, archive / RECORDS)
    extra = archive / "adapters" / "00000000" / "adapter" / "adapter_model.safetensors"
    extra.parent.mkdir(parents=True)
    extra.write_bytes(b"")
    with pytest.raises(StoreError, match=f"{extra} is not in {MANIFEST}"):
        open_store(archive)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (RECORDS, b"no gzip", "cannot read"),
        (RECORDS, gzip.compress(b'{"format": 1}\n' * 15, mtime=0), "line 1 of .* cannot be read"),
        (RECORDS, gzip.compress(b'{"format": 2}\n' * 15, mtime=0), "line 1 of .* was written by a newer lora_bench"),
        (
            RECORDS,
            gzip.compress(json.dumps(fake_record() | {"run_id": "../../x"}).encode() + b"\n", mtime=0),
            "is no run id",
        ),
        (RECORDS, gzip.compress((json.dumps(fake_record()).encode() + b"\n") * 15, mtime=0), "15 records of 1 runs"),
        (RECORDS, pickle.dumps({"run_id": 1}), "cannot read"),
        (PREDICTIONS, pickle.dumps({"run_id": 1}), "cannot read"),
    ],
)
def test_content_that_no_writer_of_ours_made_is_refused_by_name(archive, name, content, said):
    run_id = next(iter(open_store(archive).statuses()))
    spoil(archive, name, content)
    store = open_store(archive)
    with pytest.raises(StoreError, match=said) as caught:
        store.predictions(run_id)
    assert name in str(caught.value)


# No writing


def test_an_archive_is_not_written_to(archive):
    before = bytes_of(archive)
    with pytest.raises(StoreError, match="is an archive, which is read-only; give another store=FOLDER"):
        Store(archive)
    writes = {name for name in vars(Store) if not name.startswith("_")} - set(vars(StoreReader))
    assert writes == {"require_writable", "recover", "write", "drop_adapter", "claim", "claim_file"}
    assert not [name for name in writes if hasattr(Archive, name)]
    open_store(archive).frame()
    assert bytes_of(archive) == before


@pytest.mark.parametrize("arguments", [(), ("adapter.targets=q,v", "-m")], ids=["run", "sweep"])
def test_a_command_that_would_train_into_an_archive_is_refused_at_once(archive, command, training, arguments):
    before = bytes_of(archive)
    ended = command("model=tiny", "tracking=none", "task.train_rows=40", f"store={archive}", *arguments)
    assert ended.status == 2
    assert f"store: {archive} is an archive, which is read-only; give another store=FOLDER" in ended.text
    assert training.packs == []
    assert bytes_of(archive) == before


# Writing


def test_the_same_runs_give_the_same_bytes(scored, scored_archive, tmp_path):
    again = tmp_path / "elsewhere"
    shutil.copytree(scored, again, ignore=shutil.ignore_patterns("index.jsonl", ".claims"))
    assert bytes_of(archived(again, tmp_path / "archive")) == bytes_of(scored_archive)
    assert bytes_of(archived(scored_archive, tmp_path / "repacked")) == bytes_of(scored_archive)


def test_another_archive_is_replaced_only_when_asked(scored, scored_archive, archive, capsys):
    arguments = ["--store", str(scored), "--out", str(archive)]
    (archive / "README.md").write_text("what this is", encoding="utf-8")
    before = bytes_of(archive)
    assert archive_command.main(arguments) == 0
    assert "unchanged" in capsys.readouterr().out
    assert archive_command.main([*arguments, "--task", "cola"]) == 2
    assert f"{archive} holds another archive; give --overwrite" in capsys.readouterr().err
    assert bytes_of(archive) == before
    assert archive_command.main([*arguments, "--task", "cola", "--overwrite"]) == 0
    assert set(open_store(archive).frame()["task"]) == {"cola"}
    assert (archive / "README.md").exists()
    assert [path.name for path in archive.parent.iterdir()] == ["archive"]


def test_a_folder_of_runs_never_becomes_an_archive(scored, tmp_path):
    store = write_store(tmp_path / "runs", [fake_record()])
    with pytest.raises(StoreError, match="holds something that is no archive"):
        archived(scored, store, overwrite=True)
    assert type(open_store(store)) is Store


def test_stores_are_joined_and_a_finished_run_stands_for_a_failed_one(tmp_path):
    run = fake_record()
    first = write_store(tmp_path / "a", [fake_record(error="died"), fake_record(seed=1)])
    second = write_store(tmp_path / "b", [run, fake_record(seed=1), fake_record(seed=2)])
    for order in ([first, second], [second, first]):
        out = tmp_path / f"archive-{order[0].name}"
        publish.write_archive([open_store(root) for root in order], out)
        assert sorted(open_store(out).frame()["seed"]) == [0, 1, 2]
        assert open_store(out).record(run["run_id"]) == run
    third = write_store(tmp_path / "c", [fake_record() | {"finished": "2026-01-02T00:00:00+00:00"}])
    with pytest.raises(StoreError, match=f"different finished records of run {run['run_id']}"):
        publish.write_archive([open_store(second), open_store(third)], tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_two_labs_records_of_the_same_runs_are_joined_under_a_stated_rule(tmp_path, capsys, caplog):
    """Run ids say what was trained and not where, so that two labs have them in common."""
    elsewhere = {"finished": "2026-01-02T00:00:00+00:00"}
    runs = [fake_record(seed=seed, report=0.5) for seed in range(3)]
    theirs = [runs[0], *({**run, **elsewhere} for run in runs[1:]), fake_record(seed=9)]
    first, second = write_store(tmp_path / "a", runs), write_store(tmp_path / "b", theirs)
    arguments = ["--out", str(tmp_path / "archive"), "--store", str(first), str(second)]
    assert archive_command.main(arguments) == 2
    said = capsys.readouterr().err
    assert "and of 1 other run; remove one of the two, or keep those of the first store with --keep-first" in said
    assert any(run["run_id"] in said for run in runs[1:])
    assert archive_command.main([*arguments, "--keep-first"]) == 0
    assert all(run["run_id"] in caplog.text for run in runs[1:])
    assert runs[0]["run_id"] not in caplog.text
    joined = open_store(tmp_path / "archive")
    assert [joined.record(run["run_id"])["finished"] for run in runs] == [run["finished"] for run in runs]
    assert len(joined.frame()) == 4


def test_adapters_are_kept_as_asked(adapted, tmp_path, capsys):
    arguments = ["--store", str(adapted), "--out", str(tmp_path / "archive")]
    assert archive_command.main([*arguments, "--adapters", "q r=4"]) == 0
    store = open_store(tmp_path / "archive")
    held = [run_id for run_id in store.statuses() if (store.path(run_id) / "adapter").is_dir()]
    assert set(store.frame().set_index("run_id").loc[held, "rank"]) == {4}
    assert len(held) == store.bytes_by_part()["adapter"][0] == 2
    assert "adapters: 2 runs" in capsys.readouterr().out
    for name, kept in (("cola/q r=4:1", 1), ("q r=4:9", 2), ("q r=2:1,q r=2", 2)):
        again = archived(adapted, tmp_path / name.replace("/", " "), adapters=name.split(","))
        assert json.loads((again / "manifest.json").read_text(encoding="utf-8"))["runs_with_adapter"] == kept
    with pytest.raises(NothingToShow, match="no cell rte/q r=4"):
        archived(adapted, tmp_path / "other", adapters=["rte/q r=4"])
    with pytest.raises(NothingToShow, match="--adapters: no cell q r=8 at its chosen rate; there are q r=2, q r=4"):
        archived(adapted, tmp_path / "other", adapters=["q r=8"])


def test_an_adapter_that_is_a_pickle_or_a_link_is_not_archived(tmp_path):
    root = write_with_adapters(tmp_path / "runs", [fake_record(targets="q", rank=1)])
    folder = next(root.glob("*/adapter"))
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(1))
    with pytest.raises(StoreError, match=r"adapter_model\.bin' is no file of an archive"):
        archived(root, tmp_path / "archive", adapters=["all"])
    (folder / "adapter_model.bin").unlink()
    (folder / "notes.md").symlink_to(__file__)
    with pytest.raises(StoreError, match="holds a link"):
        archived(root, tmp_path / "archive", adapters=["all"])
    assert not (tmp_path / "archive").exists()


def test_what_a_study_looked_at_keeps_its_predictions(tmp_path):
    """A look may hold three live rates, and at each its word needs whether seeds learn. Other runs' study adds none."""
    root = write_scored(tmp_path / "runs", tasks=("cola",))
    run_ids = [row["run_id"] for row in open_store(root).frame().query("status == 'finished'").to_dict("records")]
    look = {"number": 0, "n_seeds": 2, "level": 0.05, "spent": 0.05, "alive": {}, "chosen": {}, "learning": {},
            "findings": []}  # fmt: skip
    content = {"title": "t", "metric": "matthews", "declared": "", "declaration": {}, "setting": {}}
    for name, runs in {"whole": run_ids, "partial": [*run_ids, "0123456789abcdef"]}.items():
        Journal.of(root, name, {}).write({**content, "looks": [look | {"runs": runs}]})
    archive = open_store(archived(root, tmp_path / "archive"))
    assert len(run_ids) == 2 * len(RATES)
    assert all(archive.predictions(run_id) is not None for run_id in run_ids)
    (kept,) = (tmp_path / "archive" / "studies").glob("*.json")
    assert kept.name.startswith("whole-")
    shutil.rmtree(root / ".studies")
    archive = open_store(archived(root, tmp_path / "without"))
    assert sum(archive.predictions(run_id) is not None for run_id in run_ids) == 4


def test_of_a_study_in_two_stores_the_one_that_went_on_is_archived(tmp_path):
    """A copy of a store may have been left behind after its first look; two that looked differently are no copies."""
    root = write_scored(tmp_path / "here", tasks=("cola",))
    other = shutil.copytree(root, tmp_path / "there")
    look = {"number": 0, "n_seeds": 2, "level": 0.05, "spent": 0.05, "alive": {}, "chosen": {}, "learning": {},
            "findings": [], "runs": open_store(root).frame()["run_id"].tolist()}  # fmt: skip
    content = {"title": "t", "metric": "matthews", "declared": "", "declaration": {}, "setting": {}}
    Journal.of(root, "a", {}).write({**content, "looks": [look]})
    Journal.of(other, "a", {}).write({**content, "looks": [look, look | {"number": 1}]})
    for i, stores in enumerate(([root, other], [other, root])):
        archive = publish.write_archive([open_store(store) for store in stores], tmp_path / f"both-{i}").root
        (kept,) = (archive / "studies").glob("*.json")
        assert [look["number"] for look in Journal(kept).read()["looks"]] == [0, 1]
    Journal.of(root, "a", {}).write({**content, "looks": [look | {"spent": 0.04}]})
    with pytest.raises(StoreError, match="stores hold different looks of the study a-"):
        publish.write_archive([open_store(store) for store in (root, other)], tmp_path / "neither")
    archive = publish.write_archive([open_store(store) for store in (root, other)], tmp_path / "first", keep_first=True)
    (kept,) = (archive.root / "studies").glob("*.json")
    assert [look["spent"] for look in Journal(kept).read()["looks"]] == [0.04]


def test_an_archive_that_is_too_large_is_told(scored, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(publish, "LARGEST_BYTES", 1000)
    assert archive_command.main(["--store", str(scored), "--out", str(tmp_path / "archive"), "--task", "cola"]) == 0
    out = capsys.readouterr().out
    assert "predictions: 4 runs, those at the two best rates of each cell" in out
    assert "warning: larger than 1 kB" in out


def test_runs_without_predictions_make_an_archive_without_the_table(adapted, tmp_path, capsys):
    archive = archived(adapted, tmp_path / "archive")
    assert sorted(bytes_of(archive)) == [MANIFEST, RECORDS]
    assert rescore_script.main(["--store", str(archive), "--out", str(tmp_path / "out")]) == 0
    assert "No score could be checked" in capsys.readouterr().out


def test_what_cannot_be_archived_says_so(tmp_path, capsys):
    store = write_store(tmp_path / "runs", [fake_record()])
    arguments = ["--store", str(store), "--out", str(tmp_path / "archive")]
    assert archive_command.main([*arguments, "--task", "rte"]) == 2
    assert "no run has task 'rte'; the store holds cola" in capsys.readouterr().err
    assert archive_command.main(["--store", str(tmp_path / "none"), "--out", str(tmp_path / "archive")]) == 2
    assert "store: no folder" in capsys.readouterr().err
    with pytest.raises(StoreError, match="holds no run"):
        archived(tmp_path / "none", tmp_path / "archive")


def test_the_table_is_one_file_of_plain_columns(scored_archive):
    schema = pq.read_schema(scored_archive / PREDICTIONS)
    assert schema.names == ["run_id", "split", "idx", "label", "logit_0", "logit_1", "logit_2"]
    assert schema.metadata is None


def test_curves_keep_what_float32_holds_and_no_digit_more(tmp_path):
    """The shortest decimals read as the same float32, and an archive of an archive is the same."""
    rng = np.random.default_rng(0)
    drawn = (rng.standard_normal(2000) * 10.0 ** rng.integers(-40, 38, 2000)).astype(np.float32)
    beyond = [None, 1e300, -5e-324, 0.0]
    curve = [*map(float, drawn), *beyond]
    history = {"step": list(range(len(curve))), "loss": curve, "lr": curve, "grad_norm": curve, "epochs": []}
    store = write_store(tmp_path / "runs", [fake_record(history=history)])
    archive = archived(store, tmp_path / "archive")
    (record,) = open_store(archive).records()
    told = record["history"]
    assert told["step"] == history["step"]
    for name in ("loss", "lr", "grad_norm"):
        assert np.array_equal(np.array(told[name][: len(drawn)], dtype=np.float32), drawn)
        assert told[name][len(drawn) :] == [None, 1e300, 0.0, 0.0]
    assert all(float(f"{one:.9g}") == one for one in told["loss"][: len(drawn)])
    assert bytes_of(archived(archive, tmp_path / "again")) == bytes_of(archive)


def test_the_folders_of_the_machine_are_not_published(tmp_path):
    given = ["task=cola", f"task.data_dir={tmp_path}/cola", f"model.name='{tmp_path}/model'", "model.name=a/b"]
    store = write_store(tmp_path / "runs", [fake_record(invocation={"overrides": given, "sweep": None})])
    archive = publish.write_archive([open_store(store)], tmp_path / "archive", command="x").root
    (record,) = open_store(archive).records()
    told = ["task=cola", "task.data_dir=cola", "model.name=model", "model.name=a/b"]
    assert record["invocation"]["overrides"] == told
    assert str(tmp_path).encode() not in gzip.decompress((archive / RECORDS).read_bytes())


def test_the_error_of_a_failed_run_is_published_without_folders(tmp_path):
    trace = 'File "/opt/me/lib/torch/nn.py", line 3\nOSError: /mnt/lab/cola'
    error = {"kind": "died", "type": "OSError", "message": "no /mnt/lab/cola", "traceback": trace}
    failed = fake_record(seed=1, error="died") | {"error": error}
    archive = archived(write_store(tmp_path / "runs", [fake_record(), failed]), tmp_path / "archive")
    told = open_store(archive).record(failed["run_id"])["error"]
    assert told["message"] == "no cola"
    assert told["traceback"] == 'File "nn.py", line 3\nOSError: cola'


def test_the_example_of_the_help_keeps_the_adapters_that_it_names(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_with_adapters(tmp_path / "runs", [fake_record(targets="qv", rank=4), fake_record(targets="q", rank=8)])
    with pytest.raises(SystemExit):
        archive_command.main(["--help"])
    example = capsys.readouterr().out.partition("example: lora-bench archive ")[2]
    words = shlex.split(example)
    assert all("=" in word and not word.startswith("-") for word in words)  # as README gives options
    assert archive_command.main(words) == 0
    assert "adapters: 1 run;" in capsys.readouterr().out
