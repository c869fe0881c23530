"""What was changed on the disk after it was written, or never was what it says: told by name, and never the whole
store."""

import gzip
import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from analysis import rescore
from fake_store import fake_record, write_store
from lora_bench.reports import publish
from lora_bench.store import open_store, unpack
from lora_bench.store.document import dumps, loads
from lora_bench.store.errors import StoreError
from lora_bench.store.folder import Store
from records import finished_record

RUN = f"{1:016x}"


def predictions(n: int = 50) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    values = rng.standard_normal((n, 2)).astype(np.float32)
    columns = {"logit_0": values[:, 0], "logit_1": values[:, 1]}
    return pd.DataFrame({"split": "report", "idx": range(n), "label": values.argmax(axis=1), **columns})


def save(folder) -> None:
    (folder / "adapter").mkdir()
    (folder / "adapter" / "adapter_model.safetensors").write_bytes(bytes(range(256)))
    (folder / "adapter" / "adapter_config.json").write_text("{}", encoding="utf-8")


@pytest.fixture
def store(tmp_path) -> Store:
    store = Store(tmp_path / "runs")
    for number in (1, 2):
        store.write(finished_record(number), predictions=predictions(), adapter=save)
    return store


# Files of a run


@pytest.mark.parametrize("damage", ["flipped", "absent", "longer"])
@pytest.mark.parametrize("name", ["predictions.parquet", "adapter/adapter_model.safetensors"])
def test_a_changed_file_is_refused_by_name_when_it_is_read(store, name, damage):
    """Of 300 flipped bits in predictions, 205 gave other numbers in silence."""
    path = store.path(RUN) / name
    content = path.read_bytes()
    path.unlink()
    if damage != "absent":
        changed = bytes([content[40] ^ 1]) if damage == "flipped" else content[40:41] + b"x"
        path.write_bytes(content[:40] + changed + content[41:])
    read = store.predictions if name.startswith("p") else store.adapter
    with pytest.raises(StoreError) as refused:
        read(RUN)
    assert str(path) in str(refused.value)
    assert read(f"{2:016x}") is not None


@pytest.mark.parametrize("place", range(0, 2000, 97))
def test_every_flipped_bit_of_predictions_is_seen(store, place):
    path = store.path(RUN) / "predictions.parquet"
    content = bytearray(path.read_bytes())
    content[place % len(content)] ^= 1 << place % 8
    path.write_bytes(content)
    with pytest.raises(StoreError, match=r"predictions\.parquet does not match its checksum"):
        store.predictions(RUN)


def test_rescore_leaves_out_a_run_whose_predictions_were_changed(store, tmp_path, capsys):
    path = store.path(RUN) / "predictions.parquet"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    rescore.main(["--store", str(store.root), "--out", str(tmp_path / "out")])
    assert f"1 not checked: store: {path} does not match its checksum" in capsys.readouterr().out


def test_an_archive_is_not_made_of_changed_files(store, tmp_path):
    path = store.path(RUN) / "adapter" / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(StoreError, match="does not match its checksum"):
        publish.write_archive([store], tmp_path / "archive", adapters=["all"])
    assert not (tmp_path / "archive").exists()


def test_a_record_without_checksums_is_read_as_before(store):
    record = store.record(RUN)
    del record["files"]
    (store.path(RUN) / "record.json").write_bytes(dumps(record))
    assert Store(store.root).predictions(RUN) is not None
    assert Store(store.root).adapter(RUN) is not None


# Records


HOSTILE = {
    "an integer of 400 digits": lambda record: record["config"].update(seed=10**400),
    "a score of 400 digits": lambda record: record["scores"]["report"].update(matthews=10**400),
    "a cost of 5000 digits": lambda record: record["cost"].update(tokens="DIGITS"),
    "an infinite number": lambda record: record["cost"].update(tokens="HUGE"),
    "half a character": lambda record: record["config"]["model"].update(name="\ud83d"),
    "half a character in a key": lambda record: record["scores"]["report"].update({"\udc00": 0.5}),
    "a list for a name": lambda record: record["config"]["task"].update(name=["cola"]),
    "an object for a metric": lambda record: record.update(metrics=[{}]),
    "a deep list": lambda record: record.update(data="DEEP"),
}


