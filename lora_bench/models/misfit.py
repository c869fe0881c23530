"""Refuse weights that are not those of a model's base model, and name the evidence."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel

from lora_bench.config.errors import ConfigError
from lora_bench.models.headers import FLOATING, Stored
from lora_bench.models.weights import Fit, head_parameters, is_pooler, plain_name

_WRAPPERS = {
    "base_layer": "peft saved the model unmerged; save model.merge_and_unload()",
    "base_model": "peft saved the model unmerged; save model.merge_and_unload()",
    "_orig_mod": "the model was saved compiled; save model._orig_mod",
    "_fsdp_wrapped_module": "the model was saved wrapped by FSDP; save its full state dict",
    "module": "the model was saved wrapped by DataParallel; save model.module",
}
"""Parts of a name that a wrapper adds, innermost first, and what to do."""


def require_base(model: PreTrainedModel, fit: Fit, stored: Mapping[str, Stored]) -> None:
    """Refuse weights that do not hold the whole of a model's base model.

    Inside the base model only a pooler may be new, and everything in the weights must have a place there: random
    parameters would train as a head or stay frozen, and the result would look sound.

    Args:
        model: before its fused projections are split.
        stored: the files' tensors by name.

    Raises:
        ConfigError: with the prefix, the numbers of layers, the two shapes or the name that shows why.
    """
    _refuse_twins(model, stored)
    misfit = _Misfit.of(model, fit, stored)
    if misfit is not None:
        raise ConfigError(f"model.name: the weights are not those of the model in config.json: {misfit.reason()}")


def _refuse_twins(model: PreTrainedModel, stored: Mapping[str, Stored]) -> None:
    """Refuse weights that hold a parameter of the base model under two of its names: which is loaded, none can tell."""
    head = set(head_parameters(model))
    parameters = {plain_name(model, name) for name, _ in model.named_parameters() if name not in head}
    names: dict[str, str] = {}
    for name in sorted(stored):
        plain = plain_name(model, name)
        if plain in parameters and names.setdefault(plain, name) != name:
            raise ConfigError(
                f"model.name: the weights hold one parameter twice, as {names[plain]!r} and as {name!r}; save the "
                "model once more with save_pretrained"
            )


@dataclass(frozen=True)
class _Misfit:
    """Why weights are not those of a model; all names are of its base model."""

    model: PreTrainedModel
    stored: Mapping[str, Stored]
    lacking: Sequence[str]
    mismatched: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]
    surplus: Sequence[str]

    @classmethod
    def of(cls, model: PreTrainedModel, fit: Fit, stored: Mapping[str, Stored]) -> "_Misfit | None":
        head = set(head_parameters(model))
        order = [name for name, _ in model.named_parameters() if name not in head]
        poolers = [name for name in order if is_pooler(name)]
        is_new_pooler = all(name in fit.missing for name in poolers)
        lacking = [name for name in order if name in fit.missing and not (is_new_pooler and is_pooler(name))]
        mismatched = {name: shapes for name, shapes in fit.mismatched.items() if name not in head}
        surplus = [name for name in sorted(fit.unexpected) if _has_no_place(model, name)]
        return cls(model, stored, lacking, mismatched, surplus) if lacking or mismatched or surplus else None

    def reason(self) -> str:
        return (
            self._wrapped()
            or self._quantised()
            or self._layers()
            or self._shapes()
            or self._prefixed()
            or self._names()
        )

    def _wrapped(self) -> str | None:
        known = {part for name, _ in self.model.named_parameters() for part in name.split(".")}
        for part, what in _WRAPPERS.items():
            names = [name for name in self.stored if part in name.split(".")]
            if part not in known and names:
                return f"{_beginning(part, names, self.stored)}: {what}"
        return None

    def _quantised(self) -> str | None:
        lacking = {_bare(self.model, name) for name in self.lacking}
        for name, tensor in self.stored.items():
            if _bare(self.model, name) in lacking and tensor.dtype not in FLOATING:
                return f"{name!r} is stored as {tensor.dtype}: give weights that are not quantised"
        return None

    def _layers(self) -> str | None:
        ours = _numbers(_bare(self.model, name) for name, _ in self.model.named_parameters())
        theirs = _numbers(_bare(self.model, name) for name in self.stored)
        for stem, numbers in ours.items():
            if stem in theirs and len(theirs[stem]) != len(numbers):
                return (
                    f"config.json says {len(numbers)} layers, the weights hold {len(theirs[stem])} ({stem}.*); give "
                    "the config.json that belongs to the weights"
                )
        return None

    def _shapes(self) -> str | None:
        for name in (name for name, _ in self.model.named_parameters() if name in self.mismatched):
            stored, wanted = self.mismatched[name]
            sizes = {ours for ours, theirs in zip(wanted, stored, strict=False) if ours != theirs}
            values = self.model.config.to_dict()
            keys = [f"{key} {values[key]}" for key in values if type(values[key]) is int and values[key] in sizes]
            says = f"config.json ({', '.join(keys)})" if keys and len(stored) == len(wanted) else "config.json"
            return (
                f"{name!r} has the shape {tuple(wanted)} by {says} and {tuple(stored)} in the weights; give the "
                "config.json that belongs to the weights"
            )
        return None

    def _prefixed(self) -> str | None:
        prefixes = Counter()
        for wanted in self.lacking:
            ends = (wanted, _bare(self.model, wanted))
            for name in self.stored:
                end = next((end for end in ends if name.endswith(f".{end}")), None)
                if end is not None:
                    prefixes[name.removesuffix(end)] += 1
        if not prefixes:
            return None
        prefix, count = prefixes.most_common(1)[0]
        if 2 * count < len(self.lacking):
            return None
        names = [name for name in self.stored if name.startswith(prefix)]
        return (
            f"{_beginning(prefix[:-1], names, self.stored)}: save the model inside what wraps it, or give the "
            "config.json that belongs to the weights"
        )

    def _names(self) -> str:
        if self.lacking:
            where = f"the weights, which begin with {min(self.stored)!r}, lack {_first(self.lacking)}"
        else:
            where = f"it has no place for {_first(self.surplus)}"
        return f"{where}; give the config.json that belongs to the weights, or save the model once more"


def _has_no_place(model: PreTrainedModel, name: str) -> bool:
    """Whether a name in the weights belongs inside the base model and would change what it computes.

    Unused heads do not; a pooler may be left over; ids and masks that older versions saved are neither a `weight` nor a
    `bias` of a module.
    """
    base = getattr(model, model.base_model_prefix, model)
    bare = _bare(model, name)
    inside = {child for child, _ in base.named_children()} | {child for child, _ in base.named_parameters()}
    module, _, leaf = bare.rpartition(".")
    is_leftover = leaf not in ("weight", "bias") and module in dict(base.named_modules())
    return bare.split(".")[0] in inside and not is_pooler(bare) and not is_leftover


def _bare(model: PreTrainedModel, name: str) -> str:
    return name.removeprefix(f"{model.base_model_prefix}.")


def _numbers(names: Iterable[str]) -> dict[str, set[str]]:
    """Path of a list of layers -> the numbers in it."""
    numbers: dict[str, set[str]] = {}
    for name in names:
        if matched := re.match(r"(.*?)\.(\d+)\.", name):
            numbers.setdefault(matched[1], set()).add(matched[2])
    return numbers


def _beginning(part: str, names: Sequence[str], stored: Mapping[str, Stored]) -> str:
    if all(name.startswith(f"{part}.") for name in stored):
        return f"every name starts with '{part}.'"
    return f"{len(names)} of {len(stored)} names hold '{part}.', for example {min(names)!r}"


def _first(names: Sequence[str]) -> str:
    return repr(names[0]) + (f" and {len(names) - 1} more" if len(names) > 1 else "")
