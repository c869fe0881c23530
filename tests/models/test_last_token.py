"""The token that a head reads, batched and padded by lora_bench, against stock transformers given one bare row."""

import functools
import itertools
import json
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedTokenizerFast

from architectures import ARCHITECTURES, backbone_from, skeleton
from lora_bench.models import adapters, backbone, last_token
from lora_bench.models.blueprint import blueprint
from lora_bench.packing.pack import Pack
from lora_bench.packing.solo import SoloPack
from lora_bench.tasks import tokens
from lora_bench.tasks.rows import Task
from lora_bench.training import guards
from lora_bench.training.evaluate import predict
from tiny import tiny_config

GROUPED = ARCHITECTURES["llama"][1]
DECODERS = {
    **{
        name: ARCHITECTURES[name]
        for name in (
            *("gpt2", "gpt_bigcode", "gpt_bigcode_multi_head", "gpt_neo", "gptj", "gpt_neox", "bloom", "mpt", "opt"),
            *("falcon_new_decoder", "falcon_multi_query", "falcon_multi_head", "opt_projected", "llama", "mistral"),
            *("qwen2", "qwen3", "gemma", "phi", "phi3", "persimmon", "glm"),
        )
    },
    **{name: (name, {**GROUPED, "head_dim": 8}) for name in ("gemma2", "smollm3", "olmo2")},
}
PAD, END = 0, 2
TEXTS = ["w1 w2 w3", "w4", "w5 w6 w7 w8 w9 w10 w11", "w3 w2 w1 [PAD]", "[PAD] w3", "w1 </s>", "</s>", "w2 </s> </s>"]


def tokenizer_with(pad: str, *, ends_rows: bool, side: str = "right") -> PreTrainedTokenizerFast:
    vocabulary = {token: number for number, token in enumerate(["[PAD]", "[UNK]", "</s>", *"w0123456789", "Ġ"])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if ends_rows:
        backend.post_processor = processors.TemplateProcessing(
            single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", END)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token=pad, unk_token="[UNK]", eos_token="</s>", padding_side=side
    )


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    """Folders as `save_pretrained` leaves them, head included, with a pad id of the configuration's own."""
    root = tmp_path_factory.mktemp("models")

    @functools.cache
    def weights(family: str):
        kind, settings = (DECODERS | ARCHITECTURES)[family]
        backbone_from(kind, settings).float().save_pretrained(root / family)
        return root / family

    def folder(family: str, tokenizer: PreTrainedTokenizerFast, pad_id: int | None):
        copy = shutil.copytree(weights(family), tmp_path_factory.mktemp(family) / "model")
        tokenizer.save_pretrained(copy)
        values = json.loads((copy / "config.json").read_text("utf-8"))
        (copy / "config.json").write_text(json.dumps(values | {"pad_token_id": pad_id}), encoding="utf-8")
        return copy

    return folder


def plan_of(folder):
    return blueprint(tiny_config(model__name=str(folder), model__weights="pretrained").model, 3)


def rows_of(plan, texts=TEXTS) -> tokens.Tokens:
    """All texts as one split."""
    table = pd.DataFrame({"text_a": texts, "label": 0})
    task = Task("toy", "classification", ("a", "b", "c"), ("accuracy",), {"train": table}, "toy", {})
    return tokens.tokenise(
        task, plan.tokenizer, max_length=16, tokenizer_fingerprint=plan.tokenizer_fingerprint + plan.name
    )["train"]


def row_by_row(folder, rows: tokens.Tokens, *, pad_id: int, head_pad_id: int | None = None) -> np.ndarray:
    """Stock transformers, one row at a time. Without a pad token a decoder's head reads the last one there is.

    Args:
        pad_id: that the model is built with; RoBERTa counts positions from it.
        head_pad_id: that the head looks for.
    """
    config = AutoConfig.from_pretrained(folder, num_labels=3, pad_token_id=pad_id)
    model = AutoModelForSequenceClassification.from_pretrained(folder, config=config).double().eval()
    model.config.pad_token_id = head_pad_id
    logits = []
    for start, stop in itertools.pairwise(rows.offsets):
        ids = torch.from_numpy(rows.input_ids[start:stop].astype(np.int64))[None]
        with torch.inference_mode():
            logits.append(model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0].numpy())
    return np.stack(logits)


def assert_reads_alike(ours: np.ndarray, theirs: np.ndarray) -> None:
    """Some families compute parts in fp32; another token moves these logits by a hundredth and more."""
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LORA_BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tokens, "_in_memory", {})


def load(folder):
    plan = plan_of(folder)
    return plan, backbone.load(plan, precision="fp64", device=torch.device("cpu"))


def logits_of(loaded, rows: tokens.Tokens) -> np.ndarray:
    """Of a pack of two, whose head is the checkpoint's."""
    state = adapters.AdapterState({}, backbone.head_state(loaded, 0))
    with Pack(loaded, [state, state]) as pack:
        first, second = predict(pack, rows)
    np.testing.assert_array_equal(first, second)
    return first


