"""What may be compared: runs of one setting.

A setting is everything that two arms must share before their scores may be compared: backbone, data, training, adapter
settings and the environment.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from lora_bench.config.facts import Key
from lora_bench.config.grammar import layers_in_words
from lora_bench.config.schema import KEYS, LORA_METHODS
from lora_bench.verdicts.note import Note, gap
from lora_bench.wording import counted

PLACEMENTS = ("q", "k", "v", "o", "qk", "qv", "qkvo")  # the order of the paper's Table 5
REFERENCE_TARGETS = "qv"
FLOOR = "head_only"
OF_WEIGHTS = ("pissa", "olora")  # starts of A that are made of the weight, which no seed draws again
SAME_BUDGET = 0.02  # parameter counts this near each other, as a share, are one budget

_APART = ("adapter.method", "adapter.targets", "adapter.rank", "train.lr", "seed")  # what tells runs of a setting apart
_FIRST, _LAST = ("method", "layers", "init"), ("replicate", "precision")  # of the factors of their part


def _column(key: Key) -> str:
    """The column that is compared: what the head's rate is depends on whether it follows the adapter's."""
    return "head_rate" if key.path == "train.head_lr" else key.column


OF_FIELD = {_column(key): key for key in KEYS if key.fact.of and key.path not in _APART}
"""Column -> the scientific field that all runs of a setting share."""

SHARED = (  # of the backbone, the data and the training
    "model",
    "model_fingerprint",
    "task",
    "task_fingerprint",
    "metric",
    "train_rows",
    *(name for name, key in OF_FIELD.items() if key.fact.of != "adapter" and name not in ("head_rate", "precision")),
    "precision",
    "protocol",
    "environment",
)
OF_ADAPTER = ("head_rate", *(name for name, key in OF_FIELD.items() if key.fact.of == "adapter"))


def _factors() -> dict[str, str]:
    """What levels of one factor may be contrasted -> the key that a sweep varies."""

    def place(key: Key) -> tuple[str, int, bool]:
        name = _column(key)
        return key.section, _FIRST.index(name) if name in _FIRST else len(_FIRST), name in _LAST

    keys = sorted((key for key in KEYS if key.fact.factor), key=place)
    return {_column(key): "adapter" if key.name == "method" else key.path for key in keys}


FACTORS = _factors()
METHOD_SETTINGS = ("init", "alpha_policy", "b_lr_ratio")  # what tells PiSSA, OLoRA, rsLoRA and LoRA+ from LoRA
REQUIRED = ("run_id", "status", "model", "task", "method", "targets", "lr", "seed", "report", "select", "environment")


class NothingToShow(ValueError):
    """The store does not hold what was asked for: the message says what it lacks."""


# ---------------------------------------------------------------- settings


@dataclass(frozen=True)
class Setting:
    """Runs that may be compared with each other."""

    title: str  # for people: minilm · cola
    slug: str  # for file names
    facts: dict  # column -> the value that all runs here share
    runs: pd.DataFrame
    notes: list[Note] = field(default_factory=list)

    @property
    def metric(self) -> str:
        return str(self.facts.get("metric") or "score")


def prepare(frame: pd.DataFrame, *, metric: str | None = None) -> pd.DataFrame:
    """The store's frame with `scored`, `head_rate` and the rate of methods whose only rate is the head's.

    Args:
        metric: read `report_<metric>` and `select_<metric>` in place of the primary metric.

    Raises:
        NothingToShow: on an empty store, or a metric that no run has.
    """
    if frame.empty:
        raise NothingToShow("the store holds no run; start with: lora-bench +sweeps=quick")
    absent = [name for name in REQUIRED if name not in frame]
    if absent:
        raise NothingToShow(f"the store's frame lacks the columns {', '.join(absent)}")
    runs = frame.reset_index(drop=True)
    if metric:
        if f"report_{metric}" not in runs or f"select_{metric}" not in runs:
            known = sorted(name.removeprefix("report_") for name in map(str, runs) if name.startswith("report_"))
            raise NothingToShow(f"no run has the metric {metric!r}; metrics here are {', '.join(known) or 'none'}")
        runs["metric"], runs["report"], runs["select"] = metric, runs[f"report_{metric}"], runs[f"select_{metric}"]
        runs["train"] = runs.get(f"train_{metric}", np.nan)
    for name in ("lr", "head_lr", "report", "select", "train", "rank", "rank_min", "rank_max", "adapter_parameters"):
        runs[name] = pd.to_numeric(runs[name], errors="coerce") if name in runs else np.nan
    finite = np.isfinite(runs["report"]) & np.isfinite(runs["select"])
    runs["scored"] = (runs["status"] == "finished") & finite
    runs["targets"] = runs["targets"].where(runs["targets"].notna(), "")
    runs["map"] = _maps(runs)
    for name in (*SHARED, *OF_ADAPTER):
        if name in runs and runs[name].map(lambda value: isinstance(value, (list, tuple, dict))).any():
            runs[name] = runs[name].map(str)
    shared = [name for name in SHARED if name in runs and name != "environment"]  # blocks of one sweep have one policy
    alike = runs.groupby(shared, dropna=False, sort=False)
    runs["head_rate"] = pd.concat([_head_rates(group) for _, group in alike])
    runs["lr"] = runs["lr"].where(runs["lr"].notna(), runs["head_lr"])
    return runs


def _maps(runs: pd.DataFrame) -> pd.Series:
    """Marks of ranks by matrix, where a backbone has several maps of one placement and one span; else empty."""
    nothing = pd.Series("", index=runs.index)
    if "rank_map" not in runs or runs["rank_map"].isna().all():
        return nothing
    marks = runs["rank_map"].where(runs["rank_map"].notna(), "")
    span = [runs[name] for name in ("model_fingerprint", "targets", "rank_min", "rank_max")]
    return marks.where(marks.groupby(span, dropna=False).transform("nunique") > 1, "")


def settings(
    runs: pd.DataFrame,
    *,
    model: str | None = None,
    task: str | None = None,
    method: str | None = "lora",
    mix_environments: bool = False,
    free: Collection[str] = (),
) -> list[Setting]:
    """Split prepared runs of one LoRA method into settings; runs without targets join every setting they match.

    Args:
        method: None takes all LoRA methods together.
        free: columns that may differ within a setting, though a setting otherwise fixes them.

    Raises:
        NothingToShow: when the filters leave nothing, naming what the store holds instead.
    """
    for name, wanted in (("model", model), ("task", task)):
        runs = filter_runs(runs, name, wanted)
    adapted = runs[runs["method"].isin(LORA_METHODS if method is None else [method])]
    if adapted.empty:
        raise NothingToShow(
            f"no run of {f'method {method!r}' if method else 'a LoRA method'}; "
            f"the store holds {', '.join(sorted(set(runs['method'])))}"
        )
    floor = runs[~runs["method"].isin(LORA_METHODS)]
    free = {*free, "environment"} if mix_environments else free
    shared = [name for name in SHARED if name in runs and name not in free]
    keys = [*shared, *(name for name in OF_ADAPTER if name in runs and name not in free)]
    joins = [*shared, *(["head_rate"] if "head_rate" in keys else [])]
    shown = [name for name in keys if not name.endswith("fingerprint") and name not in ("model", "task", "metric")]
    made: list[Setting] = []
    groups = list(adapted.groupby(keys, dropna=False, sort=True))
    for values, group in groups:
        facts = dict(zip(keys, values, strict=True))
        beside = floor
        for name in joins:
            same = beside[name].isna() if _is_missing(facts[name]) else beside[name] == facts[name]
            # a head-only run's rate is its head's: it has no adapter rate that its head could follow
            beside = beside[same | ((name == "head_rate") & (facts[name] == "lr") & (beside["method"] == FLOOR))]
        same_pair = [g for _, g in groups if _name(g) == _name(group)]
        apart = _told_apart(group, same_pair, shown) | _on_layers(facts)
        title = " · ".join([*_name(group), *(f"{name.replace('_', ' ')} {value}" for name, value in apart.items())])
        slug = "_".join([*_name(group), *(f"{name}-{value}" for name, value in apart.items())])
        joined = pd.concat([group, beside]) if len(beside) else group
        notes = _setting_notes(joined, same_pair, mix_environments)
        made.append(Setting(title, slug_of(slug), facts, joined, notes))
    slugs = [setting.slug for setting in made]
    return [
        Setting(
            setting.title,
            f"{setting.slug}_{i}" if slugs.count(setting.slug) > 1 else setting.slug,
            setting.facts,
            setting.runs,
            setting.notes,
        )
        for i, setting in enumerate(made)
    ]


def comparable(runs: pd.DataFrame) -> list[pd.DataFrame]:
    """Prepared runs of every method, split into those whose scores may be compared: one method, trained alike."""
    keys = [name for name in (*SHARED, *OF_ADAPTER, "method") if name in runs]
    runs = runs.assign(head_rate=runs["head_rate"].mask(runs["method"] == FLOOR, "lr"))  # it is what is tuned there
    return [group for _, group in runs.groupby(keys, dropna=False)]


def differing(groups: list[pd.DataFrame], names: Iterable[str]) -> list[str]:
    """The names of which not all groups hold one value."""
    return [name for name in names if len({_short(group[name].iloc[0]) for group in groups}) > 1]


def varied_factors(runs: pd.DataFrame) -> dict[str, list[str]]:
    """Sweep (empty for a grid of the command line) -> the factors that its runs vary, the method among them."""
    factors = {}
    for sweep, of_sweep in runs[runs["method"] != FLOOR].groupby(runs["sweep"].fillna("")):
        lora = of_sweep[of_sweep["method"].isin(LORA_METHODS)]
        presets = {
            preset_of(*kind) for kind in of_sweep[["method", "init", "alpha_policy"]].drop_duplicates().to_numpy()
        }
        varied = [by for by in FACTORS if by != "method" and by in lora and lora[by].nunique(dropna=False) > 1]
        factors[str(sweep)] = ["method"] * (len(presets) > 1) + varied
    return factors


def preset_of(method: str, init: object, alpha_policy: object) -> str:
    """The adapter preset (conf/adapter) of a run's method: PiSSA, OLoRA and rsLoRA are LoRA with a setting."""
    if method == "lora" and init in OF_WEIGHTS:
        return str(init)
    return "rslora" if method == "lora" and alpha_policy == "rslora" else method


