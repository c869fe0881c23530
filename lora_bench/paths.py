"""Folders of the account that runs us: its home, which it may lack, `~` in front of a path, and a cache.

An account in a container or on a cluster may have neither HOME nor an entry in the password file, and a locale may be
unable to spell a folder's name. Both are detected here, before anything trains.
"""

import argparse
import os
import re
import stat
import sys
import tempfile
from pathlib import Path

CACHE = "LORA_BENCH_CACHE"
HOMES = {
    "HF_HOME": "huggingface",
    "MPLCONFIGDIR": "matplotlib",
    "WANDB_CONFIG_DIR": "wandb",
    "WANDB_DATA_DIR": "wandb",
}
"""The folder, by variable, of libraries that otherwise keep files below the home."""


PACKAGED = "pkg://"
"""How a path begins that lies in an installed package."""
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_VARIABLE = re.compile(r"\$(?:([A-Za-z_]\w*)|\{([A-Za-z_]\w*)\})")


class PathError(ValueError):
    """A path that cannot be used, and what would work; the caller names the key."""


def home() -> Path | None:
    """The home folder, or None for an account that has none."""
    try:
        return Path.home()
    except (RuntimeError, KeyError):
        return None


def expanded(text: str) -> str:
    """A path with a leading `~` replaced.

    Raises:
        PathError: when there is no such home, the locale cannot spell the path, or it is an address or names a variable
            that the shell has not replaced; a folder of that name would be made in the current one.
    """
    if _ADDRESS.match(text) and not text.startswith(PACKAGED):
        raise PathError(f"{text!r} is an address; give the path of a folder or a file on this machine")
    if (variable := _VARIABLE.search(text)) and not os.path.lexists(text):
        raise PathError(
            f"{text!r} names the variable {variable[0]}, which the shell has not replaced; write its value, or "
            f"${{oc.env:{variable[1] or variable[2]}}}, which is read here"
        )
    if text.startswith("~"):
        try:
            text = str(Path(text).expanduser())
        except (RuntimeError, KeyError):
            account = Path(text).parts[0].removeprefix("~")
            why = f"there is no account {account!r}" if account else "this account has no home folder"
            raise PathError(f"cannot expand {text!r}, since {why}; give the whole path") from None
    whole = os.path.abspath(text)
    if not _is_one_name(whole):
        encoding = sys.getfilesystemencoding()
        raise PathError(f"{whole!r} cannot be spelled in this locale's {encoding}; set PYTHONUTF8=1, or LC_ALL=C.UTF-8")
    return text


def argument(text: str) -> Path:
    """The type of a path argument of a script."""
    try:
        return Path(expanded(text))
    except PathError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def output_folder(text: str) -> Path:
    """The type of a script's argument for a folder that it writes into: refused before anything is computed."""
    folder = argument(text)
    nearest = next(path for path in (folder, *folder.absolute().parents) if os.path.exists(path))
    if not nearest.is_dir():
        raise argparse.ArgumentTypeError(f"{nearest} is a file; give a folder")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise argparse.ArgumentTypeError(f"cannot write in {nearest.absolute()}; give a folder that can be written")
    return folder


def output_file(text: str) -> Path:
    """The same for a file that it writes."""
    file = argument(text)
    if file.is_dir():
        raise argparse.ArgumentTypeError(f"{file} is a folder; give a file")
    if file.exists() and not os.access(file, os.W_OK):
        raise argparse.ArgumentTypeError(f"cannot write {file}; give a file that can be written")
    output_folder(str(file.parent))
    return file


def cache_folder() -> Path:
    """Where derived data may be kept between processes. Deleting it costs time only.

    Raises:
        PathError: when LORA_BENCH_CACHE cannot be used, or there is neither that nor a home and the folder that stands
            in for them is not ours alone.
    """
    if given := os.environ.get(CACHE):
        try:
            return Path(expanded(given))
        except PathError as error:
            raise PathError(f"{CACHE}: {error}") from None
    variable, below = {"win32": ("LOCALAPPDATA", "AppData/Local"), "darwin": (None, "Library/Caches")}.get(
        sys.platform, ("XDG_CACHE_HOME", ".cache")
    )
    if variable and (base := os.environ.get(variable)):
        return Path(base) / "lora_bench"
    own = home()
    return own / below / "lora_bench" if own else _temporary_cache()


def settle_caches() -> None:
    """Check at the start that caches have a place; libraries that would write below a missing home get one beside ours.
    They would take an unexpanded `~` for the name of a folder, and make it in the current one.

    Raises:
        PathError: as `cache_folder` does.
    """
    folder = cache_folder().absolute()
    if home() is None:
        for variable, name in HOMES.items():
            os.environ.setdefault(variable, str(folder / name))


def _is_one_name(path: str) -> bool:
    """Whether a path names the same file for Python, which encodes it as the locale does, and for Arrow, as UTF-8."""
    try:
        return os.fsencode(path) == path.encode()
    except UnicodeEncodeError:
        return False


def _temporary_cache() -> Path:
    """This account's folder in the temporary one. Others can predict its name, so what they put there is not read."""
    folder, is_ours = temporary_folder("lora_bench")
    if not is_ours:
        raise PathError(
            f"{CACHE}: this account has no home folder, and others can write {str(folder)!r}; "
            f"set {CACHE} to a folder of your own"
        )
    return folder


def temporary_folder(name: str) -> tuple[Path, bool]:
    """This account's folder in the temporary one, of mode 0700, and whether nobody else can write it: others can
    predict its name, and may have made it first. A folder that cannot be made counts as ours."""
    owner = os.getuid() if hasattr(os, "getuid") else "home"
    folder = Path(tempfile.gettempdir()) / f"{name}-{owner}"
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        about = folder.lstat()
        return folder, stat.S_ISDIR(about.st_mode) and about.st_uid == owner and not about.st_mode & 0o022
    except OSError:  # the caller sees it when it writes, if it ever does
        pass
    return folder, True


def resource_root() -> Path:
    """The folder that holds conf/ and sweeps/: this package in a wheel, the checkout in an editable install."""
    package = Path(__file__).resolve().parent
    return package if (package / "conf").is_dir() else package.parent
