"""A task's rows as token ids: tokenised once, kept flat, padded per batch.

    row i of a split = input_ids[offsets[i] : offsets[i + 1]]

Tokens depend on the rows, the tokenizer and the length limit, and on nothing else that a run chooses, so they are made
once per such triple and kept in memory and in a cache folder.
"""

import functools
import hashlib
import json
import logging
import os
import tempfile
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lora_bench.config.errors import ConfigError
from lora_bench.paths import cache_folder
from lora_bench.tasks.rows import Task

CACHE_FORMAT = 1
MOST_UNKNOWN = 0.5
"""Share of the train rows' tokens that a tokenizer may not know."""
SAMPLE_ROWS = 1_000
"""Train rows that planning looks at."""
_CHUNK_ROWS = 10_000  # bounds the Python lists that the tokenizer returns

DAMAGED = (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error, NotImplementedError)
"""What reading a damaged or foreign file of arrays may raise."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Tokens:
    """One split.

    Attributes:
        input_ids: (n_tokens,) int32, all rows one after the other, special tokens included, without padding.
        offsets: (n_rows + 1,) int64, where each row starts.
        token_type_ids: (n_tokens,) int8, or None where the tokenizer has none.
        labels: (n_rows,) int64, or float32 for regression.
    """

    input_ids: np.ndarray
    offsets: np.ndarray
    token_type_ids: np.ndarray | None
    labels: np.ndarray

    @cached_property
    def lengths(self) -> np.ndarray:
        """(n_rows,) tokens per row."""
        return np.diff(self.offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def take(self, rows: np.ndarray) -> "Tokens":
        """These rows (int64 numbers, any order) as a split of their own."""
        lengths = self.lengths[rows]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        places = np.arange(offsets[-1]) + np.repeat(self.offsets[rows] - offsets[:-1], lengths)
        types = None if self.token_type_ids is None else self.token_type_ids[places]
        return Tokens(self.input_ids[places], offsets, types, self.labels[rows])


_in_memory: dict[str, dict[str, Tokens]] = {}


def tokenise(
    task: Task,
    tokenizer: Any,
    *,
    max_length: int,
    tokenizer_fingerprint: str,
    n_embeddings: int | None = None,
    cache: Path | None = None,
) -> dict[str, Tokens]:
    """Tokens of every split of a task, from the cache where they are known.

    Args:
        tokenizer: a transformers tokenizer; called only when the cache lacks the tokens.
        max_length: most tokens per row, special tokens included; of a pair the longer text is cut first.
        tokenizer_fingerprint: names what the tokenizer does; equal fingerprints must give equal tokens.
        n_embeddings: ids that the model can read, from 0 on; None where it takes any.
        cache: the folder that holds what was made before; None for the account's.

    Raises:
        ConfigError: when `max_length` leaves no room for text, a row has no token or one that the model cannot read, or
            most of the train rows is unknown to the tokenizer.
    """
    key = _key(task.fingerprint, tokenizer_fingerprint, max_length)
    if key not in _in_memory:
        path = (cache or cache_folder()) / "tokens" / f"{key}.npz"
        tokens = _load(path, task)
        if tokens is None:
            tokens = {
                split: _tokenise_split(split, table, tokenizer, max_length) for split, table in task.splits.items()
            }
            _save(path, tokens)
        _in_memory[key] = tokens
    tokens = _in_memory[key]
    _require_readable(task, tokens, tokenizer, n_embeddings)
    return tokens


def require_known(task: Task, tokenizer: Any) -> None:
    """Refuse a tokenizer to which most of the first train rows are unknown: no run of it means anything.

    For planning, where the first thousand rows are enough (they are shuffled) and all would take a minute.

    Raises:
        ConfigError: with the share, or with a row that has no token at all.
    """
    share, empty_row = _seen_at_first(task, tokenizer)
    _refuse_unknown(share, tokenizer)
    if empty_row is not None:
        raise _no_token("train", empty_row, task.splits["train"]["text_a"].iloc[empty_row])


def batch(
    tokens: Tokens, rows: Sequence[int] | np.ndarray, pad_id: int, pad_to: int | None = None
) -> dict[str, np.ndarray]:
    """Some rows, padded on the right to the longest of them, or to `pad_to` tokens.

    Returns:
        input_ids, attention_mask and (where the tokenizer has them) token_type_ids, each (len(rows), length) int64, and
        labels (len(rows),).

    Raises:
        ValueError: when there are no rows, or `pad_to` is shorter than the longest row.
    """
    rows = np.asarray(rows, dtype=np.int64)
    if rows.size == 0:
        raise ValueError("no rows to batch; give at least one")
    lengths = tokens.lengths[rows]
    longest = int(lengths.max())
    length = longest if pad_to is None else pad_to
    if length < longest:
        raise ValueError(f"pad_to={pad_to} is shorter than the longest row, {longest} tokens")
    positions = np.arange(length)
    is_token = positions < lengths[:, None]
    where = (tokens.offsets[rows][:, None] + positions)[is_token]
    result = {"input_ids": np.full(is_token.shape, pad_id, dtype=np.int64), "attention_mask": is_token.astype(np.int64)}
    result["input_ids"][is_token] = tokens.input_ids[where]
    if tokens.token_type_ids is not None:
        result["token_type_ids"] = np.zeros(is_token.shape, dtype=np.int64)
        result["token_type_ids"][is_token] = tokens.token_type_ids[where]
    result["labels"] = tokens.labels[rows]
    return result


def _require_readable(task: Task, tokens: dict[str, Tokens], tokenizer: Any, n_embeddings: int | None) -> None:
    """Refuse rows of which most is unknown, and ids beyond the embedding.

    Those are special tokens that a text spells: all others, models/tokenizer.py has looked at.
    """
    _refuse_unknown(_unknown_share(tokens["train"].input_ids, tokenizer), tokenizer)
    for split, part in tokens.items():
        if n_embeddings is not None and part.input_ids.max() >= n_embeddings:
            place = int(part.input_ids.argmax())
            row = int(np.searchsorted(part.offsets, place, side="right")) - 1
            raise ConfigError(
                f"task.name: row {row} of {split} ({task.splits[split]['text_a'].iloc[row]!r}) has a token with the id "
                f"{part.input_ids[place]}, but the model has embeddings for the ids 0 to {n_embeddings - 1}; drop the "
                "row from the data, or give the model the tokenizer that it was trained with"
            )


@functools.lru_cache(maxsize=64)
def _seen_at_first(task: Task, tokenizer: Any) -> tuple[float, int | None]:
    """(share of unknown tokens, a row without any) of the first train rows."""
    table = task.splits["train"].head(SAMPLE_ROWS)
    texts = [table[name].tolist() for name in ("text_a", "text_b") if name in table]
    rows = tokenizer(*texts, padding=False, truncation=False, return_attention_mask=False, verbose=False)["input_ids"]
    empty_row = next((number for number, row in enumerate(rows) if not row), None)
    return _unknown_share(_flat(rows, np.int32), tokenizer), empty_row


def _no_token(split: str, row: int, text: str) -> ConfigError:
    return ConfigError(f"task.name: row {row} of {split} has no token ({text!r}); drop the row from the data")


def _unknown_share(ids: np.ndarray, tokenizer: Any) -> float:
    """Of the tokens that texts gave, how many stand for what the tokenizer does not know.

    0 where it says so with a token that it also puts around texts: GPT-2 has one for all, and knows every byte.
    """
    unknown = getattr(tokenizer, "unk_token_id", None)
    if unknown is None:
        return 0.0
    around = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.cls_token_id, tokenizer.sep_token_id}
    if unknown in around:
        return 0.0
    n_of_texts = np.isin(ids, list(around - {None}), invert=True).sum()
    return float((ids == unknown).sum() / max(1, n_of_texts))


def _refuse_unknown(share: float, tokenizer: Any) -> None:
    if share > MOST_UNKNOWN:
        raise ConfigError(
            f"model.name: the tokenizer of {tokenizer.name_or_path!r} does not know {share:.0%} of the tokens of the "
            f"train rows ({tokenizer.unk_token}), and at most {MOST_UNKNOWN:.0%} are let pass; give the tokenizer that "
            "the model was trained with, or a model of the rows' language"
        )


def _key(task_fingerprint: str, tokenizer_fingerprint: str, max_length: int) -> str:
    library = metadata.version("tokenizers")  # another version may split text differently
    parts = [CACHE_FORMAT, task_fingerprint, tokenizer_fingerprint, max_length, library]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def _tokenise_split(split: str, table: pd.DataFrame, tokenizer: Any, max_length: int) -> Tokens:
    has_pair = "text_b" in table
    n_special = tokenizer.num_special_tokens_to_add(pair=has_pair)
    if max_length <= n_special:
        raise ConfigError(
            f"train.max_length: {max_length} leaves no room for text beside {n_special} special tokens; "
            f"give at least {n_special + 1}"
        )
    texts_a = table["text_a"].tolist()
    texts_b = table["text_b"].tolist() if has_pair else None
    ids, types, lengths = [], [], []
    for start in range(0, len(table), _CHUNK_ROWS):
        chunk = slice(start, start + _CHUNK_ROWS)
        encoded = tokenizer(
            texts_a[chunk],
            texts_b[chunk] if texts_b else None,
            truncation="longest_first",
            max_length=max_length,
            padding=False,
            return_attention_mask=False,
        )
        lengths.extend(len(row) for row in encoded["input_ids"])
        ids.append(_flat(encoded["input_ids"], np.int32))
        if "token_type_ids" in encoded:
            types.append(_flat(encoded["token_type_ids"], np.int8))
    if 0 in lengths:
        row = lengths.index(0)
        raise _no_token(split, row, texts_a[row])
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return Tokens(np.concatenate(ids), offsets, np.concatenate(types) if types else None, table["label"].to_numpy())


def _flat(rows: Sequence[Sequence[int]], dtype: type) -> np.ndarray:
    return np.fromiter((number for row in rows for number in row), dtype=dtype, count=sum(map(len, rows)))


def _save(path: Path, tokens: dict[str, Tokens]) -> None:
    """Write all splits at once."""
    arrays = {}
    for split, of_split in tokens.items():
        arrays |= {f"{split}.input_ids": of_split.input_ids, f"{split}.offsets": of_split.offsets}
        if of_split.token_type_ids is not None:
            arrays[f"{split}.token_type_ids"] = of_split.token_type_ids
    write_arrays(path, arrays, what="tokens")


def write_arrays(path: Path, arrays: dict[str, np.ndarray], *, what: str) -> None:
    """Keep arrays in the cache, through a temporary name. A folder that cannot be written costs time, not the run.

    Args:
        what: is kept, in the words of the warning that a failure gives.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".arrays-", suffix=".tmp", delete=False) as file:
            temporary = Path(file.name)
            np.savez(file, allow_pickle=False, **arrays)
        os.replace(temporary, path)
    except OSError as error:
        log.warning("%s are kept in memory only: cannot write %s (%s)", what, path, error)
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _load(path: Path, task: Task) -> dict[str, Tokens] | None:
    """Cached tokens, or None where they are absent, damaged or do not fit the task. Labels are always the task's."""
    if not path.is_file():
        return None
    tokens = {}
    try:
        with np.load(path, allow_pickle=False) as stored:
            for split, table in task.splits.items():
                offsets, input_ids = stored[f"{split}.offsets"], stored[f"{split}.input_ids"]
                name = f"{split}.token_type_ids"
                types = stored.get(name)
                if not _fits(len(table), offsets, input_ids, types):
                    raise ValueError(f"{split} does not fit its {len(table)} rows")
                tokens[split] = Tokens(input_ids, offsets, types, table["label"].to_numpy())
    except DAMAGED as error:
        log.warning("rebuilding damaged token cache %s (%s)", path, error)
        return None
    return tokens


def _fits(n_rows: int, offsets: np.ndarray, input_ids: np.ndarray, types: np.ndarray | None) -> bool:
    return (
        offsets.dtype == np.int64
        and input_ids.dtype == np.int32
        and offsets.shape == (n_rows + 1,)
        and offsets[0] == 0
        and bool((np.diff(offsets) > 0).all())
        and input_ids.shape == (offsets[-1],)
        and (types is None or types.shape == input_ids.shape)
    )
