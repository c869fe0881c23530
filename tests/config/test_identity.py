"""No run id moves: the ids of published runs, and the documents that configurations of every method amount to."""

import gzip
import hashlib
import json

import pytest

from configs import ROOT, SMALL, composed
from lora_bench.config.compose import parse
from lora_bench.config.identity import cell_id, run_id
from lora_bench.training.resolve import resolve

PUBLISHED = {  # run of results/study -> its task, method, targets, rank, learning rate and seed
    "016f8b90e9a907b6": ("sst2", "lora", "qkvo", 2, 1e-3, 5),
    "01873a0b93e86b09": ("sst2", "lora", "qv", 1, 5e-4, 1),
    "0241a840eca022fc": ("cola", "lora", "qv", 4, 5e-4, 4),
    "02d6774520bd4d59": ("sst2", "lora", "o", 8, 3e-3, 6),
    "06b1cbb82f9d9081": ("sst2", "lora", "up+down", 4, 2e-3, 5),
    "06d6c49bd902e5b2": ("sst2", "lora", "k", 8, 2e-3, 7),
    "06e9690cf289aeeb": ("cola", "lora", "qk", 4, 5e-4, 7),
    "0d16c5fc1c1af5e7": ("sst2", "lora", "v", 8, 3e-3, 6),
    "15be412e37137f9a": ("sst2", "lora", "qkvo+up+down", "by matrix", 3e-4, 0),
    "1ad3c47b777bd61c": ("cola", "lora", "q", 8, 2e-3, 0),
    "30ccd9058286f47a": ("cola", "head_only", None, None, None, 5),
    "55f286938c25e19d": ("sst2", "head_only", None, None, None, 2),
}
DOCUMENTS = {  # overrides on the tiny backbone -> run id, hash of the document as it is written; fingerprints replaced
    "adapter=bitfit": ("211e0b25cbf1381c", "3e0ce23db8c49417"),
    "adapter=dora": ("4117de0e2ac3379b", "f099e9485a2f85e3"),
    "adapter=full": ("43be7c58fa5378eb", "3c48bc116dd0ed60"),
    "adapter=head_only": ("ffc1eebed770aef0", "dd121246667a7bba"),
    "adapter=lora": ("deda31c76f609914", "7daef37c7495c2f3"),
    "adapter=lora_plus": ("9d0099e2f2602d5a", "82b9bbd7044b2184"),
    "adapter=olora": ("2bb866a77502012d", "59290890d01c035a"),
    "adapter=pissa": ("3f13d70d84cec87b", "72d8fbd787c8e589"),
    "adapter=rslora": ("75dbca71a74ff970", "894704d6c194497a"),
    "train.head_lr=null": ("a96845fa4715ff81", "f819b4938cb7d11e"),
    "adapter.rank=null adapter.budget=qkvo@3 adapter.targets=all": ("ebc1baefa4f85b39", "1ddd203ec8862e59"),
    "adapter.layers=last:1": ("4519793aee6ea771", "871eec8f438b0ab2"),
    "adapter=full train.head_lr=null train.checkpoint=best": ("ea2232fd522951fd", "6dea42c41b406689"),
    "adapter=head_only train.head_lr=null": ("5ddd9d8d52c7ac5d", "85c72e7f37d1adff"),
    "task=entailment train.dropout=0.1 train.schedule=constant": ("b8b65f2bb1644d90", "339315d13b21a0c0"),
    "adapter=lora seed=3 adapter.replicate=2 adapter.dropout=0.1": ("0cc7a3449921c4d0", "75ac0126b4c2984b"),
}


@pytest.fixture(scope="module")
def published():
    with gzip.open(ROOT / "results" / "study" / "records.jsonl.gz", "rt", encoding="utf-8") as lines:
        return {record["run_id"]: record for record in map(json.loads, lines)}


def test_every_published_run_keeps_its_id(published):
    """An id that moves loses its record: the run is trained again, and paired with nothing."""
    assert len(published) == 484
    for record in published.values():
        assert (run_id(record["config"]), cell_id(record["config"])) == (record["run_id"], record["cell_id"])


@pytest.mark.parametrize("known", PUBLISHED)
def test_the_ids_of_known_runs_are_what_they_were(published, known):
    """Literals, since a store that was rewritten would agree with whatever wrote it."""
    science = published[known]["config"]
    adapter, rank = science["adapter"], science["adapter"].get("rank")
    told = (
        *(science["task"]["name"], adapter["method"], adapter.get("targets")),
        *("by matrix" if isinstance(rank, dict) else rank, science["train"].get("lr"), science["seed"]),
    )
    assert (run_id(science), told) == (known, PUBLISHED[known])


@pytest.mark.parametrize("overrides", DOCUMENTS)
def test_a_configuration_amounts_to_the_document_that_it_always_did(overrides):
    """Fingerprints follow the libraries; all else of a run's science follows from its configuration alone."""
    science = resolve(parse(composed(*SMALL, "train.precision=fp32", *overrides.split()))).science
    for part in ("model", "task"):
        science[part]["fingerprint"] = part
    text = hashlib.sha256(json.dumps(science).encode()).hexdigest()[:16]
    assert (run_id(science), text) == DOCUMENTS[overrides]