def filter_runs(runs: pd.DataFrame, name: str, wanted: str | None) -> pd.DataFrame:
    """Runs of one model or task, by its full name or the last part of it; all of them for None.

    Raises:
        NothingToShow: when there is none, naming what the store holds.
    """
    if wanted is None:
        return runs
    names = runs[name].astype(str)
    kept = runs[(names == wanted) | (names.map(short_name) == wanted)]
    if kept.empty:
        raise NothingToShow(f"no run has {name} {wanted!r}; the store holds {', '.join(sorted(names.unique()))}")
    return kept


def at_budgets(setting: Setting, *, budget: int | None = None) -> list[tuple[int, pd.DataFrame]]:
    """The runs of a setting that spend the same number of adapter parameters, with the runs that spend none.

    Without `budget`, the ones at which the most placements meet, and then those at which a placement that they lack
    meets another.

    Raises:
        NothingToShow: when no two placements meet at a budget.
    """
    adapted = setting.runs[setting.runs["targets"] != ""]
    budgets = budget_of(adapted).dropna()
    meeting = {int(count): adapted.loc[same.index] for count, same in budgets.groupby(budgets)}
    budgets_shown = ", ".join(f"{count:,}: {' '.join(sorted(set(here['targets'])))}" for count, here in meeting.items())
    if budget is not None:
        near = [count for count in meeting if abs(count - budget) <= SAME_BUDGET * budget]
        if not near:
            raise NothingToShow(
                f"{setting.title}: no run has {budget:,} adapter parameters; the store holds {budgets_shown}"
            )
        chosen = near
    else:
        most = max((here["targets"].nunique() for here in meeting.values()), default=0)
        if most < 2:
            raise NothingToShow(
                f"{setting.title}: no two placements share a budget ({budgets_shown or 'no adapter runs'}); "
                "sweep them with adapter.budget=q@8 adapter.rank=null"
            )
        chosen = [count for count, here in meeting.items() if here["targets"].nunique() == most]
        shown = {targets for count in chosen for targets in meeting[count]["targets"]}
        for count, here in sorted(meeting.items(), key=lambda item: -item[1]["targets"].nunique()):
            if here["targets"].nunique() > 1 and not shown.issuperset(here["targets"]):
                chosen.append(count)
                shown.update(here["targets"])
    floor = setting.runs[setting.runs["method"] == FLOOR]
    return [(count, pd.concat([meeting[count], floor]) if len(floor) else meeting[count]) for count in chosen]


