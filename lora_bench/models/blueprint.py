"""What is known of a backbone before its weights are loaded: everything that planning needs.

A blueprint holds the configuration, the tokenizer, the fingerprint and a skeleton on the meta device.
"""

import contextlib
import functools
import hashlib
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
)

from lora_bench.config.errors import ConfigError
from lora_bench.config.identity import display_name
from lora_bench.config.schema import ModelConfig
from lora_bench.models import files, headers, last_token, length, misfit, numbers, roles, trial, weights
from lora_bench.models import tokenizer as tokenizers
from lora_bench.models.quiet import first_line, quiet
from lora_bench.models.tokenizer import byte_tokenizer

log = logging.getLogger(__name__)

_VOLATILE_KEYS = {
    "transformers_version",
    "_name_or_path",
    "dtype",
    "torch_dtype",
    "architectures",
    "id2label",
    "label2id",
    "num_labels",
}


@dataclass(frozen=True, eq=False)
class Blueprint:
    """What is known of a backbone before its weights are loaded.

    Attributes:
        folder: of the weights, or None for random weights.
        fingerprint: sha256 over weights, configuration and tokenizer; free of paths and names.
        matrices: every matrix of every role, from the split skeleton.
    """

    name: str
    config: ModelConfig
    architecture: PreTrainedConfig
    folder: Path | None
    fingerprint: str
    tokenizer: Any
    tokenizer_fingerprint: str
    skeleton: PreTrainedModel = field(repr=False)
    matrices: tuple[roles.Matrix, ...] = field(repr=False)

    @property
    def n_labels(self) -> int:
        return int(self.architecture.num_labels or 1)

    @property
    def remark(self) -> str | None:
        """What to know of the weights before they are used, in words."""
        return None if self.folder is None else files.remark(self.folder)

    @functools.cached_property
    def longest_input(self) -> int | None:
        """The largest number of tokens in a row, or None where there is no limit."""
        return length.longest_input(self.skeleton)

    @property
    def n_embeddings(self) -> int | None:
        """How many ids, counted from 0, the model can read; None where it takes any."""
        return tokenizers.n_embeddings(self.architecture)


def blueprint(config: ModelConfig, n_labels: int) -> Blueprint:
    """The blueprint of a backbone with a head of `n_labels` outputs; remembered per process.

    Raises:
        ConfigError: when the model cannot be found, has no safetensors, fails its checksum, or cannot be split into
        roles.
    """
    return _blueprint(json.dumps(vars(config), sort_keys=True), n_labels)


@functools.cache
def _blueprint(config_json: str, n_labels: int) -> Blueprint:
    config = ModelConfig(**json.loads(config_json))
    if config.weights == "random":
        if (Path(config.name).expanduser() / "config.json").is_file():
            raise ConfigError(
                f"model.name: {config.name!r} is a folder, and model.weights=random would leave its weights unread; "
                "add model.weights=pretrained, or leave out what sets random weights, as model=tiny does"
            )
        folder, architecture = None, _random_architecture(config, n_labels)
        tokenizer = byte_tokenizer()
        fingerprint = hashlib.sha256(b"random weights of seed 0").hexdigest()
        if architecture.vocab_size < len(tokenizer):
            raise ConfigError(
                f"model.architecture.vocab_size: {architecture.vocab_size} is too small; "
                f"the byte tokenizer needs {len(tokenizer)}"
            )
        architecture.pad_token_id = tokenizer.pad_token_id
    else:
        folder = files.find(config)
        architecture = _load_architecture(config, folder, n_labels)
        tokenizer = tokenizers.load(config, folder)
        fingerprint = files.weights_fingerprint(folder)
        tokenizers.require_fit(tokenizer, config.name, architecture)
        if not tokenizers.can_pad(architecture):
            tokenizers.share_padding(tokenizer, architecture)
    trial.give_named_outputs(architecture)
    skeleton, of_head = _skeleton(config, architecture, folder)
    if folder is not None and not length.counts_from_padding(skeleton):
        tokenizers.share_padding(tokenizer, architecture)
    tokenizer_fingerprint = tokenizers.fingerprint(tokenizer, folder)
    facts = {key: value for key, value in architecture.to_dict().items() if key not in _VOLATILE_KEYS}
    parts = [fingerprint, json.dumps(facts, sort_keys=True, default=str), tokenizer_fingerprint]
    if config.roles:  # the same targets name other matrices
        parts.append(json.dumps(config.roles, sort_keys=True))
    parts += of_head
    if last_token.is_looked_for(skeleton) and tokenizers.ends_rows_with_padding(tokenizer):
        parts.append("a row's last token is read, though it is the pad token")
    with _one_line(*_cannot_build(config)):
        roles.split_fused(skeleton, config.roles)
        matrices = tuple(roles.roles_of(skeleton, config.roles))
    return Blueprint(
        name=display_name(config.name),
        config=config,
        architecture=architecture,
        folder=folder,
        fingerprint=hashlib.sha256("\n".join(parts).encode()).hexdigest(),
        tokenizer=tokenizer,
        tokenizer_fingerprint=tokenizer_fingerprint,
        skeleton=skeleton,
        matrices=matrices,
    )


