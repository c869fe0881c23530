"""The files of a pretrained backbone: where they lie, and whether they can be what a run needs.

Nothing here imports torch or transformers, which take seconds, so a wrong name or a broken folder is refused at once.
In this order: the folder, its config.json, its weights.
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

WEIGHTS_NAMES = ("model.safetensors", "model.safetensors.index.json")


def find(config: ModelConfig) -> Path:
    """The folder of a backbone's weights, looked through; what the Hub has is downloaded. Remembered per process.

    Raises:
        ConfigError: when the model cannot be found, is of a kind that cannot be adapted, has no readable config.json or
            no safetensors, or fails its checksum.
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
    """sha256 over the hashes of all safetensors files."""
    files = sorted(folder.glob("*.safetensors"))
    return hashlib.sha256("".join(_file_hash(path) for path in files).encode()).hexdigest()


@functools.cache
def _find(config_json: str) -> Path:
    config = ModelConfig(**json.loads(config_json))
    is_local = Path(config.name).is_dir()
    is_packaged = config.packaged.get("name") == config.name and config.revision is None and not is_local
    folder = _package_folder(config.packaged["package"]) if is_packaged else None
    if is_local:
        folder = Path(config.name)
    elif folder is None:
        folder = _download(config, config.packaged["package"] if is_packaged else None)
    check_kind(_read_config(folder, config.name), config.name)
    if not any((folder / name).is_file() for name in WEIGHTS_NAMES):
        raise ConfigError(
            f"model.name: {config.name!r} has no safetensors weights; convert them once with "
            f"`AutoModel.from_pretrained('{config.name}').save_pretrained('FOLDER')` of transformers "
            "(the tokenizer likewise) and give model.name=FOLDER, or pin a model.revision that has them"
        )
    expected = config.sha256 or (config.packaged["sha256"] if is_packaged else None)
    if expected and not (folder / WEIGHTS_NAMES[0]).is_file():
        raise ConfigError(f"model.sha256: the weights of {config.name!r} are in several files; give model.revision")
    if expected and (found := _file_hash(folder / WEIGHTS_NAMES[0])) != expected:
        raise ConfigError(f"model.sha256: model.safetensors of {config.name!r} has {found}, expected {expected}")
    return folder


def _read_config(folder: Path, name: str) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
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
    """Where an installed package keeps its weights. It is looked up and not imported: none of its code runs."""
    spec = importlib.machinery.PathFinder.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return None
    return next(
        (path.parent for root in spec.submodule_search_locations for path in Path(root).rglob(WEIGHTS_NAMES[0])), None
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
