"""The tokenizer of a backbone: read from its folder, and checked against its model before anything trains.

A model takes any ids, so a run with the wrong tokenizer looks sound. What can be seen without rows is refused here;
what only rows show, in lora_bench/tasks/tokens.py.
"""

import functools
import hashlib
import inspect
import json
import logging
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedConfig

from lora_bench.config.errors import ConfigError
from lora_bench.config.schema import ModelConfig
from lora_bench.models.quiet import first_line, quiet
from lora_bench.models.tokenizer_file import merge_all, require_faithful

FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json")
"""JSON files that transformers reads a tokenizer from."""
_LISTS = ("vocab.txt", "vocab.json")
"""Files that hold tokens and nothing else, all of which `get_vocab` gives back."""
ROLES = ("pad_token", "unk_token", "cls_token", "sep_token", "bos_token", "eos_token", "mask_token")
"""Special tokens by role; others enter a row only where its text spells them."""

log = logging.getLogger(__name__)


def load(config: ModelConfig, folder: Path) -> Any:
    """The tokenizer of a folder, with a pad token and padding on the right.

    Raises:
        ConfigError: when transformers cannot read it, or not as its own file says, or it knows no words or no token to
            pad with.
    """
    works = "save the model's own there, with AutoTokenizer.from_pretrained(MODEL).save_pretrained(FOLDER)"
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=config.trust_remote_code)
            vocabulary = tokenizer.get_vocab()
    except Exception as error:  # anything that a broken file, a missing package or its own code may raise
        raise ConfigError(
            f"model.name: no usable tokenizer for {config.name!r} ({_reason(error, folder)}); {works}"
        ) from None
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    # All that transformers makes without any file: special tokens, and with SentencePiece a blank.
    if sum(token_id not in special for token_id in vocabulary.values()) <= 1:
        names = [name for name in tokenizer.vocab_files_names.values() if not (folder / name).is_file()]
        lacks = f"no {' and no '.join(names)}" if names else "files of an empty vocabulary"
        raise ConfigError(f"model.name: no usable tokenizer for {config.name!r} ({str(folder)!r} has {lacks}); {works}")
    dropout = merge_all(getattr(tokenizer, "backend_tokenizer", None))
    if dropout:
        log.warning(
            "%s: its tokenizer drops merges at random (dropout %g), as for training one; texts are read with all of "
            "them, the same way each time",
            config.name,
            dropout,
        )
    require_faithful(tokenizer, config.name, folder)
    _choose_padding(tokenizer, config.name, folder)
    return tokenizer


def require_fit(tokenizer: Any, name: str, architecture: PreTrainedConfig) -> None:
    """Refuse a tokenizer whose ids the model has no embedding for.

    A special token without a role may be beyond: only a text that spells it brings it in, and rows are checked for that
    (`tokens.tokenise`).

    Raises:
        ConfigError: names the token, its id and the size of the embedding.
    """
    limit = n_embeddings(architecture)
    if limit is None:
        return
    roles = {token: role for role in ROLES if (token := getattr(tokenizer, role)) is not None}
    without = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special} - set(roles)
    beyond = [
        (token in roles, token_id, token)
        for token, token_id in tokenizer.get_vocab().items()
        if token_id >= limit and token not in without
    ]
    if beyond:
        has_role, token_id, token = max(beyond)
        role = f", its {roles[token]}," if has_role else ""
        raise ConfigError(
            f"model.name: the tokenizer of {name!r} gives {token!r}{role} the id {token_id}, but the model has "
            f"embeddings for the ids 0 to {limit - 1}; give the tokenizer that the model was trained with"
        )


def n_embeddings(architecture: PreTrainedConfig) -> int | None:
    """How many ids, counted from 0, a model can read; None where it takes any."""
    return getattr(architecture.get_text_config(), "vocab_size", None)


def can_pad(architecture: PreTrainedConfig) -> bool:
    """Whether the configuration's own pad id is one that the model has an embedding for."""
    pad_id, limit = architecture.get_text_config().pad_token_id, n_embeddings(architecture)
    return isinstance(pad_id, int) and pad_id >= 0 and (limit is None or pad_id < limit)


