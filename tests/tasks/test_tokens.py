"""Tokens against the tokenizer called row by row, and a cache that can only cost time."""

import logging

import numpy as np
import pandas as pd
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from lora_bench.config.errors import ConfigError
from lora_bench.tasks import tokens
from lora_bench.tasks.rows import Task

WORDS = [f"w{number}" for number in range(50)]
VOCABULARY = {word: number for number, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}


def make_tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """`encoder` marks the two texts as BERT does; `decoder` has neither special tokens nor token types, as GPT-2."""
    backend = Tokenizer(models.WordLevel(VOCABULARY, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inputs = ["input_ids", "attention_mask"]
    if kind == "encoder":
        backend.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
        )
        inputs.append("token_type_ids")
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", model_input_names=inputs
    )


class Counting:
    """A tokenizer that counts its calls."""

    def __init__(self, tokenizer):
        self.tokenizer, self.calls = tokenizer, 0

    def num_special_tokens_to_add(self, pair):
        return self.tokenizer.num_special_tokens_to_add(pair=pair)

    def __call__(self, *args, **options):
        self.calls += 1
        return self.tokenizer(*args, **options)


def make_task(*, n_rows: int = 30, is_pair: bool = True, seed: int = 0) -> Task:
    rng = np.random.default_rng(seed)
    splits = {}
    for split in ("train", "select", "report"):
        table = pd.DataFrame({"text_a": [" ".join(rng.choice(WORDS, rng.integers(1, 20))) for _ in range(n_rows)]})
        if is_pair:
            table["text_b"] = [" ".join(rng.choice(WORDS, rng.integers(1, 20))) for _ in range(n_rows)]
        splits[split] = table.assign(label=rng.integers(2, size=n_rows), idx=range(n_rows))
    return Task("toy", "classification", ("no", "yes"), ("accuracy",), splits, f"toy-{n_rows}-{is_pair}-{seed}", {})


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LORA_BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tokens, "_in_memory", {})
    return tmp_path / "cache"


def tokenise(task, tokenizer, max_length=16):
    return tokens.tokenise(task, tokenizer, max_length=max_length, tokenizer_fingerprint="t")


def forget():
    tokens._in_memory.clear()


def assert_same(found, expected):
    assert list(found) == list(expected)
    for split, each in found.items():
        for name in ("input_ids", "offsets", "token_type_ids", "labels"):
            left, right = getattr(each, name), getattr(expected[split], name)
            assert (left is None) == (right is None)
            if left is not None:
                np.testing.assert_array_equal(left, right)
                assert left.dtype == right.dtype


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
@pytest.mark.parametrize("is_pair", [True, False], ids=["pair", "single"])
def test_tokens_equal_the_tokenizer_row_by_row(kind, is_pair, monkeypatch):
    """Chunks, flat arrays and truncation must not move a token."""
    monkeypatch.setattr(tokens, "_CHUNK_ROWS", 7)
    tokenizer, task = make_tokenizer(kind), make_task(is_pair=is_pair)
    found = tokenise(task, tokenizer)
    for split, table in task.splits.items():
        each = found[split]
        assert len(each) == len(table)
        assert each.lengths.max() == 16
        np.testing.assert_array_equal(each.labels, table["label"])
        assert (each.token_type_ids is not None) == (kind == "encoder")
        for row in range(len(table)):
            texts = [table[name][row] for name in ("text_a", "text_b") if name in table]
            alone = tokenizer(*texts, truncation="longest_first", max_length=16)
            piece = slice(each.offsets[row], each.offsets[row + 1])
            assert each.input_ids[piece].tolist() == alone["input_ids"]
            if kind == "encoder":
                assert each.token_type_ids[piece].tolist() == alone["token_type_ids"]


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_batch_equals_the_tokenizers_own_padding(kind):
    tokenizer, task = make_tokenizer(kind), make_task()
    table, rows = task.splits["train"], [4, 0, 17, 4]
    found = tokens.batch(tokenise(task, tokenizer)["train"], rows, pad_id=0)
    expected = tokenizer(
        [table["text_a"][row] for row in rows],
        [table["text_b"][row] for row in rows],
        truncation="longest_first",
        max_length=16,
        padding=True,
        return_tensors="np",
    )
    assert set(found) == {*expected, "labels"}
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values)
        assert found[name].dtype == np.int64
    np.testing.assert_array_equal(found["labels"], table["label"][rows])


