"""Find, check and load the frozen backbone: first its blueprint, which needs no weights, then the weights.

A blueprint (configuration, tokenizer, fingerprint, skeleton on the meta device) is all that planning needs. A loaded
backbone keeps its frozen weights in the compute precision, with fused projections split into one Linear per role
(lora_bench/targets.py).
"""

import contextlib
import copy
import ctypes
import functools
import hashlib
import json
import logging
import math
import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
)

from lora_bench import machine, model_files, seeds, targets
from lora_bench.config import ConfigError, ModelConfig, display_name

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp64": torch.float64}
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
BF16_GAIN = 1.5
"""Times fp32's rate from which a CPU computes in bf16: what lies beside the products gains nothing."""


@dataclass(frozen=True, eq=False)
class Blueprint:
    """What is known of a backbone before its weights are loaded.

    Attributes:
        folder: where the weights lie, or None for random weights.
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
    matrices: tuple[targets.Matrix, ...] = field(repr=False)

    @property
    def n_labels(self) -> int:
        return int(self.architecture.num_labels or 1)

    @property
    def longest_input(self) -> int | None:
        """The most tokens the position embeddings allow, or None where positions are unlimited."""
        return _longest_input(self.architecture)


@dataclass(eq=False)
class Backbone:
    """A loaded backbone: frozen, split, in eval mode and in its compute precision.

    Attributes:
        new_modules: modules that the checkpoint lacks (heads, a missing pooler) together with the task's head; trained
            and saved.
        frozen_hash: sha256 of every parameter outside `new_modules`.
    """

    blueprint: Blueprint
    model: PreTrainedModel
    new_modules: tuple[str, ...]
    fresh_parameters: frozenset[str]
    precision: str
    device: torch.device
    frozen_hash: str

    def untouched(self) -> PreTrainedModel:
        """A private copy in the Hub's own module layout (fused projections whole) and the same precision, for stock
        peft."""
        if not self.is_split:
            return copy.deepcopy(self.model)
        model, _ = _instantiate(self.blueprint)
        model.requires_grad_(False)
        _place(model, self.precision, self.device)
        return model

    @property
    def inputs(self) -> frozenset[str]:
        """Names of the tensors that the model reads; token types only where it has more than one."""
        has_types = (getattr(self.model.config, "type_vocab_size", 0) or 0) > 1
        return frozenset({"input_ids", "attention_mask", *(["token_type_ids"] if has_types else [])})

    @property
    def is_split(self) -> bool:
        return any(matrix.fused for matrix in self.blueprint.matrices)


def blueprint(config: ModelConfig, n_labels: int) -> Blueprint:
    """The blueprint of a backbone with a head of `n_labels` outputs; remembered per process.

    Raises:
        ConfigError: when the model cannot be found, has no safetensors, fails its checksum, or cannot be split into
        roles.
    """
    return _blueprint(json.dumps(vars(config), sort_keys=True), n_labels)


def load(plan: Blueprint, *, precision: str, device: torch.device) -> Backbone:
    """Load a backbone's weights; the last one is kept, so the runs of a sweep share it."""
    return _load(plan, precision, device)


def resolve_device(device: str) -> torch.device:
    """`auto` is CUDA where there is one.

    Raises:
        ConfigError: when CUDA is asked for and absent.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device: no 'cuda' on this machine; use cpu or auto")
    return torch.device(
        "cuda" if device == "auto" and torch.cuda.is_available() else "cpu" if device == "auto" else device
    )


def resolve_precision(precision: str, device: torch.device) -> str:
    """`auto` is bf16 where it pays: on CUDA that multiplies it in hardware, and on a CPU that was seen to multiply it
    `BF16_GAIN` times as fast as fp32; else fp32."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return faster_precision(cpu_rates())


def faster_precision(rates: Mapping[str, float]) -> str:
    """bf16 where its rate is `BF16_GAIN` times that of fp32, else fp32."""
    return "bf16" if rates["bf16"] >= BF16_GAIN * rates["fp32"] else "fp32"


