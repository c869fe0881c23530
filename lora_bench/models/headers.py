"""The headers of safetensors files: names, shapes and types of their tensors, without reading a tensor.

    8 bytes: length n of the header | n bytes: JSON, name -> dtype, shape, data_offsets | the data

A folder has one `model.safetensors`, or an index whose `weight_map` names the files. Nothing here imports torch.
Source: https://github.com/huggingface/safetensors#format.
"""

import functools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from lora_bench.config.errors import ConfigError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
FLOATING = frozenset({"F64", "F32", "F16", "BF16"})
_BITS = {"F64": 64, "I64": 64, "U64": 64, "F32": 32, "I32": 32, "U32": 32, "F16": 16, "BF16": 16, "I16": 16, "U16": 16}
_LFS = "version https://git-lfs"
"""The beginning of a file that Git LFS has not fetched yet."""


@dataclass(frozen=True)
class Stored:
    """A tensor of a file: its shape, its type as safetensors spells it ("F32", "BF16", "I8" ...), and the file."""

    shape: tuple[int, ...]
    dtype: str
    path: Path


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The files whose tensors are a folder's weights, in name order: `model.safetensors`, else those of the index.

    Raises:
        ConfigError: when there is neither, or the index is no index, names no file, or names one outside the folder
            or of another kind.
    """
    if (folder / SINGLE).is_file():
        return (folder / SINGLE,)
    return tuple(sorted({folder / file for file in _weight_map(folder / INDEX).values()}))


def stored(folder: Path) -> dict[str, Stored]:
    """Every tensor of a folder's weights by name.

    Raises:
        ConfigError: as `weight_files`; when a file is missing, cut, empty or a pointer of Git LFS, when two files hold
            one name, or when the index names a tensor that its file lacks.
    """
    tensors: dict[str, Stored] = {}
    for path in weight_files(folder):
        for name, tensor in of_file(path).items():
            if name in tensors:
                raise ConfigError(
                    f"model.name: {name!r} is in {str(tensors[name].path)!r} and in {str(path)!r}; save the model once "
                    "more with save_pretrained"
                )
            tensors[name] = tensor
    if not (folder / SINGLE).is_file():
        for name, file in _weight_map(folder / INDEX).items():
            if name not in tensors or tensors[name].path != folder / file:
                raise ConfigError(
                    f"model.name: {str(folder / INDEX)!r} says that {name!r} is in {file!r}, which lacks it; get both "
                    "from the same version of the model"
                )
    return tensors


def of_file(path: Path) -> Mapping[str, Stored]:
    """Every tensor of a file by name.

    Raises:
        ConfigError: when the file is missing, cut, empty, no safetensors file or a pointer of Git LFS.
    """
    try:
        stat = path.stat()
        return _read_header(path, stat.st_size, stat.st_mtime_ns)
    except FileNotFoundError:
        raise ConfigError(f"model.name: no file {str(path)!r}, which the index names; get it once more") from None
    except OSError as error:
        raise ConfigError(f"model.name: cannot read {str(path)!r}: {_line(error)}") from None


def require_fetched(path: Path, beginning: str, *, key: str = "model.name") -> None:
    """Refuse a file that begins as a pointer of Git LFS does.

    Raises:
        ConfigError: with the command that fetches the file.
    """
    if beginning.startswith(_LFS):
        raise ConfigError(
            f"{key}: {str(path)!r} is a pointer of Git LFS, not the file; run `git lfs pull` in its folder"
        )


def _weight_map(path: Path) -> dict[str, str]:
    """Tensor name -> file, according to an index."""
    try:
        text = path.read_text(encoding="utf-8")
        require_fetched(path, text)
        document = json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"model.name: cannot read {str(path)!r}: {_line(error)}") from None
    files = document.get("weight_map") if isinstance(document, dict) else None
    if not isinstance(files, dict) or not files:
        raise ConfigError(f"model.name: {str(path)!r} names no file in its 'weight_map'; get the index once more")
    for file in files.values():
        if not isinstance(file, str) or not file.endswith(".safetensors"):
            raise ConfigError(f"model.name: {str(path)!r} names {file!r}; only safetensors files are read")
        if PurePosixPath(file).is_absolute() or PureWindowsPath(file).anchor or ".." in PureWindowsPath(file).parts:
            raise ConfigError(f"model.name: {str(path)!r} names {file!r}, which is outside its folder; move it inside")
    return files


@functools.cache
def _read_header(path: Path, size: int, modified_ns: int) -> Mapping[str, Stored]:
    with path.open("rb") as stream:
        beginning = stream.read(len(_LFS))
        length = int.from_bytes(beginning[:8], "little")
        require_fetched(path, beginning.decode("latin-1"))
        if size < 8 or length > size - 8:
            raise ConfigError(
                f"model.name: {str(path)!r} ({size} bytes) is empty, cut or no safetensors file; get it once more"
            )
        stream.seek(8)
        text = stream.read(length)
    try:
        header = json.loads(text.decode("utf-8"))
        header.pop("__metadata__", None)
        end = 0
        for entry in sorted(header.values(), key=lambda entry: entry["data_offsets"]):
            end = _end(entry, after=end)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ConfigError(
            f"model.name: {str(path)!r} has no readable safetensors header ({_line(error)}); get it once more"
        ) from None
    if not header:
        raise ConfigError(f"model.name: {str(path)!r} holds no tensor; save the model once more with save_pretrained")
    if end != size - 8 - length:
        raise ConfigError(
            f"model.name: {str(path)!r} is cut or damaged: its tensors end at byte {8 + length + end}, the file at "
            f"{size}; get it once more"
        )
    return {name: Stored(tuple(entry["shape"]), entry["dtype"], path) for name, entry in header.items()}


def _end(entry: Mapping[str, Any], *, after: int) -> int:
    """Where a tensor's data end, counted from the end of the header; they begin where those before end."""
    start, end = entry["data_offsets"]
    shape = entry["shape"]
    if not all(type(number) is int and number >= 0 for number in (start, end, *shape)) or not start == after <= end:
        raise ValueError(f"no tensor of the shape {shape} lies at {start} to {end}")
    bits = _BITS.get(entry["dtype"])
    if bits is not None and end - start != math.prod(shape) * bits // 8:
        raise ValueError(f"{end - start} bytes for the shape {shape} in {entry['dtype']}")
    return end


def _line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
