"""A folder of safetensors, made once of a GGUF file of a Llama-type language model and kept in the account's cache.

    the file's blocks -> fp32 -> rows of q and k as transformers orders them -> model.safetensors

The values are those of the blocks: a backbone that is dequantised, most often from 4 bits, and frozen, as in QLoRA.
llama.cpp rotates the neighbours 2 i and 2 i + 1 of a head where transformers rotates i and i + d / 2, so a `llama` file
has them interleaved. What a file says and a folder could not keep is refused: it would be another model.
Source: Dettmers et al. 2023, arXiv:2305.14314; convert_hf_to_gguf.py of https://github.com/ggml-org/llama.cpp.
"""

import contextlib
import json
import logging
import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lora_bench.config.errors import ConfigError
from lora_bench.models import gguf_header, gguf_model, headers
from lora_bench.models.gguf_header import Blocks, Header
from lora_bench.models.quiet import first_line, quiet
from lora_bench.paths import CACHE, cache_folder

FORMAT = 1
"""Raised when the same file would become another folder; the old folders are then left alone."""
NOTE = "gguf.json"
"""In the folder: the name of the file, how many tensors it has of each type, and its bits a weight."""
STALE_SECONDS = 3600

log = logging.getLogger(__name__)


def folder(path: Path, digest: str) -> Path:
    """The folder of a file whose sha256 is `digest`; made where the cache lacks it, by whoever renames it first.

    Raises:
        ConfigError: when the file cannot be read whole, is no Llama-type model, has no tokenizer, or says what would be
            lost; when the package gguf is missing; when the folder cannot be written.
    """
    place = cache_folder() / "gguf" / f"{digest[:32]}-{FORMAT}"
    if _is_whole(place):
        return place
    header = gguf_header.read(path)
    config = gguf_model.config_of(header, path)
    names = gguf_model.names_of(header, path)
    gguf_model.require_tokenizer(header, path)
    kinds, bits = _kinds(header, path)
    n_bytes = 4 * _n_values(header)
    log.warning("%s: dequantised once, %.0f MB in %s", path.name, n_bytes / 1e6, place)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        _sweep(place)
        with tempfile.TemporaryDirectory(dir=place.parent, prefix=f".{place.name}-") as scratch:
            made = Path(scratch) / "folder"
            made.mkdir()
            (made / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
            _save_tokenizer(path, header, made)
            _save_weights(path, header, names, config, made)
            note = {"file": path.name, "types": dict(Counter(kinds.values())), "bits": bits}
            (made / NOTE).write_text(json.dumps(note), encoding="utf-8")
            _settle(made, place, Path(scratch) / "damaged")
    except OSError as error:
        raise ConfigError(
            f"model.gguf: cannot keep the dequantised weights of {str(path)!r}, {n_bytes / 1e6:.0f} MB, in "
            f"{str(place.parent)!r} ({error.strerror or error}); set {CACHE} to a folder with room"
        ) from None
    return place


def remark(place: Path) -> str | None:
    """What to know of a folder that was made of a GGUF file, in words; None for any other."""
    try:
        note = json.loads((place / NOTE).read_text(encoding="utf-8"))
        types = {str(kind): int(count) for kind, count in note["types"].items()}
        file, bits = str(note["file"]), float(note["bits"])
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    stored = [kind for kind in sorted(types, key=lambda kind: -types[kind]) if kind not in gguf_model.EXACT]
    if not stored:
        return f"the weights of {file} are those of the file, unquantised"
    return (
        f"the frozen weights of {file} are dequantised from {' and '.join(stored)}, {bits:.1f} bits a weight, as in "
        "QLoRA: another backbone than the full-precision model"
    )


def _is_whole(place: Path) -> bool:
    if not (place / NOTE).is_file():
        return False
    try:
        return bool(headers.stored(place))
    except ConfigError:
        return False


def _sweep(place: Path) -> None:
    """Remove what processes that were killed on the same file left behind."""
    for other in place.parent.glob(f".{place.name}-*"):
        with contextlib.suppress(OSError):
            if time.time() - other.stat().st_mtime > STALE_SECONDS:
                shutil.rmtree(other, ignore_errors=True)


def _settle(made: Path, place: Path, damaged: Path) -> None:
    """Give a folder its name. Another process may have been first, with the same bytes; a damaged one makes room."""
    if place.exists() and not _is_whole(place):
        place.rename(damaged)
    try:
        made.rename(place)
    except OSError:
        if not _is_whole(place):
            raise


def _n_values(header: Header) -> int:
    return sum(int(np.prod(blocks.shape)) for blocks in header.tensors.values())


def _kinds(header: Header, path: Path) -> tuple[dict[str, str], float]:
    """The type of every tensor, in words, and the file's bits a weight, once all are known to lie inside the file.

    Raises:
        ConfigError: when the package gguf is missing or does not know a type, or the file is cut.
    """
    size = path.stat().st_size
    kinds, n_bytes = {}, 0
    for name, blocks in header.tensors.items():
        kind, length = _bytes_of(blocks, name, path)
        if blocks.start + length > size:
            raise ConfigError(
                f"model.gguf: {str(path)!r} is cut: {name!r} ends at byte {blocks.start + length}, the file at {size}; "
                "get it once more"
            )
        kinds[name] = kind.name
        n_bytes += length
    return kinds, 8 * n_bytes / _n_values(header)


def _bytes_of(blocks: Blocks, name: str, path: Path) -> tuple[Any, int]:
    """A tensor's type, of the package gguf, and how many bytes it has."""
    gguf = _package(path)
    try:
        kind = gguf.GGMLQuantizationType(blocks.kind)
        n_values, n_bytes = gguf.GGML_QUANT_SIZES[kind]
    except (ValueError, KeyError):
        raise ConfigError(
            f"model.gguf: {name!r} of {str(path)!r} has the type {blocks.kind}, which the installed gguf does not "
            "know; update it, or give a file of another quantisation"
        ) from None
    if not blocks.shape or blocks.shape[-1] % n_values:
        raise ConfigError(f"model.gguf: {name!r} of {str(path)!r} has the shape {list(blocks.shape)} in {kind.name}")
    return kind, int(np.prod(blocks.shape, dtype=object)) // n_values * n_bytes


def _package(path: Path) -> Any:
    try:
        import gguf
    except ImportError:
        raise ConfigError(
            f"model.gguf: {str(path)!r} needs the package gguf; in the clone, pip install -e '.[lm]' brings it"
        ) from None
    return gguf


def _save_weights(path: Path, header: Header, names: dict[str, str], config: dict[str, Any], made: Path) -> None:
    from safetensors.numpy import save_file

    tensors = {}
    for name, values in _dequantised(path, header):
        tensors[names[name]] = np.ascontiguousarray(gguf_model.ordered(name, values, config, path))
    save_file(tensors, made / headers.SINGLE, metadata={"format": "pt"})


def _dequantised(path: Path, header: Header) -> Iterator[tuple[str, np.ndarray]]:
    """Every tensor in fp32."""
    content = np.memmap(path, dtype=np.uint8, mode="r")
    for name, blocks in header.tensors.items():
        kind, length = _bytes_of(blocks, name, path)
        rows = content[blocks.start : blocks.start + length].reshape(*blocks.shape[:-1], -1)
        try:
            values = _package(path).dequantize(rows, kind)
        except NotImplementedError:
            raise ConfigError(
                f"model.gguf: {name!r} of {str(path)!r} is {kind.name}, which the package gguf does not dequantise; "
                "give a file of another quantisation"
            ) from None
        yield name, np.asarray(values, dtype=np.float32).reshape(blocks.shape)


def _save_tokenizer(path: Path, header: Header, made: Path) -> None:
    """The tokenizer as transformers makes it of the file's vocabulary, with the file's way to split a text."""
    from transformers import AutoTokenizer

    alone = made.with_name("alone")  # what lies beside the file has no say
    alone.mkdir()
    (alone / "model.gguf").symlink_to(path.absolute())
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(alone, gguf_file="model.gguf")
            gguf_model.split_as_said(tokenizer, header, path)
            tokenizer.save_pretrained(made)
    except ConfigError:
        raise
    except Exception as error:  # whatever a broken vocabulary raises in transformers or tokenizers
        raise ConfigError(f"model.gguf: no usable tokenizer in {str(path)!r} ({first_line(error)})") from None
    os.unlink(alone / "model.gguf")