@functools.cache
def cpu_rates() -> dict[str, float]:
    """FLOP per second of a frozen matrix's product in fp32 and bf16, on one thread of this CPU.

    What a CPU says of itself does not tell: of two with the same instructions, one multiplies bf16 at half the rate of
    fp32, the other at four times. One thread, since others may be busy, and the best of a few turns each. A tenth of a
    second; a bf16 that is emulated is found out by a small product.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rates = _product_rates(n_rows=32, turns=2)
        return _product_rates(n_rows=512, turns=4) if rates["bf16"] > rates["fp32"] / 4 else rates
    finally:
        torch.set_num_threads(threads)


@torch.inference_mode()
def _product_rates(*, n_rows: int, turns: int, width: int = 768) -> dict[str, float]:
    best: dict[str, float] = {}
    for turn in range(turns + 1):
        for precision in ("fp32", "bf16"):
            x, weight = (torch.ones(n, width, dtype=DTYPES[precision]) for n in (n_rows, width))
            start = time.perf_counter()
            F.linear(x, weight)
            seconds = time.perf_counter() - start
            if turn:  # the first one compiles
                best[precision] = min(seconds, best.get(precision, math.inf))
    return {precision: 2 * n_rows * width**2 / seconds for precision, seconds in best.items()}


def set_threads() -> int:
    """Use every core that this process may run on, unless OMP_NUM_THREADS says otherwise. Returns the number of
    threads. Memory that tensors free stays with the process."""
    _keep_freed_memory()
    if machine.threads_asked() is None:
        torch.set_num_threads(machine.cores())
    return torch.get_num_threads()


@functools.cache
def _keep_freed_memory() -> None:
    """A pack's activations are large, and glibc maps and unmaps large blocks anew each time: a quarter of the speed."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD, M_MMAP_MAX of malloc.h
        libc.mallopt(mmap_max, 0)
        libc.mallopt(trim_threshold, 2**31 - 1)


def weights_hash(named_parameters: Iterable[tuple[str, torch.Tensor]]) -> str:
    """sha256 over names and bytes, in name order."""
    digest = hashlib.sha256()
    for name, parameter in sorted(named_parameters, key=lambda item: item[0]):
        digest.update(name.encode())
        digest.update(parameter.detach().contiguous().cpu().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def frozen_parameters(model: nn.Module, new_modules: Iterable[str]) -> Iterator[tuple[str, nn.Parameter]]:
    """Parameters outside the newly initialised modules."""
    prefixes = tuple(f"{name}." for name in new_modules)
    return ((name, parameter) for name, parameter in model.named_parameters() if not name.startswith(prefixes))


def head_state(backbone: Backbone, seed: int) -> dict[str, torch.Tensor]:
    """Initial head of a seed: parameter path -> fp32 tensor (fp64 in fp64 runs); the same for every cell of the seed.

    New parameters are drawn as the architecture itself does (`_init_weights`), from the seed's head stream; parameters
    that the checkpoint brings (a head fine-tuned before) keep their values.
    """
    dtype = torch.float64 if backbone.precision == "fp64" else torch.float32
    state: dict[str, torch.Tensor] = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeds.derive("head", seed))
        for module_name in backbone.new_modules:
            module = copy.deepcopy(backbone.model.get_submodule(module_name)).to("cpu", torch.float32)
            for each in module.modules():
                for holder in (each, *each.parameters(recurse=False)):
                    if hasattr(holder, "_is_hf_initialized"):
                        delattr(holder, "_is_hf_initialized")
            drawn = copy.deepcopy(module)
            drawn.apply(backbone.model._init_weights)
            for name, parameter in drawn.named_parameters():
                path = f"{module_name}.{name}"
                kept = parameter if path in backbone.fresh_parameters else module.get_parameter(name)
                state[path] = kept.detach().to(dtype)
    return state


@functools.cache
def _blueprint(config_json: str, n_labels: int) -> Blueprint:
    config = ModelConfig(**json.loads(config_json))
    if config.weights == "random":
        folder, architecture = None, _random_architecture(config, n_labels)
        tokenizer = byte_tokenizer()
        weights = hashlib.sha256(b"random weights of seed 0").hexdigest()
        if architecture.vocab_size < len(tokenizer):
            raise ConfigError(
                f"model.architecture.vocab_size: {architecture.vocab_size} is too small; "
                f"the byte tokenizer needs {len(tokenizer)}"
            )
        architecture.pad_token_id = tokenizer.pad_token_id
    else:
        folder = model_files.find(config)
        architecture = _load_architecture(config, folder, n_labels)
        tokenizer = _load_tokenizer(config, folder)
        weights = model_files.weights_fingerprint(folder)
        if architecture.pad_token_id is None:
            architecture.pad_token_id = tokenizer.pad_token_id
    tokenizer_fingerprint = _tokenizer_fingerprint(tokenizer)
    facts = {key: value for key, value in architecture.to_dict().items() if key not in _VOLATILE_KEYS}
    parts = [weights, json.dumps(facts, sort_keys=True, default=str), tokenizer_fingerprint]
    if config.roles:  # the same targets are other matrices
        parts.append(json.dumps(config.roles, sort_keys=True))
    with torch.device("meta"), quiet():
        skeleton = AutoModelForSequenceClassification.from_config(
            architecture, trust_remote_code=config.trust_remote_code
        )
    targets.split_fused(skeleton, config.roles)
    return Blueprint(
        name=display_name(config.name),
        config=config,
        architecture=architecture,
        folder=folder,
        fingerprint=hashlib.sha256("\n".join(parts).encode()).hexdigest(),
        tokenizer=tokenizer,
        tokenizer_fingerprint=tokenizer_fingerprint,
        skeleton=skeleton,
        matrices=tuple(targets.roles_of(skeleton, config.roles)),
    )


