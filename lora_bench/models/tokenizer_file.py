"""A tokenizer that transformers makes of a tokenizer.json, and what that file itself says.

Without a class in tokenizer_config.json, transformers takes the one that goes with the model's type. Where the file is
of another kind (a BERT with a byte-level vocabulary, a RoBERTa with words), that class splits texts by its own rules,
and adds special tokens that the model never saw. All ids still have an embedding, so a run looks sound.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lora_bench.config.errors import ConfigError
from lora_bench.models.quiet import first_line

FILE = "tokenizer.json"
_SAYS_MORE = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
"""Files that may add tokens to those of tokenizer.json, or name a class that reads it in a way of its own."""
_TEXT = "a good film, 1999"


def require_faithful(tokenizer: Any, name: str, folder: Path) -> None:
    """Refuse a tokenizer that reads a text, or could, as its tokenizer.json does not.

    Raises:
        ConfigError: says in which way, and which key of tokenizer_config.json helps.
    """
    from tokenizers import Tokenizer

    try:
        ours = tokenizer(_TEXT, verbose=False)["input_ids"]
    except Exception as error:  # tokenizers raises plain ones
        raise _refusal(f"it cannot read a text: {first_line(error)}", name) from None
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or not (folder / FILE).is_file():
        return
    try:
        file = Tokenizer.from_file(str(folder / FILE))
    except Exception as error:  # transformers reads some files that their own library does not
        raise ConfigError(
            f"model.name: no usable tokenizer for {name!r} ({str(folder / FILE)!r} is broken: {first_line(error)}); "
            "get the file once more"
        ) from None
    merge_all(file)
    kinds = [type(tokenizers.model).__name__ for tokenizers in (file, backend)]
    made = type(tokenizer).__name__
    if kinds[0] != kinds[1]:
        raise _refusal(f"{FILE} holds a {kinds[0]} vocabulary, which {made} reads as {kinds[1]}", name)
    says_more = [_document(folder / other) for other in _SAYS_MORE]
    known = file.get_vocab() | dict.fromkeys(_texts(says_more))
    invented = [token for token in tokenizer.convert_ids_to_tokens(ours) if token not in known]
    if invented:
        raise _refusal(f"{made} puts {invented[0]!r} into texts, which {FILE} does not have", name)
    classes = [document.get("tokenizer_class") for document in (says_more[0], _document(folder / "config.json"))]
    if not any(classes):
        file.no_padding()
        file.no_truncation()
        theirs = file.encode(_TEXT).ids
        if ours != theirs:
            raise _refusal(f"{made} reads {_TEXT!r} as {ours}, {FILE} says {theirs}", name)


def merge_all(backend: Any) -> float | None:
    """Let a tokenizer make every merge that it knows, and return the share that it left out at random, if any."""
    model: Any = getattr(backend, "model", None)
    dropout = getattr(model, "dropout", None)
    if dropout:  # 0 drops none, and is part of fingerprints
        model.dropout = None
    return dropout


def _refusal(reason: str, name: str) -> ConfigError:
    return ConfigError(
        f"model.name: no usable tokenizer for {name!r} ({reason}); name the class that it was made with as "
        "'tokenizer_class' in its tokenizer_config.json: 'PreTrainedTokenizerFast' takes tokenizer.json as it is"
    )


def _document(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def _texts(value: Any) -> Iterator[str]:
    """All texts of a JSON value, keys too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from value
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)
