"""The header of a GGUF file: what it says of a model, and where its tensors lie, without reading one.

    "GGUF" | version | n tensors | n values | values: key, type, value | tensors: name, shape, type, offset | the data

Little-endian; a text is its length in 8 bytes and its bytes. Read here, since a file is refused before torch is
imported, and one from anywhere must end in a refusal, not in an error of whatever reads it.
Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_bench.config.errors import ConfigError
from lora_bench.models.headers import require_fetched

MAGIC = b"GGUF"
VERSIONS = (2, 3)
_NUMBERS = {**dict(enumerate("BbHhIif?")), 10: "Q", 11: "q", 12: "d"}
"""How `struct` spells the numbers, by type."""
_TEXT, _LIST = 8, 9
_DEPTH = 4  # lists in lists


@dataclass(frozen=True)
class Several:
    """A list of a header, of which only the length is kept."""

    length: int


@dataclass(frozen=True)
class Blocks:
    """A tensor of a file.

    Attributes:
        shape: as torch has it, rows first.
        kind: number of its type in ggml.
        start: where its bytes begin, counted from the beginning of the file.
    """

    shape: tuple[int, ...]
    kind: int
    start: int


@dataclass(frozen=True)
class Header:
    """What a file says: its values by key, and its tensors by name."""

    values: Mapping[str, Any]
    tensors: Mapping[str, Blocks]

    def text(self, key: str) -> str:
        """A value that is a text; empty where it is none."""
        value = self.values.get(key)
        return value if isinstance(value, str) else ""


def read(path: Path) -> Header:
    """The header of a file.

    Raises:
        ConfigError: when there is no such file, or it is no GGUF file, cut, or of a version that is not read.
    """
    try:
        with path.open("rb") as stream:
            beginning = stream.read(32)
            require_fetched(path, beginning.decode("latin-1"), key="model.gguf")
            if beginning[:4] != MAGIC:
                raise ConfigError(f"model.gguf: {str(path)!r} is no GGUF file; it begins with {beginning[:4]!r}")
            with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
                return _Reader(content, path).header()
    except FileNotFoundError:
        raise ConfigError(f"model.gguf: no file {str(path)!r}; check the path") from None
    except OSError as error:
        raise ConfigError(f"model.gguf: cannot read {str(path)!r}: {error.strerror or error}") from None


class _Reader:
    def __init__(self, content: mmap.mmap, path: Path):
        self._content, self._path, self._at = content, path, len(MAGIC)

    def header(self) -> Header:
        try:
            version = self._number("I")
            if version not in VERSIONS:
                raise ConfigError(
                    f"model.gguf: {str(self._path)!r} has version {version}"
                    f"{', of a big-endian machine' if version >= 1 << 16 else ''}; versions 2 and 3 are read, "
                    "little-endian: convert the model once more"
                )
            n_tensors, n_values = self._number("Q"), self._number("Q")
            values: dict[str, Any] = {}
            for _ in range(n_values):
                key = self._text()
                values[key] = self._value(self._number("I"))
            places = {}
            for _ in range(n_tensors):
                name = self._text()
                shape = tuple(self._number("Q") for _ in range(self._number("I")))
                places[name] = (shape[::-1], self._number("I"), self._number("Q"))
        except (struct.error, ValueError, OverflowError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"model.gguf: {str(self._path)!r} is cut or damaged: its header cannot be read at byte {self._at} of "
                f"{len(self._content)} ({error}); get it once more"
            ) from None
        alignment = values.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1:
            raise ConfigError(f"model.gguf: {str(self._path)!r} is damaged: general.alignment {alignment!r}")
        data = -(-self._at // alignment) * alignment
        return Header(values, {name: Blocks(shape, kind, data + at) for name, (shape, kind, at) in places.items()})

    def _number(self, kind: str) -> Any:
        (number,) = struct.unpack_from(f"<{kind}", self._content, self._at)
        self._at += struct.calcsize(f"<{kind}")
        return number

    def _bytes(self) -> bytes:
        length = self._number("Q")
        if length > len(self._content) - self._at:
            raise ValueError(f"a text of {length} bytes")
        self._at += length
        return self._content[self._at - length : self._at]

    def _text(self) -> str:
        return self._bytes().decode("utf-8")

    def _value(self, kind: int, depth: int = 0) -> Any:
        if kind == _TEXT:
            return self._text()
        if kind != _LIST:
            return self._number(self._known(kind))
        inner, length = self._number("I"), self._number("Q")
        if length > len(self._content) - self._at or depth == _DEPTH:
            raise ValueError(f"a list of {length} values")
        if inner in (_TEXT, _LIST):
            for _ in range(length):
                self._bytes() if inner == _TEXT else self._value(inner, depth + 1)
        else:
            self._at += length * struct.calcsize(f"<{self._known(inner)}")
        return Several(length)

    def _known(self, kind: int) -> str:
        """How `struct` spells a type of number."""
        if kind not in _NUMBERS:
            raise ValueError(f"a value of type {kind}")
        return _NUMBERS[kind]