@pytest.mark.parametrize("family", DECODERS)
def test_a_decoder_reads_the_last_token_that_is_no_padding(family, folder_of):
    """A row's logits depend neither on its neighbours, nor on the configuration's pad id, nor on how its text ends."""
    folder = folder_of(family, tokenizer_with("</s>", ends_rows=True, side="left"), 7)
    plan, loaded = load(folder)
    rows = rows_of(plan)
    assert len(set(rows.lengths)) > 3
    assert_reads_alike(logits_of(loaded, rows), row_by_row(folder, rows, pad_id=END))


@pytest.mark.parametrize("pad_id", [None, -1, END, 7, 5000])
@pytest.mark.parametrize(("pad", "ends_rows"), [("[PAD]", False), ("</s>", True)])
def test_the_pad_id_of_a_model_is_its_tokenizers(pad, ends_rows, pad_id, folder_of):
    """The configuration's is often left from another tokenizer, and then the head reads padding."""
    folder = folder_of("llama", tokenizer_with(pad, ends_rows=ends_rows), pad_id)
    plan, loaded = load(folder)
    rows = rows_of(plan)
    assert plan.architecture.pad_token_id == loaded.model.config.pad_token_id == plan.tokenizer.pad_token_id
    assert_reads_alike(logits_of(loaded, rows), row_by_row(folder, rows, pad_id=PAD))


@pytest.mark.parametrize(
    ("family", "pad_id"),
    [
        *(("bert", pad_id) for pad_id in (None, -1, 5000)),
        *(("roberta", pad_id) for pad_id in (None, -1, 5000)),
        *((family, 7) for family in ("bert", "distilbert", "deberta-v2", "modernbert", "mpnet", "roberta")),
    ],
)
def test_padding_never_moves_an_encoder(family, pad_id, folder_of):
    """RoBERTa and MPNet count positions from the configuration's padding index, which belongs to their weights."""
    folder = folder_of(family, tokenizer_with("[PAD]", ends_rows=True, side="left"), pad_id)
    plan, loaded = load(folder)
    rows = rows_of(plan)
    keeps = family in ("roberta", "mpnet") and pad_id == 7
    assert plan.architecture.pad_token_id == (7 if keeps else PAD)
    expected = row_by_row(folder, rows, pad_id=plan.architecture.pad_token_id, head_pad_id=PAD)
    assert_reads_alike(logits_of(loaded, rows), expected)


@pytest.mark.parametrize(
    ("family", "method"),
    [("llama", "lora"), ("llama", "dora"), ("llama", "full"), ("gpt2", "lora"), ("gpt2", "bitfit")],
)
def test_solo_runs_and_the_reload_guard_read_the_same_token(family, method, folder_of, tmp_path):
    """gpt2 is reloaded from whole projections, llama from a copy of what was trained: each way has to read alike."""
    folder = folder_of(family, tokenizer_with("</s>", ends_rows=True), 7)
    plan, loaded = load(folder)
    config = tiny_config(adapter__method=method, adapter__rank=2, adapter__targets="qv")
    rows = rows_of(plan)
    matrices = [replace(matrix, rank=2) for matrix in plan.matrices if matrix.role in ("q", "v")]
    matrices = matrices if method in ("lora", "dora") else []
    head = backbone.head_state(loaded, 0)
    if method == "lora":
        pack = Pack(loaded, [adapters.make(loaded, config.adapter, matrices, head, 0)])
    else:
        pack = SoloPack(loaded, config.adapter, matrices, head)
    with pack:
        logits, state = predict(pack, rows)[0], pack.state(0)
    assert_reads_alike(logits, row_by_row(folder, rows, pad_id=END))
    adapters.save(tmp_path / "adapter", loaded, config.adapter, matrices, state)
    assert guards.reload_gap(tmp_path / "adapter", loaded, rows, logits).logits < 1e-9


def test_only_a_row_that_ends_in_its_padding_parts_from_stock_transformers(folder_of):
    """Else records of decoders would lose their meaning; those of such rows get ids of their own."""
    folder = folder_of("qwen2", tokenizer_with("</s>", ends_rows=False), END)
    plan, loaded = load(folder)
    texts = ["w1 w2", "w3 </s> w4", "w5 w6 w7 </s>"]
    rows = rows_of(plan, texts)
    stock = row_by_row(folder, rows, pad_id=END, head_pad_id=END)
    ours = logits_of(loaded, rows)
    assert_reads_alike(ours[:2], stock[:2])
    assert np.abs(ours[2] - stock[2]).max() > 1e-3


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_which_heads_look_for_the_last_token_is_known_of_the_model(family):
    """A family that is added is put to the tests above, as long as its head is recognised."""
    assert last_token.is_looked_for(skeleton(family)) == (family in DECODERS)