def test_batch_pads_to_a_given_length_or_refuses():
    each = tokenise(make_task(), make_tokenizer("encoder"))["train"]
    found = tokens.batch(each, np.arange(3), pad_id=9, pad_to=20)
    assert found["input_ids"].shape == (3, 20)
    assert (found["input_ids"][found["attention_mask"] == 0] == 9).all()
    np.testing.assert_array_equal(found["attention_mask"].sum(1), each.lengths[:3])
    with pytest.raises(ValueError, match="pad_to=2 is shorter"):
        tokens.batch(each, [0, 1], pad_id=0, pad_to=2)
    with pytest.raises(ValueError, match="no rows"):
        tokens.batch(each, [], pad_id=0)


def test_tokens_are_made_once_per_rows_tokenizer_and_length(own_cache):
    """A sweep of many runs must not tokenise again, nor must the next process."""
    tokenizer, task = Counting(make_tokenizer("encoder")), make_task()
    first = tokenise(task, tokenizer)
    made = tokenizer.calls
    assert tokenise(task, tokenizer) is first
    forget()
    assert_same(tokenise(task, tokenizer), first)
    assert tokenizer.calls == made
    assert len(list((own_cache / "tokens").iterdir())) == 1

    tokenise(task, tokenizer, max_length=12)
    tokenise(make_task(seed=1), tokenizer)
    tokens.tokenise(task, tokenizer, max_length=16, tokenizer_fingerprint="another")
    assert tokenizer.calls == 4 * made
    assert {path.suffix for path in (own_cache / "tokens").iterdir()} == {".npz"}


def damage_cut(path):
    path.write_bytes(path.read_bytes()[:-200])


def damage_flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 0xFF
    path.write_bytes(bytes(content))


def damage_empty(path):
    path.write_bytes(b"")


def damage_pickle(path):
    with path.open("wb") as file:
        np.savez(file, **{"train.offsets": np.array([{}], dtype=object)})


def damage_other_rows(path):
    with path.open("wb") as file:
        arrays = {"offsets": np.arange(3), "input_ids": np.arange(2, dtype=np.int32)}
        np.savez(
            file, **{f"{s}.{name}": array for s in ("train", "select", "report") for name, array in arrays.items()}
        )


@pytest.mark.parametrize("damage", [damage_cut, damage_flip, damage_empty, damage_pickle, damage_other_rows])
def test_damaged_cache_is_rebuilt(damage, own_cache, caplog):
    tokenizer, task = Counting(make_tokenizer("encoder")), make_task()
    first = tokenise(task, tokenizer)
    made = tokenizer.calls
    (path,) = (own_cache / "tokens").iterdir()
    damage(path)
    forget()
    with caplog.at_level(logging.WARNING):
        assert_same(tokenise(task, tokenizer), first)
    assert tokenizer.calls == 2 * made
    assert "damaged token cache" in caplog.text
    forget()
    tokenise(task, tokenizer)
    assert tokenizer.calls == 2 * made


def test_cache_folder_that_cannot_be_written_only_costs_time(own_cache, caplog):
    own_cache.write_text("a file where the folder should be", encoding="utf-8")
    with caplog.at_level(logging.WARNING):
        found = tokenise(make_task(), make_tokenizer("encoder"))
    assert len(found["train"]) == 30
    assert "in memory only" in caplog.text


@pytest.mark.parametrize(("is_pair", "least"), [(True, 4), (False, 3)], ids=["pair", "single"])
def test_length_without_room_for_text_is_refused(is_pair, least):
    task = make_task(is_pair=is_pair)
    with pytest.raises(ConfigError, match=f"train.max_length: {least - 1} .* at least {least}"):
        tokenise(task, make_tokenizer("encoder"), max_length=least - 1)
    assert tokenise(task, make_tokenizer("encoder"), max_length=least)["train"].lengths.max() == least


