"""Folders whose tokenizer is absent, broken or another model's: refused while runs are planned, in one line."""

import hashlib
import json
import logging
import re

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedTokenizerFast

from lora_bench.config.errors import ConfigError
from lora_bench.config.schema import ModelConfig
from lora_bench.models.tokenizer import byte_tokenizer, fingerprint, load
from lora_bench.training.resolve import resolve
from model_folders import planned, saved
from tiny import VALUES, tiny_config

KINDS = {"bert": {}, "llama": {"num_key_value_heads": 2}, "roberta": {"pad_token_id": 1}, "qwen2": {}, "albert": {}}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A sound folder, of 300 embeddings and a byte tokenizer of 260 tokens."""
    folder = tmp_path_factory.mktemp("whole") / "model"
    settings = {key: value for key, value in VALUES["model"]["architecture"].items() if key != "model_type"}
    AutoModel.from_config(AutoConfig.for_model("bert", **settings)).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(whole, tmp_path):
    """A copy to break; weights are linked."""
    copy = tmp_path / "my-model"
    copy.mkdir()
    for path in whole.iterdir():
        (copy / path.name).symlink_to(path) if path.suffix == ".safetensors" else (copy / path.name).write_bytes(
            path.read_bytes()
        )
    return copy


def plan(folder):
    return resolve(tiny_config(model__name=str(folder), model__weights="pretrained", task__train_rows=32))


def refused(folder) -> str:
    with pytest.raises(ConfigError) as error:
        plan(folder)
    message = str(error.value)
    assert "\n" not in message and message.startswith("model.name: ") and str(folder) in message
    return message


def change(path, **values) -> None:
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | values), encoding="utf-8")


def named(**tokens) -> PreTrainedTokenizerFast:
    """The byte tokenizer with special roles of one's own and nothing around texts."""
    backend = json.loads(byte_tokenizer().backend_tokenizer.to_str()) | {"post_processor": None}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(backend)), **tokens)


def words(known, *, unknown="[UNK]", size=300) -> PreTrainedTokenizerFast:
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys(["[PAD]", unknown, *known]))}
    vocabulary |= {f"filler{number}": number for number in range(len(vocabulary), size)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=unknown))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", unk_token=unknown)


def test_a_sound_folder_is_planned(folder):
    assert plan(folder).steps


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("kept", [(), ("tokenizer_config.json",)], ids=["none", "config_alone"])
def test_a_folder_without_a_vocabulary_is_refused(kind, kept, folder):
    """transformers makes a tokenizer of nothing, to which each word is [UNK], and the run finishes."""
    for path in folder.glob("token*"):
        if path.name not in kept:
            path.unlink()
    (folder / "config.json").write_text(
        json.dumps({"model_type": kind, **VALUES["model"]["architecture"], **KINDS[kind]} | {"model_type": kind}),
        encoding="utf-8",
    )
    assert re.search(r"has no .*tokenizer\.json|no usable tokenizer", message := refused(folder))
    assert "save_pretrained(FOLDER)" in message


BROKEN = {
    "cut": lambda text: text[: len(text) // 2],
    "empty": lambda text: "",
    "list": lambda text: "[]",
    "text": lambda text: '"tokenizer"',
    "object": lambda text: "{}",
    "pointer": lambda text: "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    "deep": lambda text: "[" * 100_000,
}


@pytest.mark.parametrize("damage", BROKEN)
def test_a_broken_tokenizer_is_refused(damage, folder):
    path = folder / "tokenizer.json"
    path.write_text(BROKEN[damage](path.read_text("utf-8")), encoding="utf-8")
    message = refused(folder)
    assert "save_pretrained(FOLDER)" in message
    assert damage == "object" or "tokenizer.json" in message


@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"])
def test_the_broken_file_is_named(name, folder):
    (folder / name).write_text('{"a": ', encoding="utf-8")
    assert str(folder / name) in refused(folder)


def test_bytes_that_are_no_text_are_refused(folder):
    (folder / "tokenizer.json").write_bytes(b"\xff\xfe\x00")
    assert str(folder / "tokenizer.json") in refused(folder)


@pytest.mark.parametrize("values", [{"tokenizer_class": 5}, {"pad_token": 7}, {"added_tokens_decoder": {"x": 1}}])
def test_values_that_no_tokenizer_takes_are_refused(values, folder):
    change(folder / "tokenizer_config.json", **values)
    refused(folder)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("AlbertTokenizer", "spiece.model"),
        ("DebertaV2Tokenizer", "spm.model"),
        ("LlamaTokenizer", "tokenizer.model"),
        ("NoSuchTokenizer", "tokenizer.model"),
    ],
)
def test_a_sentencepiece_file_that_cannot_be_read_is_refused(kind, name, folder):
    (folder / "tokenizer.json").unlink()
    (folder / name).write_bytes(b"no model of sentencepiece")
    change(folder / "tokenizer_config.json", tokenizer_class=kind)
    refused(folder)


