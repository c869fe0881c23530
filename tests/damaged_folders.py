"""Ways in which a model folder goes wrong, on its bytes, and what an independent reader finds in it.

A folder is a dict, name -> bytes. Nothing here uses lora_bench, safetensors or torch to read.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st

Folder = dict[str, bytes]
Tensors = dict[str, tuple[str, list[int], bytes]]  # name -> (dtype, shape, data)
WEIGHTS, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"
TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
WIDTHS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I8": 1, "U8": 1, "F8_E4M3": 1}
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 1\n"
PREFIXES = (
    "_orig_mod.", "module.", "model.", "bert.", "roberta.", "transformer.", "distilbert.", "base_model.model.",
    "encoder.", "student.", "bert.bert.", "backbone.",
)  # fmt: skip
ARCHITECTURES = ("BertForMaskedLM", "BertForTokenClassification", "LlamaForCausalLM", "Nonsense", "")
MODEL_TYPES = ("bert", "roberta", "distilbert", "gpt2", "llama", "electra", "albert", "t5", "granite", "nonsense", "")
ODD = (
    None, True, False, -1, 0, 1, 2, 3, 5, 7, 16, 33, 0.0, 0.5, 1.5, -0.5, 1e-12, "0.1", "8", "32", "text", "", [], {},
    [1, 2], {"a": 1}, "float16", "gelu", "relu",
)  # fmt: skip


@dataclass(frozen=True)
class Damage:
    """One change of a folder, with the words that name it."""

    name: str
    change: Callable[[Folder], None]

    def __repr__(self) -> str:
        return self.name


def after(folder: Folder, *damages: Damage | None) -> Folder | None:
    """A copy of a folder with these damages; None where one cannot be done to what those before have left."""
    content = dict(folder)
    try:
        for damage in filter(None, damages):
            damage.change(content)
    except Exception:  # a file that is gone, cut or of another kind
        return None
    return content


# Reading and writing by hand


def read_tensors(content: bytes) -> Tensors:
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    header.pop("__metadata__", None)
    data = content[8 + length :]
    return {
        name: (entry["dtype"], entry["shape"], data[slice(*entry["data_offsets"])]) for name, entry in header.items()
    }


def write_tensors(tensors: Tensors) -> bytes:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    parts, end = [], 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + len(data)]}
        parts.append(data)
        end += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + b"".join(parts)


def as_numbers(dtype: str, shape: list[int], data: bytes) -> np.ndarray:
    """A tensor's numbers as float32."""
    if dtype == "BF16":
        numbers = (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4")
    else:
        numbers = np.frombuffer(data, {"F64": "<f8", "F32": "<f4", "F16": "<f2"}[dtype]).astype("<f4")
    return numbers.reshape(shape)


def stored_numbers(folder: Folder) -> dict[str, np.ndarray]:
    """Every floating-point tensor of a folder's weights, as an independent reader finds it: name -> float32."""
    files = [WEIGHTS] if WEIGHTS in folder else sorted(set(json.loads(folder[INDEX])["weight_map"].values()))
    found = {}
    for file in files:
        for name, tensor in read_tensors(folder[file]).items():
            if tensor[0] in ("F64", "F32", "F16", "BF16"):
                found[name] = as_numbers(*tensor)
    return found


# Damage to weights


def _weights(name: str, edit: Callable[[Tensors], Tensors]) -> Damage:
    def change(folder: Folder) -> None:
        folder[WEIGHTS] = write_tensors(edit(read_tensors(folder[WEIGHTS])))

    return Damage(name, change)


def _pick(tensors: Tensors, number: int) -> str:
    return sorted(tensors)[number % len(tensors)]


def _renamed(tensors: Tensors, name: str, other: str) -> Tensors:
    return {other if key == name else key: value for key, value in tensors.items()}


def _one(name: str, number: int, edit: Callable[[str, list[int], bytes], tuple[str, list[int], bytes]]) -> Damage:
    def change(tensors: Tensors) -> Tensors:
        picked = _pick(tensors, number)
        return {key: edit(*value) if key == picked else value for key, value in tensors.items()}

    return _weights(f"{name} of tensor {number}", change)


def _cast(to: str) -> Callable[[str, list[int], bytes], tuple[str, list[int], bytes]]:
    def cast(dtype: str, shape: list[int], data: bytes) -> tuple[str, list[int], bytes]:
        if dtype not in ("F64", "F32", "F16", "BF16"):
            return dtype, shape, data
        numbers = as_numbers(dtype, shape, data)
        if to == "BF16":
            return to, shape, (numbers.view("<u4") >> 16).astype("<u2").tobytes()
        if to == "F8_E4M3":
            return to, shape, bytes(numbers.size)
        kind = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I8": "i1", "U8": "u1"}[to]
        return to, shape, (numbers if to[0] == "F" else np.round(numbers * 10)).astype(kind).tobytes()

    return cast


def _reshape(how: str) -> Callable[[str, list[int], bytes], tuple[str, list[int], bytes]]:
    def reshape(dtype: str, shape: list[int], data: bytes) -> tuple[str, list[int], bytes]:
        width, rows = WIDTHS[dtype], shape[0] if shape else 1
        if how == "flat":
            return dtype, [len(data) // width], data
        if how == "one more axis":
            return dtype, [1, *shape], data
        if how == "turned":
            return dtype, shape[::-1], data
        if how == "one row less":
            return dtype, [rows - 1, *shape[1:]], data[: len(data) // max(rows, 1) * (rows - 1)]
        if how == "one row more":
            return dtype, [rows + 1, *shape[1:]], data + data[: len(data) // max(rows, 1)]
        return dtype, [0, *shape[1:]], b""

    return reshape


NUMBERS = st.integers(0, 99)
_CASTS = st.sampled_from(("F64", "F16", "BF16", "I64", "I32", "I8", "U8", "F8_E4M3"))


def _swapped(number: int, other: int) -> Damage:
    def swap(tensors: Tensors) -> Tensors:
        a, b = _pick(tensors, number), _pick(tensors, other)
        return {**tensors, a: tensors[b], b: tensors[a]}

    return _weights(f"tensors {number} and {other} swapped", swap)


def _dropped(number: int, many: int) -> Damage:
    def drop(tensors: Tensors) -> Tensors:
        gone = {_pick(tensors, number + step) for step in range(many)}
        return {key: value for key, value in tensors.items() if key not in gone} or tensors

    return _weights(f"{many} tensors from {number} on dropped", drop)


def _prefixed(prefix: str, number: int | None) -> Damage:
    def rename(tensors: Tensors) -> Tensors:
        if number is None:
            return {prefix + key: value for key, value in tensors.items()}
        picked = _pick(tensors, number)
        return _renamed(tensors, picked, prefix + picked)

    return _weights(f"prefix {prefix!r} for {'all' if number is None else f'tensor {number}'}", rename)


def _unprefixed(parts: int) -> Damage:
    def rename(tensors: Tensors) -> Tensors:
        return {key.split(".", min(parts, key.count(".")))[-1]: value for key, value in tensors.items()}

    return _weights(f"{parts} parts of every name gone", rename)


def _replaced(part: str, other: str, number: int | None) -> Damage:
    def rename(tensors: Tensors) -> Tensors:
        picked = None if number is None else _pick(tensors, number)
        return {key.replace(part, other) if picked in (None, key) else key: value for key, value in tensors.items()}

    return _weights(f"{part!r} is {other!r} in {'all names' if number is None else f'name {number}'}", rename)


def _doubled(number: int, name: Callable[[str], str]) -> Damage:
    def double(tensors: Tensors) -> Tensors:
        picked = _pick(tensors, number)
        dtype, shape, data = tensors[picked]
        return {**tensors, name(picked): (dtype, shape, data[::-1])}

    return _weights(f"tensor {number} once more as {name('NAME')!r}, with other numbers", double)


_BYTES = st.one_of(
    st.floats(0, 1).map(lambda share: Damage(f"cut at {share:.3f}", _bytes(lambda b: b[: int(len(b) * share)]))),
    st.integers(0, 400).map(lambda n: Damage(f"byte {n} flipped", _bytes(lambda b: _flip(b, n)))),
    st.integers(1, 9).map(lambda n: Damage(f"{n} bytes more", _bytes(lambda b: b + bytes(n)))),
    st.sampled_from((b"", LFS, b"{}", b"null", b"\0" * 8, b"\xff" * 16)).map(
        lambda content: Damage(f"weights are {content[:12]!r}", _bytes(lambda b: content))
    ),
)


def _bytes(edit: Callable[[bytes], bytes], file: str = WEIGHTS) -> Callable[[Folder], None]:
    def change(folder: Folder) -> None:
        if file in folder:
            folder[file] = edit(folder[file])

    return change


def _flip(content: bytes, number: int) -> bytes:
    if not content:
        return content
    place = number % len(content)
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


def _sharded(n_shards: int, fault: str, number: int) -> Damage:
    def change(folder: Folder) -> None:
        tensors = read_tensors(folder.pop(WEIGHTS))
        names = sorted(tensors)
        shards = {f"model-{i + 1:05}-of-{n_shards:05}.safetensors": names[i::n_shards] for i in range(n_shards)}
        weight_map = {name: file for file, held in shards.items() for name in held}
        picked, file = names[number % len(names)], sorted(shards)[number % n_shards]
        if fault == "a name gone from the index":
            del weight_map[picked]
        elif fault == "a name in the wrong shard":
            weight_map[picked] = file
        elif fault == "a name in two shards":
            shards[file] = sorted({*shards[file], picked})
        elif fault == "a shard outside":
            weight_map[picked] = "../" + file
        elif fault == "a file of another kind":
            weight_map[picked] = 7 if number % 2 else "pytorch_model.bin"
        for name, held in shards.items():
            folder[name] = write_tensors({key: tensors[key] for key in held})
        if fault == "a shard missing":
            del folder[file]
        elif fault == "a shard in a subfolder":
            folder["part/" + file] = folder.pop(file)
            weight_map = {name: f"part/{f}" if f == file else f for name, f in weight_map.items()}
        elif fault == "a shard beside them that none names":
            folder["model-00009-of-00009.safetensors"] = folder[file]
        index = json.dumps({"metadata": {}, "weight_map": weight_map}).encode()
        folder[INDEX] = index[: len(index) // 2] if fault == "the index cut" else index

    return Damage(f"{n_shards} shards, {fault}, {number}", change)


_FAULTS = (
    "whole", "a name gone from the index", "a name in the wrong shard", "a name in two shards", "a shard outside",
    "a file of another kind", "a shard missing", "a shard in a subfolder", "a shard beside them that none names",
    "the index cut",
)  # fmt: skip
_OTHER_NAMES: tuple[Callable[[str], str], ...] = (
    lambda name: f"model.{name}",
    lambda name: f"bert.{name}",
    lambda name: f"transformer.{name}",
    lambda name: name.partition(".")[2] or name,
    lambda name: name.replace(".0.", ".9."),
    lambda name: name.replace("weight", "base_layer.weight"),
    lambda name: name.replace("weight", "lora_A.weight"),
    lambda name: f"{name}_extra",
    lambda name: name.replace("LayerNorm.weight", "LayerNorm.gamma"),
)
_PARTS = (
    ("weight", "w"), ("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta"), (".0.", ".2."),
    (".1.", ".0."), ("layer", "layers"), ("bert", "albert"), ("query", "q_proj"), ("classifier", "score"),
    (".weight", ".base_layer.weight"), ("encoder.", ""), ("embeddings.", ""), ("attention", "attn"),
)  # fmt: skip

weights = st.one_of(
    st.builds(_prefixed, st.sampled_from(PREFIXES), st.none() | NUMBERS),
    st.builds(_unprefixed, st.integers(1, 2)),
    st.sampled_from(_PARTS).flatmap(lambda pair: st.builds(_replaced, *map(st.just, pair), st.none() | NUMBERS)),
    st.builds(_dropped, NUMBERS, st.integers(1, 4)),
    st.builds(_swapped, NUMBERS, NUMBERS),
    st.builds(_doubled, NUMBERS, st.sampled_from(_OTHER_NAMES)),
    st.builds(lambda to, number: _one(f"{to}, the type", number, _cast(to)), _CASTS, NUMBERS),
    _CASTS.map(
        lambda to: _weights(f"{to}, all", lambda tensors: {key: _cast(to)(*tensor) for key, tensor in tensors.items()})
    ),
    st.builds(
        lambda how, number: _one(f"{how}, the shape", number, _reshape(how)),
        st.sampled_from(("flat", "one more axis", "turned", "one row less", "one row more", "no row")),
        NUMBERS,
    ),
    _BYTES,
)
shards = st.builds(_sharded, st.integers(1, 3), st.sampled_from(_FAULTS), NUMBERS)


# Damage to config.json and to the tokenizer


def _configured(name: str, edit: Callable[[dict[str, Any]], Any], file: str = CONFIG) -> Damage:
    def change(folder: Folder) -> None:
        if file not in folder:
            return
        document = json.loads(folder[file])
        folder[file] = json.dumps(edit(document)).encode()

    return Damage(name, change)


def _key(document: dict[str, Any], number: int) -> str:
    return sorted(document)[number % len(document)]


def _with(number: int, value: Callable[[Any], Any], what: str, file: str = CONFIG) -> Damage:
    def edit(document: dict[str, Any]) -> dict[str, Any]:
        key = _key(document, number)
        return {**document, key: value(document[key])}

    return _configured(f"key {number} of {file} is {what}", edit, file)


def _without(number: int, file: str = CONFIG) -> Damage:
    def edit(document: dict[str, Any]) -> dict[str, Any]:
        gone = _key(document, number)
        return {key: value for key, value in document.items() if key != gone}

    return _configured(f"key {number} of {file} gone", edit, file)


def _as_number(value: Any, change: Callable[[Any], Any]) -> Any:
    return change(value) if isinstance(value, (int, float)) else value


_VALUES: tuple[tuple[str, Callable[[Any], Any]], ...] = (
    *((repr(value), lambda old, value=value: value) for value in ODD),
    ("itself as text", str),
    ("itself in a list", lambda old: [old]),
    ("one more", lambda old: _as_number(old, lambda n: n + 1)),
    ("twice", lambda old: _as_number(old, lambda n: n * 2)),
    ("half", lambda old: _as_number(old, lambda n: n // 2)),
    ("a float", lambda old: _as_number(old, float)),
)
_DOCUMENTS = (b"", b"[]", b"null", b"{}", b"{", LFS, "{}".encode("utf-16"), b"\xff\xfe", b"[" * 20000)


def _values(file: str) -> st.SearchStrategy[Damage]:
    pairs = st.tuples(st.integers(0, 60), st.sampled_from(_VALUES))
    return pairs.map(lambda pair: _with(pair[0], pair[1][1], pair[1][0], file))


def _documents(file: str) -> st.SearchStrategy[Damage]:
    cut = st.floats(0, 1).map(lambda share: Damage(f"{file} cut", _bytes(lambda b: b[: int(len(b) * share)], file)))
    other = st.sampled_from(_DOCUMENTS).map(
        lambda content: Damage(f"{file} is {content[:12]!r}", _bytes(lambda b: content, file))
    )
    return cut | other


config = st.one_of(
    _values(CONFIG),
    _values(CONFIG),
    st.integers(0, 60).map(_without),
    st.sampled_from(MODEL_TYPES).map(
        lambda kind: _configured(f"model_type {kind!r}", lambda document: {**document, "model_type": kind})
    ),
    st.sampled_from(ARCHITECTURES).map(
        lambda kind: _configured(f"architectures {kind!r}", lambda document: {**document, "architectures": [kind]})
    ),
    st.sampled_from(
        ("quantization_config", "is_encoder_decoder", "is_decoder", "tie_word_embeddings", "n_new")
    ).flatmap(
        lambda key: st.sampled_from((True, {}, None, "yes")).map(
            lambda value: _configured(f"{key} is {value!r}", lambda document: {**document, key: value})
        )
    ),
    _documents(CONFIG),
)


def tokenizer(others: list[Folder]) -> st.SearchStrategy[Damage]:
    """Damage to a tokenizer; its files may also come from other folders."""

    def swapped(number: int, both: bool) -> Damage:
        def change(folder: Folder) -> None:
            other = others[number % len(others)]
            for file in (TOKENIZER, *([TOKENIZER_CONFIG] if both else [])):
                folder[file] = other[file]

        return Damage(f"tokenizer of folder {number}{', its configuration too' if both else ''}", change)

    def dropped(file: str) -> Damage:
        return Damage(f"no {file}", lambda folder: folder.pop(file, None) and None)

    files = st.sampled_from((TOKENIZER, TOKENIZER_CONFIG))
    return st.one_of(
        files.map(dropped),
        st.builds(swapped, st.integers(0, len(others) - 1), st.booleans()),
        files.flatmap(_documents),
        _values(TOKENIZER_CONFIG),
        st.integers(0, 60).map(lambda number: _without(number, TOKENIZER_CONFIG)),
        _values(TOKENIZER),
        st.integers(0, 9).map(lambda number: _without(number, TOKENIZER)),
        st.sampled_from(("special_tokens_map.json", "added_tokens.json", "vocab.json")).flatmap(
            lambda file: st.sampled_from((b"{}", b"[]", b'{"pad_token": "[SEP]"}', b'{"x": 299}', b"{")).map(
                lambda content: Damage(f"{file} is {content!r}", lambda folder: folder.update({file: content}))
            )
        ),
    )


_ADAPTER = (b"{", b"{}", b"[]", b'{"peft_type": "LORA", "base_model_name_or_path": "x", "task_type": "SEQ_CLS"}')


def _beside(content: bytes) -> Damage:
    return Damage(f"adapter_config.json {content!r}", lambda folder: folder.update({"adapter_config.json": content}))


adapter = st.sampled_from(_ADAPTER).map(_beside)
