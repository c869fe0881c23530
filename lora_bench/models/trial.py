"""One forward pass without data, which fails where values of a configuration do not go together.

transformers checks few of them: heads that share keys unevenly, a window of no token or a number that is written as
text raise in the middle of a step. On the meta device the same lines run with shapes alone, in some 20 ms.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import transformers.utils
from transformers import PreTrainedConfig, PreTrainedModel

from lora_bench.config.errors import ConfigError
from lora_bench.models import last_token
from lora_bench.models.length import longest_input
from lora_bench.models.quiet import quiet

_TOKENS = 13
"""A prime: no size that must divide the length divides it."""
_SHAPES = re.compile(r"must match|broadcast|shape|sizes? of|cannot be multiplied|invalid for input")
"""What torch says of sizes that do not go together. All else that it says here may be the meta device's own limit."""
_EPSILONS = ("norm_eps", "norm_epsilon")
"""How the keys end of what is added to a variance before its root is taken."""
_NUMBER = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*")


def require_runs(skeleton: PreTrainedModel) -> None:
    """Run two rows of shapes through a skeleton; what cannot be told without data passes.

    Raises:
        TypeError, ValueError, ArithmeticError, RuntimeError: as the model's own code does; ValueError also for a head
            that reads a token which sees no other, and for attention that takes rows of one length alone.
    """
    _require_sight(skeleton)
    _require_whole_attention(skeleton.config)
    length = min(_TOKENS, longest_input(skeleton) or _TOKENS)
    ids = torch.ones(2, length, dtype=torch.long, device="meta")
    try:
        with torch.no_grad(), quiet():
            skeleton(input_ids=ids)
    except NotImplementedError:
        return
    except (TypeError, ValueError, ArithmeticError):
        raise
    except RuntimeError as error:
        if "meta" not in str(error) and _SHAPES.search(str(error)):
            raise
    except Exception:  # a model may ask for more than ids
        return


def _require_sight(skeleton: PreTrainedModel) -> None:
    """Refuse an encoder that was made a decoder: its head reads the first token, to which every text is then alike."""
    is_causal = any(getattr(module, "is_causal", None) is True for module in skeleton.modules())
    if getattr(skeleton.config, "is_decoder", False) and is_causal and not last_token.is_looked_for(skeleton):
        raise ValueError(
            "is_decoder true lets a token see only those before it, and the classifier of this architecture reads the "
            "first; set is_decoder false for the weights of an encoder, or give a decoder such as gpt2 or llama"
        )


def _require_whole_attention(config: PreTrainedConfig) -> None:
    """Refuse landmarks among segments, Nystromformer's: they are of one length in all, take padding for words, and are
    scaled by the largest number of a batch, so that a row's result rests on the rows beside it."""
    n_landmarks, length = getattr(config, "num_landmarks", None), getattr(config, "segment_means_seq_len", None)
    if n_landmarks is not None and length is not None and n_landmarks != length:
        raise ValueError(
            f"segment_means_seq_len {length} beside num_landmarks {n_landmarks} takes only batches of rows of {length} "
            f"tokens, and mixes padding into them; set segment_means_seq_len to {n_landmarks}: attention is then "
            "computed whole, with the same weights"
        )


def give_named_outputs(architecture: PreTrainedConfig) -> None:
    """Let a model return its outputs by name, though it was saved to return tuples, as for tracing."""
    for config in {id(part): part for part in (architecture, architecture.get_text_config())}.values():
        config.return_dict = True
        if getattr(config, "torchscript", False):
            config.torchscript = False


def use_present_attention(architecture: PreTrainedConfig) -> str | None:
    """Let transformers choose the implementation of attention where the one that config.json asks for is not installed
    here; which one that was. All of them compute the same, and no fingerprint knows of them."""
    asked = getattr(architecture, "_attn_implementation", None)
    named = re.search(r"flash_attention_(\d)", asked) if isinstance(asked, str) else None
    if named is None or getattr(transformers.utils, f"is_flash_attn_{named[1]}_available", bool)():
        return None
    architecture._attn_implementation = None
    return asked


def require_numbers(architecture: PreTrainedConfig, name: str) -> None:
    """Refuse numbers that are written as text, where transformers has a number of its own or takes none but numbers,
    and what norms add to a variance where it is no small number: their outputs would be NaN or nothing.

    Raises:
        ConfigError: names the key.
    """
    values = architecture.to_dict()
    try:
        defaults = type(architecture)().to_dict()
    except Exception:  # a class that has no defaults for all of its values
        defaults = {}
    for key, text in _texts_for_numbers(values, defaults):
        raise ConfigError(f"model.name: config.json of {name!r} says {key} {text!r}, a text; write the number {text}")
    for key, value in values.items():
        is_small = not isinstance(value, float) or 0 <= value < 1
        if key.endswith(_EPSILONS) and not is_small:
            raise ConfigError(
                f"model.name: config.json of {name!r} says {key} {value:g}; it must be at least 0 and below 1"
            )


def _texts_for_numbers(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, str) and _NUMBER.fullmatch(value) and isinstance(defaults.get(key), (int, float)):
            yield key, value
        if isinstance(value, dict) and key.startswith("rope_"):
            for part, inner in value.items():
                if isinstance(inner, str) and _NUMBER.fullmatch(inner):
                    yield f"{key}.{part}", inner
