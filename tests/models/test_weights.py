"""What a folder's weights hold, and whether they are the weights of the model that its config.json describes."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModel, AutoModelForSequenceClassification

from architectures import ARCHITECTURES, tiny_config
from lora_bench.models import weights

LABELS = {0: "entailment", 1: "neutral", 2: "contradiction"}


def saved(folder, name, *, kind=AutoModelForSequenceClassification, **more):
    """A tiny seeded model of an architecture, as `save_pretrained` leaves it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        kind.from_config(tiny_config(*ARCHITECTURES[name], **more)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "name", ["bert", "distilbert", "roberta", "electra", "deberta-v2", "modernbert", "gpt2", "llama"]
)
def test_a_head_in_the_weights_is_known_with_the_names_of_its_labels(name, tmp_path):
    """A task starts from that head, in its order of labels: whoever plans a sweep must be told."""
    folder = saved(tmp_path, name, id2label=LABELS, label2id={label: index for index, label in LABELS.items()})
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    base = {id(parameter) for parameter in model.base_model.parameters()}
    head = weights.head_of(folder)
    assert head is not None and head.labels == tuple(LABELS.values())
    assert set(head.parameters) == {path for path, parameter in model.named_parameters() if id(parameter) not in base}


@pytest.mark.parametrize("name", ["bert", "distilbert", "roberta", "gpt2"])
def test_weights_without_a_head_have_none(name, tmp_path):
    assert weights.head_of(saved(tmp_path, name, kind=AutoModel)) is None


def test_the_weights_say_how_many_labels_their_head_has(tmp_path):
    """A config.json that lost its labels counts two; a task of three would start from the head all the same."""
    folder = saved(tmp_path, "roberta", num_labels=3)
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"id2label"', '"old_labels"').replace('"label2id"', '"old_ids"'))
    head = weights.head_of(folder)
    assert head is not None and len(head.labels) == 3