@pytest.mark.parametrize(
    "values",
    [
        {"tokenizer_class": "NoSuchTokenizer"},
        {"auto_map": {"AutoTokenizer": ["own.OwnTokenizer", None]}, "tokenizer_class": "OwnTokenizer"},
        {"chat_template": "{% for message in messages %}{{ message }}{% endfor %}"},
        {"chat_template": "{% for"},
        {"padding_side": "left", "truncation_side": "right", "model_max_length": 8},
    ],
    ids=["unknown_class", "own_code", "template", "broken_template", "left"],
)
def test_what_a_whole_tokenizer_json_does_not_need_is_let_be(values, folder):
    """Its tokens are those of the file, whatever class wrote it."""
    expected = plan(folder).tokens()["train"].input_ids.tolist()
    plain = plan(folder).run_id
    change(folder / "tokenizer_config.json", **values)
    other = folder.rename(folder.with_name(f"other-{len(values)}"))
    assert plan(other).tokens()["train"].input_ids.tolist() == expected
    assert plan(other).run_id == plain


def test_code_of_its_own_alone_is_refused(folder):
    (folder / "tokenizer.json").unlink()
    change(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["own.T", None]}, tokenizer_class="T")
    (folder / "own.py").write_text("raise SystemExit('ran')", encoding="utf-8")
    refused(folder)


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("n_more", [41, 60, 5000])
def test_a_tokenizer_larger_than_the_embedding_is_refused(n_more, special, folder):
    """Its last ids index out of range in the middle of training, or read another token's embedding."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([f"<x{number}>" for number in range(n_more)], special_tokens=special)
    if special:
        tokenizer.sep_token = "<x40>"
    tokenizer.save_pretrained(folder)
    assert "embeddings for the ids 0 to 299" in refused(folder)


def test_a_tokenizer_as_large_as_the_embedding_is_planned(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([f"<x{number}>" for number in range(40)])
    tokenizer.save_pretrained(folder)
    assert plan(folder).steps


@pytest.mark.parametrize("role", ["pad_token", "unk_token", "cls_token", "sep_token", "bos_token", "eos_token"])
def test_a_special_token_beyond_the_embedding_is_named_with_its_role(role, folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([f"<x{number}>" for number in range(40)])
    tokenizer.add_special_tokens({role: "<mine>"})
    tokenizer.save_pretrained(folder)
    assert re.search(rf"'<mine>', its {role}, the id 300", refused(folder))


def test_a_special_token_that_no_row_spells_may_lie_beyond(folder):
    """Text models carry such tokens of their siblings that read images."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    fillers = [f"<x{number}>" for number in range(40)]
    tokenizer.add_tokens(fillers)
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    tokenizer.save_pretrained(folder)
    assert plan(folder).steps


def test_a_tokenizer_without_a_token_to_pad_with_is_refused(folder):
    for path in folder.glob("token*"):
        path.unlink()
    named().save_pretrained(folder)
    message = refused(folder)
    assert "no pad_token, eos_token or unk_token" in message and str(folder / "tokenizer_config.json") in message


@pytest.mark.parametrize(
    ("roles", "pad"), [({"eos_token": "[SEP]", "unk_token": "[UNK]"}, "[SEP]"), ({"unk_token": "[UNK]"}, "[UNK]")]
)
def test_the_end_of_a_text_pads_where_nothing_else_does_and_it_is_told_once(roles, pad, folder, caplog):
    for path in folder.glob("token*"):
        path.unlink()
    named(**roles).save_pretrained(folder)
    with caplog.at_level(logging.WARNING):
        run = plan(folder)
        plan(folder)
    assert run.blueprint.tokenizer.pad_token == pad
    assert run.blueprint.architecture.pad_token_id == run.blueprint.tokenizer.pad_token_id
    assert [record.message for record in caplog.records if "padded with" in record.message] == [
        f"{folder}: its tokenizer has no pad_token; rows are padded with {pad}"
    ]