def share_padding(tokenizer: Any, architecture: PreTrainedConfig) -> None:
    """Give the model the tokenizer's pad id."""
    architecture.pad_token_id = tokenizer.pad_token_id
    architecture.get_text_config().pad_token_id = tokenizer.pad_token_id


def ends_rows_with_padding(tokenizer: Any) -> bool:
    """Whether the tokenizer ends a text with the pad token."""
    return tokenizer("a", verbose=False)["input_ids"][-1:] == [tokenizer.pad_token_id]


def _choose_padding(tokenizer: Any, name: str, folder: Path) -> None:
    """Choose a pad token, and pad on the right, whatever the tokenizer says: positions then start with the row.

    Raises:
        ConfigError: when no token can serve.
    """
    tokenizer.padding_side = "right"
    problem = None
    if tokenizer.pad_token is None:
        stand_in = tokenizer.eos_token or tokenizer.unk_token
        if stand_in is None:
            problem = "has no pad_token, eos_token or unk_token"
        else:
            tokenizer.pad_token = stand_in
            log.warning("%s: its tokenizer has no pad_token; rows are padded with %s", name, stand_in)
    if problem is None and tokenizer.pad_token_id is None:
        problem = f"pads with {tokenizer.pad_token!r}, which its vocabulary lacks"
    if problem is not None:
        raise ConfigError(
            f"model.name: the tokenizer of {name!r} {problem}; name a token of its vocabulary as "
            f'"pad_token" in {str(folder / "tokenizer_config.json")!r}'
        )


def _reason(error: Exception, folder: Path) -> str:
    """Why a tokenizer cannot be read: the broken file where one is, else what transformers says."""
    for name in FILES:
        try:
            values = json.loads((folder / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            continue
        except (OSError, ValueError, RecursionError) as broken:
            return f"cannot read {str(folder / name)!r}: {first_line(broken)}"
        if not isinstance(values, dict):
            return f"{str(folder / name)!r} is no JSON object"
    said = first_line(error)
    reasons = [] if (folder / FILES[0]).is_file() else [f"{str(folder)!r} has no {FILES[0]}"]
    if not (reasons and said.endswith(":")):  # the list that transformers begins says the same
        reasons.append(f"{type(error).__name__}: {said}")
    return "; ".join(reasons)


def fingerprint(tokenizer: Any, folder: Path | None) -> str:
    """sha256 over what decides the tokens of a text, and the pad token; `folder` holds the files of a tokenizer that is
    written in Python."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        text = "\n".join([json.dumps(tokenizer.get_vocab(), sort_keys=True), *_beyond_vocabulary(tokenizer, folder)])
    else:
        # The tokenizer remembers how its last call cut and padded; each call of ours sets both.
        text = json.dumps(json.loads(backend.to_str()) | {"truncation": None, "padding": None}, sort_keys=True)
    return hashlib.sha256(f"{text}\n{tokenizer.pad_token}".encode()).hexdigest()


def _beyond_vocabulary(tokenizer: Any, folder: Path | None) -> list[str]:
    """What else decides the tokens of a tokenizer written in Python: files that hold more than a list of tokens, as
    merges do, and what its class was told that is not its own default. Most have neither."""
    files = tokenizer.vocab_files_names
    others = [folder / name for name in sorted(set(files.values()) - set(_LISTS))] if folder else []
    parts = [f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}" for path in others if path.is_file()]
    defaults = inspect.signature(type(tokenizer).__init__).parameters
    settings = {
        key: str(value)
        for key, value in tokenizer.init_kwargs.items()
        if key in defaults and key not in files and str(value) != str(defaults[key].default)
    }
    return [*parts, *([json.dumps(settings, sort_keys=True)] if settings else [])]


@functools.cache
def byte_tokenizer() -> Any:
    """A tokenizer for random backbones: one token per byte, BERT's special tokens, no vocabulary file."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    vocabulary = {token: index for index, token in enumerate([*specials, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )
