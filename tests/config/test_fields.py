"""A field is declared once: what is told of it elsewhere follows, for the fields there are and for one to come."""

import json
import re
import shutil
import subprocess
import sys
from typing import get_origin

import pytest

from configs import ROOT
from key_reference import PAGE, rewritten
from lora_bench.config.errors import ConfigError
from lora_bench.config.facts import fact
from lora_bench.config.schema import KEYS
from patience import PATIENCE_SECONDS
from tiny import tiny_config

FIELD = """
    label_smoothing: float = fact(
        0.0, at_least=0, below=1, of="train", later=0.0, factor=True, help="share of a label that goes to the others"
    )
"""
READS = """
import gzip, json, sys
from configs import composed
from key_reference import PAGE, rewritten
from lora_bench.__main__ import help_text
from lora_bench.config.compose import parse
from lora_bench.config.errors import ConfigError
from lora_bench.config.identity import run_id, science
from lora_bench.questions import shown
from lora_bench.store.frame import COLUMNS, row_of
from lora_bench.verdicts import settings

with gzip.open(sys.argv[1], "rt", encoding="utf-8") as lines:
    record = json.loads(next(lines))
resolved = {"model_fingerprint": "m", "task_fingerprint": "t", "metrics": ["matthews"], "train_rows": 9,
            "targets": "qv", "rank": 8, "layers": "all", "precision": "fp32"}
usual, smooth = (
    science(parse(composed("model=tiny", f"train.label_smoothing={value}")), **resolved) for value in (0.0, 0.1)
)
before = usual | {"train": {key: value for key, value in usual["train"].items() if key != "label_smoothing"}}
try:
    refused = parse(composed("model=tiny", "train.label_smoothing=1"))
except ConfigError as error:
    refused = str(error)
print(json.dumps({
    "science": smooth["train"]["label_smoothing"],
    "old ids stay": run_id(usual) == run_id(before) != run_id(smooth),
    "refused": refused,
    "column": COLUMNS["label_smoothing"],
    "of an old record": row_of(record)["label_smoothing"],
    "shared": "label_smoothing" in settings.SHARED,
    "factor": settings.FACTORS["label_smoothing"],
    "page": shown.FACTS["label_smoothing"],
    "help": "label_smoothing" in help_text(),
    "docs": [line for line in rewritten(PAGE.read_text("utf-8")).splitlines() if "label_smoothing" in line],
}))
"""


def test_the_key_reference_says_what_the_fields_say():
    """`PYTHONPATH=. python tests/key_reference.py` puts it right."""
    text = PAGE.read_text(encoding="utf-8")
    assert rewritten(text) == text


def test_every_field_says_what_it_does():
    assert len(KEYS) > 50
    assert all(key.fact.help for key in KEYS)


def test_a_scientific_field_lies_in_the_part_that_it_enters():
    assert all(key.fact.of == (key.section or "run") for key in KEYS if key.fact.of)


def test_a_field_cannot_enter_a_part_that_identity_does_not_read():
    """A backbone is its fingerprint: a field of its section would change no id."""
    with pytest.raises(ValueError, match="of: no 'model'; parts of a run's science are task, adapter, train, run"):
        fact(of="model", help="dtype of the embedding")


def test_no_two_fields_share_a_column():
    columns = [key.column for key in KEYS if key.fact.of]
    assert len(set(columns)) == len(columns)


def test_a_scientific_field_is_added_by_declaring_it(tmp_path):
    """In a copy of the project, one field more in schema.py: nothing else is touched, and everything knows it."""
    for folder in ("lora_bench", "hydra_plugins", "conf", "sweeps"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("docs/config.md", "tests/configs.py", "tests/key_reference.py"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / file, tmp_path / file)
    schema = tmp_path / "lora_bench" / "config" / "schema.py"
    text = schema.read_text(encoding="utf-8")
    last = "    compile: bool = fact("
    assert text.count(last) == 1
    schema.write_text(text.replace(last, FIELD.lstrip("\n") + last), encoding="utf-8")
    records = ROOT / "results" / "study" / "records.jsonl.gz"
    done = subprocess.run(
        [sys.executable, "-c", READS, str(records)],
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        cwd=tmp_path,
        env={"PATH": "", "PYTHONPATH": f"{tmp_path}:{tmp_path / 'tests'}", "MPLCONFIGDIR": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "science": 0.1,
        "old ids stay": True,
        "refused": "train.label_smoothing: 1.0 is too large; give a value below 1",
        "column": "number",
        "of an old record": 0.0,
        "shared": True,
        "factor": "train.label_smoothing",
        "page": "label smoothing",
        "help": True,
        "docs": ["| `train.label_smoothing` | `0.0` | share of a label that goes to the others |"],
    }


NUMBERS = [key for key in KEYS if key.members & {int, float}]
TEXTS = [key for key in KEYS if str in key.members or get_origin(key.type) is list]


@pytest.mark.parametrize("key", NUMBERS, ids=lambda key: key.path)
@pytest.mark.parametrize("value", [10**400, -(10**400), 2**63])
def test_no_number_is_too_large_to_be_refused(key, value):
    """An integer that fits no float ended in a traceback, or in a record that makes its whole store unreadable."""
    with pytest.raises(ConfigError, match=f"^{re.escape(key.path)}: ") as told:
        tiny_config(**{key.path.replace(".", "__"): value})
    assert len(str(told.value)) < 300


@pytest.mark.parametrize("key", TEXTS, ids=lambda key: key.path)
def test_a_text_that_no_record_can_keep_is_refused(key):
    """Bytes of another encoding on the command line become half surrogates, which no JSON file can hold."""
    value = "a\udcffb" if get_origin(key.type) is not list else ["a\udcffb"]
    with pytest.raises(ConfigError, match=f"^{re.escape(key.fact.alias or key.path)}: |^{re.escape(key.path)}: "):
        tiny_config(**{key.path.replace(".", "__"): value})