def _load(plan: Blueprint, precision: str, device: torch.device) -> Backbone:
    key = (plan.fingerprint, plan.n_labels, precision, str(device))
    if _LOADED.get("key") != key:
        _LOADED.clear()
        _LOADED.update(key=key, backbone=_read_weights(plan, precision, device))
    return _LOADED["backbone"]


_LOADED: dict[str, Any] = {}


def _read_weights(plan: Blueprint, precision: str, device: torch.device) -> Backbone:
    model, missing = _instantiate(plan)
    new_modules = _new_modules(model, missing)
    targets.split_fused(model, plan.config.roles)
    model.requires_grad_(False)
    _place(model, precision, device)
    return Backbone(
        blueprint=plan,
        model=model,
        new_modules=new_modules,
        fresh_parameters=frozenset(missing),
        precision=precision,
        device=device,
        frozen_hash=weights_hash(frozen_parameters(model, new_modules)),
    )


def _place(model: nn.Module, precision: str, device: torch.device) -> None:
    """Put a model on its device in its precision, ready to evaluate."""
    model.eval().to(device=device, dtype=DTYPES[precision])


def _instantiate(plan: Blueprint) -> tuple[PreTrainedModel, set[str]]:
    """The model as transformers gives it, on the CPU in fp32, and the parameters that its weights lack."""
    if plan.folder is None:
        with torch.random.fork_rng(devices=[]), quiet():
            torch.manual_seed(seeds.derive("random backbone", 0))
            model = AutoModelForSequenceClassification.from_config(plan.architecture)
        return model, {
            name for name, _ in model.named_parameters() if not name.startswith(f"{model.base_model_prefix}.")
        }
    with quiet():
        model, report = AutoModelForSequenceClassification.from_pretrained(
            plan.folder,
            config=plan.architecture,
            dtype=torch.float32,
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            trust_remote_code=plan.config.trust_remote_code,
        )
    mismatched = {key[0] if isinstance(key, tuple) else key for key in report["mismatched_keys"]}
    return model, set(report["missing_keys"]) | mismatched


def _new_modules(model: PreTrainedModel, missing: set[str]) -> tuple[str, ...]:
    """The largest modules whose parameters are all new, and the classifier in any case, new or fine-tuned before."""
    found = [name for name, _ in model.named_children() if name in ("classifier", "score")]
    for name, module in model.named_modules():
        paths = [f"{name}.{each}" for each, _ in module.named_parameters()]
        inside = name in found or name.startswith(tuple(f"{each}." for each in found))
        if name and not inside and paths and all(path in missing for path in paths):
            found.append(name)
    return tuple(found)


def _random_architecture(config: ModelConfig, n_labels: int) -> PreTrainedConfig:
    values = dict(config.architecture)
    model_type = values.pop("model_type")
    try:
        return AutoConfig.for_model(model_type, num_labels=n_labels, **values)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"model.architecture: {_first_line(error)}") from None


def _load_architecture(config: ModelConfig, folder: Path, n_labels: int) -> PreTrainedConfig:
    try:
        architecture = AutoConfig.from_pretrained(
            folder, num_labels=n_labels, trust_remote_code=config.trust_remote_code
        )
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"model.name: no readable config.json for {config.name!r} ({_first_line(error)})") from None
    # Once more: a class may say what its config.json leaves out.
    model_files.check_kind({"is_encoder_decoder": architecture.is_encoder_decoder}, config.name)
    if n_labels == 1:
        architecture.problem_type = "regression"
    return architecture


def _load_tokenizer(config: ModelConfig, folder: Path) -> Any:
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=config.trust_remote_code)
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise ConfigError(f"model.name: no usable tokenizer for {config.name!r} ({_first_line(error)})") from None
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    tokenizer.padding_side = "right"
    return tokenizer


def _tokenizer_fingerprint(tokenizer: Any) -> str:
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


def _longest_input(architecture: PreTrainedConfig) -> int | None:
    positions = getattr(architecture, "max_position_embeddings", None)
    if positions is None or positions < 0:
        return None
    # RoBERTa's positions start after the padding index.
    is_offset = architecture.model_type in ("roberta", "xlm-roberta", "camembert", "mpnet")
    return positions - (architecture.pad_token_id or 0) - 1 if is_offset else positions


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the load report and progress bars: what is newly initialised is our own business here."""
    from transformers.utils import logging as transformers_logging

    level = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(logging.ERROR)
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