def test_a_tokenizer_that_does_not_know_most_of_the_rows_is_refused(folder):
    for path in folder.glob("token*"):
        path.unlink()
    words(["bonjour"]).save_pretrained(folder)
    assert re.search(r"does not know 100% of the tokens of the train rows \(\[UNK\]\)", refused(folder))


def python_tokenizer(folder, *, codes=("a b", "b c"), **settings):
    """A folder as BERTweet's: a list of tokens and one of merges, which a class in Python reads."""
    saved(folder, "roberta", pad_token_id=1)
    for path in (folder / "tokenizer.json", folder / "tokenizer_config.json"):
        path.unlink()
    letters = [*"abcdefghijklmnopqrstuvwxyz,19"]
    tokens = [*letters, *(f"{letter}@@" for letter in letters), "ab@@", "bc@@", "ab", "bc"]
    (folder / "vocab.txt").write_text("".join(f"{token} {n}\n" for n, token in enumerate(tokens)), encoding="utf-8")
    (folder / "bpe.codes").write_text("".join(f"{code} 1\n" for code in codes), encoding="utf-8")
    values = {"tokenizer_class": "BertweetTokenizer", **settings}
    (folder / "tokenizer_config.json").write_text(json.dumps(values), encoding="utf-8")
    return planned(folder)


def test_python_tokenizers_that_split_differently_have_two_fingerprints(tmp_path):
    """The same tokens, merged in another order or after another normalisation: two ways to read every row, and one run
    id for both would let a store return the scores of the other."""
    plain = python_tokenizer(tmp_path / "plain")
    others = [
        python_tokenizer(tmp_path / "merges", codes=("b c", "a b")),
        python_tokenizer(tmp_path / "normalised", normalization=True),
    ]
    assert plain.tokenizer.tokenize("abcd") != others[0].tokenizer.tokenize("abcd")
    assert len({plan.tokenizer_fingerprint for plan in (plain, *others)}) == 3
    again = python_tokenizer(tmp_path / "elsewhere", normalization=False)
    assert again.tokenizer_fingerprint == plain.tokenizer_fingerprint


def test_a_python_tokenizer_that_is_all_vocabulary_keeps_its_fingerprint(tmp_path):
    """ESM's is a list of tokens; its runs have their ids from it alone."""
    saved(tmp_path)
    for path in tmp_path.glob("tokenizer*"):
        path.unlink()
    tokens = ["<cls>", "<pad>", "<eos>", "<unk>", *"abcdefgh", "<mask>"]
    (tmp_path / "vocab.txt").write_text("\n".join(tokens), encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "EsmTokenizer"}', encoding="utf-8")
    tokenizer = load(ModelConfig(name=str(tmp_path), weights="pretrained"), tmp_path)
    alone = f"{json.dumps(tokenizer.get_vocab(), sort_keys=True)}\n<pad>"
    assert fingerprint(tokenizer, tmp_path) == hashlib.sha256(alone.encode()).hexdigest()


def test_merges_that_a_file_drops_at_random_are_all_made(tmp_path, caplog):
    """BPE dropout is for training a model: with it the same row has other tokens each time, and a run no repetition."""
    saved(tmp_path / "plain")
    texts, plans = ["abcabc" * 20], []
    for name, dropout in (("plain", None), ("dropped", 0.5)):
        document = json.loads((tmp_path / "plain" / "tokenizer.json").read_text("utf-8"))
        vocabulary = document["model"]["vocab"] | {"ab": 260, "abc": 261}
        document["model"] |= {"vocab": vocabulary, "merges": [["a", "b"], ["ab", "c"]], "dropout": dropout}
        saved(tmp_path / name)
        (tmp_path / name / "tokenizer.json").write_text(json.dumps(document), encoding="utf-8")
        plans.append(planned(tmp_path / name))
    assert "drops merges at random" in caplog.text
    assert plans[0].tokenizer(texts)["input_ids"] == plans[1].tokenizer(texts)["input_ids"]
    assert plans[0].fingerprint == plans[1].fingerprint