def budget_of(runs: pd.DataFrame, *, column: str = "adapter_parameters") -> pd.Series:
    """The parameters that each run counts as having, nan where they are not known.

    Counts within SAME_BUDGET of each other are one budget, named by the commonest, since MLP and grouped-query matrices
    divide unevenly.
    """
    n_runs = runs[column].dropna().value_counts().sort_index()
    named: dict[float, float] = {}
    cluster: list[float] = []
    for count in [*n_runs.index, math.inf]:
        if cluster and count > cluster[0] * (1 + SAME_BUDGET):
            named |= dict.fromkeys(cluster, max(cluster, key=n_runs.__getitem__))
            cluster = []
        cluster.append(count)
    return runs[column].map(named)


# ---------------------------------------------------------------- helpers


def _head_rates(runs: pd.DataFrame) -> pd.Series:
    """`lr` where the head follows the adapter's rate, else the head's rate as text; of runs trained alike.

    Records hold the resolved head rate, so a head that follows shows only in that no run of its rate has another lr.
    """
    rates = runs["head_lr"].map(lambda rate: f"{rate:g}" if pd.notna(rate) else "")
    adapted = runs["lr"].notna() & runs["head_lr"].notna()
    fixed = set(rates[adapted & (runs["lr"] != runs["head_lr"])])
    follows = adapted & ~rates.isin(fixed)
    several = runs.loc[follows, "lr"].nunique() > 1
    return rates.mask(follows & several, "lr")


def _on_layers(facts: dict) -> dict[str, str]:
    """The layers where not all are adapted: another question, even where no other setting of the pair asks it."""
    layers = str(facts.get("layers", "all"))
    return {"layers": layers_in_words(list(map(int, layers.split(","))))} if layers[:1].isdigit() else {}


def _told_apart(group: pd.DataFrame, groups: list[pd.DataFrame], names: list[str]) -> dict[str, str]:
    """What tells a setting from the others of its backbone and task: settings that vary, else the fingerprint's head.

    Rows cut or drawn otherwise have another fingerprint and often nothing else that a column shows.
    """
    varied = differing(groups, names)
    values = {name: _short(group[name].iloc[0]) for name in varied}
    twins = [other for other in groups if all(_short(other[name].iloc[0]) == values[name] for name in varied)]
    prints = [name for name in ("model_fingerprint", "task_fingerprint") if name in group]
    return values | {name: _short(group[name].iloc[0])[:6] for name in differing(twins, prints)}


def _setting_notes(runs: pd.DataFrame, same_pair: list[pd.DataFrame], mixed: bool) -> list[Note]:
    notes = []
    if mixed and runs["environment"].nunique() > 1:
        n_mixed = runs["environment"].nunique()
        notes.append(Note(f"runs of {n_mixed} environments are mixed, as asked: a difference may be the machine's"))
    elsewhere = set(pd.concat(same_pair)["environment"]) - set(runs["environment"])
    if elsewhere and not mixed:
        others = counted(len(elsewhere), "other environment")
        notes.append(gap(f"the store also holds such runs from {others}, kept apart (--mix-environments joins them)"))
    if "dirty" in runs and runs["dirty"].fillna(False).astype(bool).any():
        notes.append(Note("some runs were made from a working tree with uncommitted changes"))
    return notes


def refuse_duplicates(setting: Setting, runs: pd.DataFrame) -> None:
    """Two runs of one arm, rate and seed differ in something that the frame does not show: a mean would mix them.

    Raises:
        NothingToShow: naming the runs.
    """
    point = ["arm", "lr", "seed"]  # mixed environments too: one seed has one run, or pairs would be a matter of chance
    twice = runs[runs.duplicated(point, keep=False)]
    if len(twice):
        arm, rate, seed = twice.iloc[0][["arm", "lr", "seed"]]
        ids = ", ".join(twice[(twice["arm"] == arm) & (twice["lr"] == rate) & (twice["seed"] == seed)]["run_id"][:4])
        raise NothingToShow(
            f"{setting.title}: several runs of {arm} at lr {rate:g}, seed {seed} ({ids}) differ in a setting that the "
            "table cannot tell apart; keep one of them in a store of its own"
        )


def _is_missing(value: object) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value)) or value is pd.NA


def _name(runs: pd.DataFrame) -> tuple[str, str]:
    return short_name(runs["model"].iloc[0]), str(runs["task"].iloc[0])


def _short(value: object) -> str:
    if _is_missing(value):
        return "none"
    if isinstance(value, float):
        return f"{value:g}"
    return str(value)


def short_name(model: object) -> str:
    """A backbone's name without its owner, or the folders that it lies in."""
    return str(model).rsplit("/", 1)[-1]


def slug_of(text: str) -> str:
    """A text as part of a file's name."""
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in text)