def _skeleton(
    config: ModelConfig, architecture: PreTrainedConfig, folder: Path | None
) -> tuple[PreTrainedModel, list[str]]:
    """The model without data, once its weights are known to fit, and what its fingerprint says of a head that they
    bring."""
    _require_classifier(config, architecture)
    with _one_line(*_cannot_build(config)):
        with torch.device("meta"), quiet():
            skeleton = AutoModelForSequenceClassification.from_config(
                architecture, trust_remote_code=config.trust_remote_code
            )
        if folder is None:
            trial.require_runs(skeleton)
            return skeleton, []
        stored = headers.stored(folder)
        fit = weights.fit_of(skeleton, stored)
        misfit.require_base(skeleton, fit, stored)
        trial.require_runs(skeleton)
        numbers.require_sound(skeleton, fit, stored)
    kept = [name for name in weights.kept_modules(skeleton, fit) if name not in ("classifier", "score")]
    says = [json.dumps({"trained head": kept})] if kept else []  # earlier versions froze these parts of a head
    if fit.set_aside:  # earlier versions began with it
        says.append("a head that classifies no texts is set aside")
    return skeleton, says


def _require_classifier(config: ModelConfig, architecture: PreTrainedConfig) -> None:
    """Refuse an architecture that transformers has no sequence classifier for, unless its own code may bring one."""
    is_known = type(architecture) in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
    if not is_known and not (config.trust_remote_code and hasattr(architecture, "auto_map")):
        key = "model.architecture" if config.weights == "random" else "model.name"
        raise ConfigError(
            f"{key}: {config.name!r} is a {architecture.model_type!r}, for which this version of transformers has no "
            "sequence classifier (AutoModelForSequenceClassification); give a model of another architecture"
        )


def _cannot_build(config: ModelConfig) -> tuple[str, str]:
    if config.weights == "random":
        return "model.architecture: ", ""
    return f"model.name: no backbone can be built from the config.json of {config.name!r} (", ")"


@contextlib.contextmanager
def _one_line(before: str, after: str = "") -> Iterator[None]:
    """Whatever transformers raises on a user's values, as a refusal in one line."""
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"{before}{first_line(error)}{after}") from error


def _random_architecture(config: ModelConfig, n_labels: int) -> PreTrainedConfig:
    values = dict(config.architecture)
    model_type = values.pop("model_type")
    with _one_line("model.architecture: "):
        return AutoConfig.for_model(model_type, num_labels=n_labels, **values)


def _load_architecture(config: ModelConfig, folder: Path, n_labels: int) -> PreTrainedConfig:
    with _one_line(f"model.name: no readable config.json for {config.name!r} (", ")"), quiet():
        architecture = AutoConfig.from_pretrained(
            folder, num_labels=n_labels, trust_remote_code=config.trust_remote_code
        )
    if asked := trial.use_present_attention(architecture):
        log.warning(
            "%s: its config.json asks for %s, which is not installed here; transformers' default is taken, which "
            "computes the same",
            config.name,
            asked,
        )
    # Checked again: a class may set what its config.json leaves out.
    files.check_kind({"is_encoder_decoder": architecture.is_encoder_decoder}, config.name)
    for key in ("num_hidden_layers", "num_attention_heads", "num_key_value_heads"):
        if isinstance(count := getattr(architecture.get_text_config(), key, None), int) and count < 1:
            raise ConfigError(f"model.name: config.json of {config.name!r} says {key} {count}; it must be at least 1")
    trial.require_numbers(architecture, config.name)
    if n_labels == 1:
        architecture.problem_type = "regression"
    return architecture