def hostile(record: dict, kind: str) -> bytes:
    HOSTILE[kind](record)
    text = json.dumps(record).replace('"DIGITS"', "9" * 5000).replace('"HUGE"', "1e999")
    return text.replace('"DEEP"', "[" * 5000 + "]" * 5000).encode()


@pytest.mark.parametrize("kind", HOSTILE)
def test_one_bad_record_is_left_out_by_name_and_never_the_store(store, kind, caplog):
    """An integer of 400 digits in one of 20,000 records made the whole store unreadable."""
    (store.path(RUN) / "record.json").write_bytes(hostile(finished_record(1), kind))
    (store.root / "index.jsonl").unlink()
    reader = open_store(store.root)
    assert list(reader.frame()["run_id"]) == [f"{2:016x}"]
    assert [record["run_id"] for record in reader.records()] == [f"{2:016x}"]
    assert list(reader.unreadable) == [RUN]
    (line,) = [one.getMessage() for one in caplog.records if "is not counted" in one.getMessage()]
    assert RUN in line
    assert len(line) < 500


@pytest.mark.parametrize("kind", HOSTILE)
def test_one_bad_line_of_an_archive_is_left_out_by_its_number(tmp_path, kind, caplog):
    runs = write_store(tmp_path / "runs", [fake_record(seed=seed) for seed in range(3)])
    archive = publish.write_archive([open_store(runs)], tmp_path / "archive").root
    lines = gzip.decompress((archive / "records.jsonl.gz").read_bytes()).splitlines()
    bad = fake_record(seed=1)
    bad["scores"] = {"report": {"matthews": 0.5}}
    lines[1] = hostile(bad | {"run_id": loads(lines[1])["run_id"]}, kind)
    content = gzip.compress(b"\n".join(lines) + b"\n")
    (archive / "records.jsonl.gz").write_bytes(content)
    manifest = json.loads((archive / "manifest.json").read_bytes())
    manifest["files"]["records.jsonl.gz"] = publish.checksums(archive)["records.jsonl.gz"]
    (archive / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    assert len(open_store(archive).frame()) == 2
    assert "line 2 of" in caplog.text


def test_half_a_character_in_what_is_written_becomes_an_escape(tmp_path):
    """An argument in another encoding reaches Python so; the record of a trained run must still be written."""
    store = Store(tmp_path)
    store.write(finished_record(1, invocation={"overrides": ["tracking.tags=[caf\udce9]"], "sweep": None}))
    assert store.record(RUN)["invocation"]["overrides"] == ["tracking.tags=[caf\\udce9]"]


# Files that open to more than a machine holds


def test_a_small_file_of_records_that_opens_to_a_gigabyte_is_not_opened(tmp_path):
    path = tmp_path / "records.jsonl.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        for _ in range(32):
            file.write(bytes(8_000_000))
    assert path.stat().st_size < 1_500_000
    with pytest.raises(StoreError, match=r"records\.jsonl\.gz, 1\.\d MB, opens to more than"):
        unpack.unzipped(path)


def test_many_small_members_count_together(tmp_path):
    path = tmp_path / "records.jsonl.gz"
    path.write_bytes(gzip.compress(bytes(20_000_000)) * 12)
    with pytest.raises(StoreError, match="opens to more than"):
        unpack.unzipped(path)


def test_a_small_table_of_a_hundred_million_cells_is_not_opened(tmp_path):
    path = tmp_path / "predictions.parquet"
    rows = pa.table({"logit_0": pa.array(np.zeros(30_000_000, np.float32)).dictionary_encode()})
    pq.write_table(rows, path, compression="zstd")
    assert path.stat().st_size < 1_000_000
    with pytest.raises(StoreError, match="opens to more than"):
        unpack.table(path)


def test_what_we_wrote_is_opened_whole(tmp_path):
    lines = b"".join(dumps(finished_record(number)) for number in range(200))
    path = tmp_path / "records.jsonl.gz"
    path.write_bytes(gzip.compress(lines[:5000]) + gzip.compress(lines[5000:]))
    assert unpack.unzipped(path) == lines
    predictions(5000).to_parquet(tmp_path / "predictions.parquet", index=False)
    pd.testing.assert_frame_equal(unpack.table(tmp_path / "predictions.parquet"), predictions(5000))