def test_row_without_tokens_is_refused():
    """A decoder's tokenizer turns a blank text into nothing, and a pooled nothing is NaN."""
    task = make_task(is_pair=False)
    task.splits["select"].loc[3, "text_a"] = "  "
    with pytest.raises(ConfigError, match="row 3 of select has no token"):
        tokenise(task, make_tokenizer("decoder"))


def test_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    assert tokens.cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("LORA_BENCH_CACHE")
    assert tokens.cache_folder().name == "lora_bench"


def task_of(texts: list[str], *, select: str = "w1") -> Task:
    splits = {
        split: pd.DataFrame({"text_a": rows, "label": 0, "idx": range(len(rows))})
        for split, rows in {"train": texts, "select": [select], "report": ["w1"]}.items()
    }
    return Task("toy", "classification", ("no", "yes"), ("accuracy",), splits, f"{texts}{select}", {})


def looks(task: Task, tokenizer):
    """Each way in which rows are looked at: by planning, as they are made, in memory and from the cache."""
    yield lambda: tokens.require_known(task, tokenizer)
    yield lambda: tokenise(task, tokenizer)
    yield lambda: tokenise(task, tokenizer)
    forget()
    yield lambda: tokenise(task, tokenizer)


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
@pytest.mark.parametrize("texts", [["w1 w2", "x w3 y"], ["x y", "w1 w2"]], ids=["two_fifths", "half"])
def test_rows_of_which_half_is_known_are_taken(kind, texts):
    for look in looks(task_of(texts), make_tokenizer(kind)):
        look()


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
@pytest.mark.parametrize(("texts", "share"), [(["x y z", "w1 w2"], "60%"), (["x"], "100%")])
def test_rows_of_which_most_is_unknown_are_refused(kind, texts, share):
    """Special tokens around texts are always known and say nothing."""
    tokenizer = make_tokenizer(kind)
    if kind == "encoder":
        tokenizer.cls_token, tokenizer.sep_token = "[CLS]", "[SEP]"
    for look in looks(task_of(texts), tokenizer):
        with pytest.raises(ConfigError, match=rf"^model\.name: .* does not know {share} of the tokens"):
            look()


def test_a_token_that_also_ends_texts_is_not_taken_for_an_unknown_one():
    """GPT-2 has one special token for all, and knows every byte."""
    tokenizer = make_tokenizer("encoder")
    tokenizer.unk_token = tokenizer.eos_token = tokenizer.sep_token = "[SEP]"
    task = task_of(["w1", "w2"])
    tokens.require_known(task, tokenizer)
    assert tokenise(task, tokenizer)["train"].lengths.tolist() == [3, 3]


@pytest.mark.parametrize("split", ["train", "select"])
def test_a_token_that_the_model_has_no_embedding_for_is_refused(split):
    """Only a text that spells a special token brings it in, so planning cannot tell without the rows."""
    texts = {"train": "w1 w2", "select": "w3"} | {split: "w4 w49"}
    task = task_of(["w1", texts["train"]], select=texts["select"])
    row = 1 if split == "train" else 0
    for _ in range(2):  # made, and known
        with pytest.raises(ConfigError, match=rf"row {row} of {split} \('w4 w49'\) .* id 53, .* the ids 0 to 52"):
            tokens.tokenise(task, make_tokenizer("decoder"), max_length=16, tokenizer_fingerprint="t", n_embeddings=53)
    assert tokens.tokenise(task, make_tokenizer("decoder"), max_length=16, tokenizer_fingerprint="t", n_embeddings=54)


def test_a_row_without_tokens_is_refused_at_planning():
    with pytest.raises(ConfigError, match="row 1 of train has no token"):
        tokens.require_known(task_of(["w1", "  "]), make_tokenizer("decoder"))
