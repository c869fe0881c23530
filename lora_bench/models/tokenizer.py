"""The tokenizer of a backbone."""

import functools
import hashlib
import json
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedConfig

from lora_bench.config.errors import ConfigError
from lora_bench.config.schema import ModelConfig
from lora_bench.models.quiet import first_line, quiet


def load(config: ModelConfig, folder: Path) -> Any:
    """The tokenizer of a folder, with a pad token and padding on the right.

    Raises:
        ConfigError: when transformers cannot read it.
    """
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=config.trust_remote_code)
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise ConfigError(f"model.name: no usable tokenizer for {config.name!r} ({first_line(error)})") from None
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    tokenizer.padding_side = "right"
    return tokenizer


def n_embeddings(architecture: PreTrainedConfig) -> int | None:
    """How many ids a model can read, from 0 on; None where it takes any."""
    return getattr(architecture.get_text_config(), "vocab_size", None)


def can_pad(architecture: PreTrainedConfig) -> bool:
    """Whether the configuration's own pad id is one that the model has an embedding for."""
    pad_id, limit = architecture.get_text_config().pad_token_id, n_embeddings(architecture)
    return isinstance(pad_id, int) and pad_id >= 0 and (limit is None or pad_id < limit)


def share_padding(tokenizer: Any, architecture: PreTrainedConfig) -> None:
    """Let the model take for padding what the tokenizer pads with."""
    architecture.pad_token_id = tokenizer.pad_token_id
    architecture.get_text_config().pad_token_id = tokenizer.pad_token_id


def ends_rows_with_padding(tokenizer: Any) -> bool:
    """Whether the tokenizer puts the pad token behind a text, as the end of it."""
    return tokenizer("a")["input_ids"][-1:] == [tokenizer.pad_token_id]


def fingerprint(tokenizer: Any) -> str:
    """sha256 over what decides the tokens of a text, and the pad token."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        text = json.dumps(tokenizer.get_vocab(), sort_keys=True)
    else:
        # How the last call cut and padded is kept inside the tokenizer; each call of ours says it anew.
        text = json.dumps(json.loads(backend.to_str()) | {"truncation": None, "padding": None}, sort_keys=True)
    return hashlib.sha256(f"{text}\n{tokenizer.pad_token}".encode()).hexdigest()


@functools.cache
def byte_tokenizer() -> Any:
    """A tokenizer for random backbones: one token a byte, BERT's special tokens, no vocabulary file."""
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
